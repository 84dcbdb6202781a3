"""Runs the exercises of EXERCISES.md and writes what they measured to results/exercises/.

    python exercises.py            # all: half an hour on one core; stopped and started again it goes on
    python exercises.py 3 7        # these two

Every command runs in a temporary copy of the .py files and tiny/ in which the change of its heading is made; those of
a fence `sh unchanged` run on the files as they are, and one that ends in `# refused` has to fail. The figures of a run
go into answers.json at once, and answers.md is written from it: what is finished is not run again, unless the command
or the change reads differently now. --out calls a run SETTING-SEED. Settings are compared seed by seed with those above
them in their heading, and with the first heading's where the rounds are as many.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import numpy as np

import data
import report

ROOT = Path(__file__).parent
HEAD = """# What the exercises measured

Written by `python exercises.py` from answers.json. Means over seeds; test pass@1 with its range over seeds; a → b: the
means of the first and of the last quarter of the rounds. Differences are of test pass@1, in pairs by seed, ± a 95 %
interval by Student's t; in brackets seed by seed, and the fewest seeds whose interval would be ± 0.02 or narrower.
"""
Exercise = namedtuple("Exercise", "number title change commands answer")
Command = namedtuple("Command", "text change refused setting seed")
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(text):
    """The exercises: the headings that begin with a number."""
    found = []
    for section in re.split(r"^## (?=\d)", text, flags=re.MULTILINE)[1:]:
        title, body = section.split("\n", 1)
        question, _, answer = body.partition("<details>")
        fences, commands = FENCE.findall(question), []
        change = "".join(inside for kind, _, inside in fences if kind == "diff")
        for kind, words, inside in fences:
            for line in expand(inside) if kind == "sh" else []:
                text, refused, _ = line.partition("  # refused")
                setting, seed = re.search(r"--out runs/([\w.+-]+)-(\d+)", text).groups()
                commands.append(Command(text, change * ("unchanged" not in words), bool(refused), setting, seed))
        found.append(Exercise(int(title.split(".")[0]), title, change, commands, answer))
    return found


def expand(lines):
    """Commands, one a line: continued lines joined, `for seed in 0 1; do ...; done` once for each word."""
    for line in filter(None, map(str.strip, re.sub(r"\\\n\s*", "", lines).splitlines())):
        loop = re.fullmatch(r"for (\w+) in ([^;]+); do (.+); done", line)
        yield from [loop[3].replace(f"${loop[1]}", word) for word in loop[2].split()] if loop else [line]


def make(change, folder):
    """Make a change in the files of a folder; @@ parts two places, and what has a - must stand there exactly once."""
    for part in re.split(r"^(?=--- )|^@@.*\n", change, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        if part.startswith("--- "):
            path, lines = folder / lines[0][4:].strip(), lines[2:]
        old, new = ("".join(line[1:] + "\n" for line in lines if line[:1] in (sign, " ")) for sign in "-+")
        text = "\n" + path.read_text()
        if text.count("\n" + old) != 1:
            raise ValueError(f"the change does not fit: {path.name} has not exactly one place that reads {old!r}")
        path.write_text(text.replace("\n" + old, "\n" + new)[1:])


def run(command, runs):
    """Run a command in a changed copy; returns its figures, or raises ValueError with its last words."""
    with tempfile.TemporaryDirectory() as folder:
        for path in ROOT.glob("*.py"):
            shutil.copy(path, folder)
        shutil.copytree(ROOT / "tiny", Path(folder, "tiny"))
        Path(folder, "runs").symlink_to(runs.resolve())  # they stay: a later command may evaluate a model
        make(command.change, Path(folder))
        shutil.rmtree(runs / f"{command.setting}-{command.seed}", ignore_errors=True)  # half a run, after a stop
        done = subprocess.run([sys.executable, *shlex.split(command.text)[1:]], cwd=folder, text=True,
                              capture_output=True)
    last = (done.stderr or done.stdout).strip().split("\n")[-1]
    if command.refused != bool(done.returncode):
        raise ValueError(f"{command.text}: " + ("was not refused" if command.refused else last))
    return {"said": last} if command.refused else figures(runs / re.search(r"--out runs/(\S+)", command.text)[1])


def figures(path):
    if path.suffix == ".jsonl":  # of evaluate.py
        return {"test": float(np.mean([line["right"] for line in report.read_lines(path)]))}
    summary, metrics = json.loads((path / "summary.json").read_text()), report.read_lines(path / "metrics.jsonl")
    evals, n = report.read_lines(path / "evals.jsonl"), max(1, len(metrics) // 4)
    return {**{key: summary[key] for key in ("rounds", "rollouts", "seconds")}, "before": summary["test_pass@1_before"],
            "test": summary["test_pass@1_after"], "train": summary["train_pass@1_after"],
            **{key: evals[-1][key] for key in ("in_format", "length", "cut", "kl")},  # on the test set, at the end
            **{key: [float(np.mean([line[key] or 0 for line in ends])) for ends in (metrics[:n], metrics[-n:])]
               for key in ("reward", "loss", "entropy", "zero_advantage", "grad_norm", "update_norm", "gap")}}


def shown(key, runs):
    """The mean over seeds of a figure, of test pass@1 with its range; first → last quarter of the rounds."""
    values = [one[key] for one in runs.values() if key in one]
    mean = np.mean(values, axis=0) if values else []
    if np.ndim(mean):
        return " → ".join(f"{value:.2g}" for value in mean)
    around = f" ({min(values):.3f} to {max(values):.3f})" if key == "test" and len(values) > 1 else ""
    return (f"{mean:,.0f}" if key in ("rounds", "rollouts", "seconds") else f"{mean:.3f}") + around


def seeds_for(spread, wanted=0.02):
    """The fewest seeds whose 95 % interval is ± wanted, or narrower, if differences spread so over seeds."""
    units = (np.resize([-1.0, 1.0], n) for n in range(2, 10_000))  # any values: only t / sqrt(n) is wanted of them
    return next(len(x) for x in units if report.t_interval(x / x.std(ddof=1))[1] * spread <= wanted)


def difference(label, gaps):
    if len(gaps) < 2:
        return []
    mean, half = report.t_interval(gaps)
    return [f"- {label}: {mean:+.3f} ± {half:.3f} ({', '.join(f'{gap:+.3f}' for gap in gaps)}; "
            f"{seeds_for(np.std(gaps, ddof=1))} seeds for ± 0.02)"]


def answers_md(exercises, answers):
    lines, base = [HEAD], {}
    for exercise in exercises:
        have, settings = [command for command in exercise.commands if command.text in answers], {}
        lines += [f"## {exercise.title}", ""] if have else []
        for command in have:
            if command.refused:
                lines += [f"`{command.text}` is refused: {answers[command.text]['said']}", ""]
            else:
                settings.setdefault(command.setting, {})[command.seed] = answers[command.text]
        keys = list(dict.fromkeys(key for runs in settings.values() for one in runs.values() for key in one))[1:]
        rows = [["setting", "seeds", *keys], ["---"] * (len(keys) + 2), *(
            [name, " ".join(runs), *(shown(key, runs) for key in keys)] for name, runs in settings.items())]
        lines += [*("| " + " | ".join(row) + " |" for row in rows), ""] if settings else []
        for i, (one, runs) in enumerate(settings.items()):
            lines += difference(f"{one}, after − before", [
                figure["test"] - figure["before"] for figure in runs.values() if "before" in figure])
            for other, others in [*base.items(), *list(settings.items())[:i]]:
                lines += difference(f"{one} − {other}", [
                    runs[seed]["test"] - others[seed]["test"] for seed in runs if seed in others
                    and (other in settings or runs[seed].get("rounds") == others[seed]["rounds"])])
        lines, base = lines + [""] * bool(have), base or settings
    return "\n".join(lines)


def main(argv=None):
    parser = data.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("numbers", nargs="*", type=int, help="of the headings (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "exercises", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    path = args.out / "answers.json"
    try:
        exercises = read((ROOT / "EXERCISES.md").read_text())
        if unknown := set(args.numbers) - {exercise.number for exercise in exercises}:
            raise ValueError(f"there is no exercise {min(unknown)} in EXERCISES.md")
        (args.out / "runs").mkdir(parents=True, exist_ok=True)
        answers = json.loads(path.read_text()) if path.exists() else {}
        for exercise in exercises:
            for command in exercise.commands if exercise.number in (args.numbers or [exercise.number]) else []:
                if answers.get(command.text, {}).get("change") != command.change:
                    print(f"{exercise.title}: {command.text}", flush=True)
                    answers[command.text] = {"change": command.change, **run(command, args.out / "runs")}
                    path.with_suffix(".tmp").write_text(json.dumps(answers, indent=1) + "\n")
                    path.with_suffix(".tmp").replace(path)  # a stop leaves no half a file
        (args.out / "answers.md").write_text(answers_md(exercises, answers))
    except (ValueError, OSError) as error:
        sys.exit(f"exercises.py: {error}")
    except KeyboardInterrupt:
        sys.exit("exercises.py: stopped; the same command goes on")


if __name__ == "__main__":
    main()
