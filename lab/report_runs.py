"""The runs of ablate.sh: read from their folders, compared, and drawn as learning curves."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image  # comes with matplotlib

from infra.curve import COLORS, GREY, MARKERS  # this makes matplotlib draw into files only
from infra.intervals import Interval, standard_error, t_interval
from infra.run_folder import read_json, read_lines

BASELINE = "32x1"
LONG = "32x1-long"  # the baseline for eight times the rounds: as many rollouts as 32x8
SPLITS = ("train", "test")

# --- reading --------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A finished run. Each array has one entry for each evaluation, the first at round 0."""

    folder: Path
    config: dict
    summary: dict
    axes: dict[str, np.ndarray]  # "rounds", "rollouts" and "seconds" before the evaluation
    pass_at_1: dict[str, np.ndarray]  # by split
    right: dict[str, np.ndarray]  # by split, [evaluations, queries] of 0 and 1
    entropy: np.ndarray  # of the rollouts of each round, nats a token


Runs = dict[str, dict[int, Run]]  # by setting and seed


class PlanLine(NamedTuple):
    """A line of plan.tsv, which ablate.sh writes."""

    rung: str
    setting: str
    flags: str


def read_run(folder: Path) -> Run:
    """What the report needs of one run.

    Raises ValueError, with the reason, for a run that is not whole.
    """
    try:
        summary = read_json(folder / "summary.json")
        config = read_json(folder / "config.json")
        metrics = read_lines(folder / "metrics.jsonl")
        evals = read_lines(folder / "evals.jsonl")
        lines = {split: [line for line in evals if line["split"] == split] for split in SPLITS}
        rounds = np.array([line["round"] for line in lines["test"]])
        is_whole = len(rounds) > 1 and rounds[-1] == len(metrics) == summary["rounds"]
        if not is_whole:
            raise ValueError("its log does not reach its last round")
        if [line["round"] for line in lines["train"]] != rounds.tolist():
            raise ValueError("its two sets were not evaluated in the same rounds")
        parts = ("seconds_sampling", "seconds_reward", "seconds_update")
        seconds = np.cumsum([sum(line[part] for part in parts) for line in metrics])
        axes = {
            "rounds": rounds,
            "rollouts": rounds * summary["rollouts"] / summary["rounds"],
            "seconds": np.concatenate([[0], seconds])[rounds],
        }
        pass_at_1 = {split: column(lines[split], "pass@1") for split in SPLITS}
        right = {split: column(lines[split], "right") for split in SPLITS}
        entropy = column(metrics, "entropy")
        return Run(folder, config, summary, axes, pass_at_1, right, entropy)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """Why a run cannot be read, in words."""
    if isinstance(error, KeyError):
        return f"a file of it lacks {error}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def column(lines: list[dict], name: str) -> np.ndarray:
    return np.array([line[name] for line in lines])


def read_pair(folder: Path, describe: Callable[[Run], None]) -> tuple[Runs, list[str]]:
    """The runs of one model on one set, and the reasons for those that were left out.

    describe: fails for a run of which the report could not say everything.
    """
    runs, left_out = {}, []
    for path in sorted(folder.glob("*/seed-*")):
        try:
            seed = int(path.name.removeprefix("seed-"))
            run, others = read_run(path), runs.get(path.parent.name, {})
            for other in others.values():
                if other.axes["rounds"].tolist() != run.axes["rounds"].tolist():
                    raise ValueError(f"was evaluated in other rounds than {other.folder.name}")
            describe(run)
            runs.setdefault(path.parent.name, {})[seed] = run
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = reason_of(error)
            left_out.append(reason if str(path) in reason else f"{path}: {reason}")
    return runs, left_out


# --- comparing runs -------------------------------------------------------------------------------


def differences(
    runs: Runs, setting: str, base: str, split: str, axis: str = "rounds"
) -> list[float]:
    """setting - base in pass@1, for each seed that both have.

    axis: what is equal for the two, "rounds", "rollouts" or "seconds". They are compared where the
        shorter of the two ends.

    The train set of a run is the queries that it trains on. Where these are others (--queries,
    --levels), the two are not compared on it.
    """
    found = []
    for seed in sorted(set(runs.get(setting, {})) & set(runs.get(base, {}))):
        one, other = runs[setting][seed], runs[base][seed]
        chosen = [[run.config.get(name) for name in ("queries", "levels")] for run in (one, other)]
        if split == "train" and chosen[0] != chosen[1]:
            continue
        place = min(one.axes[axis][-1], other.axes[axis][-1])
        # Before its first evaluation after round 0, a run has no curve to read.
        if place >= max(one.axes[axis][1], other.axes[axis][1]):
            value = pass_at_1(one, split, axis, place)
            found.append(value - pass_at_1(other, split, axis, place))
    return found


def gain(runs: Runs, setting: str, base: str, split: str, axis: str = "rounds") -> Interval:
    """The interval of these differences."""
    return t_interval(differences(runs, setting, base, split, axis))


def greedy_differences(runs: Runs, setting: str, base: str) -> list[float]:
    """setting - base in greedy accuracy on the test set, for each seed that both have.

    It is measured before and after a run only, so both must have the same number of rounds.
    """
    found = []
    for seed in sorted(set(runs.get(setting, {})) & set(runs.get(base, {}))):
        one, other = runs[setting][seed], runs[base][seed]
        if one.axes["rounds"][-1] == other.axes["rounds"][-1]:
            found.append(one.summary["test_greedy_after"] - other.summary["test_greedy_after"])
    return found


def pass_at_1(run: Run, split: str, axis: str, place: float) -> float:
    """pass@1 at a place on the axis; between two evaluations, on the line between them."""
    return np.interp(place, run.axes[axis], run.pass_at_1[split])


class BestRound(NamedTuple):
    round: int
    pass_at_1: float
    collapsed: bool


def best_round(run: Run) -> BestRound:
    """The best round, chosen on the even test queries, and its pass@1 on the odd ones.

    Two halves, so that luck in the choice does not raise the figure. The run has collapsed if its
    end is worse than its best round by more than 3 standard errors, on the odd queries.
    """
    right = run.right["test"]
    best = right[:, ::2].mean(axis=1).argmax()
    drop = right[best, 1::2] - right[-1, 1::2]
    collapsed = bool(drop.mean() > 3 * standard_error(drop))
    return BestRound(run.axes["rounds"][best], right[best, 1::2].mean(), collapsed)


# --- figures --------------------------------------------------------------------------------------


def draw_settings(runs: Runs, settings: list[str], path: Path, title: str) -> None:
    """Learning curves against rounds, rollouts and seconds: mean and range over the seeds.

    Against rollouts and seconds the long baseline is drawn behind, in grey: it shows what the same
    cost brings without any change.
    """
    labels = {
        "rounds": "round",
        "rollouts": "rollouts",
        "seconds": "seconds of sampling, reward and update",
    }
    last = max(run.axes["rounds"][-1] for name in settings for run in runs[name].values())
    figure, panels = plt.subplots(2, 3, figsize=(13, 7), sharey="row", layout="constrained")
    for panel_row, split in zip(panels, SPLITS, strict=True):
        for panel, (axis, label) in zip(panel_row, labels.items(), strict=True):
            is_cost = axis != "rounds"
            if is_cost and LONG in runs and LONG not in settings:
                draw_setting(panel, runs, LONG, split, axis, GREY, "--", "")
            for i, setting in enumerate(settings):
                color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(COLORS)]
                style = "-" if i // len(COLORS) % 2 == 0 else ":"
                draw_setting(panel, runs, setting, split, axis, color, style, marker)
            panel.set_xlabel(label)
            if is_cost:
                panel.set_xscale("log")
                panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                panel.xaxis.set_major_formatter("{x:,g}")
                panel.xaxis.set_minor_formatter(NullFormatter())
            else:
                panel.set_ylabel(f"pass@1, whole {split} set")
                panel.set_xlim(-0.03 * last, 1.03 * last)
    panels[0, 1].legend(fontsize=8)
    seeds = "/".join(str(n) for n in sorted({len(runs[setting]) for setting in settings}))
    figure.suptitle(f"{title}: mean and range of {seeds} seeds")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)  # a quarter of the size


def draw_setting(
    panel: plt.Axes, runs: Runs, setting: str, split: str, axis: str, color: str, style: str,
    marker: str,
) -> None:  # fmt: skip
    """One curve: the mean over the seeds, with their range as a band."""
    first = 0 if axis == "rounds" else 1  # a logarithmic axis has no place for round 0
    seeds = list(runs[setting].values())
    place = np.mean([run.axes[axis] for run in seeds], axis=0)[first:]
    values = np.array([run.pass_at_1[split] for run in seeds])[:, first:]
    panel.plot(
        place, values.mean(axis=0), linestyle=style, marker=marker, markersize=4, color=color,
        label=setting,
    )  # fmt: skip
    panel.fill_between(place, values.min(axis=0), values.max(axis=0), alpha=0.12, color=color)
