"""ablate.sh: every line of its plan is valid, and the whole pipeline runs in miniature."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, wait_for_rounds, wait_until

import bandit
import train
from infra.run_folder import read_lines
from lab import report


def ablate(*words: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ablate.sh with these words and environment variables; check: it must succeed."""
    done = subprocess.run(
        [ROOT / "ablate.sh", *words], capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable, **variables},
    )  # fmt: skip
    assert done.returncode == 0 or not check, done.stderr
    return done


def listed(*words: str, **variables: str) -> list[str]:
    """The commands that ablate.sh would run."""
    return ablate("--list", *words, **variables).stdout.splitlines()


def parsed(commands: list[str]) -> list:
    """The flags of commands, as train.py reads them. A bad flag fails the test."""
    return [train.parse(command.split()[2:]) for command in commands]


# --- the plan -------------------------------------------------------------------------------------


def test_every_line_of_the_plan_is_valid():
    commands = listed("full", SEEDS="3", MODEL="tiny-llama", DATA="gsm8k")
    runs = parsed(commands)
    assert len({args.out for args in runs}) == len(commands) > 40
    for args in runs:
        assert (args.seed, args.model, args.data) == (3, "tiny-llama", "gsm8k")


def test_the_plan_has_every_choice_of_the_paper_and_of_the_loss():
    """All splits of 256 rollouts, all windows, all means and KL estimators, and the advantages that
    go with them. A new row of ADVANTAGES needs no line here: the plan may lag behind the table."""
    runs = parsed(listed("full", SEEDS="3", MODEL="tiny-llama", DATA="gsm8k"))
    assert {args.advantage for args in runs} >= {"reward", "group", "window", "batch-centered"}
    # What is not run because it is the same as another setting is the same.
    assert re.search(r"^= psr +raft, by another name$", (ROOT / "ablate.sh").read_text(), re.M)
    assert bandit.row_name("psr") == "raft"
    assert {args.loss_mean for args in runs} == set(bandit.LOSS_MEANS)
    assert {args.kl_estimator for args in runs if args.kl} == set(bandit.KL_ESTIMATORS)
    splits = {(2**i, 256 // 2**i) for i in range(8)}
    grouped = [args for args in runs if args.advantage == "group"]
    assert {(args.batch_size, args.rollouts) for args in grouped} >= splits
    windowed = [args for args in runs if args.window and args.advantage == "window"]
    assert {args.batch_size * args.rollouts for args in windowed} == {256, 512, 1024, 2048}


def test_the_teaching_selection_has_three_seeds_and_small_rounds():
    runs = parsed(listed())
    assert {args.seed for args in runs} == {0, 1, 2}
    sizes = [args.batch_size * (args.rollouts + args.baseline_rollouts) for args in runs]
    assert max(sizes) == 256


def test_a_rung_comes_with_the_baseline():
    commands = listed("advantage", SEEDS="0")
    assert [line.split("/")[-2] for line in commands] == ["32x1", "32x1-long", "32x1+7"]
    wrong = ablate("--list", "advantages", check=False)
    assert wrong.returncode == 2
    assert "advantages is no rung" in wrong.stderr


def test_the_papers_preset():
    runs = parsed(listed(PRESET="paper", SEEDS="0"))
    models = ("Qwen2.5-0.5B-Instruct", "Llama-3.2-1B-Instruct", "OLMo-2-0425-1B-Instruct")
    pairs = {(model, data) for model in models for data in ("gsm8k", "math")}
    assert {(args.model.split("/")[1], args.data) for args in runs} == pairs
    hyperparameters = {
        (args.lr, args.kl, args.max_new_tokens, args.max_prompt_tokens, args.weight_decay)
        for args in runs
    }
    assert hyperparameters == {(1e-6, 0.001, 1024, 512, 0.01)}
    windows = {(args.batch_size, args.rollouts) for args in runs if args.window}
    assert windows == {(64, 4), (128, 2), (256, 1), (512, 1), (1024, 1), (2048, 1)}


def test_the_preset_of_a_real_model_on_a_laptop():
    """All settings have as many rollouts in all; 256 x 1 has a learning rate of its own."""
    runs = parsed(listed(PRESET="smollm2", SEEDS="0", FLAGS="--queries 300"))
    assert {(args.model, args.data, args.temperature, args.eval_temperature, args.queries)
            for args in runs} == {
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "tiny-sums", 0.5, 0.5, 300)}  # fmt: skip
    sizes = {
        args.out.parts[-2]:
            args.rounds * args.batch_size * (args.rollouts + args.baseline_rollouts)
        for args in runs
    }  # fmt: skip
    assert set(sizes.values()) == {768}
    assert set(sizes) == {"32x1", "64x1", "64x1-mean", "8x8-raw", "8x8", "8x1+7", "256x1"}
    assert {args.out.parts[-2]: args.lr for args in runs if args.lr != 2e-5} == {"256x1": 4e-5}


# --- the queue ------------------------------------------------------------------------------------

FAKE = """#!/bin/bash
# In the place of python: notes its last words, and is a run that takes a moment.
case "$*" in *--typo*) echo "train.py: unrecognized arguments: --typo" >&2; exit 2 ;; esac
out=${@: -1}; resume=new
if [ "$out" = --resume ]; then resume=resumed; out=${@: -2:1}; fi
mkdir -p "$out"
echo "$resume" >> "$out/starts"
echo '{}' >> "$out/evals.jsonl"
case "$out $*" in
  *256x1/*) kill -9 $$ ;;
  *32x8/*) echo "train.py: --lr: a sentence" >&2; exit 2 ;;
  *4x64/*--slow*)
    trap 'echo "stopped" >&2; exit 1' TERM
    for i in $(seq 200); do sleep 0.05; done ;;
esac
echo '{}' > "$out/summary.json"
"""


@pytest.fixture
def fake(tmp_path):
    """The variables for runs that learn nothing, in a folder with a space in its name."""
    path = tmp_path / "a folder" / "python"
    path.parent.mkdir()
    path.write_text(FAKE)
    path.chmod(0o755)
    return {"PYTHON": str(path), "OUT": str(path.parent / "out"), "SEEDS": "0", "JOBS": "2"}


def runs_in(fake):
    return {path.parent.parent.name: path for path in Path(fake["OUT"]).rglob("starts")}


def test_what_is_not_finished_is_reported(fake):
    """A run that was killed, and one that refuses its flags. Seeds named twice run once."""
    done = ablate(check=False, **fake | {"SEEDS": "0 0", "DATA": fake["PYTHON"], "FLAGS": "--x 1"})
    assert done.returncode == 1
    failed = done.stderr.splitlines()
    assert failed[0] == "ablate.sh: these runs failed:" and len(failed) == 3
    assert "/256x1/seed-0: was killed by signal 9" in done.stderr
    assert "/32x8/seed-0: train.py: --lr: a sentence" in done.stderr
    assert "10 of 12 runs finished" in done.stdout
    assert all(path.read_text() == "new\n" for path in runs_in(fake).values())
    # The same again: only those two. They have results, so they go on, and other flags are refused.
    ablate(check=False, **fake | {"DATA": fake["PYTHON"], "FLAGS": "--x 1"})
    starts = {name: path.read_text() for name, path in runs_in(fake).items()}
    assert starts.pop("256x1") == starts.pop("32x8") == "new\nresumed\n"
    assert set(starts.values()) == {"new\n"}
    other = ablate("advantage", check=False, **fake | {"DATA": fake["PYTHON"], "FLAGS": "--x 2"})
    assert other.stderr.count("was run with other flags") == 3
    # A folder that was moved is the same one.
    moved = fake["OUT"] + "-moved"
    Path(fake["OUT"]).rename(moved)
    again = ablate(check=False, **fake | {"OUT": moved, "DATA": fake["PYTHON"], "FLAGS": "--x 1"})
    assert "other flags" not in again.stderr and again.stderr.count("/seed-0: ") == 2


def test_a_start_that_never_ran_blocks_nothing(fake):
    wrong = ablate("advantage", check=False, **fake | {"FLAGS": "--typo 1"})
    assert wrong.returncode == 1 and wrong.stderr.count("unrecognized arguments: --typo") == 3
    done = ablate("advantage", **fake)
    assert "all runs are in" in done.stdout and "3 of 3 runs finished" in done.stdout


def test_paths_are_the_callers(fake, tmp_path):
    """Relative ones, also with spaces."""
    (tmp_path / "my data").mkdir()
    done = subprocess.run(
        [ROOT / "ablate.sh", "advantage"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, **fake, "OUT": "my out", "DATA": "my data", "PYTHON": "a folder/python"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "my out" / "commands.tsv").read_text().splitlines()
    assert len(commands) == 3 and all(f"--data '{tmp_path}/my data'" in line for line in commands)
    assert len(list((tmp_path / "my out" / "tiny-qwen2-my data").rglob("summary.json"))) == 3


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_runs(fake, number, status):
    """And meanwhile the folder has one ablate.sh."""
    process = subprocess.Popen(
        [ROOT / "ablate.sh", "split"], env={**os.environ, **fake, "FLAGS": "--slow 1"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: "4x64" in runs_in(fake), 30)
    assert "another ablate.sh is at work" in ablate("split", check=False, **fake).stderr
    process.send_signal(number)
    assert "the same command goes on" in process.communicate()[1]
    assert process.returncode == status
    log = runs_in(fake)["4x64"].parent / "log.txt"
    assert log.read_text() == "stopped\n" and not (log.parent / "summary.json").exists()


@pytest.mark.parametrize("variables, word", [
    ({"ROUNDS": "x"}, "ROUNDS=x: no number"),
    ({"ROUNDS": "a[$(touch pwned)]"}, "no number"),
    ({"LR": "x"}, "LR=x"),
    ({"LR": 'system("touch pwned")'}, "is no number for it"),
    ({"JOBS": "x"}, "JOBS=x"),
    ({"JOBS": "0"}, "JOBS=0"),
    ({"SEEDS": "0 x"}, "SEEDS=0 x: x is no number"),
    ({"PYTHON": "nosuch"}, "PYTHON=nosuch: there is no such program"),
    ({"PRESET": "foo"}, "PRESET=foo"),
    ({"MODEL": " "}, "MODEL is empty"),
    ({"MODEL": "a/model b/model"}, "two models or sets would share"),
    ({"OUT": "/proc/x"}, "/proc/x"),
])  # fmt: skip
def test_bad_variables_get_a_sentence(tmp_path, variables, word):
    done = ablate(check=False, **{"OUT": str(tmp_path / "out"), **variables})
    assert done.returncode == 2 and word in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert not (ROOT / "pwned").exists()


# --- running --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pipeline_in_miniature(tmp_path, checkpoint, problems):
    """Three settings, two seeds: stopped midway and resumed, with a run that fails, and reported
    with a run that was damaged afterwards."""
    settings = {
        "MODEL": checkpoint("qwen2"),
        "DATA": str(problems),
        "SEEDS": "0 1",
        "ROUNDS": "10",
        "FLAGS": "--batch-size 8 --max-new-tokens 6 --eval-samples 2 --save-every 1",
        "JOBS": "2",
    }
    whole, part = tmp_path / "whole", tmp_path / "part"
    ablate("advantage", OUT=str(whole), **settings)
    pair = next(path for path in whole.iterdir() if path.is_dir()).name

    stop_midway(part, part / pair / "32x1-long" / "seed-0", settings)

    # The same command goes on. One run fails, and the others are what they are without a stop.
    broken = part / pair / "32x1+7" / "seed-1"
    broken.mkdir(parents=True, exist_ok=True)
    (broken / "evals.jsonl").write_text("{}\n")
    done = ablate("advantage", OUT=str(part), check=False, **settings)
    assert done.returncode == 1
    assert "32x1+7/seed-1: train.py: --resume: there is no run" in done.stderr
    finished = [("32x1", 0), ("32x1", 1), ("32x1-long", 0), ("32x1-long", 1), ("32x1+7", 0)]
    for setting, seed in finished:
        name = f"{pair}/{setting}/seed-{seed}/evals.jsonl"
        assert read_lines(whole / name) == read_lines(part / name)

    # Once more: only the missing one is run.
    shutil.rmtree(broken)
    lines = ablate("advantage", OUT=str(part), **settings).stdout.splitlines()
    assert sum(" runs finished" in line for line in lines) == 1
    assert "6 of 6" in lines[0]

    (part / pair / "32x1-long" / "seed-1" / "evals.jsonl").write_text("{")
    check_report(part, part / pair, tmp_path / "out")
    other = ablate("advantage", OUT=str(part), check=False, **{**settings, "ROUNDS": "11"})
    assert other.returncode == 1
    assert "name another OUT" in other.stderr


def stop_midway(out: Path, long_run: Path, settings: dict[str, str]) -> None:
    """Start ablate.sh and press Ctrl-C after ten rounds of its longest run."""
    process = subprocess.Popen(
        [ROOT / "ablate.sh", "advantage"], start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHON": sys.executable, "OUT": str(out), **settings},
    )  # fmt: skip
    try:
        wait_for_rounds(long_run, 10, process, seconds=240)
    finally:
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    _, said = process.communicate()
    assert process.returncode == 130
    assert b"the same command goes on" in said

    def have_ended() -> bool:
        return not subprocess.run(["pgrep", "-f", str(out)], capture_output=True).stdout

    wait_until(have_ended, 90)  # the runs finish their rounds
    stopped = len(read_lines(long_run / "metrics.jsonl"))
    assert 10 <= stopped < 80
    assert not (long_run / "summary.json").exists()


def check_report(folder: Path, pair: Path, out: Path) -> None:
    """The report of five whole runs and a damaged one."""
    page = report.write_report(folder, out).read_text()
    assert "32x1-long/seed-1" in page.split("Left out")[1].split("\n")[0]
    assert page.count("### ") == 3
    assert "| 32x1+7 | 2 |" in page
    assert "| 32x1-long | 1 |" in page
    assert "moved most" in page
    paths = [pair / "32x1+7" / f"seed-{seed}" / "summary.json" for seed in (0, 1)]
    summaries = [json.loads(path.read_text()) for path in paths]
    mean = np.mean([summary["test_pass@1_after"] for summary in summaries])
    assert f"{mean:.3f}" in page.split("| 32x1+7 |")[1].split("\n")[0]
    assert all(summary["rollouts"] == 10 * 8 * 8 for summary in summaries)
    drawn = {picture.name.removeprefix(f"{pair.name}-") for picture in out.glob("*.png")}
    assert drawn == {"baseline.png", "advantage.png", "forest.png"}
    rows = (out / "table.csv").read_text().splitlines()
    assert len(rows) == 5
    assert rows[0].startswith("pair,rung,setting")
