"""The embedded default: what the problem sets and the base models must be for the experiments to
mean anything."""

import json
import random
import re

import numpy as np
import pytest
import torch
from helpers import NAMES, ROOT, record_calls
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import data
import evaluate
import reward
import train
from infra import models
from tiny import pretrain, problems, sums

SETS = ["gsm", "math"]  # what the tiny models are pretrained for


def read_rows(name, split):
    text = (ROOT / "tiny" / f"{name}_{split}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


# --- the problem sets -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SETS, "sums"])
def test_sets_are_what_the_script_makes(name):
    """Byte for byte: the committed files can be made again."""
    made = sums.make(1024, 512, problems.SEED) if name == "sums" else problems.make(name)
    for split, rows, count in zip(("train", "test"), made, (1024, 512), strict=True):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        assert text == (ROOT / "tiny" / f"{name}_{split}.jsonl").read_text()
        assert len(rows) == count


@pytest.mark.parametrize("name", SETS)
def test_train_and_test_are_disjoint(name):
    rows = read_rows(name, "train") + read_rows(name, "test")
    text = "question" if name == "gsm" else "problem"
    assert len({row[text] for row in rows}) == 1536
    assert len({tuple(row["key"]) for row in rows}) == 1536


def test_no_sum_of_the_test_set_is_in_the_train_set():
    """Its problems share numbers within a set, since there are few pairs of one-digit numbers."""
    train, test = read_rows("sums", "train"), read_rows("sums", "test")
    assert not {tuple(row["key"]) for row in train} & {tuple(row["key"]) for row in test}
    assert len({row["question"] for row in train + test}) == 1536
    for row in train + test:  # the keys are the numbers of the question
        assert row["key"] == ["sums", *sorted(map(int, re.findall(r"\d+", row["question"])))]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", [*SETS, "sums"])
def test_levels_and_solutions(name, split):
    queries = data.load(f"tiny-{name}", split)
    counts = np.bincount([query.level for query in queries])[1:]
    assert len(counts) == 5
    assert counts.min() > 0.15 * len(queries)
    for query, row in zip(queries, read_rows(name, split), strict=True):
        solution = row["solution"] if name == "math" else row["answer"]
        assert reward.is_correct(solution, query.gold, query.form)
        if name != "math":
            assert str(int(query.gold)) == query.gold
        if name == "sums":  # the working is right, and adds up to the answer
            *steps, _ = solution.split("\n")
            assert all(eval(left) == int(right) for left, right in (s.split("=") for s in steps))
            assert steps[-1].endswith(f"={query.gold}")


def test_equality_of_strings_is_not_enough():
    """A base model leaves fractions as they come out; the reference is in lowest terms."""
    golds = [query.gold for query in data.load("tiny-math", "train")]
    for part in (r"\frac", r"\sqrt", "x^2", "("):
        assert sum(part in gold for gold in golds) > 50
    assert reward.is_correct(r"\boxed{\frac{6}{8}}", r"\frac{3}{4}", "boxed")
    assert reward.is_correct(r"\boxed{-6+x+x^2}", "x^2+x-6", "boxed")


# --- what the base models are pretrained on -------------------------------------------------------


@pytest.mark.parametrize("is_guarded", [True, False])
def test_pretraining_skips_the_problems(is_guarded, monkeypatch):
    """Without the guard some problems of the sets would come within 64 batches."""
    solutions = record_calls(monkeypatch, pretrain, "write")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / "qwen2")
    prompts = {
        query.prompt
        for name in SETS
        for split in ("train", "test")
        for query in data.load(f"tiny-{name}", split)
    }
    reserved = problems.reserved_keys() if is_guarded else set()
    batches = pretrain.make_batches(
        tokenizer, problems.Habits(), 64, random.Random(0), reserved
    )
    seen = set()
    for ids, _ in batches:
        texts = tokenizer.batch_decode(ids)
        seen |= {text.split("user\n")[1].split("<|im_end|>")[0] for text in texts}
    assert bool(seen & prompts) == (not is_guarded)
    # No solution may run on to one of them either, as the next test says.
    assert all(args[-1] is reserved for args, _, _ in solutions)


def test_a_solution_does_not_run_on_to_the_problems(monkeypatch):
    """Another problem after the answer must not be one of the sets either. Previously only the
    problem itself was checked."""
    taken, free = (
        problems.Problem((key,), "?", 1, "Arithmetic", [], key) for key in ("111", "222")
    )
    draws = iter([taken, taken, free] * 1000)
    monkeypatch.setattr(problems, "draw", lambda *args: next(draws))
    habits, rng = problems.Habits(run_on=0.5), random.Random(0)
    texts = [problems.write(free, "gsm", rng, habits, {taken.key}) for _ in range(200)]
    assert any(text.count("####") > 1 for text in texts)
    assert not any("111" in text for text in texts)


# --- the models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_is_the_one_that_was_saved(name):
    """AutoTokenizer replaces an unexpected tokenizer by its own. The ids must not change."""
    folder = ROOT / "tiny" / name
    loaded = AutoTokenizer.from_pretrained(folder)
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    queries = data.load("tiny-gsm", "test")[:50] + data.load("tiny-math", "test")[:50]
    texts = [query.prompt for query in queries]
    texts += ["<|im_start|>user\nÀ 1,234.5 % of \\frac{1}{2}?\n\n<|im_end|>", "naïve 漢字 🙂"]
    for text in texts:
        ids = loaded(text)["input_ids"]
        assert ids == saved.encode(text).ids
        assert loaded.decode(ids) == text
    assert loaded.chat_template
    assert loaded.pad_token_id != loaded.eos_token_id


@pytest.mark.parametrize("name", NAMES)
def test_models_are_small_and_load_as_any_other(name):
    folder = ROOT / "tiny" / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2 * 1024 * 1024
    assert json.loads((folder / "config.json").read_text())["model_type"] == name
    model, tokenizer = models.load(f"tiny-{name}")
    assert model.dtype == torch.float32
    assert len(tokenizer) <= model.config.vocab_size
    assert len(models.end_ids(model, tokenizer)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("problem_set", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_base_models_are_right_sometimes(name, problem_set):
    model, tokenizer = models.load(f"tiny-{name}")
    queries = data.load(f"tiny-{problem_set}", "train")
    right, _, _ = evaluate.sample_and_grade(
        model, tokenizer, queries, 12, max_new_tokens=64, seed=1
    )
    assert 0.15 <= right.mean() <= 0.5
    assert right.any(axis=1).mean() >= 0.7
    # 0.2 is wanted; the standard error of this estimate is about 0.005.
    assert evaluate.between_query_std(right) >= 0.195


# --- what they learn ------------------------------------------------------------------------------


def run(folder, *flags):
    """The summary of a run of train.py in this folder."""
    train.main([*flags, "--out", str(folder)])
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_default_run_learns(tmp_path, seed):
    """pass@1 on the test set rises by 0.25, a third of it by correctness."""
    flags = ["--eval-every", "0", "--eval-samples", "1"]  # these do not change what is learnt
    summary = run(tmp_path / "run", "--seed", seed, *flags)
    before, after = summary["test_pass@1_before"], summary["test_pass@1_after"]
    format_before = summary["test_in_format_before"]
    format_after = summary["test_in_format_after"]
    change_of_correctness = after / format_after - before / format_before
    correctness = change_of_correctness * (format_before + format_after) / 2
    assert after - before >= 0.25
    assert correctness >= (after - before) / 3


@pytest.mark.slow
@pytest.mark.parametrize("problem_set", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_model_learns_from_both_sets(tmp_path, name, problem_set):
    summary = run(
        tmp_path / "run", "--model", f"tiny-{name}", "--data", f"tiny-{problem_set}",
        "--rounds", "20", "--eval-every", "0", "--eval-samples", "1", "--eval-limit", "512",
    )  # fmt: skip
    gain = summary["train_pass@1_after"] - summary["train_pass@1_before"]
    errors = summary["train_pass@1_before_se"], summary["train_pass@1_after_se"]
    # As if the two were not paired: the wider interval.
    assert gain > 1.96 * np.hypot(*errors)
