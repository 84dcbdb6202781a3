"""The statistics of the report against numbers worked by hand, and the experiment pipeline end to end, in miniature."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

import bandit
import report
import train


def test_the_interval_of_a_known_sample():
    """0.02, 0.05, 0.05: mean 0.04, standard deviation 0.017321, its error 0.01; t of two degrees of freedom 4.303."""
    mean, half = report.t_interval([0.02, 0.05, 0.05])
    assert mean == pytest.approx(0.04) and half == pytest.approx(0.04303)
    assert report.verdict((mean, half)) == "same" and report.verdict((0.05, half)) == "more"
    assert report.verdict((-0.05, half)) == "less" and report.verdict(report.t_interval([0.1])) == "unknown"
    assert np.isnan(report.t_interval([])[0]) and report.interval(report.t_interval([0.1])) == "+0.100 (one seed)"


@pytest.mark.parametrize("seeds", [3, 5, 25])
def test_the_interval_covers_what_it_says(seeds):
    rng, hits, trials = np.random.default_rng(0), 0, 4000
    for _ in range(trials):
        mean, half = report.t_interval(rng.normal(0.3, 2.0, seeds))
        hits += abs(mean - 0.3) <= half
    assert abs(hits / trials - 0.95) < 4 * (0.95 * 0.05 / trials) ** 0.5


def made(rounds, test, rollouts):
    """A run as read_run gives it, with these evaluations."""
    return {"round": np.array(rounds), "rollouts": np.array(rollouts), "test": np.array(test)}


def test_gains_are_paired_by_seed_and_taken_at_equal_cost():
    runs = {"32x1": {s: made([0, 10, 80], [0.2, 0.3 + s, 0.9 + s], [0, 320, 2560]) for s in (0, 1, 2)},
            "32x8": {s: made([0, 10], [0.2, 0.5 + s], [0, 2560]) for s in (0, 1, 3)}}
    mean, half = report.gain(runs, "32x8", "32x1", "test")  # at round 10, the seeds 0 and 1 that both have
    assert mean == pytest.approx(0.2) and half == pytest.approx(0)
    mean, _ = report.gain(runs, "32x8", "32x1", "test", "rollouts")  # at 2,560 rollouts, extras and all
    assert mean == pytest.approx(-0.4)
    runs["one"] = {0: made([0, 10], [0.2, 0.3], [0, 10])}  # over before the baseline's first evaluation
    assert np.isnan(report.gain(runs, "one", "32x1", "test", "rollouts")[0])


def test_the_best_round_is_not_scored_on_the_queries_that_chose_it():
    right = np.zeros((3, 40), dtype=int)
    right[1, ::2] = 1  # a lucky evaluation of the half that chooses
    right[2, 1::2] = 1
    run = {"round": np.array([0, 5, 10]), "test_right": right}
    assert report.best_round(run) == (5, 0.0, False)
    right[1, 1::2], right[2] = 1, 0  # good everywhere, then nothing is right any more
    assert report.best_round(run) == (5, 1.0, True)


def test_the_table_of_all_pairs():
    def runs(*values):
        return {name: {s: made([0, 10], [0.2, value], [0, 320]) for s in (0, 1, 2)}
                for name, value in zip(("32x1", "32x8", "raft"), values, strict=False)}

    plan = [("rollouts", "32x1", ""), ("rollouts", "32x8", ""), ("batch", "32x8", ""), ("neighbours", "raft", "")]
    text = report.across({"one": runs(0.5, 0.6, 0.7), "two": runs(0.5, 0.45)}, plan)
    assert text[2:5] == ["| setting | one | two |", "|---|---|---|", "| 32x8 | +0.100 ± 0.000 | -0.050 ± 0.000 |"]
    assert report.across({"one": runs(0.5, 0.6)}, plan) == []


def test_a_finding_that_depends_on_the_rate_is_undecided():
    def seeds(value):
        return {s: made([0, 10], [0.2, value + 0.001 * s], [0, 320]) for s in (0, 1, 2)}

    runs = {"32x1": seeds(0.5), "32x1@higher": seeds(0.5), "32x8": seeds(0.6), "32x8@higher": seeds(0.4)}
    runs["32x8"][0]["test"] += 0.001  # some spread of the differences
    runs["32x8@higher"][0]["test"] += 0.001
    assert len(report.undecided(runs)) == 1 and report.undecided(runs)[0].endswith("depends on the learning rate.")
    runs["32x8@higher"] = {s: made([0, 10], [0.2, 0.6 + 0.002 * s], [0, 320]) for s in (0, 1, 2)}
    assert "undecided" not in report.undecided(runs)[0]


# --- ablate.sh --------------------------------------------------------------------------------------------------


def ablate(*words, check=True, **settings):
    done = subprocess.run([ROOT / "ablate.sh", *words], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": sys.executable, **settings})
    assert done.returncode == 0 or not check, done.stderr
    return done


def test_every_line_of_the_plan_is_valid():
    listed = ablate("--list", "full", SEEDS="3", MODEL="tiny-llama", DATA="gsm8k").stdout.splitlines()
    parsed = [train.parse(line.split()[2:]) for line in listed]
    assert len({args.out for args in parsed}) == len(listed) > 40
    assert all(args.seed == 3 and args.model == "tiny-llama" and args.data == "gsm8k" for args in parsed)
    text = (ROOT / "ablate.sh").read_text()
    tried = {args.advantage for args in parsed} | {"psr"}
    assert "= psr " in text and tried == set(bandit.ADVANTAGES)
    assert {args.loss_mean for args in parsed} == set(bandit.LOSS_MEANS)
    assert {args.kl_estimator for args in parsed if args.kl} == set(bandit.KL_ESTIMATORS)
    assert {(a.batch_size, a.rollouts) for a in parsed if a.advantage == "group"} >= {
        (2**i, 256 // 2**i) for i in range(8)}
    assert {a.batch_size * a.rollouts for a in parsed if a.window and a.advantage == "window"} == {256, 512, 1024, 2048}


def test_the_teaching_selection_and_rungs():
    listed = ablate("--list").stdout.splitlines()
    parsed = [train.parse(line.split()[2:]) for line in listed]
    assert {args.seed for args in parsed} == {0, 1, 2}
    assert max(args.batch_size * (args.rollouts + args.baseline_rollouts) for args in parsed) == 256
    only = ablate("--list", "advantage", SEEDS="0").stdout.splitlines()
    assert [line.split("/")[-2] for line in only] == ["32x1", "32x1-long", "32x1+7"]
    wrong = ablate("--list", "advantages", check=False)
    assert wrong.returncode == 2 and "advantages is no rung" in wrong.stderr


def test_the_papers_preset():
    parsed = [train.parse(line.split()[2:]) for line in ablate("--list", PRESET="paper", SEEDS="0").stdout.splitlines()]
    assert {(args.model.split("/")[1], args.data) for args in parsed} == {
        (model, data) for model in ("Qwen2.5-0.5B-Instruct", "Llama-3.2-1B-Instruct", "OLMo-2-0425-1B-Instruct")
        for data in ("gsm8k", "math")}
    assert {(a.lr, a.kl, a.max_new_tokens, a.max_prompt_tokens, a.weight_decay) for a in parsed} == {
        (1e-6, 0.001, 1024, 512, 0.01)}
    assert {(a.batch_size, a.rollouts) for a in parsed if a.window} == {
        (64, 4), (128, 2), (256, 1), (512, 1), (1024, 1), (2048, 1)}


@pytest.mark.slow
def test_the_pipeline_in_miniature(tmp_path, checkpoint):
    """Three settings, two seeds: stopped midway and resumed, one run made to fail, one damaged afterwards."""
    sets = tmp_path / "set"
    sets.mkdir()
    for split, count in (("train", 24), ("test", 8)):
        lines = (ROOT / "tiny" / f"gsm_{split}.jsonl").read_text().splitlines()[:count]
        (sets / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    settings = dict(MODEL=checkpoint("qwen2"), DATA=str(sets), SEEDS="0 1", ROUNDS="20",
                    FLAGS="--batch-size 8 --max-new-tokens 6 --eval-samples 2 --save-every 1", JOBS="2")
    whole, part = tmp_path / "whole", tmp_path / "part"
    ablate("advantage", OUT=str(whole), **settings)
    pair = next(path for path in whole.iterdir() if path.is_dir()).name

    process = subprocess.Popen([ROOT / "ablate.sh", "advantage"], start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, env={**os.environ, "PYTHON": sys.executable, "OUT": str(part),
                                                            **settings})
    log, deadline = part / pair / "32x1-long" / "seed-0" / "metrics.jsonl", time.time() + 90
    while len(report.read_lines(log)) < 10 and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    _, said = process.communicate()
    assert process.returncode == 130 and b"the same command goes on" in said
    while subprocess.run(["pgrep", "-f", str(part)], capture_output=True).stdout and time.time() < deadline:
        time.sleep(0.1)  # the runs end their rounds
    stopped = len(report.read_lines(log))
    assert 10 <= stopped < 160 and not (log.parent / "summary.json").exists()

    broken = part / pair / "32x1+7" / "seed-1"
    broken.mkdir(parents=True, exist_ok=True)
    (broken / "config.json").write_text("{")
    done = ablate("advantage", OUT=str(part), check=False, **settings)
    assert done.returncode == 1 and "32x1+7/seed-1: train.py: --resume: there is no run" in done.stderr
    for setting, seed in (("32x1", 0), ("32x1", 1), ("32x1-long", 0), ("32x1-long", 1), ("32x1+7", 0)):
        one, two = (folder / pair / setting / f"seed-{seed}" / "evals.jsonl" for folder in (whole, part))
        assert report.read_lines(one) == report.read_lines(two)
    shutil.rmtree(broken)
    again = ablate("advantage", OUT=str(part), **settings).stdout.splitlines()
    assert sum(" runs finished" in line for line in again) == 1 and "6 of 6" in again[0]  # only what was missing is run

    (part / pair / "32x1-long" / "seed-1" / "evals.jsonl").write_text("{")
    page = report.report(part, tmp_path / "out").read_text()
    assert "32x1-long/seed-1" in page.split("Left out")[1].split("\n")[0]
    assert page.count("### ") == 3 and "| 32x1+7 | 2 |" in page and "| 32x1-long | 1 |" in page and "moved most" in page
    summary = [json.loads((part / pair / "32x1+7" / f"seed-{s}" / "summary.json").read_text()) for s in (0, 1)]
    assert f"{np.mean([s['test_pass@1_after'] for s in summary]):.3f}" in page.split("| 32x1+7 |")[1].split("\n")[0]
    assert all(s["rollouts"] == 20 * 8 * 8 for s in summary)
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    rows = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert len(rows) == 5 and rows[0].startswith("pair,rung,setting")
    other = ablate("advantage", OUT=str(part), check=False, **{**settings, "ROUNDS": "21"})
    assert other.returncode == 1 and "name another OUT" in other.stderr
