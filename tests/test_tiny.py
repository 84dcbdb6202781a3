"""The embedded default: what the problem sets and the base models must be for the experiments to mean anything."""

import json

import numpy as np
import problems
import pytest
import torch
from conftest import ROOT
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import data
import evaluate
import reward
import rollout
import train

NAMES = ["qwen2", "llama", "olmo2"]
SETS = ["gsm", "math"]


def rows(name, split):
    return [json.loads(line) for line in (ROOT / "tiny" / f"{name}_{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", SETS)
def test_sets_are_what_the_script_makes(name):
    made = problems.make(name)
    assert [json.loads(json.dumps(part)) for part in made] == [rows(name, "train"), rows(name, "test")]
    assert (len(made[0]), len(made[1])) == (1024, 512)


@pytest.mark.parametrize("name", SETS)
def test_train_and_test_are_disjoint(name):
    train_rows, test_rows = rows(name, "train"), rows(name, "test")
    text = "question" if name == "gsm" else "problem"
    for part in (lambda row: row[text], lambda row: tuple(row["key"])):
        assert len({part(row) for row in train_rows + test_rows}) == 1536


@pytest.mark.parametrize("name", SETS)
def test_levels_and_solutions(name):
    for split in ("train", "test"):
        queries = data.load(f"tiny-{name}", split)
        counts = np.bincount([q.level for q in queries])[1:]
        assert len(counts) == 5 and counts.min() > 0.15 * len(queries)
        for query, row in zip(queries, rows(name, split), strict=True):
            solution = row["answer"] if name == "gsm" else row["solution"]
            assert reward.is_correct(solution, query.gold, query.form)
            if name == "gsm":
                assert str(int(query.gold)) == query.gold


def test_equality_of_strings_is_not_enough():
    """A base model leaves fractions as they come out; the reference is in lowest terms."""
    golds = [q.gold for q in data.load("tiny-math", "train")]
    for part in (r"\frac", r"\sqrt", "x^2", "("):
        assert sum(part in gold for gold in golds) > 50
    assert reward.is_correct(r"\boxed{\frac{6}{8}}", r"\frac{3}{4}", "boxed")
    assert reward.is_correct(r"\boxed{-6+x+x^2}", "x^2+x-6", "boxed")


def test_pretraining_skips_the_problems():
    import random

    import pretrain

    tokenizer, reserved = AutoTokenizer.from_pretrained(ROOT / "tiny" / "qwen2"), problems.reserved_keys()
    texts = {q.prompt for name in SETS for split in ("train", "test") for q in data.load(f"tiny-{name}", split)}
    everything = set()
    for skipped in (reserved, set()):
        batches = pretrain.make_batches(tokenizer, problems.Habits(), 64, random.Random(0), skipped)
        seen = {text.split("user\n")[1].split("<|im_end|>")[0]
                for ids, _ in batches for text in tokenizer.batch_decode(ids)}
        everything = seen & texts
        assert bool(everything) == (skipped == set())  # without the guard they would have come


def test_running_on_skips_them_too(monkeypatch):
    """The problem that nobody asked for must not be one of the sets either."""
    import random

    taken, free = (problems.Problem((key,), "?", 1, "Arithmetic", [], key) for key in ("111", "222"))
    draws = iter([taken, taken, free] * 1000)
    monkeypatch.setattr(problems, "draw", lambda *args: next(draws))
    habits, rng = problems.Habits(run_on=0.5), random.Random(0)
    texts = [problems.write(free, "gsm", rng, habits, reserved={taken.key}) for _ in range(200)]
    assert any(text.count("####") > 1 for text in texts) and not any("111" in text for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_is_the_one_that_was_saved(name):
    """AutoTokenizer puts a tokenizer of its own in place of an unexpected one: the ids must not change."""
    folder = ROOT / "tiny" / name
    auto, saved = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [q.prompt for q in data.load("tiny-gsm", "test")[:50] + data.load("tiny-math", "test")[:50]]
    texts += ["<|im_start|>user\nÀ 1,234.5 % of \\frac{1}{2}?\n\n<|im_end|>", "naïve 漢字 🙂"]
    for text in texts:
        ids = auto(text)["input_ids"]
        assert ids == saved.encode(text).ids
        assert auto.decode(ids) == text
    assert auto.chat_template and auto.pad_token_id != auto.eos_token_id


@pytest.mark.parametrize("name", NAMES)
def test_models_are_small_and_load_as_any_other(name):
    folder = ROOT / "tiny" / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2 * 1024 * 1024
    assert json.loads((folder / "config.json").read_text())["model_type"] == name
    model, tokenizer = rollout.load(f"tiny-{name}")
    assert model.dtype == torch.float32 and len(tokenizer) <= model.config.vocab_size
    assert len(rollout.end_ids(model, tokenizer)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("problem_set", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_base_models_are_right_sometimes(name, problem_set):
    model, tokenizer = rollout.load(f"tiny-{name}")
    queries = data.load(f"tiny-{problem_set}", "train")
    right, _, _ = evaluate.success(model, tokenizer, queries, 16, max_new_tokens=64, seed=1)
    assert 0.15 <= right.mean() <= 0.5 and right.any(axis=1).mean() >= 0.7
    assert evaluate.spread(right) >= 0.195  # 0.2; the standard error of this estimate is about 0.005


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_main_job_learns(tmp_path, seed):
    train.main(["--seed", str(seed), "--out", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    gain = summary["test_pass@1_after"] - summary["test_pass@1_before"]
    f0, f1 = summary["test_in_format_before"], summary["test_in_format_after"]
    correctness = (summary["test_pass@1_after"] / f1 - summary["test_pass@1_before"] / f0) * (f0 + f1) / 2
    assert gain >= 0.25 and correctness >= gain / 3


@pytest.mark.slow
@pytest.mark.parametrize("problem_set", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_model_learns_from_both_sets(tmp_path, name, problem_set):
    train.main(["--model", f"tiny-{name}", "--data", f"tiny-{problem_set}", "--rounds", "40", "--eval-every", "0",
                "--eval-samples", "1", "--out", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    errors = summary["train_pass@1_before_se"], summary["train_pass@1_after_se"]
    gain = summary["train_pass@1_after"] - summary["train_pass@1_before"]
    assert gain > 1.96 * (errors[0]**2 + errors[1]**2) ** 0.5  # as if unpaired: the wider interval
