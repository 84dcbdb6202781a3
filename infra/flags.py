"""Flags: types that refuse bad values, and combinations that cannot mean what they say.

A refusal is one sentence. It names the flag and the value.
"""

import argparse
import hashlib
import math
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description as it stands, and adds the default to each help that names none."""

    def _get_help_string(self, action: argparse.Action) -> str:
        # `is`, because a default of 0 equals False and is worth showing
        if any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS)):
            return action.help
        if "(default" not in action.help:
            return f"{action.help} (default: %(default)s)"
        return action.help


class FlagParser(argparse.ArgumentParser):
    """An ArgumentParser that answers a bad flag with one sentence, without the usage text."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:
        # An output that cannot show a character, such as ±, shows a question mark.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        return super().parse_args(*args, **kwargs)


def path(text: str) -> str:
    """A flag type: the name of a file or folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def at_least(bound: int | float) -> Callable[[str], int | float]:
    """A flag type: a number of the type of `bound` that is not below it."""
    return number(bound, lambda value: value >= bound, f"at least {bound:g}")


def above(bound: int | float) -> Callable[[str], int | float]:
    """A flag type: a finite number of the type of `bound` that is above it."""
    return number(bound, lambda value: value > bound, f"a finite number above {bound:g}")


def within(low: int | float, high: int | float) -> Callable[[str], int | float]:
    """A flag type: a number of the type of `low`, from low to high."""
    return number(low, lambda value: low <= value <= high, f"from {low:g} to {high:g}")


def number(
    example: int | float, is_good: Callable[[float], bool], wanted: str
) -> Callable[[str], int | float]:
    """A flag type: a number of the type of `example` for which `is_good` holds."""
    kind = type(example)
    kind_name = "whole number" if kind is int else "number"

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]} is not a {kind_name}") from None
        if math.inf > abs(value) >= (2**31 if kind is int else 1e30):  # no tensor's size or float32
            raise argparse.ArgumentTypeError(f"{text[:40]} is too large")
        if not (is_good(value) and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} must be {wanted}")
        return value

    return parse


def changed_flags(args: argparse.Namespace, parser: FlagParser, unnamed: tuple[str, ...]) -> str:
    """The flags that differ from their defaults, as a name for a folder; "default" if none does."""
    parts = []
    for name, value in vars(args).items():
        if name in unnamed or value == parser.get_default(name):
            continue
        text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(f"{name.replace('_', '-')}={text}".replace("/", "_"))
    text = ",".join(parts) or "default"
    # A file system takes 255 bytes, and -2, -3, ... may follow.
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]
    return text if len(text.encode(errors="replace")) <= 200 else f"{text[:50]}...{digest}"


def check_unused(args: argparse.Namespace, parser: FlagParser) -> None:
    """Raise ValueError for flags of train.py that would do nothing."""

    def is_changed(name: str) -> bool:
        return getattr(args, name) != parser.get_default(name)

    if args.reward and (is_changed("right_reward") or is_changed("wrong_reward")):
        raise ValueError(
            "--right-reward and --wrong-reward are what the verifier pays: with --reward "
            f"{args.reward} that file says what is paid"
        )
    if is_changed("kl_estimator") and not args.kl:
        raise ValueError(f"--kl-estimator {args.kl_estimator} is of no use without --kl")
    if is_changed("eval_queries") and args.eval_samples == 1:
        raise ValueError(
            f"--eval-queries {args.eval_queries} is for the pass@k, and --eval-samples 1 has none"
        )
    if args.epochs_per_round == 1 and (is_changed("clip_low") or is_changed("clip_high")):
        raise ValueError(
            "--clip-low and --clip-high do nothing at one step a round, where the ratio is 1: "
            "give --epochs-per-round too"
        )


def check_settings(
    advantage: str,
    needs: str,
    batch_size: int,
    rollouts: int,
    baseline_rollouts: int = 0,
    window: int = 0,
    right_reward: float = 1.0,
    wrong_reward: float = 0.0,
) -> None:
    """Raise ValueError for settings that leave an advantage nothing to work with.

    needs: what the advantage must be given, as its row of bandit.ADVANTAGES says: "group",
        "batch", "rate" (a group in which wrong answers pay 0), "window", "greedy", "signs" or "".
    The other parameters are the flags of train.py with these names.
    """
    group_size = rollouts + baseline_rollouts
    needs_rate = needs == "rate"
    needs = "group" if needs_rate else needs
    if needs == "group" and group_size < 2 or needs == "batch" and batch_size * rollouts < 2:
        whose = "one query" if needs == "group" else "a batch"
        raise ValueError(
            f"--advantage {advantage} compares the rollouts of {whose} and there is only one: "
            "give more, or write --advantage reward"
        )
    if baseline_rollouts and needs != "group":
        raise ValueError(
            f"--baseline-rollouts {baseline_rollouts} would be sampled for nothing: --advantage "
            f"{advantage} has no statistics of the group"
        )
    if needs == "window" and window < 2:
        raise ValueError(
            f"--advantage {advantage} needs --window of at least 2 rewards, the paper's is 8"
        )
    if needs == "window" and rollouts > window:
        raise ValueError(
            f"--window {window} cannot hold the {rollouts} rewards that --rollouts {rollouts} "
            "brings at once"
        )
    if needs != "window" and window:
        raise ValueError(
            f"--window {window} is of no use to --advantage {advantage}: write --advantage window"
        )
    if right_reward <= wrong_reward:
        raise ValueError(
            f"--right-reward {right_reward:g} must be above --wrong-reward {wrong_reward:g}"
        )
    if needs_rate and wrong_reward != 0:
        raise ValueError(
            f"--advantage {advantage} divides by the mean reward of the group, which must be the "
            f"share of right answers: --wrong-reward {wrong_reward:g} must be 0"
        )
    if needs == "signs" and not wrong_reward < 0 < right_reward:
        if advantage == "nsr":
            consequence = "there is nothing to learn from"
        else:
            consequence = "it is --advantage reward, up to a factor"
        raise ValueError(
            f"--advantage {advantage} needs a positive --right-reward and a negative "
            f"--wrong-reward (1 and -1 in the literature): with {right_reward:g} and "
            f"{wrong_reward:g} {consequence}"
        )
