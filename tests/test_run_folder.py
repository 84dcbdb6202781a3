"""A run's folder: logs that a kill cuts short, logs of earlier versions, and runs that must not be
mixed up."""

import json
import os
import shutil
import signal

import pytest
from helpers import read_log, wait_until

from infra.run_folder import (
    Clock,
    RunFolder,
    StopRequest,
    Timer,
    read_lines,
    unused_folder,
    write_json,
    write_lines,
)

# --- logs -----------------------------------------------------------------------------------------


def test_lines_are_read_as_they_were_written(tmp_path):
    lines = [{"round": 1, "reward": 0.1, "kl": None}, {"round": 2, "right": [0, 1]}]
    write_lines(tmp_path / "log.jsonl", lines)
    assert read_lines(tmp_path / "log.jsonl") == lines
    assert read_lines(tmp_path / "missing.jsonl") == []


def test_a_line_that_a_kill_left_incomplete_is_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"round": 1}\n{"round": 2}\n{"round": 3, "rew')
    assert read_lines(tmp_path / "log.jsonl") == [{"round": 1}, {"round": 2}]


@pytest.mark.parametrize("content, message", [
    (b'{"round": 1}\n{"rou\n{"round": 3}\n', "log.jsonl, line 2 is not JSON"),
    (b'{"round": 1}\n[1]\n', "log.jsonl, line 2 is not a JSON object but a list"),
    (b'{"round": 1}\n"\xff"\n', "log.jsonl cannot be read: 'utf-8' codec"),
    (b"[" * 100_000 + b"\n", "log.jsonl, line 1 is not JSON"),
])  # fmt: skip
def test_a_damaged_log_is_named(tmp_path, content, message):
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_lines(tmp_path / "log.jsonl")


def test_a_reader_never_meets_half_a_file(tmp_path, monkeypatch):
    """A failure while writing leaves the file as it was."""
    path = tmp_path / "summary.json"
    write_json(path, {"rounds": 1})

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"rounds": 2})
    assert json.loads(path.read_text()) == {"rounds": 1}


# --- folders --------------------------------------------------------------------------------------


def test_a_new_run_gets_an_unused_folder(tmp_path):
    path = tmp_path / "lr=0.1"
    assert unused_folder(path, resume=False) == unused_folder(path, resume=True) == path
    for name in ("lr=0.1", "lr=0.1-2"):
        (tmp_path / name).mkdir()
    assert unused_folder(path, resume=False) == tmp_path / "lr=0.1-3"
    assert unused_folder(path, resume=True) == tmp_path / "lr=0.1-2"


def run_folder(path, **flags):
    return RunFolder(path, {"out": path, "resume": False, "lr": 0.1, "rounds": 6, **flags})


def open_folder(path, **flags):
    folder = run_folder(path, **flags)
    folder.take()
    folder.open()
    folder.release()
    return folder


def test_the_configuration_of_a_run(tmp_path):
    """Versions, and the flags that say what the run is: not where it is, nor how often it saves."""
    open_folder(tmp_path / "run", save_every=50, cache_tokens=None, micro_tokens=2048)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    versions = {"torch", "transformers", "commit", "processes"}
    assert set(config) == {"lr", "rounds", "micro_tokens"} | versions
    assert config["lr"] == 0.1
    assert config["processes"] == 1


def test_a_folder_that_holds_a_run_is_not_taken_again(tmp_path):
    """A start that computed nothing is no run: the corrected command gets the folder."""
    open_folder(tmp_path / "run", lr=9.0).append("evals", {"round": 0})
    with pytest.raises(ValueError, match="holds a run already"):
        run_folder(tmp_path / "run").take()
    open_folder(tmp_path / "run", resume=True)
    open_folder(tmp_path / "other", lr=9.0)
    open_folder(tmp_path / "other")
    with pytest.raises(ValueError, match="--resume: there is no run in"):
        run_folder(tmp_path / "third", resume=True).take()
    assert not (tmp_path / "third").exists()


def test_a_folder_has_one_process(tmp_path):
    folder = run_folder(tmp_path / "run")
    folder.take()
    with pytest.raises(ValueError, match="another process is at work there"):
        run_folder(tmp_path / "run").take()
    folder.release()
    (tmp_path / "run" / "config.tmp").write_text("half")
    open_folder(tmp_path / "run")
    assert not (tmp_path / "run" / "config.tmp").exists()


@pytest.mark.parametrize("changed", ["save_every", "cache_tokens", "micro_tokens", "rounds"])
def test_a_resume_may_change_what_changes_no_result(tmp_path, changed):
    flags = {"save_every": 50, "cache_tokens": None, "micro_tokens": 2048}
    open_folder(tmp_path / "run", **flags)
    run_folder(tmp_path / "run", **(flags | {changed: 7})).check_flags()


def test_a_resume_may_not_change_anything_else(tmp_path):
    open_folder(tmp_path / "run")
    with pytest.raises(ValueError, match="has --lr 0.1, not 0.2"):
        run_folder(tmp_path / "run", lr=0.2).check_flags()
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        run_folder(tmp_path / "run").check_flags()


def test_logs_are_cut_at_the_marks_of_a_checkpoint(tmp_path):
    folder = open_folder(tmp_path / "run")
    for number in (1, 2, 3):
        folder.append("metrics", {"round": number})
        if number == 2:
            marks = folder.log_marks()
    folder.cut_logs(marks)
    assert read_log(tmp_path / "run") == [{"round": 1}, {"round": 2}]
    (tmp_path / "run" / "metrics.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(ValueError, match="metrics.jsonl is not what it was"):
        folder.cut_logs(marks)
    folder.cut_logs({})  # there is no checkpoint yet
    assert read_log(tmp_path / "run") == []


def test_a_run_is_not_written_over(small_run, coin_verifier):
    small_run("a", "--rounds", "1")
    with pytest.raises(SystemExit, match="holds a run already"):
        small_run("a", "--rounds", "1")
    with pytest.raises(SystemExit, match="--lr 0.001, not 0.002"):
        small_run("a", "--rounds", "1", "--lr", "0.002", "--resume")
    out = small_run("a", "--rounds", "3", "--resume")  # more rounds for a run that had finished
    assert [line["round"] for line in read_log(out)] == [1, 2, 3]


def test_a_resume_with_other_problems_is_refused(small_run, problems, tmp_path, coin_verifier):
    """As after a file of problems was replaced. Previously the run compared two sets with each
    other."""
    data = tmp_path / "problems"
    shutil.copytree(problems, data)
    small_run("a", "--data", str(data), "--rounds", "1")
    shutil.copy(data / "test.jsonl", data / "train.jsonl")
    with pytest.raises(SystemExit, match="the problems of --data .*problems are not those"):
        small_run("a", "--data", str(data), "--rounds", "2", "--resume")


# --- clock and signals ----------------------------------------------------------------------------


def test_the_clock_counts_the_seconds_before_a_resume():
    clock = Clock()
    clock.total = 100.0
    first = clock.read()
    assert 100 < first < 160
    assert first < clock.read() < 160


def test_the_timer_knows_where_an_error_happened():
    timer = Timer()
    with timer("sampling"):
        pass
    with pytest.raises(RuntimeError), timer("update"):
        raise RuntimeError
    assert timer.part == "update"
    assert set(timer.seconds) == {"sampling"}
    assert timer.seconds["sampling"] >= 0
    timer.enter("evaluation")
    assert timer.part == "evaluation"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_request(number, capsys):
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        wait_until(stop.is_set, seconds=10)
        assert stop.is_set()
    assert "stopping after this round" in capsys.readouterr().err
    assert signal.getsignal(number) == before
