"""The walk through one round: its values fit together, and bad flags get one sentence."""

import functools
import subprocess
import sys
from collections.abc import Callable

import pytest
from helpers import ROOT

import bandit
from lab import explain

MIXED = ["--query", "10", "--seed", "0"]  # another group with right and wrong completions


@pytest.fixture(scope="module")
def walk() -> Callable[..., explain.Walk]:
    """A function: the values of a round with some flags, computed once."""

    @functools.cache
    def run(*flags: str) -> explain.Walk:
        return explain.walk(explain.parse(list(flags)))

    return run


# --- the values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--loss-mean", "sequence"],
        ["--loss-mean", "constant"],
        ["--kl", "0.1"],
        ["--advantage", "reward"],
        ["--advantage", "nsr"],
        MIXED,
    ],
)
def test_the_parts_add_up_to_the_loss_of_the_update(walk, flags):
    walked = walk(*flags)
    parts = [part for one in walked.attempts for part in one.loss + one.kl]
    assert sum(parts) == pytest.approx(walked.step["loss"], rel=1e-4, abs=1e-6)
    assert walked.total == pytest.approx(sum(parts))
    for one in walked.attempts:
        tokens = len(one.pieces)
        columns = (one.sampler, one.before, one.after, one.loss, one.kl)
        assert all(len(column) == tokens for column in columns)
        assert one.loss == pytest.approx([-one.weight * one.advantage] * tokens)
        assert one.kl == [0] * tokens  # the policy is still the base model
        assert one.before == pytest.approx(one.sampler, abs=1e-4)


@pytest.mark.parametrize(
    "flags", [[], ["--lr", "1e-5"], ["--loss-mean", "sequence"], ["--kl", "0.1"], MIXED]
)
def test_right_completions_rise_and_wrong_ones_fall(walk, flags):
    attempts = walk(*flags).attempts
    assert {one.right for one in attempts} == {True, False}
    for one in attempts:
        assert one.reward == one.right
        assert (one.advantage > 0) == one.right
        assert (one.change > 0) == one.right
        assert one.change == pytest.approx(sum(one.after) - sum(one.before), abs=1e-4)


def test_a_loss_of_zero_also_learns(walk):
    walked = walk("--loss-mean", "sequence")
    assert walked.step["loss"] == pytest.approx(0, abs=1e-5)
    assert walked.step["grad_norm"] > 0.1
    assert all(abs(one.change) > 0.01 for one in walked.attempts)


def test_the_default_group_is_the_one_that_the_docstring_describes(walk):
    walked = walk()
    right, guess, no_format, runs_on = walked.attempts
    advantages = [one.advantage for one in walked.attempts]
    assert advantages == pytest.approx([0.8660, -0.8660, -0.8660, 0.8660], abs=1e-4)
    assert right.verdict.correct
    assert len(guess.pieces) < 6 < len(right.pieces) < len(runs_on.pieces)
    assert no_format.verdict.extracted is None
    assert walked.query.gold in "".join(no_format.pieces)
    assert runs_on.right
    assert not any(one.truncated for one in walked.attempts)


def test_a_truncated_completion_is_graded_as_in_training(walk):
    # It ends in "#### 34", the right answer, with no end-of-sequence token after it.
    first = walk("--max-new-tokens", "13").attempts[0]
    assert first.truncated
    assert first.verdict.correct
    assert not first.right
    assert first.reward == 0


@pytest.mark.parametrize("name", bandit.ADVANTAGES)
def test_every_advantage_can_be_shown(name):
    args = explain.parse(["--advantage", name])
    assert (args.wrong_reward < 0) == (bandit.ADVANTAGES[name].needs == "signs")


def test_an_advantage_may_be_called_by_its_other_name():
    assert explain.parse(["--advantage", "psr"]).advantage == "raft"


# --- the page -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--advantage", "remax", "--kl", "0.1", "--max-new-tokens", "13"],
        ["--query", "2", "--seed", "0"],
        ["--advantage", "window", "--data", "tiny-math"],
    ],
)
def test_the_page_has_seven_steps_under_names_of_functions(flags, capsys):
    explain.main(flags)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= explain.WIDTH
    headings = [line for line in lines if line.startswith("--- ")]
    assert [line.split()[1] for line in headings] == [f"{i}." for i in range(1, 8)]

    modules = ("data.", "rollout.", "reward.", "bandit.", "infra.optimizer.")
    words = [word.rstrip(",") for line in headings for word in line.split()]
    names = [word for word in words if word.startswith(modules)]
    assert len(names) == 8
    for name in names:
        module, _, function = name.rpartition(".")
        assert callable(getattr(sys.modules[module], function))


def test_long_completions_are_folded_and_keep_their_sums(walk, capsys):
    one = walk().attempts[3]
    assert len(one.pieces) > explain.SHOWN
    explain.print_tokens(4, one, kl=0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    _, *tokens, total = lines
    assert len(tokens) == explain.SHOWN // 2 + 1 + explain.SHOWN // 3
    parts = [float(line.split()[-1]) for line in tokens]
    assert sum(parts) == pytest.approx(sum(one.loss), abs=2e-5)
    assert float(total.split()[-1]) == pytest.approx(sum(one.loss), abs=1e-6)


def test_step_waits_after_every_section_but_the_last(capsys, monkeypatch):
    seen = []

    def press_return(prompt):
        seen.append(capsys.readouterr().out)
        return ""

    monkeypatch.setattr("builtins.input", press_return)
    explain.main(["--step"])
    assert ["--- " in text for text in seen] == [True] * 6
    assert "--- 7. in words" in capsys.readouterr().out


def test_step_ends_quietly_at_the_end_of_input(monkeypatch):
    def end(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    with pytest.raises(SystemExit, match="stopped"):
        explain.main(["--step"])


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.slow
def test_it_runs_as_a_script():
    command = [sys.executable, "-m", "lab.explain"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0
    assert not done.stderr
    assert "Completion 1 (right) became likelier" in done.stdout
