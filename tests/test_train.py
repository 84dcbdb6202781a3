"""The loop: what a run leaves behind, that it can be repeated and continued, and that it says what is wrong."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

import report
import train

TIMES = ("tokens_per_second", "seconds_sampling", "seconds_reward", "seconds_update")


def metrics(folder):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in report.read_lines(folder / "metrics.jsonl")]


def weights(folder):
    from safetensors.torch import load_file
    return load_file(folder / "model" / "model.safetensors")


def equal_runs(one, two):
    assert metrics(one) == metrics(two)
    assert report.read_lines(one / "evals.jsonl") == report.read_lines(two / "evals.jsonl")
    a, b = weights(one), weights(two)
    assert all((a[k] == b[k]).all() for k in a)


def test_what_a_run_leaves_behind(micro, coin):
    out = micro("a")
    for name in ("config.json", "summary.json", "metrics.jsonl", "evals.jsonl", "samples.jsonl", "curve.png"):
        assert (out / name).stat().st_size > 0
    lines = metrics(out)
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    wrong = [round(8 * (1 - line["accuracy"])) for line in lines]
    assert [line["regret"] for line in lines] == list(np.cumsum(wrong))
    evals = report.read_lines(out / "evals.jsonl")
    assert [(line["round"], line["split"]) for line in evals] == [
        (r, split) for r in (0, 2, 4, 6) for split in ("train", "test")]
    for line in evals:
        assert len(line["right"]) == (24 if line["split"] == "train" else 8)
        p = np.mean(line["right"])
        assert line["pass@1"] == pytest.approx(p)
        assert line["se"] == pytest.approx(np.std(line["right"], ddof=1) / len(line["right"]) ** 0.5)
    assert evals[1]["kl"] == 0 and evals[-1]["kl"] > 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds"] == 6 and summary["rollouts"] == 48
    for split in ("train", "test"):
        for when in ("before", "after"):
            assert {f"{split}_pass@1_{when}", f"{split}_pass@1_{when}_se"} <= set(summary)
            assert f"test_pass@2_{when}" in summary
    for line in report.read_lines(out / "samples.jsonl"):
        assert len(line["tokens"]) == len(line["logprobs_before"]) == len(line["logprobs_after"])
    model, tokenizer = train.rollout.load(str(out / "model"))
    assert len(tokenizer) <= model.config.vocab_size


def test_the_same_seed_gives_the_same_metrics(micro, coin):
    one, two, other = micro("a"), micro("b"), micro("c", "--seed", "1")
    equal_runs(one, two)
    assert metrics(other) != metrics(one)


@pytest.mark.parametrize("flags", [
    ["--advantage", "group", "--rollouts", "4"],
    ["--advantage", "group", "--baseline-rollouts", "7"],
    ["--advantage", "window", "--window", "8"],
    ["--advantage", "remax", "--kl", "0.01"],
    ["--advantage", "nsr", "--wrong-reward", "-1", "--loss-mean", "constant", "--epochs-per-round", "2"],
])
def test_a_run_that_crashed_is_continued_bit_for_bit(micro, coin, monkeypatch, flags):
    whole = micro("whole", *flags)
    update, calls = train.bandit.update, []

    def crash(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("the power went")
        return update(*args, **kwargs)

    monkeypatch.setattr(train.bandit, "update", crash)
    with pytest.raises(RuntimeError):
        micro("part", *flags)  # five rounds are in the log, the checkpoint is of round 4
    monkeypatch.setattr(train.bandit, "update", update)
    equal_runs(whole, micro("part", *flags, "--resume"))


def test_a_killed_run_is_continued_bit_for_bit(tmp_path, micro):
    whole = micro("whole", "--rounds", "30")
    part = tmp_path / "part"
    config = json.loads((whole / "config.json").read_text())
    argv = ["--model", config["model"], "--data", str(tmp_path), "--out", part, "--batch-size", "8", "--rounds", "30",
            "--eval-every", "2", "--save-every", "2", "--max-new-tokens", "6", "--eval-samples", "2", "--lr", "0.001"]
    for sign, rounds in ((signal.SIGKILL, 5), (signal.SIGTERM, 12)):
        process = subprocess.Popen([sys.executable, ROOT / "train.py", *argv, *(["--resume"] if rounds > 5 else [])],
                                   stderr=subprocess.PIPE, text=True)
        deadline = time.time() + 90
        while len(report.read_lines(part / "metrics.jsonl")) < rounds and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(sign)
        _, said = process.communicate()
        assert process.returncode != 0, "it finished before it was stopped"
        if sign == signal.SIGTERM:
            assert "--resume" in said and "Traceback" not in said
    with open(part / "metrics.jsonl", "a") as file:
        file.write('{"round": 99, "rew')  # as a kill in the middle of a line would leave it
    train.main([*map(str, argv), "--resume"])
    equal_runs(whole, part)


def test_fewer_queries_and_levels(micro, coin):
    out = micro("a", "--queries", "1", "--batch-size", "1")
    assert len(report.read_lines(out / "evals.jsonl")[0]["right"]) == 1
    out = micro("b", "--levels", "1", "2", "--batch-size", "2")
    rows = [json.loads(line) for line in (out.parent / "train.jsonl").read_text().splitlines()]
    assert len(report.read_lines(out / "evals.jsonl")[0]["right"]) == sum(row["level"] <= 2 for row in rows)


def test_what_the_update_is_given(micro, coin, monkeypatch):
    """Each trained completion with its own prompt and the advantage of its own reward, at the sampling temperature."""
    sampled, updates = [], []
    sample, update = train.rollout.sample, train.bandit.update

    def watch_sample(model, prompts, n=1, **kwargs):
        rollouts = sample(model, prompts, n, **kwargs)
        if n == 4:
            sampled.append((prompts, rollouts, kwargs))
        return rollouts

    def watch_update(model, optimizer, prompts, completions, advantage, **kwargs):
        updates.append((prompts, completions, advantage, kwargs))
        return update(model, optimizer, prompts, completions, advantage, **kwargs)

    monkeypatch.setattr(train.rollout, "sample", watch_sample)
    monkeypatch.setattr(train.bandit, "update", watch_update)
    micro("a", "--rounds", "2", "--advantage", "rloo", "--rollouts", "1", "--baseline-rollouts", "3", "--temperature",
          "0.7", "--loss-mean", "constant", "--eval-samples", "1", "--weight-decay", "0.5")
    assert len(sampled) == len(updates) == 2
    for (asked, rollouts, sampling), (prompts, completions, advantage, kwargs) in zip(sampled, updates, strict=True):
        assert sampling["temperature"] == kwargs["temperature"] == 0.7
        assert kwargs["loss_mean"] == "constant" and kwargs["longest"] == sampling["max_new_tokens"] == 6
        assert prompts == asked and completions == [r.tokens for r in rollouts[::4]]
        for row in range(8):
            rewards = [float(sum(r.tokens) % 2 == 0) for r in rollouts[4 * row:4 * row + 4]]
            assert advantage[row].item() == pytest.approx(rewards[0] - sum(rewards[1:]) / 3)


def test_every_query_comes_once_an_epoch(micro, coin, monkeypatch):
    seen, sample = [], train.rollout.sample

    def watch(model, prompts, n=1, **kwargs):
        if len(prompts) == 8 and n == 2:
            seen.append([tuple(p) for p in prompts])
        return sample(model, prompts, n, **kwargs)

    monkeypatch.setattr(train.rollout, "sample", watch)
    micro("a", "--rollouts", "2", "--eval-every", "0", "--eval-samples", "1")
    assert len(seen) == 6
    first, second = sum(seen[:3], []), sum(seen[3:], [])
    assert len(set(first)) == 24 and set(first) == set(second) and first != second


@pytest.mark.parametrize("flags, word", [
    (["--model", "no-such-model"], "--model no-such-model"),
    (["--data", "no-such-data"], "--data no-such-data"),
    (["--batch-size", "25"], "--batch-size 25"),
    (["--rounds", "0"], "--rounds: 0 must be at least 1"),
    (["--lr", "-1"], "--lr"),
    (["--lr", "much"], "--lr: much is not a number"),
    (["--temperature", "0"], "--temperature"),
    (["--advantage", "group"], "--advantage reward"),
    (["--advantage", "best"], "--advantage"),
    (["--kl", "nan"], "--kl"),
    (["--right-reward", "inf"], "--right-reward"),
    (["--kl-estimator", "k1"], "--kl-estimator"),
    (["--clip-high", "0.28"], "--epochs-per-round"),
    (["--lr", "1e30", "--wrong-reward", "-1"], "not finite"),
    (["--queries", "100"], "--queries 100"),
    (["--levels", "9"], "--levels"),
    (["--resume"], "there is no run"),
])
def test_bad_input_is_one_sentence(micro, capsys, flags, word):
    with pytest.raises(SystemExit) as stop:
        micro("a", *flags)
    said = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert stop.value.code != 0 and word in said and len(said.strip().splitlines()) == 1


def test_a_run_is_not_written_over(micro, coin):
    micro("a", "--rounds", "1")
    with pytest.raises(SystemExit, match="holds a run already"):
        micro("a", "--rounds", "1")
    with pytest.raises(SystemExit, match="--lr 0.001, not 0.002"):
        micro("a", "--rounds", "1", "--lr", "0.002", "--resume")
    out = micro("a", "--rounds", "3", "--resume")  # more rounds for a run that had finished
    assert [line["round"] for line in metrics(out)] == [1, 2, 3]


def test_malformed_data_names_file_and_line(micro, tmp_path):
    for text, word in (('{"question": "a", "answer": "#### 1"}\n{"question"\n', "line 2"), ("", "no usable row")):
        (tmp_path / "train.jsonl").write_text(text)
        with pytest.raises(SystemExit, match=word):
            micro("a")
