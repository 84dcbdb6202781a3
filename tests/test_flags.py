"""Flags: values that are refused, combinations that cannot mean what they say, names of folders."""

import argparse
import io
import math
import sys

import pytest

from bandit import ADVANTAGES
from infra import flags

# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, text, value", [
    (flags.at_least(1), "1", 1),
    (flags.at_least(0), "0", 0),
    (flags.at_least(0.0), "0", 0.0),
    (flags.above(0.0), "1e-6", 1e-6),
    (flags.above(-math.inf), "-1", -1.0),
])  # fmt: skip
def test_good_values(kind, text, value):
    assert kind(text) == value
    assert type(kind(text)) is type(value)


@pytest.mark.parametrize("kind, text, message", [
    (flags.at_least(1), "0", "0 must be at least 1"),
    (flags.at_least(1), "1.5", "1.5 is not a whole number"),
    (flags.at_least(0.0), "-0.1", "-0.1 must be at least 0"),
    (flags.at_least(0.0), "nan", "nan must be at least 0"),
    (flags.above(0.0), "0", "0 must be a finite number above 0"),
    (flags.above(0.0), "much", "much is not a number"),
    (flags.above(-math.inf), "inf", "inf must be a finite number above -inf"),
    (flags.at_least(0.0), "1e30", "1e30 is too large"),
    (flags.at_least(0), "9" * 400, "9" * 40 + " is too large"),
    (flags.within(0.0, 1.0), "2", "2 must be from 0 to 1"),
    (flags.within(0.0, 1.0), "nan", "nan must be from 0 to 1"),
    (flags.path, " ", "the path is empty"),
])  # fmt: skip
def test_bad_values(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert str(error.value) == message


# --- the parser -----------------------------------------------------------------------------------


@pytest.fixture
def parser():
    parser = flags.FlagParser(prog="script.py", description="First line.\n\n  kept as it stands")
    parser.add_argument("--model", default="tiny", help="a name")
    parser.add_argument("--levels", type=int, nargs="+", help="some numbers")
    parser.add_argument("--start", type=int, default=0, help="a number")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="(default: it depends)")
    parser.add_argument("--resume", action="store_true", help="a switch")
    return parser


def test_a_bad_flag_is_answered_by_one_sentence(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--start", "x"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message == "script.py: argument --start: invalid int value: 'x'\n"


def test_the_help_shows_defaults(parser):
    text = " ".join(parser.format_help().split())
    for words in ("a name (default: tiny)", "a number (default: 0)", "(default: it depends)"):
        assert words in text
    for help_without in ("some numbers (default", "a switch (default", "depends) (default"):
        assert help_without not in text
    assert "First line.\n\n  kept as it stands" in parser.format_help()


def test_a_folder_is_named_after_the_changed_flags(parser):
    def name(*words):
        return flags.changed_flags(parser.parse_args(words), parser, ("resume",))

    assert name() == name("--start", "0") == name("--resume") == "default"
    assert name("--levels", "1", "2", "--model", "owner/name") == "model=owner_name,levels=1+2"
    assert name("--learning-rate", "0.5") == "learning-rate=0.5"


def test_the_name_of_a_folder_is_never_too_long_for_a_disk(parser):
    def name(*words):
        return flags.changed_flags(parser.parse_args(words), parser, ())

    short, one, other = name("--model", "a"), name("--model", "a" * 300), name("--model", "a" * 301)
    assert short == "model=a" and len(one.encode()) <= 200 and one != other
    assert len(name("--model", "é" * 150).encode()) <= 200


def test_an_output_that_cannot_show_a_character_shows_a_question_mark(monkeypatch, parser):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    parser.parse_args([])
    print("1 ± 2", flush=True)
    assert raw.getvalue() == b"1 ? 2\n"


# --- combinations ---------------------------------------------------------------------------------


def check(advantage, rollouts=1, batch_size=32, **settings):
    flags.check_settings(
        advantage, ADVANTAGES[advantage].needs, batch_size, rollouts, **settings
    )


@pytest.mark.parametrize("settings, message", [
    ({"advantage": "group"}, "write --advantage reward"),
    ({"advantage": "rloo"}, "write --advantage reward"),
    ({"advantage": "batch-centered", "batch_size": 1}, "write --advantage reward"),
    ({"advantage": "reward", "baseline_rollouts": 7}, "sampled for nothing"),
    ({"advantage": "window"}, "needs --window"),
    ({"advantage": "window", "rollouts": 16, "window": 8}, "cannot hold"),
    ({"advantage": "reward", "window": 8}, "of no use"),
    ({"advantage": "raft"}, "it is --advantage reward"),
    ({"advantage": "maxrl"}, "write --advantage reward"),
    ({"advantage": "maxrl", "rollouts": 8, "wrong_reward": -1.0}, "--wrong-reward -1 must be 0"),
    ({"advantage": "nsr"}, "nothing to learn"),
    ({"advantage": "reward", "wrong_reward": 1.0}, "must be above"),
])  # fmt: skip
def test_settings_that_cannot_mean_what_they_say(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        check(**settings)
    assert len(str(error.value).splitlines()) == 1


def test_settings_of_the_paper_are_accepted():
    check("group", baseline_rollouts=7)
    check("window", batch_size=256, window=8)
    check("raft", rollouts=8, wrong_reward=-1.0)
    check("maxrl", rollouts=1, baseline_rollouts=7)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_every_advantage_has_settings_that_are_accepted(name):
    needs = ADVANTAGES[name].needs
    window = 8 if needs == "window" else 0
    check(name, rollouts=2, window=window, wrong_reward=-1.0 if needs == "signs" else 0.0)


@pytest.mark.parametrize("changed, message", [
    ({"kl_estimator": "k1"}, "--kl-estimator k1 is of no use without --kl"),
    ({"clip_high": 0.28}, "give --epochs-per-round too"),
    ({"clip_low": 0.1}, "give --epochs-per-round too"),
    ({"reward": "mine.py", "wrong_reward": -1.0}, "with --reward mine.py that file says what"),
    ({"reward": "mine.py"}, None),
    ({"eval_queries": 8, "eval_samples": 1}, "--eval-queries 8 is for the pass@k"),
    ({"eval_queries": 8}, None),
    ({"kl_estimator": "k1", "kl": 0.1}, None),
    ({"clip_high": 0.28, "epochs_per_round": 2}, None),
    ({}, None),
])  # fmt: skip
def test_flags_that_would_do_nothing(changed, message):
    defaults = {
        "kl": 0.0, "kl_estimator": "k3", "clip_low": 0.2, "clip_high": 0.2, "epochs_per_round": 1,
        "reward": None, "right_reward": 1.0, "wrong_reward": 0.0,
        "eval_samples": 16, "eval_queries": 64,
    }  # fmt: skip
    parser = flags.FlagParser()
    parser.set_defaults(**defaults)
    args = argparse.Namespace(**(defaults | changed))
    if message is None:
        flags.check_unused(args, parser)
    else:
        with pytest.raises(ValueError, match=message):
            flags.check_unused(args, parser)
