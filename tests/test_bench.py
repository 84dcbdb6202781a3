"""The benchmarks run, and their figures are what they say."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import bench
import data
import rollout


def run(*flags):
    return subprocess.run([sys.executable, ROOT / "bench.py", *flags], capture_output=True, text=True)


def test_the_peer_has_the_same_rules():
    """generate draws from the whole distribution, stops at every end, and its tokens are counted as ours are."""
    model, tokenizer = rollout.load("tiny-qwen2", "cpu")
    queries = data.load("tiny-gsm", "train")[:16]
    prompts, ends = data.encode(tokenizer, queries), rollout.end_ids(model, tokenizer)
    torch.manual_seed(0)
    theirs = sum(bench.generated(model, prompts, 8, ends, batch=64) for _ in range(4)) / 512
    ours = [len(r.tokens) for r in rollout.sample(model, prompts, 32, max_new_tokens=bench.CAP, end_ids=ends)]
    mean, error = sum(ours) / 512, torch.tensor(ours).float().std().item() / 512**0.5
    assert abs(theirs - mean) < 4 * 2**0.5 * error
    assert bench.generated(model, prompts, 2, set(), batch=8) == 32 * bench.CAP  # no end: all are cut


def test_ratios():
    assert bench.figure([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    calls = []
    times = bench.in_turn(lambda: calls.append("a"), lambda: calls.append("b"), 3, "x")
    assert calls == ["a", "b"] * 4 and [len(taken) for taken in times] == [3, 3]


def test_the_gpu_section_on_a_small_shape(capsys):
    shape = dict(vocab_size=5000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, tie_word_embeddings=True)
    bench.gpu(SimpleNamespace(repeats=1), "cpu", shape, queries=2, n=2, prompt=10, new=8, compiled=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["generate", "rollout.py", "a"]
    assert lines[-1].startswith("a round of 2 x 2: sampling")


@pytest.mark.parametrize("flags, word", [
    (["gpus"], "gpus"), (["--repeats", "0"], "--repeats"), (["--model", "nowhere"], "--model nowhere"),
    *([(["gpu"], "needs a GPU")] if not torch.cuda.is_available() else [])])
def test_bad_flags_are_one_sentence(flags, word, script_says):
    said = script_says(bench, *flags)
    assert word in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_the_table_and_its_figures(tmp_path):
    """Loose bounds: what a broken sampler would fall below, on the noisiest machine."""
    done = run("--repeats", "1", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"generate_32x1", "generate_32x8", "generate_set"} <= set(figures)
    for name, row in figures.items():
        assert set(row) == {"median", "low", "high"} and name in done.stdout
        assert row["median"] > 1


@pytest.mark.slow
def test_every_trick_can_be_switched_off(capsys, monkeypatch):
    monkeypatch.setattr(bench, "SIZES", {"a": (4, 1, 1), "b": (3, 2, 1)})
    bench.tricks(SimpleNamespace(model="tiny-qwen2", data="tiny-gsm", threads=1, repeats=1))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 11 and all(line.count("(") >= 1 for line in lines)


def test_needs_counts_the_weights_of_the_papers_models(capsys):
    bench.needs(None)
    lines = capsys.readouterr().out.splitlines()
    assert sum("0.49 billion" in line for line in lines) == sum("1.24 billion" in line for line in lines) == 3
    row = next(line for line in lines if "OLMo" in line and "32 x 1 " in line).split("|")
    assert float(row[6]) == pytest.approx(32 * 1536 * 2 * 16 * 16 * 128 * 2 / 1e9, abs=0.06)
