"""The sampler's work: nothing is computed twice, and its cache stays within its bound."""

import gc
import weakref

import pytest
import torch
from helpers import MANY_ENDS, NAMES, PROMPTS
from transformers import PreTrainedModel

import data
import rollout
from infra import memory, models


@pytest.fixture(params=NAMES)
def model(request, load_model) -> PreTrainedModel:
    return load_model(request.param, torch.float32)


def test_a_seed_gives_the_same_rollouts_on_a_smaller_card():
    model, tokenizer = models.load("tiny-qwen2", "cpu")
    prompts = data.encode(tokenizer, data.load("tiny-gsm", "test")[:64])
    kwargs = {"max_new_tokens": 64, "end_ids": models.end_ids(model, tokenizer), "seed": 1}
    unbounded = rollout.sample(model, prompts, 4, **kwargs)
    rows = [rollout.DECODERS[model].rows]
    for bound in (1500, 4000):
        bounded = rollout.sample(model, prompts, 4, cache_tokens=bound, **kwargs)
        rows.append(rollout.DECODERS[model].rows)
        same = sum(a.tokens == b.tokens for a, b in zip(unbounded, bounded, strict=True))
        assert same >= 0.99 * len(unbounded)
    assert rows == [256, 10, 28]


@pytest.mark.parametrize("n, bound", [(1, None), (4, 200), (9, 100)])
def test_nothing_is_computed_twice_or_for_nothing(model, monkeypatch, n, bound):
    """Each prompt token but the last goes through the model once, each drawn token but the last
    once, and no step reads more positions than its longest row has."""
    prefilled, decoded = [], 0
    prefill, step = rollout.Decoder.prefill, rollout.Decoder.step

    def watch_prefill(decoder, prompts, copies, first_row):
        prefilled.extend(map(tuple, prompts))
        assert len(copies) == len(prompts)
        assert max(copies, default=0) <= decoder.rows
        prefill(decoder, prompts, copies, first_row)

    def watch_step(decoder, rows, length, temperature):
        nonlocal decoded
        decoded += rows
        assert length == decoder.position[:rows].max() + 1
        assert decoder.rows * decoder.width <= (bound or 1e9)
        return step(decoder, rows, length, temperature)

    monkeypatch.setattr(rollout.Decoder, "prefill", watch_prefill)
    monkeypatch.setattr(rollout.Decoder, "step", watch_step)
    prompts = [[5 + i] * (2 + i % 5) for i in range(10)]
    kwargs = {"max_new_tokens": 12, "end_ids": MANY_ENDS, "seed": 0, "cache_tokens": bound}
    rollouts = rollout.sample(model, prompts, n, **kwargs)
    assert decoded == sum(len(one.tokens) for one in rollouts)
    parts = -(-n // rollout.DECODERS[model].rows)  # 2 where 9 rollouts meet 5 rows
    assert parts == (2 if n == 9 else 1)
    assert sorted(prefilled) == sorted(map(tuple, prompts * parts))


def test_a_prefill_stops_at_the_last_layers_keys_and_values(model):
    """Nothing behind them is needed, so the last layer's MLP sees the steps only."""
    widths = []
    layer = model.model.layers[-1].mlp
    hook = layer.register_forward_hook(lambda layer, args, out: widths.append(args[0].shape[1]))
    rollout.sample(model, PROMPTS, 2, max_new_tokens=3, end_ids=set())
    hook.remove()
    assert widths == [1, 1, 1]


def test_the_bound_on_the_cache(model):
    kwargs = {"max_new_tokens": 5, "end_ids": set()}
    rollout.sample(model, PROMPTS, 4, **kwargs)
    first = rollout.DECODERS[model]
    # One cache serves all calls that it is large enough for.
    rollout.sample(model, PROMPTS[:2], 2, **kwargs)
    assert rollout.DECODERS[model] is first
    rollout.sample(model, PROMPTS, 4, cache_tokens=40, **kwargs)
    second = rollout.DECODERS[model]
    assert second is not first
    assert second.rows * second.width <= 40
    for prompts in (PROMPTS[1:], PROMPTS, PROMPTS[1:]):  # of other widths, as two sets have
        rollout.sample(model, prompts, 4, cache_tokens=40, **kwargs)
        assert rollout.DECODERS[model] is second
    with pytest.raises(ValueError, match="--cache-tokens 12 cannot hold one rollout"):
        rollout.sample(model, PROMPTS, 4, cache_tokens=12, **kwargs)
    assert model.config._attn_implementation == "sdpa"
    # The memory of a cache is freed when another takes its place.
    old, same_model = weakref.ref(first), weakref.ref(model)
    del first
    assert old() is None
    assert same_model() is not None


def test_the_default_bound_is_half_of_what_is_free(model, monkeypatch):
    """What the cache of the last call holds counts as free, so the cache does not shrink from call
    to call."""
    layers, heads, size = memory.cache_shape(model)
    token_bytes = 2 * layers * heads * size * 4
    width = len(PROMPTS[0]) + 5 + 1
    total = 20 * width * token_bytes

    def free_memory(device):
        decoder = rollout.DECODERS.get(model)
        held = decoder.rows * decoder.width * token_bytes if decoder else 0
        return total - held

    monkeypatch.setattr(memory, "free_memory", free_memory)
    decoders = []
    for _ in range(3):
        rollout.sample(model, PROMPTS, 20, max_new_tokens=5, end_ids=set())
        decoders.append(rollout.DECODERS[model])
    assert decoders[0].rows == 10
    assert decoders[0] is decoders[1] is decoders[2]


def test_a_decoder_does_not_keep_its_model(load_model):
    model = load_model("qwen2")
    rollout.sample(model, PROMPTS, max_new_tokens=2, end_ids=set())
    decoder = weakref.ref(rollout.DECODERS[model])
    del model
    gc.collect()
    assert decoder() is None
