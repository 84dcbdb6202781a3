"""All marginal gains in one picture, from the tables that lab.report wrote.

    python -m lab.forest results/full/table.csv results/teaching/table.csv --out results/forest.png

A line for each setting of the paper's rungs, a point with its 95 % interval for each pair of model
and set: left of zero the change took something away from the baseline, right of it it gave.
"""

import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from infra.curve import COLORS, GREY
from infra.flags import FlagParser

RUNGS = ("advantage", "rollouts", "batch", "split", "window", "controls")  # the paper's, and ours
PANELS = [
    f"gain, {split}, equal {axis}" for split in ("test", "train") for axis in ("rounds", "rollouts")
]
INTERVAL = re.compile(r"([+-][\d.]+) ± ([\d.]+)")
MARKERS = "os^Dv<>p"

Rows = dict[tuple[str, str], dict[str, str]]  # by setting and pair: the line of the table


def read_tables(paths: Sequence[Path]) -> tuple[list[tuple[str, str]], Rows]:
    """The settings of RUNGS as (rung, setting), each once, and their lines.

    Where two tables have the same setting of the same pair, that of more seeds counts.
    Raises ValueError for a file that is no such table.
    """
    settings, rows = {}, {}
    for path in paths:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                if not {"pair", "rung", "setting", "seeds"} <= set(row):
                    raise ValueError(f"{path} is no table of lab.report")
                has_gain = any(INTERVAL.match(row.get(panel) or "") for panel in PANELS)
                if row["rung"] not in RUNGS or not has_gain:
                    continue
                settings.setdefault(row["setting"], row["rung"])
                key = row["setting"], row["pair"]
                if key not in rows or int(row["seeds"]) > int(rows[key]["seeds"]):
                    rows[key] = row
    order = sorted(settings, key=lambda name: (RUNGS.index(settings[name]), sizes(name)))
    return [(settings[setting], setting) for setting in order], rows


def sizes(setting: str) -> list[int]:
    """The numbers in a name: 8x32 comes before 16x16."""
    return [int(number) for number in re.findall(r"\d+", setting)]


def draw_forest(paths: Sequence[Path], picture: Path) -> None:
    """Draw the tables' gains, if they have any."""
    settings, rows = read_tables(paths)
    if not settings:
        return
    panels = [panel for panel in PANELS if any(row.get(panel) for row in rows.values())]
    pairs = sorted({pair for _, pair in rows})
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
                found = INTERVAL.match(rows.get((setting, pair), {}).get(panel) or "")
                if found:
                    places.append(place + offset)
                    means.append(float(found[1]))
                    halves.append(float(found[2]))
            axis.errorbar(
                means, places, xerr=halves, fmt=MARKERS[i % len(MARKERS)], markersize=4,
                color=COLORS[i % len(COLORS)], elinewidth=1, label=pair,
            )  # fmt: skip
        axis.axvline(0, color=GREY, linewidth=0.8)
        for place in range(1, len(settings)):
            if settings[place][0] != settings[place - 1][0]:  # between two rungs
                axis.axhline(place - 0.5, color=GREY, linewidth=0.5, linestyle=":")
        axis.set_title(panel.removeprefix("gain, "), fontsize=10)
        axis.set_xlabel("gain in pass@1 over the baseline")
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
