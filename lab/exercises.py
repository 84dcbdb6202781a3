"""Run the exercises of course/exercises.md and write what they measured to runs/exercises/.

    python -m lab.exercises          # all: half an hour on one core; after a stop it goes on
    python -m lab.exercises 3 7      # these two, and the first, to which they are compared

Each command runs in a temporary copy of the code, in which the change of its exercise is made.
Commands of a fence `sh unchanged` run on the code as it is. A command that ends in `# refused` has
to fail. The name after --out is SETTING-SEED.

The figures of a run go into answers.json at once, and answers.md is written from it. A finished
command runs again only if its text or its change differs from the stored one. Settings are compared
seed by seed: with those above them in their exercise, and with the first exercise's setting if both
have the same number of rounds.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infra import flags, intervals
from infra.run_folder import read_json, read_lines, write_json

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "course" / "exercises.md"
ANSWERS = ROOT / "course" / "answers.md"
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUT = re.compile(r"--out runs/(\S+)")
HEAD = """# What the exercises measured

`python -m lab.exercises` writes this page from answers.json. Values are means over seeds, and test
pass@1 is followed by its range over seeds. a → b: the means of the first and of the last quarter of
the rounds. Differences are of test pass@1, paired by seed, ± a 95 % interval by Student's t. In
brackets: the differences of the single seeds, and the fewest seeds whose interval would be ± 0.02
or narrower.
"""

# What is kept of a run: of its end, of its last evaluation on the test set, and of metrics.jsonl.
TOTALS = ("rounds", "rollouts", "seconds")
LAST_EVALUATION = ("in_format", "length", "truncated", "kl")
BY_QUARTER = (
    "reward", "loss", "entropy", "zero_advantage", "grad_norm", "update_norm", "sampler_mismatch",
)  # fmt: skip


class Command(NamedTuple):
    """One command line of an exercise."""

    text: str
    change: str  # the diff to make first; empty for none
    refused: bool  # the command has to fail
    setting: str
    seed: str


class Exercise(NamedTuple):
    """One section of exercises.md, with its answer from answers.md."""

    number: int
    title: str
    change: str  # all its diffs
    commands: list[Command]
    answer: str


Runs = dict[str, dict]  # the figures of a setting by seed


# --- reading the page -----------------------------------------------------------------------------


def read_exercises(questions: str, answers: str) -> list[Exercise]:
    """The exercises of the two pages, which have the same numbered headings.

    Raises ValueError for a heading that only one of them has.
    """
    asked, answered = sections(questions), sections(answers)
    for title in asked.keys() ^ answered.keys():
        raise ValueError(f"{PAGE.name} and {ANSWERS.name} do not both have the heading {title}")
    exercises = []
    for title, body in asked.items():
        fences = FENCE.findall(body)
        change = "".join(inside for kind, _, inside in fences if kind == "diff")
        commands = []
        for kind, words, inside in fences:
            if kind != "sh":
                continue
            for line in expand(inside):
                commands.append(to_command(line, "" if "unchanged" in words else change))
        number = int(title.split(".")[0])
        exercises.append(Exercise(number, title, change, commands, answered[title]))
    return exercises


def sections(text: str) -> dict[str, str]:
    """The sections of a page whose heading begins with a number: {heading: text}."""
    parts = re.split(r"^## (?=\d)", text, flags=re.MULTILINE)[1:]
    return {title: body for title, _, body in (part.partition("\n") for part in parts)}


def expand(lines: str) -> Iterator[str]:
    """Yield the commands of a fence, with continued lines joined and loops written out."""
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        line = line.strip()
        loop = re.fullmatch(r"for (\w+) in ([^;]+); do (.+); done", line)
        if loop:
            variable, words, body = loop.groups()
            for word in words.split():
                yield body.replace(f"${variable}", word)
        elif line:
            yield line


def to_command(line: str, change: str) -> Command:
    text, refused, _ = line.partition("  # refused")
    setting, seed = re.search(r"--out runs/([\w.+-]+)-(\d+)", text).groups()
    return Command(text, change, bool(refused), setting, seed)


# --- running --------------------------------------------------------------------------------------


def run(command: Command, runs: Path) -> dict:
    """Run a command in a changed copy of the code; return its figures.

    runs: the folder of the runs. It is kept, because a later command may evaluate a model in it.
    Raises ValueError, with the last words of the command, if it fails or should have failed.
    """
    out = OUT.search(command.text)[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_code(folder)
        (folder / "runs").symlink_to(runs.resolve())
        apply_change(command.change, folder)
        shutil.rmtree(runs / out, ignore_errors=True)  # half a run, if this was stopped before
        words = [sys.executable, *shlex.split(command.text)[1:]]
        done = subprocess.run(words, cwd=folder, text=True, capture_output=True)
    last_line = (done.stderr or done.stdout).strip().split("\n")[-1]
    has_failed = done.returncode != 0
    if has_failed and not command.refused:
        raise ValueError(f"{command.text}: {last_line}")
    if command.refused and not has_failed:
        raise ValueError(f"{command.text}: was not refused")
    return {"said": last_line} if command.refused else read_figures(runs / out)


def copy_code(folder: Path) -> None:
    """Copy what the commands run: the scripts, the packages, the tiny models and their problems."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for name in ("infra", "lab", "tiny"):
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=without)


def apply_change(change: str, folder: Path) -> None:
    """Make a change in the files of a folder.

    change: diffs without line numbers; @@ separates two places of a file.
    Raises ValueError unless the lines to be replaced stand in the file exactly once.
    """
    path = None
    for part in re.split(r"^(?=--- )|^@@.*\n", change, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        if part.startswith("--- "):
            path = folder / lines[0].removeprefix("--- ").strip()
            lines = lines[2:]
        old = "".join(line[1:] + "\n" for line in lines if line[:1] in ("-", " "))
        new = "".join(line[1:] + "\n" for line in lines if line[:1] in ("+", " "))
        text = "\n" + path.read_text()  # so that a line break stands before every line
        if text.count("\n" + old) != 1:
            raise ValueError(
                f"the change does not fit: {path.name} has not exactly one place that reads {old!r}"
            )
        path.write_text(text.replace("\n" + old, "\n" + new)[1:])


def read_figures(path: Path) -> dict:
    """What is kept of a run of train.py, or of the lines that evaluate.py wrote."""
    if path.suffix == ".jsonl":
        return {"test": float(np.mean([line["right"] for line in read_lines(path)]))}
    summary = read_json(path / "summary.json")
    last_evaluation = read_lines(path / "evals.jsonl")[-1]
    metrics = read_lines(path / "metrics.jsonl")
    quarter = max(1, len(metrics) // 4)

    figures = {key: summary[key] for key in TOTALS}
    figures["before"] = summary["test_pass@1_before"]
    figures["test"] = summary["test_pass@1_after"]
    figures["train"] = summary["train_pass@1_after"]
    figures |= {key: last_evaluation[key] for key in LAST_EVALUATION}
    for key in BY_QUARTER:
        values = [line[key] or 0 for line in metrics]
        figures[key] = [float(np.mean(values[:quarter])), float(np.mean(values[-quarter:]))]
    return figures


# --- answers.md -----------------------------------------------------------------------------------


def answers_md(exercises: list[Exercise], answers: dict[str, dict]) -> str:
    """The page of all that was measured; answers: figures by the text of the command."""
    lines = [HEAD]
    base = {}  # the settings of the first exercise
    for exercise in exercises:
        commands = [command for command in exercise.commands if command.text in answers]
        if not commands:
            continue
        lines += [f"## {exercise.title}", ""]
        settings: dict[str, Runs] = {}
        for command in commands:
            figures = answers[command.text]
            if command.refused:
                lines += [f"`{command.text}` is refused: {figures['said']}", ""]
            else:
                figures = {key: value for key, value in figures.items() if key != "change"}
                settings.setdefault(command.setting, {})[command.seed] = figures
        if settings:
            lines += [*table(settings), ""]
        for name in settings:
            lines += differences(name, settings, base)
        lines.append("")
        base = base or settings
    return "\n".join(lines)


def table(settings: dict[str, Runs]) -> list[str]:
    """The lines of a table with a row for each setting."""
    keys = {key: None for runs in settings.values() for figures in runs.values() for key in figures}
    rows = [["setting", "seeds", *keys], ["---"] * (len(keys) + 2)]
    for name, runs in settings.items():
        rows.append([name, " ".join(runs), *(format_figure(key, runs) for key in keys)])
    return ["| " + " | ".join(row) + " |" for row in rows]


def format_figure(key: str, runs: Runs) -> str:
    """The mean over seeds; with its range for test pass@1; first → last quarter of the rounds."""
    values = [figures[key] for figures in runs.values() if key in figures]
    mean = np.mean(values, axis=0) if values else []
    if np.ndim(mean):
        return " → ".join(f"{value:.2g}" for value in mean)
    if key in TOTALS:
        return f"{mean:,.0f}"
    if key == "test" and len(values) > 1:
        return f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"
    return f"{mean:.3f}"


def differences(name: str, settings: dict[str, Runs], base: dict[str, Runs]) -> list[str]:
    """The lines that compare a setting with its start, with base, and with those above it.

    base: the setting of the first exercise.
    """
    runs = settings[name]
    gains = [one["test"] - one["before"] for one in runs.values() if "before" in one]
    lines = difference_line(f"{name}, after − before", gains)

    above = list(settings)[: list(settings).index(name)]
    others = base | {other: settings[other] for other in above}
    for other, their_runs in others.items():
        paired = []
        for seed, figures in runs.items():
            if seed not in their_runs:
                continue
            theirs = their_runs[seed]
            if other in settings or figures.get("rounds") == theirs["rounds"]:
                paired.append(figures["test"] - theirs["test"])
        lines += difference_line(f"{name} − {other}", paired)
    return lines


def difference_line(label: str, values: list[float]) -> list[str]:
    """One line: the mean of differences over seeds with its interval; none for a single seed."""
    if len(values) < 2:
        return []
    mean, half = intervals.t_interval(values)
    single = ", ".join(f"{value:+.3f}" for value in values)
    seeds = seeds_for(np.std(values, ddof=1))
    return [f"- {label}: {mean:+.3f} ± {half:.3f} ({single}; {seeds} seeds for ± 0.02)"]


def seeds_for(spread: float, wanted: float = 0.02) -> int:
    """The fewest seeds whose 95 % interval is ± wanted or narrower.

    spread: the standard deviation of the differences over seeds.
    """
    too_few = int((1.95 * spread / wanted) ** 2)  # because t is always above 1.95
    for n in range(max(2, too_few), 10_000):
        if intervals.t_quantile(n - 1) * spread / n**0.5 <= wanted:
            return n
    raise ValueError(f"a spread of {spread} would take more than 10,000 seeds")


# --- the command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = flags.FlagParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "numbers", nargs="*", type=int,
        help="of the exercises to run, beside the first (default: all)",
    )
    parser.add_argument(
        "--out", type=flags.path, default=ROOT / "runs" / "exercises",
        help="the folder of answers.json and answers.md (default: runs/exercises)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        run_exercises(args.numbers, Path(args.out))
    except (ValueError, OSError) as error:
        sys.exit(f"exercises.py: {error}")
    except KeyboardInterrupt:
        sys.exit("exercises.py: stopped; the same command goes on")


def run_exercises(numbers: list[int], out: Path) -> None:
    """Run what has not been run, of exercise 1 and of these numbers; write the answers."""
    exercises = read_exercises(PAGE.read_text(), ANSWERS.read_text())
    known = [exercise.number for exercise in exercises]
    for number in numbers:
        if number not in known:
            raise ValueError(f"there is no exercise {number} in {PAGE.relative_to(ROOT)}")
    runs, path = out / "runs", out / "answers.json"
    runs.mkdir(parents=True, exist_ok=True)
    answers = read_json(path) if path.exists() else {}
    for exercise in exercises:
        if numbers and exercise.number not in (1, *numbers):
            continue
        for command in exercise.commands:
            stored = answers.get(command.text)
            if stored and stored["change"] == command.change:
                continue
            print(f"{exercise.title}: {command.text}", flush=True)
            answers[command.text] = {"change": command.change, **run(command, runs)}
            write_json(path, answers)
    (out / "answers.md").write_text(answers_md(exercises, answers))
    print(out / "answers.md")


if __name__ == "__main__":
    main()
