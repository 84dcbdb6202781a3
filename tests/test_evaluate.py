"""pass@k against brute force, and what counts as an answer."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import data
import evaluate
from rollout import Rollout


@pytest.mark.parametrize("n, c", [(5, 0), (5, 1), (5, 3), (5, 5), (8, 2)])
def test_pass_at_k_against_brute_force(n, c):
    verdicts = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(verdicts, k))
        assert evaluate.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_needs_k_samples():
    with pytest.raises(ValueError, match="at least 4"):
        evaluate.pass_at_k(3, 1, 4)


def test_mean_and_standard_error():
    mean, se = evaluate.mean_and_se([1, 0, 1, 1])
    assert mean == 0.75 and se == pytest.approx(0.5 / 2)  # the sample's standard deviation is 1/2
    assert math.isnan(evaluate.mean_and_se([1])[1])


class Letters:
    """A tokenizer whose ids are code points."""

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(map(chr, row)) for row in rows]


def test_judge_reads_the_asked_format_only_and_no_half_numbers():
    cases = [("6*7=42\n#### 42", False, True, True), ("#### 41", False, False, True), 
             ("\\boxed{42}", False, False, False), ("The answer is 42.", False, False, False),
             ("#### 42", True, False, False), ("#### 42\n#", True, True, True)]
    rollouts = [Rollout(list(map(ord, text)), [0.0] * len(text), cut) for text, cut, _, _ in cases]
    queries = [data.Query("?", "42", "####", 1)] * 3  # two rollouts each
    right, in_format, texts = evaluate.judge(Letters(), queries, rollouts)
    assert right.tolist() == [case[2] for case in cases]
    assert in_format.tolist() == [case[3] for case in cases]
    assert texts == [case[0] for case in cases]


def test_the_script(checkpoint, tmp_path):
    out = tmp_path / "lines.jsonl"
    model = checkpoint("qwen2")
    done = subprocess.run([sys.executable, ROOT / "evaluate.py", "--model", model, "--against", model, "--queries", "6",
                           "--samples", "4", "--max-new-tokens", "8", "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("pass@1", "pass@4", "greedy", "level", "paired over 6 queries"):
        assert word in done.stdout
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 12 and all(np.isin(line["right"], (0, 1)).all() for line in lines)
    assert lines[0]["right"] == lines[6]["right"]  # the same model and seed


def test_bad_flags(script_says):
    for flags, word in ((["--samples", "0"], "--samples"),
                        (["--samples", "x"], "--samples"), (["--model", "nowhere"], "--model nowhere"),
                        (["--data", "nowhere"], "--data nowhere"), (["--temperature", "0"], "--temperature")):
        said = script_says(evaluate, *flags)
        assert word in said and len(said.splitlines()) == 1
