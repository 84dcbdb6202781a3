"""What a machine does to a run: a full disk, a damaged file, a second start, a kill. Nothing that
was computed is lost, and nothing wrong is computed."""

import contextlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import (
    ROOT,
    assert_equal_runs,
    fail_at_call,
    grade_by_coin,
    read_log,
    small_run_flags,
    wait_until,
)

import bandit
import evaluate
import train
from infra.checkpoint import list_checkpoints
from infra.run_folder import RunFolder


@contextlib.contextmanager
def largest_file(size):
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name, call, file, saved", [
    ("grade", 1, "round-000000.pt", None),  # before the first checkpoint
    ("evaluate_run", 3, "round-000004.pt", 2),
    ("sample_lines", 1, "model", 6),  # after the last one
])  # fmt: skip
def test_a_full_disk_is_named_and_the_run_goes_on(
    finished_run, small_run, coin_verifier, monkeypatch, tmp_path, name, call, file, saved
):
    function, calls = getattr(evaluate, name), []

    def filling(*args):
        calls.append(name)
        if len(calls) == call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        return function(*args)

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with largest_file(hard), monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(evaluate, name, filling)
        small_run("part")
    sentence = stop.value.code
    assert f"cannot write {tmp_path / 'part'}" in sentence
    assert f"{file}: " in sentence and "File too large" in sentence
    assert len(sentence.splitlines()) == 1
    assert (f"goes on from round {saved}" in sentence) == (saved is not None)
    assert_equal_runs(finished_run, small_run("part", "--resume"))
    assert not list((tmp_path / "part").rglob("*.tmp"))


# --- damaged files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crashed_run(tmp_path_factory, checkpoint, problems):
    """The folder of a run that crashed in round 6. Its checkpoints are of rounds 2 and 4."""
    out = tmp_path_factory.mktemp("runs") / "crashed"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="the power went"):
        patch.setattr(evaluate, "grade", grade_by_coin)
        fail_at_call(patch, bandit, "update", 6, RuntimeError("the power went"))
        train.main(small_run_flags(checkpoint("qwen2"), problems, out))
    return out


@pytest.fixture
def part(crashed_run, tmp_path):
    """A copy of its folder."""
    return shutil.copytree(crashed_run, tmp_path / "part")


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def change(path):
    text = bytearray(path.read_bytes())
    text[100] ^= 1
    path.write_bytes(text)


@pytest.mark.parametrize("name", ["metrics.jsonl", "evals.jsonl"])
@pytest.mark.parametrize("damage", [cut, change, lambda path: path.unlink()])
def test_a_run_does_not_go_on_from_a_damaged_log(part, small_run, name, damage):
    """Its summary would be of other evaluations than those that were made."""
    damage(part / name)
    with pytest.raises(SystemExit, match=f"{name} is not what it was") as stop:
        small_run("part", "--resume")
    assert len(stop.value.code.splitlines()) == 1


@pytest.mark.parametrize("content", [
    [1, 2], {"round": 4}, {"round": 4, "model": {"w": torch.zeros(2)}, "optimizer": {}},
])  # fmt: skip
def test_a_checkpoint_of_another_content_is_refused(part, small_run, content):
    for path in list_checkpoints(part):
        torch.save(content, path)
    with pytest.raises(SystemExit, match="is not of this run") as stop:
        small_run("part", "--resume")
    assert len(stop.value.code.splitlines()) == 1


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    part, finished_run, small_run, coin_verifier, capsys
):
    newest, _ = list_checkpoints(part)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    (part / "checkpoints" / "round-000005.tmp").write_bytes(b"half")
    assert_equal_runs(finished_run, small_run("part", "--resume"))
    assert "round-000004.pt cannot be read" in capsys.readouterr().err
    assert not list(part.rglob("*.tmp"))


# --- two processes --------------------------------------------------------------------------------


def test_a_second_start_is_refused(small_run, tmp_path):
    first = RunFolder(tmp_path / "part", {"resume": False})
    first.take()
    for flags in ([], ["--resume"]):
        (tmp_path / "part" / "config.json").write_text("{}")
        with pytest.raises(SystemExit, match="another process is at work there"):
            small_run("part", *flags)
    first.release()


@pytest.mark.slow
def test_two_starts_at_once(small_run, checkpoint, problems, tmp_path):
    """One of them runs, twice: from the beginning, and on from where it was killed."""
    whole, part = small_run("whole", "--rounds", "30"), tmp_path / "part"
    flags = small_run_flags(checkpoint("qwen2"), problems, part, "--rounds", "30")
    for resume in ([], ["--resume"]):
        command = [sys.executable, ROOT / "train.py", *flags, *resume]
        pair = [
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
            for _ in range(2)
        ]
        wait_until(lambda pair=pair: any(one.poll() is not None for one in pair), 90)
        if not resume:
            wait_until(lambda: len(read_log(part)) > 4, 90)
            for one in pair:
                one.kill()
        said = [one.communicate()[1] for one in pair]
        assert sum("another process is at work there" in each for each in said) == 1, said
    assert_equal_runs(whole, part)


@pytest.mark.slow
def test_a_chain_of_kills(small_run, checkpoint, problems, tmp_path):
    """SIGKILL ten times at drawn moments, in every phase from the imports on; in the end the run
    equals one that was never stopped. A file is damaged on the way, too."""
    whole, part = small_run("whole", "--rounds", "40"), tmp_path / "part"
    flags = small_run_flags(checkpoint("qwen2"), problems, part, "--rounds", "40")
    moments, kills = random.Random(1), 0
    while not (part / "summary.json").exists():
        has_started = (part / "config.json").exists()
        command = [sys.executable, ROOT / "train.py", *flags, *["--resume"] * has_started]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        if kills < 10:
            rounds = len(read_log(part))
            if kills % 3:  # in a round, in an evaluation, in a checkpoint
                wait_until(lambda rounds=rounds, process=process: process.poll() is not None
                           or len(read_log(part)) > rounds, 90)  # fmt: skip
                time.sleep(moments.random() * 0.3)
            else:  # in the imports, in the loading, in the resume
                time.sleep(moments.random() * 8)
            process.kill()
            kills += 1
        message = process.communicate()[1]
        assert "Traceback" not in message
        assert process.returncode in (0, -signal.SIGKILL), message
        if kills == 5 and (found := list_checkpoints(part))[1:]:
            shutil.copy(found[1], found[0])  # another content under the newest name
            change(found[0])
    assert kills == 10
    assert_equal_runs(whole, part)
