"""The state of a run: whatever interrupts it, a resumed run equals one that was never stopped."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from helpers import (
    ROOT,
    assert_equal_runs,
    fail_at_call,
    flatten,
    grade_by_coin,
    read_log,
    record_calls,
    small_run_flags,
    wait_for_rounds,
)

import bandit
import evaluate
import rollout
import train
from infra import curve, distributed, models
from infra.checkpoint import list_checkpoints

# --- interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [
    ["--advantage", "group", "--rollouts", "4"],
    ["--advantage", "group", "--baseline-rollouts", "7"],
    ["--advantage", "window", "--window", "8"],
    ["--advantage", "remax", "--kl", "0.01"],
    ["--advantage", "nsr", "--wrong-reward", "-1", "--loss-mean", "constant",
     "--epochs-per-round", "2"],
])  # fmt: skip
def test_a_run_that_crashed_is_continued_bit_for_bit(
    small_run, coin_verifier, monkeypatch, flags
):
    """Five rounds are in the log then, and the checkpoint is of round 4."""
    whole = small_run("whole", *flags)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the power went"):
        fail_at_call(patch, bandit, "update", 6, RuntimeError("the power went"))
        small_run("part", *flags)
    assert len(read_log(whole.parent / "part")) == 5
    assert_equal_runs(whole, small_run("part", *flags, "--resume"))


@pytest.mark.slow
def test_a_killed_run_is_continued_bit_for_bit(small_run, checkpoint, problems, tmp_path):
    """First by SIGKILL, then by SIGTERM, then in the middle of a line of the log."""
    whole, part = small_run("whole", "--rounds", "30"), tmp_path / "part"
    flags = small_run_flags(checkpoint("qwen2"), problems, part, "--rounds", "30")
    for number, rounds, resume in ((signal.SIGKILL, 5, []), (signal.SIGTERM, 12, ["--resume"])):
        command = [sys.executable, ROOT / "train.py", *flags, *resume]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for_rounds(part, rounds, process)
        process.send_signal(number)
        _, message = process.communicate()
        assert process.returncode != 0, "it finished before it was stopped"
        if number == signal.SIGTERM:
            assert "--resume" in message
            assert "Traceback" not in message
    with open(part / "metrics.jsonl", "a") as file:
        file.write('{"round": 99, "rew')
    train.main([*flags, "--resume"])
    assert_equal_runs(whole, part)


# --- memory that runs out -------------------------------------------------------------------------


WINDOWED = [
    "--save-every", "100", "--advantage", "window", "--window", "8", "--micro-tokens", "4096",
]  # fmt: skip


@pytest.fixture(scope="module")
def windowed_run(tmp_path_factory, checkpoint, problems):
    """The folder of a run with rewards in windows that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "windowed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "grade", grade_by_coin)
        patch.setattr(curve, "draw_curve", lambda folder: None)
        train.main(small_run_flags(checkpoint("qwen2"), problems, out, *WINDOWED))
    return out


@pytest.mark.parametrize("owner, name, call, advice", [
    (bandit, "update", 4, "lower --micro-tokens from 4096 to 2048"),
    # Five calls before the first round (both splits sampled and greedy, and pass@k), one in each of
    # rounds 1 and 2, two after round 2, one in round 3: the eleventh is of round 4.
    (rollout, "sample_sharded", 11, "sampling had no room: give --cache-tokens"),
    (evaluate, "kl_to_base", 2, "an evaluation had no room: give --cache-tokens"),  # of round 4
    (evaluate, "kl_to_base", 3, "an evaluation had no room"),  # after the last round
])  # fmt: skip
def test_out_of_memory_says_what_to_lower_and_loses_nothing(
    windowed_run, small_run, coin_verifier, monkeypatch, tmp_path, owner, name, call, advice
):
    """What the round or the evaluation had begun is done once. Previously the rewards of a round
    that failed stayed in the windows and entered them again after the resume, and an evaluation
    that failed was never made."""
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=advice) as stop:
        fail_at_call(patch, owner, name, call, error)
        small_run("part", *WINDOWED)
    assert "--resume" in stop.value.code
    assert len(stop.value.code.splitlines()) == 1
    newest = list_checkpoints(tmp_path / "part")[0]
    assert int(newest.stem.removeprefix("round-")) > 1  # not the one of the beginning

    resumed = small_run("part", *WINDOWED, "--micro-tokens", "2048", "--resume")
    assert read_log(windowed_run) == read_log(resumed)
    assert read_log(windowed_run, "evals") == read_log(resumed, "evals")


# --- the policy -----------------------------------------------------------------------------------


def test_a_run_in_bfloat16(small_run, checkpoint, coin_verifier):
    """The sampler and the update round differently. The masters are saved, not their roundings."""
    out = small_run(
        "a", "--dtype", "bfloat16", "--rounds", "3", "--kl", "0.01", "--lr", "1e-6",
        "--correct-sampler",
    )  # fmt: skip
    lines = read_log(out)
    for line in lines:
        assert 0 < line["sampler_mismatch"] < line["largest_sampler_mismatch"] < 0.5
    assert lines[0]["kl"] == 0
    assert json.loads((out / "model" / "config.json").read_text())["dtype"] == "float32"
    saved, _ = models.load(str(out / "model"), "cpu")
    base, _ = models.load(checkpoint("qwen2"), "cpu")
    moved = (flatten(saved) - flatten(base)).abs()
    assert 0 < moved[moved > 0].median() < 1e-5


def test_gradient_checkpointing_changes_memory_only(small_run, coin_verifier, monkeypatch):
    """Each layer runs once more in the backward pass; the weights come out the same."""
    mlp = sys.modules["transformers.models.qwen2.modeling_qwen2"].Qwen2MLP
    forward, has_gradient = mlp.forward, []

    def counted(self, hidden):
        has_gradient.append(torch.is_grad_enabled())
        return forward(self, hidden)

    monkeypatch.setattr(mlp, "forward", counted)
    passes, weights = [], []
    for name, flags in (("plain", []), ("saving", ["--gradient-checkpointing"])):
        has_gradient.clear()
        out = small_run(name, "--rounds", "2", *flags)
        passes.append(sum(has_gradient))
        weights.append(flatten(models.load(str(out / "model"), "cpu")[0]))
    assert passes[1] > passes[0]
    assert torch.allclose(*weights, atol=1e-6)


def test_there_is_a_reference_only_with_a_kl(small_run, coin_verifier, monkeypatch):
    calls = record_calls(monkeypatch, train, "train")
    small_run("without", "--kl", "0", "--rounds", "1")
    small_run("with", "--kl", "0.01", "--rounds", "1")
    without, with_kl = (args[1] for args, _, _ in calls)
    assert without.reference is None
    assert with_kl.reference is not None
    # The base model is the reference, or it is loaded again.
    assert with_kl.load_base_model() is with_kl.reference
    assert torch.equal(flatten(without.load_base_model()), flatten(with_kl.reference))


def test_the_curve_can_be_watched_while_a_run_goes_on(small_run, coin_verifier, monkeypatch):
    """It is drawn at each evaluation on the way and at the end, by the main process only, from the
    rounds and evaluations so far."""
    drawn = []

    def draw(folder):
        last = [read_log(folder, name)[-1]["round"] for name in ("metrics", "evals")]
        drawn.append(tuple(last))

    monkeypatch.setattr(curve, "draw_curve", draw)
    small_run("a")  # six rounds, an evaluation every two
    assert drawn == [(2, 2), (4, 4), (6, 6)]

    calls = record_calls(monkeypatch, train, "train")
    small_run("b", "--rounds", "1")
    ((_, state, _), _, _) = calls[0]
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    state.draw_curve()
    assert len(drawn) == 4


# --- what a run leaves behind ---------------------------------------------------------------------


def test_what_a_run_leaves_behind(finished_run):
    for name in (
        "config.json",
        "summary.json",
        "metrics.jsonl",
        "evals.jsonl",
        "samples.jsonl",
        "curve.png",
    ):
        assert (finished_run / name).stat().st_size > 0, name
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["rounds"] == 6
    assert summary["rollouts"] == 48
    assert summary["seed"] == 0
    assert summary["tokens"] == 8 * sum(line["length"] for line in read_log(finished_run))
    assert summary["regret"] == read_log(finished_run)[-1]["regret"]
    model, tokenizer = models.load(str(finished_run / "model"))
    assert len(tokenizer) <= model.config.vocab_size
