"""The queue of ablate.sh: runs the settings of its plan, skips, resumes and reports.

It reads the plan on stdin and the variables of ablate.sh in its environment. In the folder OUT are
plan.tsv (the settings of all calls), commands.tsv (of this call), failed.txt, and a folder for each
run, with its command and its log.txt. Only Python's own library is needed.
"""

import contextlib
import fcntl
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(os.environ.get("HERE", "."))  # where the caller stands; we are in the repository


class Line(NamedTuple):
    """A line of the plan."""

    rung: str
    mark: str  # "*", "r", "s", "=" or " "
    setting: str
    flags: str


# --- the plan -------------------------------------------------------------------------------------


def read_plan(text: str) -> list[Line]:
    rung, lines = "", []
    for line in text.splitlines():
        mark, words = line[:1], line[2:].split()
        if line[1:2] == " " and words:
            lines.append(Line(rung, mark, words[0], " ".join(words[1:])))
        else:
            rung = line.strip()
    return lines


def chosen(plan: list[Line], words: list[str], always: str, is_tiny: bool) -> list[Line]:
    """The lines that the words of the command line ask for."""
    rungs = list(dict.fromkeys(line.rung for line in plan))
    for word in words:
        if word not in ("full", *rungs):
            raise ValueError(f"{word} is no rung; there are: full {' '.join(rungs)}")

    def is_wanted(line: Line) -> bool:
        if line.mark == "=" or line.mark == "r" and is_tiny:
            return False
        if line.mark == "s" and line.rung not in words:
            return False
        if not words:
            return line.mark == "*"
        return "full" in words or line.rung in (always, *words)

    return [line for line in plan if is_wanted(line)]


# --- the commands ---------------------------------------------------------------------------------


def variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def check_number(name: str, text: str, kind: type) -> None:
    try:
        is_good = kind(text) > 0 or name == "SEEDS" and kind(text) == 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ValueError(f"{name}={variable(name)}: {text or 'nothing'} is no number for it")


def as_the_caller_means(word: str) -> str:
    """A path that is relative to the caller's folder, as it has to be written in ours."""
    path = HERE / word
    return str(path) if HERE.resolve() != Path.cwd() and path.exists() else word


def listed(name: str) -> list[str]:
    """The words of a variable; a single path may hold spaces."""
    text = variable(name)
    words = [text] if text and (HERE / text).exists() else text.split()
    if not words:
        raise ValueError(f"{name} is empty")
    return [as_the_caller_means(word) for word in words]


def program() -> list[str]:
    """The words of PYTHON. Raises ValueError if there is no such program."""
    text = variable("PYTHON") or "python"
    words = [text] if (HERE / text).exists() else shlex.split(text)
    words[:1] = [as_the_caller_means(word) for word in words[:1]]
    if not words or not shutil.which(words[0]):
        raise ValueError(f"PYTHON={text}: there is no such program")
    return words


def commands(settings: list[Line], out: Path) -> dict[Path, list[str]]:
    """{folder: words of its command}, for every seed, model, set and setting."""
    python, found = program(), {}
    by_name = {line.setting: line.flags.split() for line in reversed(settings)}
    names = list(dict.fromkeys(line.setting for line in settings))
    rate, rounds = variable("LR"), int(variable("ROUNDS"))
    check_number("LR", rate, float)
    for seed in variable("SEEDS").split() or ["0", "1", "2"]:
        check_number("SEEDS", seed, int)
        for model in listed("MODEL"):
            for data in listed("DATA"):
                for name in names:
                    folder = out / f"{Path(model).name}-{Path(data).name}" / name / f"seed-{seed}"
                    words = [
                        *python, "train.py", "--model", model, "--data", data, "--seed", seed,
                        "--rounds", str(rounds), "--lr", rate, "--eval-every",
                        variable("EVERY") or str((rounds + 2) // 3), "--threads", "1",
                        *by_name[name],
                        *shlex.split(variable("FLAGS")), "--out", str(folder),
                    ]  # fmt: skip
                    if found.setdefault(folder, words) != words:
                        raise ValueError(f"two models or sets would share the folder {folder}")
    return found


# --- running --------------------------------------------------------------------------------------


class Queue:
    """Runs the commands, `jobs` at a time.

    The first Ctrl-C or SIGTERM lets every run end its round and save; a second one kills them.
    """

    def __init__(self, commands: dict[Path, list[str]], out: Path, jobs: int):
        self.commands, self.out, self.jobs = commands, out, jobs
        self.running: dict[subprocess.Popen, Path] = {}
        self.signal: int | None = None
        self.failed: list[str] = []
        self.started, self.before = time.monotonic(), self.finished()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)

    def finished(self) -> int:
        return sum((folder / "summary.json").exists() for folder in self.commands)

    def stop(self, number: int, _: object) -> None:
        # Each run is in a session of its own, so Ctrl-C has not reached it.
        for process in self.running:
            process.send_signal(signal.SIGKILL if self.signal else signal.SIGTERM)
        self.signal = number

    def run(self) -> int:
        """Run everything; the exit status."""
        waiting = list(self.commands)
        while self.running or waiting and not self.signal:
            while waiting and len(self.running) < self.jobs and not self.signal:
                self.start(waiting.pop(0))
            for process in [each for each in self.running if each.poll() is not None]:
                self.collect(process, self.running.pop(process))
            time.sleep(0.05)
        if self.signal:
            print("ablate.sh: stopped; the same command goes on", file=sys.stderr)
            return 128 + self.signal
        if self.failed:
            print("\n".join(["ablate.sh: these runs failed:", *self.failed]), file=sys.stderr)
            return 1
        print(f"all runs are in {self.out}: python -m lab.report {shlex.quote(str(self.out))}")
        return 0

    def start(self, folder: Path) -> None:
        """Start a run, unless it is finished or the folder holds another one."""
        words, path = self.commands[folder], folder / "command"
        is_finished = (folder / "summary.json").exists()
        has_results = is_finished or any(folder.glob("checkpoints/*.pt"))
        with contextlib.suppress(OSError):
            has_results = has_results or (folder / "evals.jsonl").stat().st_size > 0
        if has_results and path.exists():
            before = shlex.split(path.read_text())
            place = before.index("train.py") if "train.py" in before else 0
            # PYTHON may differ, and so may --out, the last two words, if the folder was moved.
            if before[place:-2] != words[words.index("train.py") : -2]:
                self.fail(folder, "was run with other flags (see its file command); name another "
                                  "OUT")  # fmt: skip
                return
        if is_finished:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(shlex.join(words) + "\n")
        with open(folder / "log.txt", "a") as log:
            process = subprocess.Popen(
                [*words, *["--resume"] * has_results], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self.running[process] = folder

    def collect(self, process: subprocess.Popen, folder: Path) -> None:
        """Report a run that has ended."""
        if (folder / "summary.json").exists() and process.returncode == 0:
            now, total = self.finished(), len(self.commands)
            seconds = (time.monotonic() - self.started) / max(1, now - self.before)
            left = f"about {seconds * (total - now) / 60:.0f} min left"
            print(f"{now} of {total} runs finished, {left}: {folder.relative_to(self.out)}",
                  flush=True)  # fmt: skip
        elif not self.signal:
            lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
            killed = f"was killed by signal {-process.returncode}"
            reason = lines[-1] if lines else f"ended with status {process.returncode}"
            self.fail(folder, killed if process.returncode < 0 else reason)

    def fail(self, folder: Path, reason: str) -> None:
        self.failed.append(f"{folder}: {reason}")
        (self.out / "failed.txt").write_text("\n".join(self.failed) + "\n")


def header(script: str) -> str:
    """The comment at the top of a shell script, below its first line."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), script.splitlines()[1:])
    return "\n".join(line[2:] for line in lines)


def main(words: list[str]) -> int:
    preset = variable("PRESET")
    if preset not in ("", "paper", "smollm2"):
        raise ValueError(f"PRESET={preset} is neither paper nor smollm2")
    if {"-h", "--help"} & set(words):
        print(header(Path("ablate.sh").read_text()))
        return 0
    is_list = words[:1] == ["--list"]
    words = words[is_list:] or variable("RUNGS").split()
    is_tiny = "tiny-" in variable("DATA")
    settings = chosen(read_plan(sys.stdin.read()), words, variable("ALWAYS"), is_tiny)
    jobs = variable("JOBS") or str(os.cpu_count())
    check_number("JOBS", jobs, int)
    out = Path("runs/ablate")
    if text := variable("OUT"):
        out = Path(text) if HERE.resolve() == Path.cwd() else HERE / text
    plan = commands(settings, out)
    if is_list:
        print("\n".join(map(shlex.join, plan.values())))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out, os.O_RDONLY)  # the system drops the lock when this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another ablate.sh is at work in {out}") from None
    # The plan of this call joins those of earlier calls, so that one report shows all of them.
    path = out / "plan.tsv"
    lines = path.read_text().splitlines() if path.exists() else []
    lines += [f"{line.rung}\t{line.setting}\t{line.flags}" for line in settings]
    path.with_suffix(".tmp").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    path.with_suffix(".tmp").replace(path)
    (out / "commands.tsv").write_text(
        "".join(f"{folder}\t{shlex.join(each)}\n" for folder, each in plan.items())
    )
    (out / "failed.txt").write_text("")
    return Queue(plan, out, int(jobs)).run()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(f"ablate.sh: {error}", file=sys.stderr)
        sys.exit(2)
