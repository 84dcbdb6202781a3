"""A run's folder: its flags, its logs, its clock, and the request to stop.

config.json     the flags, versions and commit       metrics.jsonl   one line a round
evals.jsonl     one line an evaluation and split     samples.jsonl   completions before and after
summary.json    before and after, at the end         curve.png       the figure (curve.py)
checkpoints/    what a resume needs                  model/          the final policy, hub format

docs/log.md explains every field. With several processes only the main one writes.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from infra import checkpoint, distributed

ROOT = Path(__file__).parent.parent
NEVER_COMPARED = ("out", "resume")  # flags that are no part of what a run is
# Flags that a resume may change: they trade memory and time, not results.
CHANGEABLE = ("save_every", "cache_tokens", "micro_tokens", "gradient_checkpointing")
NOT_IN_CONFIG = (*NEVER_COMPARED, "save_every", "cache_tokens")
OLD_NAMES = {  # of fields in logs that were written before they were renamed
    "cut": "truncated",
    "gap": "sampler_mismatch",
    "largest_gap": "largest_sampler_mismatch",
}


# --- files ----------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict]:
    """The objects of a .jsonl file; a last line that a kill left incomplete is dropped."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        lines.append({OLD_NAMES.get(key, key): value for key, value in line.items()})
    return lines


def write_json(path: Path, value: Any) -> None:
    replace_file(path, json.dumps(value, indent=1) + "\n")


def write_lines(path: Path, lines: list[dict]) -> None:
    replace_file(path, "".join(json.dumps(line) + "\n" for line in lines))


def replace_file(path: Path, text: str) -> None:
    """Write under a temporary name, then rename, so that a reader never meets half a file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def unused_folder(path: Path, resume: bool) -> Path:
    """The first of path, path-2, ... that does not exist; for a resume, the last that does."""
    candidates = [path]
    while candidates[-1].exists():
        candidates.append(path.with_name(f"{path.name}-{len(candidates) + 1}"))
    if resume and len(candidates) > 1:
        return candidates[-2]
    return candidates[-1]


def commit() -> str | None:
    """The commit of the code, with a + if files have changed since; None outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "-uno"))
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


# --- the folder of one run ------------------------------------------------------------------------


class RunFolder:
    """The folder of one run.

    path: the folder; it is made by `open`.
    flags: {name of a flag: value}, as the command line gave them.
    """

    def __init__(self, path: Path, flags: dict[str, Any]):
        self.path = path
        self.flags = flags

    def open(self) -> None:
        """Make the folder and write config.json; raise ValueError if it holds another run."""
        if not distributed.is_main_process():
            return
        if not self.flags["resume"] and self.holds_a_run():
            raise ValueError(
                f"--out {self.path} holds a run already: add --resume to go on with it, or name "
                "another"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in self.flags.items() if key not in NOT_IN_CONFIG}
        versions = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": commit(),
            "processes": distributed.world_size(),
        }
        if errors := self.read_config().get("reward_errors"):
            versions["reward_errors"] = errors
        write_json(self.path / "config.json", kept | versions)

    def holds_a_run(self) -> bool:
        has_config = (self.path / "config.json").exists()
        return has_config or bool(checkpoint.list_checkpoints(self.path))

    def check_flags(self) -> None:
        """Raise ValueError unless the folder holds a run of the same flags."""
        before = self.read_config()
        if not before:
            raise ValueError(f"--resume: there is no run in {self.path}")
        has_raised = {error["hash"] for error in before.get("reward_errors", [])}
        for name, value in self.flags.items():
            if name in ("rounds", *NEVER_COMPARED, *CHANGEABLE) or before.get(name) == value:
                continue
            if name == "reward" and value and before.get(name):  # the hash decides, not the path
                continue
            if name == "reward_hash" and before[name] in has_raised:  # it may have been mended
                continue
            if name == "reward_hash":
                raise ValueError(
                    f"--resume: {self.flags['reward']} is not the reward file of the run in "
                    f"{self.path}: its sha256 is {value[:12]}, the run's is {before[name][:12]}"
                )
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"--resume: the run in {self.path} has {flag} {before.get(name)}, not {value}"
            )

    def read_config(self) -> dict:
        """config.json; empty if there is none that can be read."""
        try:
            return json.loads((self.path / "config.json").read_text())
        except (OSError, json.JSONDecodeError):
            return {}

    def note_reward_error(self, round_number: int, message: str) -> None:
        """Write into config.json that the reward file raised, so that it may be mended."""
        if distributed.is_main_process():
            config = self.read_config()
            error = {"round": round_number, "hash": config["reward_hash"], "error": message}
            config["reward_errors"] = [*config.get("reward_errors", []), error]
            write_json(self.path / "config.json", config)

    def append(self, name: str, line: dict) -> None:
        """Add a line to NAME.jsonl."""
        if distributed.is_main_process():
            with open(self.path / f"{name}.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")

    def drop_lines_after(self, name: str, round_number: int) -> None:
        """Drop the lines of later rounds from NAME.jsonl: a resume makes them again."""
        path = self.path / f"{name}.jsonl"
        kept = [line for line in read_lines(path) if line["round"] <= round_number]
        if distributed.is_main_process():
            write_lines(path, kept)


# --- clock and signals ----------------------------------------------------------------------------


class Clock:
    """Seconds of a run, including those before a resume."""

    def __init__(self) -> None:
        self.total = 0.0
        self.since = time.perf_counter()

    def read(self) -> float:
        now = time.perf_counter()
        self.total += now - self.since
        self.since = now
        return self.total


class Timer:
    """Seconds of each part of a round: `with timer("sampling"): ...`.

    part: the part that began last; after an error, where it happened.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.part = "sampling"

    def enter(self, part: str) -> None:
        """Say what begins, without timing it."""
        self.part = part

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.part = part
        start = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - start


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request that the run reads between two rounds.

    A second signal ends a single process at once. torchrun sends two by itself, so with several
    processes the second one changes nothing.
    """

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "StopRequest":
        signals = (signal.SIGINT, signal.SIGTERM)
        self.handlers = {number: signal.signal(number, self.receive) for number in signals}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def receive(self, *_: object) -> None:
        if self.received and distributed.world_size() == 1:
            os._exit(1)
        self.received = True
        print("\nstopping after this round ...", file=sys.stderr)

    def is_set(self) -> bool:
        """Whether any process was asked to stop: they receive signals in different rounds."""
        return any(distributed.all_gather(self.received))
