"""A GPU: how fast it samples and trains, measured."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import bandit
import rollout
from infra import memory, optimizer
from lab.bench_peers import generate
from lab.bench_timing import seconds

QWEN_SHAPE = {  # of Qwen2.5-0.5B
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


# --- measured -------------------------------------------------------------------------------------


def gpu(
    flags: Namespace, device: str = "cuda", shape: dict[str, Any] = QWEN_SHAPE, queries: int = 32,
    n: int = 8, prompt_tokens: int = 128, new_tokens: int = 512, compiled: bool = True,
) -> None:  # fmt: skip
    """Sample n completions of each prompt in bfloat16, by three ways; then time a whole round.

    The model has random weights. No id ends a completion, so all have the full length. The roof is
    the rate at which a step would only wait for the memory: it reads all weights and the cache.
    compiled: also time the compiled step.
    """
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench.py: gpu needs a GPU, and torch finds none")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1000, (queries, prompt_tokens), generator=generator).tolist()
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(Qwen2Config(**shape), dtype=torch.bfloat16).eval()

    bandwidth = copied_bytes_a_second(device)
    weight_bytes = 2 * count_weights(model)
    mean_length = prompt_tokens + new_tokens / 2
    cache_bytes = queries * n * mean_length * memory.cache_bytes_per_token(model)
    roof = queries * n / ((weight_bytes + cache_bytes) / bandwidth)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(
        f"\n{name}: a step must read {weight_bytes / 1e9:.2f} GB of weights and "
        f"{cache_bytes / 1e9:.2f} GB of cache; copies run at {bandwidth / 1e9:,.0f} GB/s\n"
        f"{'':30}{'first, s':>10}{'then, s':>10}{'tokens/s':>12}{'of the roof':>13}"
        f"{'x generate':>12}{'peak, GB':>10}"
    )
    ours = {"max_new_tokens": new_tokens, "end_ids": set()}
    ways = {
        "generate": lambda: generate(model, prompts, n, set(), queries * n, new_tokens),
        "rollout.py": lambda: rollout.sample(model, prompts, n, **ours),
    }
    if compiled:
        ways["rollout.py, compiled step"] = lambda: rollout.sample(
            model, prompts, n, compiled=True, **ours
        )
    generate_rate = None
    for label, sample in ways.items():
        rollout.DECODERS.pop(model, None)  # free the cache of the way before
        reset_peak(device)
        first, *times = synchronized_times(sample, flags.repeats + 1, device)
        rate = queries * n * new_tokens / median(times)
        generate_rate = generate_rate or rate
        print(
            f"{label:30}{first:10.1f}{median(times):10.2f}{rate:12,.0f}{rate / roof:13.1%}"
            f"{rate / generate_rate:12.1f}{peak_gigabytes(device):10.1f}"
        )
    time_round(model, prompts, n, new_tokens, flags.repeats, device)


def time_round(
    model: PreTrainedModel, prompts: list[list[int]], n: int, new_tokens: int, repeats: int,
    device: str,
) -> None:  # fmt: skip
    """Print the times of sampling and update in a round of the group's advantage.

    The verdicts are random, so the verifier's time is not in it.
    """
    rollout.DECODERS.pop(model, None)
    model.float()  # these become the master weights
    adamw = optimizer.adamw(optimizer.MasterWeights(model, torch.bfloat16), 1e-6)
    config = bandit.UpdateConfig(micro_tokens=8192)
    sampling_times, update_times = [], []
    reset_peak(device)
    for seed in range(repeats + 1):
        start = time.perf_counter()
        rollouts = rollout.sample(
            model, prompts, n, max_new_tokens=new_tokens, end_ids=set(), seed=seed
        )
        synchronize(device)
        sampled = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        rewards = (torch.rand(len(prompts), n, generator=generator) < 0.5).float()
        advantages = bandit.advantages("group", bandit.RoundRewards(rewards), n)
        batch = bandit.UpdateBatch(
            prompts=[prompt for prompt in prompts for _ in range(n)],
            completions=[one.tokens for one in rollouts],
            advantages=advantages.reshape(-1),
            sampler_logprobs=[one.logprobs for one in rollouts],
        )
        bandit.update(model, adamw, batch, config)
        synchronize(device)
        updated = time.perf_counter()
        sampling_times.append(sampled - start)
        update_times.append(updated - sampled)
    # The first round is a warm-up.
    sampling, update = median(sampling_times[1:]), median(update_times[1:])

    length = len(prompts[0]) + new_tokens
    # A tied embedding counts once, as the head. Causal attention computes half of a square.
    attention = model.config.num_hidden_layers * model.config.hidden_size * length
    flops = 6 * (count_weights(model) + attention) * len(prompts) * n * length
    print(
        f"a round of {len(prompts)} x {n}: sampling {sampling:.2f} s, update {update:.2f} s, which "
        f"is {flops / update / 1e12:,.2f} TFLOP/s (6 per weight and token, and attention's); peak "
        f"{peak_gigabytes(device):.1f} GB"
    )


def count_weights(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def synchronize(device: str) -> None:
    """Wait until the GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def synchronized_times(function: Callable[[], Any], repeats: int, device: str) -> list[float]:
    """Seconds of each run, with what the GPU still has to do after the call."""

    def run() -> None:
        function()
        synchronize(device)

    times = []
    for _ in range(repeats):
        synchronize(device)
        times.append(seconds(run))
    return times


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gigabytes(device: str) -> float:
    """The most memory that was allocated since reset_peak; nan on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")


def copied_bytes_a_second(device: str) -> float:
    """Bytes read and written in a second of large copies: the bandwidth of the memory."""
    block = torch.zeros(2**30 if device == "cuda" else 2**24, dtype=torch.uint8, device=device)
    other = torch.empty_like(block)

    def copy_ten_times() -> None:
        for _ in range(10):
            other.copy_(block)

    times = synchronized_times(copy_ten_times, 6, device)
    return 10 * 2 * block.numel() / min(times)
