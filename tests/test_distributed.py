"""Many processes: they update like one, stop and resume like one, and fail like one."""

import os
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT, flatten, read_log, small_run_flags, wait_for_rounds
from ranks import update

import train
from infra import distributed, models
from infra.checkpoint import load_newest

RANKS = ROOT / "tests" / "ranks.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}  # for ranks.py, which is not in the root


def start_two(script, *words):
    """Start a script in two processes."""
    command = [*TORCHRUN, script, *map(str, words)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def run_two(script, *words):
    """Run a script in two processes; the exit status, and what they wrote to stderr."""
    process = start_two(script, *words)
    _, message = process.communicate()
    return process.returncode, message


# --- one process ----------------------------------------------------------------------------------


def test_one_process_passes_through():
    distributed.start()  # torchrun has not started this process
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.is_main_process()
    assert distributed.all_gather("a") == ["a"]
    assert list(distributed.shard(range(5))) == [0, 1, 2, 3, 4]
    numbers = torch.arange(3.0)
    distributed.all_reduce_sum([numbers])
    assert numbers.tolist() == [0, 1, 2]
    distributed.wait_and_exit()


def test_an_error_becomes_one_of_all_ranks():
    def fail(message):
        raise OSError(message)

    assert distributed.raise_on_all_ranks(max, 2, 3) == 3
    with pytest.raises(distributed.AllRanksError, match="no space"):
        distributed.raise_on_all_ranks(fail, "no space")
    with pytest.raises(ZeroDivisionError):  # not a user's mistake
        distributed.raise_on_all_ranks(lambda: 1 / 0)


def test_an_error_ends_a_single_process_with_its_message():
    with pytest.raises(SystemExit, match="train.py: no space"):
        distributed.exit_with_error("train.py", OSError("no space"))


def test_rows_are_split_evenly(monkeypatch):
    """Of rows in the order of their lengths every process gets long and short ones."""
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    shards = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shards.append(list(distributed.shard(range(10))))
    assert shards == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_which_errors_mean_that_another_process_is_gone(monkeypatch):
    closed = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    assert not distributed.is_peer_failure(closed)  # there is no other one
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.is_peer_failure(closed)
    assert not distributed.is_peer_failure(RuntimeError("the power went"))


# --- two processes --------------------------------------------------------------------------------

UPDATES = [  # the advantages of each round, and what the update is told
    ([[1.0, -0.5, 2.0]] * 2, {}),
    ([[1.0, 0.0, 0.0]] * 2, {}),  # one process has no completion with a gradient
    ([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], {}),  # then neither has
    ([[1.0, -0.5, 0.0]] * 2, {"loss_mean": "sequence", "epochs_per_round": 2, "micro_tokens": 8}),
    ([[1.0, 0.0, 0.0]] * 3, {"kl": 0.1}),
    (
        [[1.0, -0.5, 2.0]] * 2,
        {"correct_sampler": True, "loss_mean": "constant", "max_new_tokens": 6},
    ),
]


def known(measured):
    """The figures of an update that are not None."""
    return {name: value for name, value in measured.items() if value is not None}


@pytest.mark.slow
def test_two_processes_make_the_same_update(checkpoint, tmp_path):
    torch.save(UPDATES, tmp_path / "cases")
    status, message = run_two(RANKS, "update", checkpoint("qwen2"), tmp_path / "cases")
    assert status == 0, message
    for number, (rounds, changed) in enumerate(UPDATES):
        weights, measured = update(checkpoint("qwen2"), rounds, changed)
        for rank in (0, 1):
            other_weights, other_measured = torch.load(tmp_path / f"cases.{number}.{rank}")
            assert torch.allclose(weights, other_weights, atol=1e-8)
            wanted = pytest.approx(known(measured), rel=1e-4, abs=1e-7)
            assert known(other_measured) == wanted


@pytest.mark.slow
def test_two_processes_learn_like_one(small_run, checkpoint, problems, tmp_path):
    """Also when SIGTERM stops them, when two go on, and when one goes on. Only rounding differs.

    Previously the process that was done first destroyed the group, and another that still read from
    it was aborted.
    """
    out = tmp_path / "two"
    flags = ["--advantage", "window", "--window", "8", "--kl", "0.01", "--batch-size", "7"]
    two = small_run_flags(checkpoint("qwen2"), problems, out, *flags, "--save-every", "5")

    process = start_two(ROOT / "train.py", *two, "--rounds", "5000")
    wait_for_rounds(out, 6, process, seconds=120)
    process.terminate()
    message = process.communicate()[1]
    stopped = len(read_log(out))
    assert 6 <= stopped < 5000, message
    assert message.count("rank 0: stopped after round") == 1
    assert "rank 1:" not in message
    assert load_newest(out)["round"] == stopped

    status, message = run_two(ROOT / "train.py", *two, "--resume", "--rounds", stopped + 4)
    assert status == 0, message
    last = stopped + 8
    train.main([*two, "--resume", "--rounds", str(last)])
    whole = small_run("whole", *flags, "--rounds", str(last))

    lines, whole_lines = read_log(out), read_log(whole)
    assert [line["round"] for line in lines] == list(range(1, last + 1))
    for line, whole_line in zip(lines[:30], whole_lines[:30], strict=True):
        # Later, rounding may tip a token.
        assert (line["reward"], line["length"]) == (whole_line["reward"], whole_line["length"])
    if last <= 40:
        base, one, other = (
            flatten(models.load(str(folder), "cpu")[0])
            for folder in (checkpoint("qwen2"), whole / "model", out / "model")
        )
        assert (one - other).norm() < 1e-3 * (one - base).norm()


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run_with_its_message(checkpoint, problems, tmp_path):
    """Within a minute: the other one would wait for it in a collective."""
    flags = small_run_flags(checkpoint("qwen2"), problems, tmp_path / "a", "--rounds", "20")
    started = time.monotonic()
    status, message = run_two(RANKS, *flags, "--eval-every", "0")
    assert status != 0
    assert "rank 1: this one cannot go on" in message
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_mistake_of_the_user_is_reported_once(checkpoint, problems, tmp_path):
    flags = small_run_flags(checkpoint("qwen2"), problems, tmp_path / "a", "--batch-size", "25")
    status, message = run_two(ROOT / "train.py", *flags)
    assert status != 0
    assert message.count("--batch-size 25 is more than the 24 queries") == 1
