"""A task that is not mathematics: write as many lines as the prompt asks for.

    python examples/lines.py runs/lines
    python train.py --data runs/lines --reward examples/lines.py

The first command writes the set, the second trains on it. The row has a column of its own, lines,
which only the reward reads. There is no reference answer, so gold is empty.
"""

import json
import sys
from itertools import product
from pathlib import Path

NAMES = ["Sam", "Eva", "Tom", "Mia", "Ben", "Ana"]
THINGS = {"train": ["eggs", "pens", "books", "cards", "shells"], "test": ["coins", "apples"]}
LINES = range(1, 7)


def score(completion, query):
    """1 if there are as many lines as asked for, else 0."""
    lines = [line for line in completion.split("\n") if line.strip()]
    return float(len(lines) == query.row["lines"])


def rows(split):
    """One row for each name, thing and number of lines. Test rows are about other things."""
    for name, thing, lines in product(NAMES, THINGS[split], LINES):
        prompt = f"{name} has {thing}. Write {lines} lines."
        yield {"prompt": prompt, "gold": "", "lines": lines}


def main(folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for split in THINGS:
        text = "".join(json.dumps(row) + "\n" for row in rows(split))
        (Path(folder) / f"{split}.jsonl").write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/lines.py FOLDER")
    main(sys.argv[1])
