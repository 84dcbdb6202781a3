"""The two files of examples/: their rewards by hand, and a short run with each."""

import json
from pathlib import Path

import pytest
from helpers import ROOT, read_log

import data
import train
from examples import lines, shorter

QUERY = data.Query("Write.", "12", "####", None, {"lines": 2})


def test_the_graded_reward_by_hand():
    """7 of 100 characters cost 7 halves of a hundredth; 100 and more cost a half."""
    assert shorter.score("#### 12", QUERY) == (pytest.approx(0.965), True)
    long = "x" * 200 + "\n#### 12"
    assert shorter.score(long, QUERY) == (0.5, True)
    assert shorter.score("#### 13", QUERY) == (0.0, False)


def test_the_lines_are_counted():
    assert lines.score("a\nb", QUERY) == 1
    assert lines.score("a\n\n  \nb\n", QUERY) == 1  # empty lines do not count
    assert lines.score("a", QUERY) == lines.score("a\nb\nc", QUERY) == 0


def test_the_set_is_balanced_and_its_halves_differ(tmp_path):
    lines.main(tmp_path)
    train_rows, test_rows = (
        [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    )
    assert (len(train_rows), len(test_rows)) == (180, 72)
    for rows in (train_rows, test_rows):
        counts = [row["lines"] for row in rows]
        assert {counts.count(number) for number in range(1, 7)} == {len(rows) // 6}
    assert not {row["prompt"] for row in train_rows} & {row["prompt"] for row in test_rows}


@pytest.mark.parametrize("name", ["shorter", "lines"])
def test_the_examples_train(name, tmp_path, problems, no_figure):
    """Two rounds each; what is logged as the reward is what the file pays."""
    folder = problems
    if name == "lines":
        folder = tmp_path / "set"
        lines.main(folder)
    command = [
        "--data", folder, "--reward", ROOT / "examples" / f"{name}.py", "--rounds", 2,
        "--batch-size", 16, "--eval-limit", 8, "--eval-samples", 1, "--eval-every", 0,
        "--out", tmp_path / "run",
    ]  # fmt: skip
    train.main([str(word) for word in command])
    for line in read_log(tmp_path / "run"):
        if name == "lines":
            assert line["reward"] == pytest.approx(line["accuracy"])
        else:
            assert line["accuracy"] / 2 <= line["reward"] <= line["accuracy"]
        assert line["accuracy"] > 0


def test_the_examples_are_short():
    for path in Path(ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60
