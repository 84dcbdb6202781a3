"""What a run says is ahead of it: compared with what it then samples."""

import re

import pytest

import evaluate
import rollout
import train
from infra import forecast
from infra.run_folder import read_lines

pytestmark = pytest.mark.usefixtures("no_figure")


def run(folder, *flags):
    train.main([
        "--rounds", "5", "--batch-size", "4", "--eval-every", "2", "--eval-limit", "7",
        "--max-new-tokens", "8", "--out", str(folder), *flags,
    ])  # fmt: skip


def numbers(text):
    """The numbers of the line "ahead: ..."."""
    (line,) = re.findall(r"^ahead: .*", text, re.MULTILINE)
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", line)[:3]]


@pytest.mark.parametrize("flags", [
    [], ["--eval-samples", "1", "--advantage", "group", "--baseline-rollouts", "3"],
])  # fmt: skip
def test_it_counts_what_is_sampled(flags, tmp_path, monkeypatch, capsys):
    counts = {"evaluation": 0, "rollouts": 0}
    sample = rollout.sample_sharded

    def count_and_sample(model, prompts, n=1, **options):
        counts["evaluation" if is_evaluating else "rollouts"] += len(prompts) * n
        return sample(model, prompts, n, **options)

    def evaluate_run(*args):
        nonlocal is_evaluating
        is_evaluating = True
        original(*args)
        is_evaluating = False

    is_evaluating, original = False, evaluate.evaluate_run
    monkeypatch.setattr(rollout, "sample_sharded", count_and_sample)
    monkeypatch.setattr(evaluate, "evaluate_run", evaluate_run)
    run(tmp_path / "run", *flags)
    said = numbers(capsys.readouterr().out)
    assert said == [counts["rollouts"], counts["evaluation"], 4]  # rounds 0, 2, 4 and 5
    # A resume counts what is left: four more rounds, evaluations at 6, 8 and 9.
    counts.update(evaluation=0, rollouts=0)
    run(tmp_path / "run", *flags, "--rounds", "9", "--resume")
    assert numbers(capsys.readouterr().out) == [counts["rollouts"], counts["evaluation"], 3]


def test_it_tells_the_time_of_a_long_run_once(tmp_path, monkeypatch, capsys):
    run(tmp_path / "short")
    assert "at this pace" not in capsys.readouterr().out
    monkeypatch.setattr(forecast, "WORTH_SAYING", 0)
    run(tmp_path / "long")
    assert capsys.readouterr().out.count("at this pace") == 1


def test_the_time_is_that_of_what_is_left():
    args = train.parse(["--rounds", "10", "--eval-every", "5", "--eval-samples", "1"])
    ahead = forecast.Forecast(args, 100, 50, done=0, evaluated=-1)
    ahead.evaluated, ahead.completion_seconds = 0, 60.0
    ahead.done, ahead.round_seconds = 1, 1200.0
    # Nine rounds of 20 minutes; at 5 and at 10 an evaluation of 150 and of 300 minutes.
    assert "about 10.5 hours, of them 7.5 for evaluations" in ahead.time_in_words()


def test_evaluations_are_at_their_own_temperature_and_limit(tmp_path):
    """Near temperature 0 a sample is the greedy completion."""
    run(tmp_path / "run", "--eval-temperature", "0.01", "--eval-samples", "1")
    lines = read_lines(tmp_path / "run" / "evals.jsonl")
    assert [len(line["right"]) for line in lines] == [7] * 8
    for line in lines[:2] + lines[-2:]:
        assert line["pass@1"] == line["greedy"]
