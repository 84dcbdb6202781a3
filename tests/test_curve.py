"""The figure of one run and its account in words, against numbers worked by hand."""

import json
import shutil

import pytest
from helpers import mean_and_error, read_log

from infra import curve


def test_the_running_mean():
    values = [1, 2, 3, 4, 5]
    assert curve.smooth(values, 2).tolist() == [1, 1.5, 2.5, 3.5, 4.5]
    assert curve.smooth(values, 20).tolist() == [1, 1.5, 2, 2.5, 3]
    assert curve.smooth([], 20).tolist() == []


def test_a_standard_error_in_words():
    assert curve.plus_minus(0.0142) == " ± 0.014"
    assert curve.plus_minus(None) == " ± ?"  # of a single query


def line(number, split, pass_at_1, in_format, **more):
    return {
        "round": number, "split": split, "pass@1": pass_at_1, "se": 0.01, "in_format": in_format,
        "length": 9.0, "truncated": 0.0, **more,
    }  # fmt: skip


EVALS = [
    line(0, "train", 0.2, 0.4, greedy=0.3, greedy_se=0.02, right=[0, 1, 0, 0]),
    line(0, "test", 0.1, 0.5, **{"pass@4": 0.6, "pass@4_se": 0.03}, right=[0, 0, 0, 1]),
    line(5, "train", 0.9, 0.9, right=[1, 1, 1, 1]),
    line(10, "train", 0.5, 0.8, greedy=0.6, greedy_se=0.04, right=[1, 1, 0, 0]),
    line(10, "test", 0.4, 0.8, **{"pass@4": 0.7, "pass@4_se": 0.05}, right=[0, 1, 0, 1]),
]


def test_the_summary_compares_the_first_and_the_last_evaluation():
    assert curve.before_and_after(EVALS) == {
        "train_pass@1_before": 0.2, "train_pass@1_before_se": 0.01, "train_in_format_before": 0.4,
        "train_greedy_before": 0.3, "train_greedy_before_se": 0.02,
        "train_pass@1_after": 0.5, "train_pass@1_after_se": 0.01, "train_in_format_after": 0.8,
        "train_greedy_after": 0.6, "train_greedy_after_se": 0.04,
        "test_pass@1_before": 0.1, "test_pass@1_before_se": 0.01, "test_in_format_before": 0.5,
        "test_pass@4_before": 0.6, "test_pass@4_before_se": 0.03,
        "test_pass@1_after": 0.4, "test_pass@1_after_se": 0.01, "test_in_format_after": 0.8,
        "test_pass@4_after": 0.7, "test_pass@4_after_se": 0.05,
    }  # fmt: skip


def test_the_gain_is_paired_query_by_query():
    """Verdicts 0 0 0 1 and 0 1 0 1 differ in one query of four: the standard error is 0.25."""
    summary = curve.before_and_after(EVALS)
    words = curve.gain_in_words("test", summary, EVALS)
    assert "0.100 ± 0.010 -> 0.400 ± 0.010" in words
    assert "a gain of +0.300 ± 0.250" in words


def test_the_gain_is_split_into_format_and_correctness():
    """In format 0.5 -> 0.8, right among those 0.2 -> 0.5. Format makes 0.3 * 0.35 = 0.105,
    correctness 0.3 * 0.65 = 0.195, together the gain of 0.3."""
    words = curve.split_in_words(curve.before_and_after(EVALS))
    assert "50% of the answers came in the asked format, now 80%" in words
    assert "of those 20% were right, now 50%" in words
    assert "format makes +0.105 of the gain, correctness +0.195" in words


def test_sharpening_is_told_from_more():
    """By greedy accuracy. The entropy is the mean over the first and over the last tenth."""
    metrics = [{"entropy": 1.0}] * 2 + [{"entropy": 0.7}] * 16 + [{"entropy": 0.5}] * 2
    summary = {
        "test_pass@1_before": 0.3, "test_pass@1_after": 0.8,
        "test_greedy_before": 0.5, "test_greedy_before_se": 0.03,
        "test_greedy_after": 0.61, "test_greedy_after_se": 0.04,  # 0.11 is more than twice 0.05
    }  # fmt: skip
    (words,) = curve.sharpening_in_words(summary, metrics)
    assert "greedy: 0.500 ± 0.030 -> 0.610 ± 0.040, entropy 1.00 -> 0.50 nats" in words
    assert words.endswith("so this is more than sharpening.")
    summary["test_greedy_after"] = 0.59
    assert curve.sharpening_in_words(summary, metrics)[0].endswith("so this is sharpening.")
    # Previously a collapse was "no more than the noise".
    fallen = curve.sharpening_in_words(summary | {"test_greedy_after": 0.39}, metrics)
    assert fallen[0].endswith("The likeliest completions became wrong.")
    summary["test_pass@1_after"] = 0.39
    assert curve.sharpening_in_words(summary, metrics)[0].endswith("more than the noise.")
    assert curve.sharpening_in_words(summary | {"test_greedy_after_se": None}, metrics) == []
    assert curve.sharpening_in_words({}, metrics) == []


def test_pass_at_k_in_words():
    summary = curve.before_and_after(EVALS)
    (words,) = curve.pass_at_k_in_words(summary, 64)
    assert "test pass@4: 0.600 ± 0.030 -> 0.700 ± 0.050" in words
    assert "in 4 tries" in words
    others = {"test_pass@1_before": 0.1, "test_greedy_before": 0.2}
    assert curve.pass_at_k_in_words(others, 64) == []
    # 64 of 64 have no standard error: Wilson's bound is 64 / (64 + 1.96 ** 2).
    (words,) = curve.pass_at_k_in_words(summary | {"test_pass@4_after": 1.0}, 64)
    assert "0.600 ± 0.030 -> 1.000 (95 %: at least 0.943)" in words
    (words,) = curve.pass_at_k_in_words(summary | {"test_pass@4_before": 0.0}, 64)
    assert "0.000 (95 %: at most 0.057) -> 0.700 ± 0.050" in words


# --- of a run -------------------------------------------------------------------------------------


def test_the_summary_of_a_run(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    evals = read_log(finished_run, "evals")
    assert summary.items() >= curve.before_and_after(evals).items()
    for split in ("train", "test"):
        lines = [one for one in evals if one["split"] == split]
        for when, one in (("before", lines[0]), ("after", lines[-1])):
            mean, error = mean_and_error(one["right"])
            assert summary[f"{split}_pass@1_{when}"] == pytest.approx(mean)
            assert summary[f"{split}_pass@1_{when}_se"] == pytest.approx(error)
            assert {f"{split}_greedy_{when}", f"{split}_greedy_{when}_se"} <= set(summary)
            assert {f"test_pass@2_{when}", f"test_pass@2_{when}_se"} <= set(summary)


def test_the_account_and_the_figure_of_a_run(finished_run, tmp_path):
    account = curve.account(finished_run)
    for word in ("train pass@1:", " test pass@1:", "test pass@2:", "6 rounds, 48 rollouts"):
        assert word in account
    assert account.count("before, ") == account.count("after, ") == 2

    # Previously two dollar signs in the name of a file were read as a formula, and ended the run.
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"data": "cost_$5_to_$10.jsonl"}))
    curve.draw_curve(copy)
