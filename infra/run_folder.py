"""A run's folder: its flags, its logs, its clock, and the request to stop.

config.json     the flags, versions and commit       metrics.jsonl   one line a round
evals.jsonl     one line an evaluation and split     samples.jsonl   completions before and after
summary.json    before and after, at the end         curve.png       the figure (curve.py)
checkpoints/    what a resume needs                  model/          the final policy, hub format

docs/log.md explains every field. With several processes only the main one writes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from infra import checkpoint, distributed

ROOT = Path(__file__).parent.parent
NEVER_COMPARED = ("out", "resume")  # flags that are no part of what a run is
# Flags that a resume may change: they trade memory and time, not results.
CHANGEABLE = ("save_every", "cache_tokens", "micro_tokens", "gradient_checkpointing")
NOT_IN_CONFIG = (*NEVER_COMPARED, "save_every", "cache_tokens")
LOGS = ("metrics", "evals")


# --- files ----------------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """The object in a file. Raises ValueError, which names the file, if it holds none."""
    return parse_object(read_text(path), str(path))


def read_lines(path: Path) -> list[dict]:
    """The objects of a .jsonl file, if it exists; a last line that a kill left torn is dropped.

    Raises ValueError, which names the file and the line, if another one is no object.
    """
    if not path.exists():
        return []
    *whole, last = read_text(path).split("\n")
    lines = [parse_object(text, f"{path}, line {i}") for i, text in enumerate(whole, 1)]
    with contextlib.suppress(ValueError):
        lines.append(parse_object(last, "the last line"))
    return lines


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {reason}") from None


def parse_object(text: str, where: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # nested so deep that it is no log of ours
        raise ValueError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a JSON object but a {type(value).__name__}")
    return value


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make an error of writing a file, as of a full disk, a sentence that names the file."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have theirs
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, "strerror", None) or str(cause).split("\n")[0]
        raise OSError(f"cannot write {path}: {reason}") from None


def write_json(path: Path, value: Any) -> None:
    replace_file(path, json.dumps(value, indent=1) + "\n")


def write_lines(path: Path, lines: list[dict]) -> None:
    replace_file(path, "".join(json.dumps(line) + "\n" for line in lines))


def replace_file(path: Path, text: str) -> None:
    """Write under a temporary name, then rename, so that a reader never meets half a file."""
    temporary = path.with_suffix(".tmp")
    with writing(path):
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


def how_to_resume(folder: Path) -> str:
    return f"the same command with --resume --out {shlex.quote(str(folder))} goes on"


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

    path: the folder; it is made by `take`.
    flags: {name of a flag: value}, as the command line gave them.
    """

    def __init__(self, path: Path, flags: dict[str, Any]):
        self.path = path
        self.flags = flags
        self.lock: int | None = None

    def take(self) -> None:
        """Make the folder and lock it, so that no other process writes into it.

        The system drops the lock when this process ends, whatever ends it.
        Raises ValueError if it is locked, or holds a run although none is to be resumed.
        """
        if self.flags["resume"] and not (self.path / "config.json").exists():
            raise ValueError(f"--resume: there is no run in {self.path}")
        if not distributed.is_main_process():
            return
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ValueError(f"--out {self.path}: another process is at work there") from None
        except OSError:  # some file systems have no locks
            pass
        if not self.flags["resume"] and self.holds_a_run():
            self.release()
            raise ValueError(
                f"--out {self.path} holds a run already: add --resume to go on with it, or name "
                "another"
            )
        for half_written in [*self.path.glob("*.tmp"), *self.path.glob("checkpoints/*.tmp")]:
            half_written.unlink()

    def release(self) -> None:
        """Drop the lock."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def open(self) -> None:
        """Write config.json."""
        if not distributed.is_main_process():
            return
        kept = {key: value for key, value in self.flags.items() if key not in NOT_IN_CONFIG}
        versions = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": commit(),
            "processes": distributed.world_size(),
        }
        config = self.path / "config.json"
        if config.exists() and (errors := read_json(config).get("reward_errors")):
            versions["reward_errors"] = errors
        write_json(config, kept | versions)

    def holds_a_run(self) -> bool:
        """Whether anything was computed: a start that failed before that is no run."""
        evals = self.path / "evals.jsonl"
        has_evals = evals.exists() and evals.stat().st_size > 0
        return has_evals or bool(checkpoint.list_checkpoints(self.path))

    def check_flags(self) -> None:
        """Raise ValueError unless the folder holds a run of the same flags."""
        before = read_json(self.path / "config.json")
        has_raised = {error["hash"] for error in before.get("reward_errors", [])}
        for name, value in self.flags.items():
            if name in ("rounds", *NEVER_COMPARED, *CHANGEABLE) or before.get(name) == value:
                continue
            if name == "reward" and value and before.get(name):  # the hash decides, not the path
                continue
            if name == "data_hash":
                raise ValueError(
                    f"--resume: the problems of --data {self.flags['data']} are not those that "
                    f"the run in {self.path} began with"
                )
            if name == "reward_hash" and before.get(name) in has_raised:  # it may have been mended
                continue
            if name == "reward_hash" and value and before.get(name):
                raise ValueError(
                    f"--resume: {self.flags['reward']} is not the reward file of the run in "
                    f"{self.path}: its sha256 is {value[:12]}, the run's is {before[name][:12]}"
                )
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"--resume: the run in {self.path} has {flag} {before.get(name)}, not {value}"
            )

    def note_reward_error(self, round_number: int, message: str) -> None:
        """Write into config.json that the reward file raised, so that it may be mended."""
        if distributed.is_main_process():
            config = read_json(self.path / "config.json")
            error = {"round": round_number, "hash": config["reward_hash"], "error": message}
            config["reward_errors"] = [*config.get("reward_errors", []), error]
            write_json(self.path / "config.json", config)

    def append(self, name: str, *lines: dict) -> None:
        """Add lines to NAME.jsonl."""
        if distributed.is_main_process():
            path = self.path / f"{name}.jsonl"
            with writing(path), open(path, "a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))

    def log_marks(self) -> dict[str, list]:
        """[bytes, sha256] of each log, forced to disk: a checkpoint of now goes on from there."""
        marks = {}
        for name in LOGS:
            path = self.path / f"{name}.jsonl"
            with writing(path), open(path, "ab+") as file:
                os.fsync(file.fileno())
                file.seek(0)
                text = file.read()
            marks[name] = [len(text), hashlib.sha256(text).hexdigest()]
        return marks

    def cut_logs(self, marks: dict[str, list]) -> None:
        """Drop what follows the marks of a checkpoint: a resume makes it again.

        Raises ValueError if a log was changed, or does not reach its mark.
        """
        for name in LOGS:
            path = self.path / f"{name}.jsonl"
            size, digest = marks.get(name, [0, hashlib.sha256().hexdigest()])
            text = path.read_bytes() if path.exists() else b""
            if hashlib.sha256(text[:size]).hexdigest() != digest:
                raise ValueError(
                    f"--resume: {path} is not what it was when the checkpoint was written: it has "
                    "lost lines or was changed"
                )
            if distributed.is_main_process() and len(text) > size:
                os.truncate(path, size)


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
        print("\nstopping after this round or evaluation (again: at once) ...", file=sys.stderr)

    def is_set(self) -> bool:
        """Whether any process was asked to stop: they receive signals in different rounds."""
        return any(distributed.all_gather(self.received))
