"""EXERCISES.md: that its commands have flags that exist, its changes fit the files, its answers were measured."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import evaluate
import exercises
import train

EXERCISES = exercises.read((ROOT / "EXERCISES.md").read_text())
COMMANDS = [command for exercise in EXERCISES for command in exercise.commands]
CHANGED = [exercise for exercise in EXERCISES if exercise.change]


def test_there_are_exercises_in_order_with_all_their_parts():
    assert [exercise.number for exercise in EXERCISES] == list(range(1, len(EXERCISES) + 1)) and len(EXERCISES) >= 12
    bodies = re.split(r"^## (?=\d)", (ROOT / "EXERCISES.md").read_text(), flags=re.MULTILINE)[1:]
    for exercise, body in zip(EXERCISES, bodies, strict=True):
        assert "**Write down first.**" in body and "**Look at.**" in body, exercise.title
        assert "<summary>Answer (measured)</summary>" in exercise.answer and "</details>" in exercise.answer
        assert exercise.commands, exercise.title
    assert len({command.text for command in COMMANDS}) == len(COMMANDS)  # a result is found by its command


def test_lines_are_short():
    for line in (ROOT / "EXERCISES.md").read_text().splitlines():
        assert len(line) <= 120 or line.startswith("|"), line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.setting}-{command.seed}")
def test_every_command_has_flags_of_its_script(command, monkeypatch):
    python, script, *flags = shlex.split(command.text)
    assert python == "python" and command.seed is not None
    if script == "evaluate.py":
        monkeypatch.setattr(evaluate, "compare", lambda args: None)
        monkeypatch.setattr(sys, "argv", [script, *flags])
        evaluate.main()
        return
    assert script == "train.py"
    if command.refused and not command.change:
        with pytest.raises(SystemExit):
            train.parse(flags)
        return
    if command.change:  # of what the change allows, only the names of the flags can be looked at here
        monkeypatch.setattr(train.settings, "check", lambda *args: None)
    args = train.parse(flags)
    assert str(args.out) == f"runs/{command.setting}-{command.seed}"


@pytest.mark.parametrize("exercise", CHANGED, ids=lambda exercise: str(exercise.number))
def test_every_change_fits_once_and_compiles(exercise, tmp_path):
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    exercises.make(exercise.change, tmp_path)
    changed = [path for path in tmp_path.glob("*.py") if path.read_text() != (ROOT / path.name).read_text()]
    assert [path.name for path in changed] == re.findall(r"^--- (\S+)", exercise.change, flags=re.MULTILINE)
    for path in changed:
        compile(path.read_text(), path.name, "exec")
        assert max(map(len, path.read_text().splitlines())) <= 120
    with pytest.raises(ValueError, match="does not fit"):
        exercises.make(exercise.change, tmp_path)


def test_a_change_that_fits_twice_is_refused(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = 2\nx = 1\n")
    with pytest.raises(ValueError, match="not exactly one place"):
        exercises.make("--- a.py\n+++ a.py\n-x = 1\n+x = 2\n", tmp_path)
    exercises.make("--- a.py\n+++ a.py\n y = 2\n-x = 1\n+x = 2\n@@\n-x = 1\n+x = 3\n", tmp_path)
    assert (tmp_path / "a.py").read_text() == "x = 3\ny = 2\nx = 2\n"


def test_every_answer_was_measured():
    answers = json.loads((ROOT / "results" / "exercises" / "answers.json").read_text())
    for command in COMMANDS:
        assert answers[command.text]["change"] == command.change, f"python exercises.py has not run {command.text}"
    measured = (ROOT / "results" / "exercises" / "answers.md").read_text()
    assert measured == exercises.answers_md(EXERCISES, answers)
    for exercise in EXERCISES:
        assert f"\n## {exercise.title}\n" in measured


def test_differences_in_the_answers_are_those_measured():
    """What an answer quotes as `mean ± half` stands so in answers.md."""
    measured = (ROOT / "results" / "exercises" / "answers.md").read_text()
    for exercise in EXERCISES:
        for quoted in re.findall(r"[+−]0\.\d{3} ± 0\.\d{3}", exercise.answer):
            assert quoted.replace("−", "-") in measured, f"{exercise.title}: {quoted}"


def test_seeds_for_is_the_fewest():
    assert exercises.seeds_for(0.01) == 4  # t is 3.182 for four seeds: 0.0159; 4.303 for three: 0.0248
    assert exercises.seeds_for(0.02) == 7  # 2.447 for seven: 0.0185; 2.571 for six: 0.0210


def test_an_exercise_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="there is no exercise 99"):
        exercises.main(["99", "--out", str(tmp_path)])


@pytest.mark.slow
def test_an_exercise_from_end_to_end_and_again(tmp_path):
    number = next(exercise.number for exercise in EXERCISES if any(command.refused for command in exercise.commands))
    command = [sys.executable, str(ROOT / "exercises.py"), str(number), "--out", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    text = (tmp_path / "answers.md").read_text()
    assert "is refused: train.py: " in text and "| zero |" in text
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout == "" and (tmp_path / "answers.md").read_text() == text
