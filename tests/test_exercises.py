"""The exercises: their flags exist, their changes fit the code, their answers were measured."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT

import evaluate
import train
from infra import flags
from lab import exercises

PAGE, ANSWERS = exercises.PAGE.read_text(), exercises.ANSWERS.read_text()
EXERCISES = exercises.read_exercises(PAGE, ANSWERS)
COMMANDS = [command for exercise in EXERCISES for command in exercise.commands]
CHANGED = [exercise for exercise in EXERCISES if exercise.change]
RESULTS = ROOT / "results" / "exercises"


# --- the page -------------------------------------------------------------------------------------


def test_there_are_exercises_in_order_with_all_their_parts():
    assert len(EXERCISES) >= 12
    assert [exercise.number for exercise in EXERCISES] == list(range(1, len(EXERCISES) + 1))
    bodies = re.split(r"^## (?=\d)", PAGE, flags=re.MULTILINE)[1:]
    for exercise, body in zip(EXERCISES, bodies, strict=True):
        assert "**Write down first.**" in body, exercise.title
        assert "**Look at.**" in body, exercise.title
        assert "(answers.md#" in body.rstrip().splitlines()[-1], exercise.title
        assert len(exercise.answer.split()) > 80, exercise.title
        assert exercise.commands, exercise.title
    # A result is found by its command, so no two may read alike.
    assert len({command.text for command in COMMANDS}) == len(COMMANDS)


def test_the_questions_give_no_result_away():
    """A difference with its interval, or seed values of a run, stand in answers.md only."""
    assert not re.findall(r"[+−]0\.\d{3}|± 0\.\d{3}", PAGE)


def test_a_question_without_an_answer_is_refused():
    last = EXERCISES[-1].title
    with pytest.raises(ValueError, match=re.escape(last)):
        exercises.read_exercises(PAGE, ANSWERS.replace(f"## {last}", "## And so on"))


def test_lines_are_short():
    for line in (PAGE + ANSWERS).splitlines():
        assert len(line) <= 120 or line.startswith("|"), line


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda command: f"{command.setting}-{command.seed}"
)
def test_every_command_has_flags_of_its_script(command, monkeypatch):
    python, script, *words = shlex.split(command.text)
    assert python == "python"
    assert command.seed is not None
    if script == "evaluate.py":
        monkeypatch.setattr(evaluate, "compare", lambda args: None)
        monkeypatch.setattr(sys, "argv", [script, *words])
        evaluate.main()
        return
    assert script == "train.py"
    if command.refused and not command.change:
        with pytest.raises(SystemExit):
            train.parse(words)
        return
    if command.change:
        # The change may allow what is refused without it, so only the names are checked here.
        monkeypatch.setattr(flags, "check_settings", lambda *args: None)
    args = train.parse(words)
    assert str(args.out) == f"runs/{command.setting}-{command.seed}"


# --- the changes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("exercise", CHANGED, ids=lambda exercise: str(exercise.number))
def test_every_change_fits_once_and_compiles(exercise, tmp_path):
    exercises.copy_code(tmp_path)
    exercises.apply_change(exercise.change, tmp_path)
    changed = {}
    for path in tmp_path.rglob("*.py"):
        name = str(path.relative_to(tmp_path))
        if path.read_text() != (ROOT / name).read_text():
            changed[name] = path.read_text()
    assert list(changed) == re.findall(r"^--- (\S+)", exercise.change, flags=re.MULTILINE)
    for name, text in changed.items():
        compile(text, name, "exec")
        assert max(map(len, text.splitlines())) <= 100
    with pytest.raises(ValueError, match="does not fit"):
        exercises.apply_change(exercise.change, tmp_path)


def test_a_change_that_fits_twice_is_refused(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("x = 1\ny = 2\nx = 1\n")
    with pytest.raises(ValueError, match="not exactly one place"):
        exercises.apply_change("--- a.py\n+++ a.py\n-x = 1\n+x = 2\n", tmp_path)
    two_places = "--- a.py\n+++ a.py\n y = 2\n-x = 1\n+x = 2\n@@\n-x = 1\n+x = 3\n"
    exercises.apply_change(two_places, tmp_path)
    assert path.read_text() == "x = 3\ny = 2\nx = 2\n"


@pytest.mark.slow
def test_a_copy_of_the_code_runs(tmp_path):
    exercises.copy_code(tmp_path)
    # One process for all three, because most of a start is importing torch.
    program = "import evaluate, train, lab.explain; train.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr


# --- the answers ----------------------------------------------------------------------------------


def test_every_answer_was_measured():
    answers = json.loads((RESULTS / "answers.json").read_text())
    for command in COMMANDS:
        problem = f"python -m lab.exercises has not run {command.text}"
        assert answers[command.text]["change"] == command.change, problem
    measured = (RESULTS / "answers.md").read_text()
    assert measured == exercises.answers_md(EXERCISES, answers)
    for exercise in EXERCISES:
        assert f"\n## {exercise.title}\n" in measured


def test_differences_in_the_answers_are_those_measured():
    """What an answer quotes as `mean ± half` stands in answers.md too."""
    measured = (RESULTS / "answers.md").read_text()
    for exercise in EXERCISES:
        for quoted in re.findall(r"[+−]0\.\d{3}\s±\s0\.\d{3}", exercise.answer):
            plain = " ".join(quoted.split()).replace("−", "-")
            assert plain in measured, f"{exercise.title}: {quoted}"


def test_seeds_for_is_the_fewest():
    # t is 3.182 for four seeds: 0.0159; 4.303 for three: 0.0248.
    assert exercises.seeds_for(0.01) == 4
    # t is 2.447 for seven seeds: 0.0185; 2.571 for six: 0.0210.
    assert exercises.seeds_for(0.02) == 7


# --- running them ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_exercise_from_end_to_end_and_again(tmp_path):
    refused = [exercise for exercise in EXERCISES if any(c.refused for c in exercise.commands)]
    number = str(refused[0].number)
    command = [sys.executable, "-m", "lab.exercises", number, "--out", str(tmp_path)]
    # Exercise 1, to which the others are compared, has been run already.
    answers = json.loads((RESULTS / "answers.json").read_text())
    kept = {each.text: answers[each.text] for each in EXERCISES[0].commands}
    (tmp_path / "answers.json").write_text(json.dumps(kept))
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    text = (tmp_path / "answers.md").read_text()
    assert "is refused: train.py: " in text
    assert "| zero |" in text
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert again.stdout == f"{tmp_path / 'answers.md'}\n"
    assert (tmp_path / "answers.md").read_text() == text
