"""Memory: the size of the sampler's cache by hand, and the advice when memory has run out."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import data
from infra import memory, models


def test_the_cache_of_a_token_by_hand(checkpoint):
    """Two layers of two key-value heads of 8 numbers, keys and values: 64 numbers a token."""
    model, _ = models.load(checkpoint("qwen2"), "cpu")
    assert memory.cache_shape(model) == (2, 2, 8)
    assert memory.cache_bytes_per_token(model) == 64 * 4
    model, _ = models.load(checkpoint("qwen2"), "cpu", torch.bfloat16)
    assert memory.cache_bytes_per_token(model) == 64 * 2


def test_free_memory_where_the_system_does_not_tell(monkeypatch):
    assert memory.free_memory(torch.device("cpu")) > 0

    def missing(*args):
        raise OSError("no such file")

    monkeypatch.setattr(Path, "read_text", missing)
    assert memory.free_memory(torch.device("cpu")) == 4 * 2**30
    monkeypatch.setattr(Path, "read_text", lambda *args: "MemAvailable:    1000 kB\nOther: 3 kB")
    assert memory.free_memory(torch.device("cpu")) == 1000 * 1024


def test_the_samplers_share_of_a_gpu(monkeypatch, checkpoint):
    """0.4 of what is left when gradients, moments and a copy have come, 16 bytes a weight."""
    model, _ = models.load(checkpoint("qwen2"), "cpu")
    assert memory.gpu_cache_tokens("some-model", model) is None  # no bound on a CPU

    weights = sum(parameter.numel() for parameter in model.parameters())
    on_gpu = SimpleNamespace(
        device=torch.device("cuda"),
        dtype=model.dtype,
        config=model.config,
        parameters=model.parameters,
    )
    monkeypatch.setattr(memory, "free_memory", lambda device: 16 * weights + 1_000_000)
    assert memory.gpu_cache_tokens("some-model", on_gpu) == 400_000 // 256
    monkeypatch.setattr(memory, "free_memory", lambda device: 16 * weights)
    with pytest.raises(ValueError, match="--model some-model is too large"):
        memory.gpu_cache_tokens("some-model", on_gpu)


def test_which_errors_mean_that_memory_ran_out():
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert memory.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert memory.is_out_of_memory(RuntimeError("CUSOLVER_STATUS_ALLOC_FAILED"))
    assert not memory.is_out_of_memory(RuntimeError("the power went"))


@pytest.mark.parametrize("part, changed, advice", [
    ("sampling", {}, "sampling had no room: give --cache-tokens 5000"),
    ("reward", {}, "sampling had no room: give --cache-tokens 5000"),
    # A cache of one row cannot be halved. 512 + 64 + 16 tokens are rounded up to 640.
    ("sampling", {"cached_tokens": 1000}, "give --cache-tokens 640"),
    # Where nothing is known, half of 128 rows.
    ("sampling", {"cached_tokens": None}, "give --cache-tokens 40960"),
    ("evaluation", {}, "give --cache-tokens 5000, or lower --micro-tokens to 1024"),
    ("step", {}, "the optimizer's step had no room: give --cache-tokens 5000, or take a smaller"),
    ("update", {}, "lower --micro-tokens from 2048 to 1024"),
    ("update", {"micro_tokens": 1000}, "add --gradient-checkpointing"),
    (
        "update",
        {"micro_tokens": 1000, "gradient_checkpointing": True},
        "lower --max-new-tokens from 64 to 32, or take a smaller model",
    ),
])  # fmt: skip
def test_what_to_lower(part, changed, advice):
    settings = {
        "max_prompt_tokens": 512,
        "max_new_tokens": 64,
        "micro_tokens": 2048,
        "gradient_checkpointing": False,
        "cached_tokens": 10_000,
    }
    assert advice in memory.what_to_lower(part, **(settings | changed))


def test_a_mistake_in_the_code_keeps_its_traceback():
    """A ValueError of a `raise` is a sentence for the user; that of another line is a bug."""
    with pytest.raises(ValueError) as refused:
        data.load("nowhere.jsonl", "train")
    assert "nowhere.jsonl" in str(memory.in_words(refused.value))
    with pytest.raises(ValueError) as mistake:
        list(zip([1], [1, 2], strict=True))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        memory.in_words(mistake.value)
