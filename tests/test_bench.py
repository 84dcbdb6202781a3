"""The benchmarks run, and their figures are what they say."""

import json
import re
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

import data
import rollout
from infra import models
from lab import bench, bench_dtype, bench_gpu, bench_needs, bench_sampler, bench_timing
from lab.bench_peers import generate
from lab.bench_timing import CAP, Ratio, Workload

RATIO = re.compile(r"\d+\.\d\d  \(\d+\.\d\d to \d+\.\d\d\)")


# --- the table ------------------------------------------------------------------------------------


def test_generate_has_the_rules_of_the_sampler():
    """It draws from the whole distribution and stops at every end, and its tokens are counted as
    ours are: the mean lengths are equal but for noise."""
    model, tokenizer = models.load("tiny-qwen2", "cpu")
    prompts = data.encode(tokenizer, data.load("tiny-gsm", "train")[:16])
    ends = models.end_ids(model, tokenizer)
    torch.manual_seed(0)
    tokens = sum(generate(model, prompts, 8, ends, batch_size=64) for _ in range(4))
    rollouts = rollout.sample(model, prompts, 32, max_new_tokens=CAP, end_ids=ends)
    lengths = [len(one.tokens) for one in rollouts]
    error = np.std(lengths, ddof=1) / 512**0.5
    assert abs(tokens / 512 - np.mean(lengths)) < 4 * 2**0.5 * error


def test_generate_without_an_end_goes_on_to_the_cap():
    model, tokenizer = models.load("tiny-qwen2", "cpu")
    prompts = data.encode(tokenizer, data.load("tiny-gsm", "train")[:16])
    assert generate(model, prompts, 2, set(), batch_size=8) == 32 * CAP


def test_a_ratio_has_the_median_and_the_range_of_the_repeats():
    ratio = bench_timing.time_ratio(ours=[1.0, 2.0, 1.0], theirs=[3.0, 2.0, 2.0])
    assert ratio == Ratio(median=2.0, low=1.0, high=3.0)
    assert str(ratio) == "  2.00  (1.00 to 3.00)"
    assert RATIO.search(str(ratio))


def test_two_functions_are_timed_in_turn_after_a_run_that_is_not_counted():
    calls = []
    times = bench_timing.time_in_turn(
        lambda: calls.append("a"), lambda: calls.append("b"), repeats=3, name="x"
    )
    assert calls == ["a", "b"] * 4
    assert [len(taken) for taken in times] == [3, 3]


@pytest.mark.slow
def test_the_table_and_its_figures(tmp_path, capsys, monkeypatch):
    """Loose bounds: a broken sampler would fall below them on the noisiest machine."""
    monkeypatch.setitem(bench_timing.WORKLOADS, "set", Workload(128, 1, calls=1))  # of 1,024
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--repeats", "1", "--json", str(file)])
    bench.main()
    printed = capsys.readouterr().out
    figures = json.loads(file.read_text())
    assert {"generate_32x1", "generate_32x8", "generate_set"} <= set(figures)
    for name, row in figures.items():
        assert set(row) == {"median", "low", "high"}
        assert name in printed
        assert row["median"] > 1


# --- the other sections ---------------------------------------------------------------------------


@pytest.mark.slow
def test_every_trick_can_be_switched_off(capsys, monkeypatch):
    workloads = {"a": Workload(4, 1, calls=1), "b": Workload(3, 2, calls=1)}
    monkeypatch.setattr(bench_sampler, "WORKLOADS", workloads)
    flags = Namespace(model="tiny-qwen2", data="tiny-gsm", threads=1, repeats=1)
    bench_sampler.tricks(flags)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 11
    for line in lines:
        assert len(RATIO.findall(line)) == (1 if line.startswith("one prefill for") else 2)


def test_the_gpu_section_on_a_small_shape(capsys):
    shape = {
        "vocab_size": 5000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    bench_gpu.gpu(
        Namespace(repeats=1), "cpu", shape, queries=2, n=2, prompt_tokens=10, new_tokens=8,
        compiled=False,
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["generate", "rollout.py", "a"]
    assert lines[-1].startswith("a round of 2 x 2: sampling")


@pytest.mark.slow
def test_both_formats_are_timed(capsys):
    bench_dtype.dtype(Namespace(model="tiny-qwen2", data="tiny-gsm", repeats=1, threads=1))
    head, *lines = capsys.readouterr().out.splitlines()
    assert "1 thread(s)" in head and len(lines) == 2
    assert all(float(RATIO.search(line)[0].split()[0]) > 0 for line in lines)


def test_needs_counts_the_weights_of_the_papers_models(capsys):
    bench_needs.needs(Namespace(card=None))
    lines = capsys.readouterr().out.splitlines()
    assert sum("0.49 billion" in line for line in lines) == 3
    assert sum("1.24 billion" in line for line in lines) == 3
    row = next(line for line in lines if "OLMo" in line and "32 x 1 " in line)
    # Rows x length x (keys, values) x layers x heads x head size x bytes.
    cache = 32 * 1536 * 2 * 16 * 16 * 128 * 2
    assert float(row.split("|")[6]) == pytest.approx(cache / 1e9, abs=0.06)


@pytest.mark.parametrize("card", [24, 80])
def test_what_is_said_to_fit_fits(card, capsys):
    """A round of Qwen2.5 with the printed flags stays below the card; with the way before, not."""
    bench_needs.needs(Namespace(card=float(card)))
    qwen = bench_needs.Needs("Qwen2.5-0.5B-Instruct", 512, 1024)
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "Qwen" in line]
    ways = [way[0] for way in bench_needs.WAYS_TO_FIT]
    for line, rollouts in zip(lines, (32, 256, 2048), strict=True):
        chosen = ways.index(line[-1].removesuffix(" |"))
        for i in range(max(0, chosen - 1), chosen + 1):
            _, micro, checkpointing, has_reference = bench_needs.WAYS_TO_FIT[i]
            fixed = (20 if has_reference else 18) * qwen.weights
            rows = min(rollouts, 512, int(0.4 * (card * 1e9 - fixed) / 12288 / 1536))
            # 12,288 bytes a token: 24 layers, 2 heads of 64, keys and values, two bytes each.
            passes = qwen.kept(micro, checkpointing) + 2**30
            peak = fixed + rows * 1536 * 12288 + max(passes, 4 * qwen.weights)
            assert (peak <= 0.95 * card * 1e9) == (i == chosen)
        assert float(line[-2]) == pytest.approx(peak / 1e9, abs=0.06)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_section_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.py", "gpu"])
    with pytest.raises(SystemExit, match="needs a GPU"):
        bench.main()
