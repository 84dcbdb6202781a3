"""What each trick of rollout.py brings: the time without it over the time with all of them."""

import contextlib
from argparse import Namespace
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, PreTrainedModel

import rollout
from infra import kv_cache, models
from lab.bench_timing import (
    CAP,
    WORKLOADS,
    Ratio,
    Setup,
    Workload,
    load_setup,
    time_in_turn,
    time_ratio,
)

Sample = Callable[..., Any]  # called as rollout.sample is; what it returns is not used


class Trick(NamedTuple):
    """A trick, and how to go without it (which the name says in brackets)."""

    name: str
    without: Callable[[], AbstractContextManager] = contextlib.nullcontext
    sample: Sample = rollout.sample


def tricks(flags: Namespace) -> None:
    """Print a line for each trick, with a column for each workload."""
    setup = load_setup(flags)
    heads = [f"({workload.queries}, {workload.rollouts})" for workload in WORKLOADS.values()]
    print(f"{'time without it over time with it':66}" + "".join(f"{head:>22}" for head in heads))
    for trick in TRICKS:
        ratios = [ratio_without(trick, setup, workload, flags) for workload in WORKLOADS.values()]
        print(f"{trick.name:66}" + "".join(f"{ratio!s:>22}" for ratio in ratios))


def ratio_without(trick: Trick, setup: Setup, workload: Workload, flags: Namespace) -> Ratio | str:
    """The time without a trick over the time with it; "-" where the trick does not apply."""
    if trick.sample is sample_apart and workload.rollouts == 1:
        return "-"
    # Each side has a model of its own, so also a cache that its next call can use again.
    other_model, _ = models.load(flags.model, "cpu")
    prompts = setup.prompts[: workload.queries]
    options = {"max_new_tokens": CAP, "end_ids": setup.end_ids}

    def with_it() -> None:
        rollout.sample(setup.model, prompts, workload.rollouts, **options)

    def without_it() -> None:
        with trick.without():
            trick.sample(other_model, prompts, workload.rollouts, **options)

    return time_ratio(*time_in_turn(with_it, without_it, flags.repeats, trick.name))


# --- how to go without ----------------------------------------------------------------------------


@contextlib.contextmanager
def replaced(names: MutableMapping[str, Any], name: str, value: Any) -> Iterator[None]:
    """names[name] is `value` for a while."""
    before = names[name]
    names[name] = value
    try:
        yield
    finally:
        names[name] = before


def with_config(**settings: int) -> Callable[[], AbstractContextManager]:
    """Decode with other settings."""
    configs = rollout.DECODE_CONFIGS
    return lambda: replaced(configs, "cpu", configs["cpu"]._replace(**settings))


def with_cache_layer(kind: type) -> Callable[[], AbstractContextManager]:
    """Decode with another class of cache."""
    return lambda: replaced(vars(kv_cache), "KVCacheLayer", kind)


class CopyingLayer(kv_cache.KVCacheLayer):
    """Copies all keys and values at every step."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(*args, **kwargs)
        return keys.clone(), values.clone()


class WholePassLayer(kv_cache.KVCacheLayer):
    """Lets a prefill go on behind the last layer's keys and values."""

    def __init__(self, where: SimpleNamespace, storage: torch.Tensor, last: bool):
        super().__init__(where, storage, last=False)


def with_repeated_keys() -> AbstractContextManager:
    """Repeat keys and values for every query head that shares them."""

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        sharing = query.shape[1] // key.shape[1]
        output = torch.nn.functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(sharing, dim=1),
            value.repeat_interleave(sharing, dim=1),
            attn_mask=attention_mask,
            scale=scaling,
            is_causal=query.shape[2] > 1,
        )
        return output.transpose(1, 2), None

    return replaced(AttentionInterface._global_mapping, "grouped", attention)


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def sample_in_waves(
    model: PreTrainedModel, prompts: list[list[int]], n: int, **options: Any
) -> None:
    """As many prompts as fit into the rows, and the next ones when all of these have ended."""
    prompts = sorted(prompts, key=len)
    step = rollout.MAX_ROWS // n
    for start in range(0, len(prompts), step):
        rollout.sample(model, prompts[start : start + step], n, **options)


def sample_apart(model: PreTrainedModel, prompts: list[list[int]], n: int, **options: Any) -> None:
    """A prefill for every rollout: each prompt comes n times."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    rollout.sample(model, repeated, 1, **options)


TRICKS = [
    Trick(
        "a row leaves as soon as it ends (a check every 64 steps)",
        with_config(steps_per_block=64),
    ),
    Trick("new rows come in meanwhile (waves of 512 rows)", sample=sample_in_waves),
    Trick(
        "512 rows at a time share the cost of a step (64)",
        lambda: replaced(vars(rollout), "MAX_ROWS", 64),
    ),
    Trick(
        "a step reads no further than the longest row (144 positions)",
        with_config(length_multiple=144),
    ),
    Trick(
        "the cache is written in place (copied at every step)",
        with_cache_layer(CopyingLayer),
    ),
    Trick("query heads read shared keys in place (repeated for each)", with_repeated_keys),
    Trick("one prefill for the n rollouts of a prompt (one each)", sample=sample_apart),
    Trick(
        "a prefill ends at the last layer's cache (the whole pass)",
        with_cache_layer(WholePassLayer),
    ),
    Trick(
        "prefills of 2,048 tokens, which fit a core's cache (16,384)",
        with_config(prefill_tokens=16384),
    ),
    Trick(
        "torch.inference_mode (torch.no_grad)",
        sample=torch.no_grad()(rollout.sample.__wrapped__),
    ),
    Trick("one thread (two)", lambda: with_threads(2)),
]
