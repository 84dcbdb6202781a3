"""The walk through one round: its values hang together, and it says in one sentence what it cannot do."""

import subprocess
import sys

import pytest
from conftest import ROOT

import bandit
import explain


@pytest.fixture(scope="module")
def walked():
    """A function: the values of a round with some flags, computed once."""
    made = {}

    def walk(*flags):
        if flags not in made:
            made[flags] = explain.walk(explain.parse(flags))
        return made[flags]

    return walk


MIXED = ["--query", "10", "--seed", "0"]  # another group with right and wrong completions


@pytest.mark.parametrize("flags", [[], ["--loss-mean", "sequence"], ["--loss-mean", "constant"], ["--kl", "0.1"],
                                   ["--advantage", "reward"], ["--advantage", "nsr"], MIXED])
def test_the_parts_add_up_to_the_loss_of_the_update(walked, flags):
    values = walked(*flags)
    parts = [part for one in values.attempts for part in one.loss + one.kl]
    assert sum(parts) == pytest.approx(values.step["loss"], rel=1e-4, abs=1e-6)
    assert values.total == pytest.approx(sum(parts))
    for one in values.attempts:
        tokens = len(one.pieces)
        assert all(len(column) == tokens for column in (one.sampler, one.before, one.after, one.loss, one.kl))
        assert one.loss == pytest.approx([-one.weight * one.advantage] * tokens)
        assert one.kl == [0] * tokens  # the policy is the base model still
        assert one.before == pytest.approx(one.sampler, abs=1e-4)


@pytest.mark.parametrize("flags", [[], ["--lr", "1e-5"], ["--loss-mean", "sequence"], ["--kl", "0.1"], MIXED])
def test_right_completions_rise_and_wrong_ones_fall(walked, flags):
    attempts = walked(*flags).attempts
    assert {one.right for one in attempts} == {True, False}
    for one in attempts:
        assert one.reward == one.right
        assert (one.advantage > 0) == one.right
        assert (one.change > 0) == one.right
        assert one.change == pytest.approx(sum(one.after) - sum(one.before), abs=1e-4)


def test_a_loss_of_zero_learns_too(walked):
    values = walked("--loss-mean", "sequence")
    assert values.step["loss"] == pytest.approx(0, abs=1e-5)
    assert values.step["grad_norm"] > 0.1
    assert all(abs(one.change) > 0.01 for one in values.attempts)


def test_the_default_group_is_the_one_that_the_docstring_describes(walked):
    right, guess, no_format, runs_on = walked().attempts
    assert [one.advantage for one in walked().attempts] == pytest.approx([0.8660, -0.8660, -0.8660, 0.8660], abs=1e-4)
    assert right.verdict.correct and len(guess.pieces) < 6 < len(right.pieces) < len(runs_on.pieces)
    assert no_format.verdict.extracted is None and walked().query.gold in "".join(no_format.pieces)
    assert runs_on.right and not any(one.cut for one in walked().attempts)


def test_a_completion_that_was_cut_is_judged_as_in_training(walked):
    attempts = walked("--max-new-tokens", "13").attempts
    first = attempts[0]  # it ends in "#### 34", with no end-of-sequence token after it
    assert first.cut and first.verdict.correct and not first.right and first.reward == 0


@pytest.mark.parametrize("name", bandit.ADVANTAGES)
def test_every_advantage_can_be_shown(name):
    args = explain.parse(["--advantage", name])
    assert (args.wrong_reward < 0) == (bandit.ADVANTAGES[name].needs == "signs")


@pytest.mark.parametrize("flags", [[], ["--advantage", "remax", "--kl", "0.1", "--max-new-tokens", "13"],
                                   ["--query", "2", "--seed", "0"], ["--advantage", "window", "--data", "tiny-math"]])
def test_the_page(flags, capsys):
    explain.main(flags)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= explain.WIDTH
    heads = [line for line in lines if line.startswith("--- ")]
    assert [line.split()[1] for line in heads] == [f"{i}." for i in range(1, 8)]
    modules = ("data", "rollout", "reward", "bandit", "likelihood", "optimizer")
    named = [word.rstrip(",").split(".") for line in heads for word in line.split() if word.startswith(modules)]
    assert len(named) == 8
    for module, function in named:  # each step is headed by functions that there are
        assert callable(getattr(sys.modules[module], function))


def test_long_completions_are_folded_and_keep_their_sums(walked, capsys):
    one = walked().attempts[3]
    assert len(one.pieces) > explain.SHOWN
    explain.table(4, one, kl=0)
    *tokens, total = [line for line in capsys.readouterr().out.splitlines() if line][1:]
    assert len(tokens) == explain.SHOWN // 2 + 1 + explain.SHOWN // 3
    assert sum(float(line.split()[-1]) for line in tokens) == pytest.approx(sum(one.loss), abs=2e-5)
    assert float(total.split()[-1]) == pytest.approx(sum(one.loss), abs=1e-6)


@pytest.mark.parametrize("flags, words", [
    (["--rollouts", "1"], "--advantage group compares the rollouts of one query"),
    (["--rollouts", "0"], "--rollouts"), (["--lr", "0"], "--lr"), (["--lr", "nan"], "--lr"), (["--kl", "-1"], "--kl"),
    (["--kl", "inf"], "--kl"), (["--seed", "-1"], "--seed"), (["--query", "-1"], "--query"),
    (["--max-new-tokens", "0"], "--max-new-tokens"), (["--advantage", "best"], "invalid choice"),
    (["--query", "100000"], "go from 0 to"), (["--data", "nowhere"], "nowhere"), (["--model", "./nowhere"], "nowhere"),
])
def test_bad_flags_get_one_sentence(flags, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        explain.main(flags)
    said = capsys.readouterr()
    text = stopped.value.code if isinstance(stopped.value.code, str) else said.err.strip()
    assert stopped.value.code and words in text and "\n" not in text and not said.out


def test_it_runs_as_a_script():
    done = subprocess.run([sys.executable, ROOT / "explain.py"], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and not done.stderr
    assert "Completion 1 (right) became likelier" in done.stdout
