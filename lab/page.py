"""A page to look at, in one file: completions, their tokens coloured by how far they moved.

    python -m lab.page runs/default      # runs/default/page.html: the curve, and a slider over it
    python -m lab.explain --html         # the same colours for the one round of lab.explain

The page needs no network and no server: open it in a browser, mail it, print it. Tokens that became
likelier are blue and underlined, those that became less likely are orange and dotted. page.html is
the template. The data stand in it as JSON and reach the page as text only, so a completion cannot
act as markup.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from infra import curve, flags
from infra.run_folder import read_json, read_lines

TEMPLATE = Path(__file__).with_name("page.html")
# Bounds that keep a page below 500 kB.
MOST_STEPS = 60  # evaluations; of more, these many at equal distances
MOST_TOKENS = 8_000  # of all completions together
MOST_POINTS = 500  # of the reward's curve


def write_page(path: Path, content: dict[str, Any]) -> None:
    """Write the page; page.html's script says what content holds.

    Its tokens are [text, log-probability before, and after].
    """
    attempts = [attempt for step in content["steps"] for attempt in step["attempts"]]
    shown = MOST_TOKENS // max(1, len(attempts))
    for attempt in attempts:
        attempt["tokens"] = shorten(attempt["tokens"], shown)
    content["scale"] = scale_of(attempts)
    content["legend"] += (
        f" Full colour: a change of {content['scale']:.2g} nats or more. The numbers of a token "
        "appear below, when you point at it or move to it with tab and the arrow keys."
    )
    # JSON writes all but ASCII as \\u...; without a < no text can end the script element.
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    path.parent.mkdir(parents=True, exist_ok=True)
    page = TEMPLATE.read_text(encoding="utf-8").replace("DATA", text, 1)
    path.write_text(page, encoding="utf-8")


def shorten(tokens: list[list], most: int) -> list[list]:
    """The tokens; of more than `most`, the first two thirds and the last third of these."""
    if len(tokens) <= most:
        return tokens
    last = max(1, most // 3)
    first = max(1, most - last)
    left_out = len(tokens) - first - last
    return [*tokens[:first], [f"… {left_out} tokens …", None, None], *tokens[-last:]]


def scale_of(attempts: list[dict]) -> float:
    """The change that gets full colour: that of the 95th in a hundred tokens that moved."""
    changes = [
        abs(after - before)
        for attempt in attempts for _, before, after in attempt["tokens"] if before is not None
    ]  # fmt: skip
    moved = [change for change in changes if change > 0]
    return max(0.01, float(np.quantile(moved, 0.95))) if moved else 1.0


# --- a run ----------------------------------------------------------------------------------------


def page_of_run(folder: Path) -> dict[str, Any]:
    """The content of a run's page. The run may still be going on.

    Raises ValueError, in one sentence, if the folder holds no evaluation of a run.
    """
    evals = read_lines(folder / "evals.jsonl")
    tests = [line for line in evals if line["split"] == "test"]
    if not tests or not (folder / "config.json").exists():
        raise ValueError(f"there is no evaluated run in {folder}")
    config = read_json(folder / "config.json")
    steps = [to_step(line) for line in thin_out(tests, MOST_STEPS)]
    notes = [
        f"{config['batch_size']} queries x {config['rollouts']} rollouts a round, advantage "
        f"{config['advantage']}, learning rate {config['lr']:g}, seed {config['seed']}."
    ]
    if len(steps) < len(tests):
        notes.append(f"{len(steps)} of the {len(tests)} evaluations are shown.")
    return {
        "title": f"{Path(config['model']).name} on {config['data']}",
        "notes": notes,
        "legend": "What became of the same few test queries: move the slider. A token is blue and "
                  "underlined where the policy finds it likelier than the base model does, orange "
                  "and dotted where it finds it less likely.",
        "curve": to_curve(read_lines(folder / "metrics.jsonl"), evals),
        "queries": [{"prompt": one["prompt"], "gold": one["gold"]} for one in tests[0]["samples"]],
        "steps": steps,
    }  # fmt: skip


def to_step(line: dict) -> dict[str, Any]:
    """One evaluation: a line of evals.jsonl for the test set."""
    attempts = [
        {
            "query": i,
            "right": sample["right"],
            "note": f", {len(sample['tokens'])} tokens",
            "tokens": tokens_of(sample["tokens"], sample["logprobs_base"], sample["logprobs"]),
        }
        for i, sample in enumerate(line["samples"])
    ]
    figures = (
        f"test pass@1 {line['pass@1']:.3f}{curve.plus_minus(line['se'])} (standard error), "
        f"{line['in_format']:.0%} in the asked format, {line['length']:.0f} tokens on average, "
        f"KL to the base model {line['kl']:.3f} nats a token"
    )
    label = "before the first round" if line["round"] == 0 else f"after round {line['round']}"
    return {"round": line["round"], "label": label, "figures": figures, "attempts": attempts}


def tokens_of(pieces: list[str], before: list[float], after: list[float]) -> list[list]:
    """[text, log-probability before, and after] of each token."""
    values = zip(pieces, before, after, strict=True)
    return [[text, round(old, 4), round(new, 4)] for text, old, new in values]


def to_curve(metrics: list[dict], evals: list[dict]) -> dict[str, Any]:
    """The points of the figure: the share of right rollouts, and pass@1 with 95 % intervals."""
    accuracy = [line["accuracy"] for line in metrics]
    means = curve.smooth(accuracy, curve.smoothing_width(accuracy))
    smoothed = [[i, round(float(value), 4)] for i, value in enumerate(means, 1)]
    sets = []
    for name in ("train", "test"):
        lines = thin_out([line for line in evals if line["split"] == name], MOST_STEPS)
        points = [[line["round"], line["pass@1"], 1.96 * (line["se"] or 0)] for line in lines]
        sets.append({"name": name, "evaluations": points})
    last = max(len(metrics), evals[-1]["round"])
    return {"last": last, "accuracy": thin_out(smoothed, MOST_POINTS), "sets": sets}


def thin_out(lines: list, most: int) -> list:
    """The lines; of more than `most`, these many at equal distances, first and last among them."""
    if len(lines) <= most:
        return lines
    return [lines[round(i * (len(lines) - 1) / (most - 1))] for i in range(most)]


# --- the command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = flags.FlagParser(description=__doc__, prog="page.py")
    parser.add_argument("run", type=Path, help="the folder of a run of train.py")
    parser.add_argument("--out", type=Path, help="the file (default: page.html in that folder)")
    args = parser.parse_args(argv)
    path = args.out or args.run / "page.html"
    try:
        write_page(path, page_of_run(args.run))
    except (ValueError, OSError) as error:
        sys.exit(f"page.py: {error}")
    print(f"open {path} in a browser")


if __name__ == "__main__":
    main()
