"""All marginal gains in one picture, from the tables that lab.report wrote.

    python -m lab.forest results/teaching/table.csv results/paper/table.csv --out results/forest.png

A line for each setting of the paper's rungs, a point with its 95 % interval for each pair of model
and set: left of zero the change took something away from the baseline, right of it it gave.
"""

import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from infra.curve import COLORS, GREY, MARKERS
from infra.flags import FlagParser

RUNGS = ("advantage", "rollouts", "batch", "split", "window", "controls")  # the paper's, and ours
PANELS = (
    "gain, test, equal rounds", "gain, test greedy, equal rounds", "gain, test, equal rollouts",
    "gain, train, equal rounds", "gain, train, equal rollouts",
)  # fmt: skip
INTERVAL = re.compile(r"([+-][\d.]+) ± ([\d.]+)")

# By panel, setting and pair: seeds, mean gain, half of its interval.
Gains = dict[tuple[str, str, str], tuple[int, float, float]]


def read_tables(paths: Sequence[Path]) -> tuple[list[tuple[str, str]], Gains]:
    """The settings of RUNGS as (rung, setting), each once, and their gains.

    Where two tables have the same gain of the same pair, that of more seeds counts.
    Raises ValueError for a file that is no such table.
    """
    settings, gains = {}, {}
    for path in paths:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                if not {"pair", "rung", "setting", "seeds"} <= set(row):
                    raise ValueError(f"{path} is no table of lab.report")
                if row["rung"] not in RUNGS:
                    continue
                seeds = int(row["seeds"])
                for panel in PANELS:
                    found = INTERVAL.match(row.get(panel) or "")
                    if not found:
                        continue
                    settings.setdefault(row["setting"], row["rung"])
                    key = panel, row["setting"], row["pair"]
                    if key not in gains or seeds > gains[key][0]:
                        gains[key] = seeds, float(found[1]), float(found[2])
    order = sorted(settings, key=lambda name: (RUNGS.index(settings[name]), sizes(name)))
    return [(settings[setting], setting) for setting in order], gains


def sizes(setting: str) -> list[int]:
    """The numbers in a name: 8x32 comes before 16x16."""
    return [int(number) for number in re.findall(r"\d+", setting)]


def draw_forest(paths: Sequence[Path], picture: Path) -> None:
    """Draw the tables' gains, if they have any."""
    settings, gains = read_tables(paths)
    if not settings:
        return
    panels = [panel for panel in PANELS if any(key[0] == panel for key in gains)]
    pairs = sorted({pair for _, _, pair in gains})
    height = 0.1 * len(pairs) + 0.12  # of a line, in inches
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.2 + 3.2 * len(panels), 1.6 + height * len(settings)),
        sharey=True, layout="constrained", squeeze=False,
    )  # fmt: skip
    for axis, panel in zip(axes[0], panels, strict=True):
        for i, pair in enumerate(pairs):
            offset = (i - (len(pairs) - 1) / 2) * 0.8 / len(pairs)
            places, means, halves = [], [], []
            for place, (_, setting) in enumerate(settings):
                if (panel, setting, pair) in gains:
                    _, mean, half = gains[panel, setting, pair]
                    places.append(place + offset)
                    means.append(mean)
                    halves.append(half)
            axis.errorbar(
                means, places, xerr=halves, fmt=MARKERS[i % len(MARKERS)], markersize=4,
                color=COLORS[i % len(COLORS)], elinewidth=1, label=pair,
            )  # fmt: skip
        axis.axvline(0, color=GREY, linewidth=0.8)
        for place in range(1, len(settings)):
            if settings[place][0] != settings[place - 1][0]:  # between two rungs
                axis.axhline(place - 0.5, color=GREY, linewidth=0.5, linestyle=":")
        axis.set_title(panel.removeprefix("gain, "), fontsize=10)
        measure = "greedy accuracy" if "greedy" in panel else "pass@1"
        axis.set_xlabel(f"gain in {measure} over the baseline")
    first = axes[0][0]
    first.set_yticks(range(len(settings)), [f"{rung}: {setting}" for rung, setting in settings])
    first.set_ylim(len(settings) - 0.5, -0.5)
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(picture, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = FlagParser(description=__doc__)
    parser.add_argument("tables", nargs="+", type=Path, help="files table.csv of lab.report")
    parser.add_argument("--out", type=Path, default=Path("forest.png"), help="the picture")
    args = parser.parse_args()
    try:
        if not read_tables(args.tables)[0]:
            sys.exit("forest.py: the tables have no gains")
        draw_forest(args.tables, args.out)
    except (ValueError, OSError) as error:
        sys.exit(f"forest.py: {error}")
    print(args.out)


if __name__ == "__main__":
    main()
