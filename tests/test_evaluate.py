"""pass@k against brute force, what counts as an answer, and what a run's evaluations hold."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (
    QUERIES,
    ROOT,
    full_forward_logprobs,
    greedy_completion,
    is_paid,
    mean_and_error,
    read_log,
)

import data
import evaluate
from infra import models
from rollout import Rollout

# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("samples, right", [(5, 0), (5, 1), (5, 3), (5, 5), (8, 2)])
def test_pass_at_k_against_brute_force(samples, right):
    verdicts = [True] * right + [False] * (samples - right)
    for k in range(1, samples + 1):
        subsets = list(itertools.combinations(verdicts, k))
        share = sum(map(any, subsets)) / len(subsets)
        assert evaluate.pass_at_k(samples, right, k) == pytest.approx(share)


def test_pass_at_k_needs_k_samples():
    with pytest.raises(ValueError, match="at least 4"):
        evaluate.pass_at_k(3, 1, 4)


def test_mean_and_standard_error():
    mean, se = evaluate.mean_and_se([1, 0, 1, 1])
    assert mean == 0.75
    assert se == pytest.approx(0.5 / 2)  # the sample's standard deviation is 1/2
    assert math.isnan(evaluate.mean_and_se([1])[1])


def test_mean_pass_at_k_is_over_queries():
    """One right of three and none of three: pass@2 is 2/3 and 0."""
    right = np.array([[True, False, False], [False, False, False]])
    mean, se = evaluate.mean_pass_at_k(right, 2)
    assert mean == pytest.approx(1 / 3)
    assert se == pytest.approx(1 / 3)  # the sample's standard deviation is (2/3) / sqrt(2)


def test_the_spread_between_queries_has_no_noise_of_sampling():
    """Queries of success rates 0.2 and 0.8 have a standard deviation of 0.3. The rates of eight
    samples a query spread more. Equal queries have none."""
    rng = np.random.default_rng(0)
    rates = np.tile([0.2, 0.8], 20_000)
    right = rng.random((len(rates), 8)) < rates[:, None]
    assert evaluate.between_query_std(right) == pytest.approx(0.3, abs=0.003)
    assert right.mean(axis=1).std() > 0.32
    assert evaluate.between_query_std(np.ones((10, 4), dtype=bool)) == 0


# --- grading --------------------------------------------------------------------------------------


END = 0  # the id that ends a completion


class Letters:
    """A tokenizer whose ids are code points."""

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(map(chr, row)) for row in rows]


def test_grades_read_the_asked_format_only_and_no_half_numbers():
    cases = [  # completion, truncated, right, in format
        ("6*7=42\n#### 42", False, True, True),
        ("#### 41", False, False, True),
        ("\\boxed{42}", False, False, False),
        ("The answer is 42.", False, False, False),
        ("#### 42", True, False, False),
        ("####\n42", True, False, False),
        ("####\n\n 42", True, False, False),
        ("####\n42\n", True, True, True),
        ("#### 42\n#", True, True, True),
    ]
    rollouts = []
    for text, truncated, _, _ in cases:
        tokens = list(map(ord, text)) + [END] * (not truncated)
        rollouts.append(Rollout(tokens, [0.0] * len(tokens), truncated))
    queries = [data.Query("?", "42", "####", 1)] * 3  # three rollouts each
    grades = evaluate.grade(Letters(), queries, rollouts)
    assert grades.right.tolist() == [case[2] for case in cases]
    assert grades.in_format.tolist() == [case[3] for case in cases]
    assert grades.texts == [case[0] for case in cases]


def test_the_main_process_grades_for_all(monkeypatch):
    """Previously each graded by itself, so a reward that answers by chance gave them different
    advantages."""
    monkeypatch.setattr(evaluate.distributed, "is_main_process", lambda: False)
    monkeypatch.setattr(evaluate.distributed, "all_gather", lambda value: ["its grades", value])
    assert evaluate.grade_once(None, [], [], None) == "its grades"  # with nothing to grade by


def test_no_rollouts_have_no_grades():
    """A round without greedy completions grades an empty list."""
    grades = evaluate.grade(Letters(), [data.Query("?", "42", "####", 1)], [])
    assert grades.right.shape == grades.in_format.shape == (0,)
    assert grades.right.dtype == bool
    assert grades.texts == []


# --- what a training run measures -----------------------------------------------------------------


def test_the_lines_of_the_evaluations(finished_run):
    """The run evaluates every second of its six rounds, on both splits."""
    lines = read_log(finished_run, "evals")
    splits = ("train", "test")
    expected = [(number, split) for number in (0, 2, 4, 6) for split in splits]
    assert [(line["round"], line["split"]) for line in lines] == expected
    for line in lines:
        assert len(line["right"]) == QUERIES[line["split"]]
        mean, error = mean_and_error(line["right"])
        assert line["pass@1"] == pytest.approx(mean)
        assert line["se"] == pytest.approx(error)
        assert ("kl" in line) == ("samples" in line) == (line["split"] == "test")
    assert lines[1]["kl"] == 0
    assert lines[-1]["kl"] > 0


def test_greedy_accuracy_before_and_after_on_both_splits(
    finished_run, checkpoint, problems, coin_verifier
):
    """Against greedy decoding by plain forward passes, with the base and with the final model."""
    lines = {(line["round"], line["split"]): line for line in read_log(finished_run, "evals")}
    summary = json.loads((finished_run / "summary.json").read_text())
    for number, when, name in (
        (0, "before", checkpoint("qwen2")),
        (6, "after", str(finished_run / "model")),
    ):
        model, tokenizer = models.load(name, "cpu")
        end_ids = models.end_ids(model, tokenizer)
        for split in ("train", "test"):
            prompts = data.encode(tokenizer, data.load(str(problems), split))
            verdicts = [
                is_paid(greedy_completion(model, prompt, end_ids, max_new_tokens=6))
                for prompt in prompts
            ]
            mean, error = mean_and_error(verdicts)
            line = lines[number, split]
            assert line["greedy"] == pytest.approx(mean)
            assert line["greedy_se"] == pytest.approx(error)
            assert summary[f"{split}_greedy_{when}"] == line["greedy"]
            assert summary[f"{split}_greedy_{when}_se"] == line["greedy_se"]
    for key, line in lines.items():
        assert ("greedy" in line) == ("greedy_se" in line) == (key[0] in (0, 6)), key


def test_pass_at_k_before_and_after_on_the_test_set(finished_run):
    for line in read_log(finished_run, "evals"):
        is_measured = line["split"] == "test" and line["round"] in (0, 6)
        assert ("pass@2" in line) == ("pass@2_se" in line) == is_measured
        if is_measured:
            assert 0 <= line["pass@2"] <= 1


def test_the_kl_to_the_base_model(finished_run, checkpoint, problems):
    """The final test set's k3 per token, from rollouts sampled again with the same seed."""
    line = read_log(finished_run, "evals")[-1]
    model, tokenizer = models.load(str(finished_run / "model"), "cpu")
    base, _ = models.load(checkpoint("qwen2"), "cpu")
    queries = data.load(str(problems), "test")
    seed = int(np.random.SeedSequence([0, 4, 6]).generate_state(1)[0])
    _, _, rollouts = evaluate.sample_and_grade(
        model, tokenizer, queries, 1, seed=seed, max_new_tokens=6
    )
    assert np.mean([len(one.tokens) for one in rollouts]) == line["length"]
    assert np.mean([one.truncated for one in rollouts]) == line["truncated"]
    per_token = []
    for prompt, one in zip(data.encode(tokenizer, queries), rollouts, strict=True):
        ours, theirs = (
            full_forward_logprobs(policy, prompt, one.tokens).detach() for policy in (model, base)
        )
        distance = (ours - theirs).numpy()
        per_token += list(np.exp(-distance) + distance - 1)
    assert line["kl"] == pytest.approx(np.mean(per_token), rel=1e-3)

    # The samples are the first of these completions, token by token under both policies.
    assert len(line["samples"]) == 4
    prompts = data.encode(tokenizer, queries)
    for i, sample in enumerate(line["samples"]):
        tokens = rollouts[i].tokens
        assert sample["prompt"] == queries[i].prompt
        assert sample["right"] == line["right"][i]
        assert sample["tokens"] == [tokenizer.decode([token]) for token in tokens]
        for name, policy in (("logprobs", model), ("logprobs_base", base)):
            logprobs = full_forward_logprobs(policy, prompts[i], tokens).tolist()
            assert sample[name] == pytest.approx(logprobs, abs=2e-4)


def test_the_samples_have_logprobs_under_both_policies(finished_run):
    """Four test queries, two completions each before and after."""
    lines = read_log(finished_run, "samples")
    for query in range(4):
        policies = [line["policy"] for line in lines if line["query"] == query]
        assert sorted(policies) == ["after", "after", "before", "before"]
    for line in lines:
        assert len(line["tokens"]) == len(line["logprobs_before"]) == len(line["logprobs_after"])
        assert line["reward"] == float(line["right"])


# --- the script -----------------------------------------------------------------------------------


def test_the_script(checkpoint, tmp_path):
    out, model, other = tmp_path / "lines.jsonl", checkpoint("qwen2"), tmp_path / "copy"
    shutil.copytree(model, other)
    out.write_text("of an earlier call\n")
    command = [sys.executable, ROOT / "evaluate.py", "--model", model, "--against", other]
    command += ["--queries", "6", "--samples", "4", "--max-new-tokens", "8", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("pass@1", "pass@4", "greedy", "level", "cut at 8", "paired over 6 queries"):
        assert word in done.stdout
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 12
    for line in lines:
        assert len(line["right"]) == 4
        assert set(line["right"]) <= {0, 1}
    assert lines[0]["right"] == lines[6]["right"]  # the same weights and seed
    assert [line["model"] for line in lines] == [str(model)] * 6 + [str(other)] * 6
    same = subprocess.run([*command, "--against", model], capture_output=True, text=True)
    assert same.returncode == 1 and same.stderr.endswith("is --model itself\n")


def test_the_interval_of_few_queries_is_students(monkeypatch, capsys):
    """Differences of 0.02, 0.05 and 0.05: 0.04 ± 0.043, where the normal's 1.96 gives ± 0.020."""
    rates = {"one": [0.52, 0.55, 0.55], "other": [0.5, 0.5, 0.5]}

    def sampled(model, tokenizer, queries, n, **kwargs):
        right = np.arange(100) < np.round(100 * np.array(rates[model]))[:, None]
        return right, right, [SimpleNamespace(truncated=False)]

    queries = data.load("tiny-gsm", "test")[:3]
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: queries)
    monkeypatch.setattr(evaluate.rollout, "load", lambda name, dtype: (name, None))
    monkeypatch.setattr(evaluate.models, "set_threads", lambda model: None)
    monkeypatch.setattr(evaluate, "sample_and_grade", sampled)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", "one", "--against", "other"])
    evaluate.main()
    assert "pass@1 +0.040, 95 % interval [-0.003, +0.083], paired" in capsys.readouterr().out
