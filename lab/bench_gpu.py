"""A GPU: how fast it samples and trains (measured); what the paper's models need (calculated)."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedConfig,
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


# --- calculated -----------------------------------------------------------------------------------

# An H100's bfloat16 FLOP/s, bytes a second and bytes of memory, from its data sheet.
H100_FLOPS, H100_BANDWIDTH, H100_MEMORY = 989e12, 3.35e12, 80e9
PAPER_MODELS = {
    "Qwen2.5-0.5B-Instruct": (Qwen2ForCausalLM, Qwen2Config(**QWEN_SHAPE)),
    "Llama-3.2-1B-Instruct": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            tie_word_embeddings=True,
        ),
    ),
    "OLMo-2-0425-1B-Instruct": (
        Olmo2ForCausalLM,
        Olmo2Config(
            vocab_size=100352,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=16,
            tie_word_embeddings=False,
        ),
    ),
}
HEADS = (
    "model", "weights, optimizer, reference", "kept for a micro-batch",
    "with --gradient-checkpointing", "B x n", "cache", "peak", "seconds a round",
)  # fmt: skip
FORMULAS = """\
Peak: 20 bytes a weight (2 bfloat16, 4 master, 4 gradient, 8 Adam, 2 reference), plus the cache,
plus what a micro-batch keeps (counted on one layer), plus 1 GB of logits.
Cache: rows x length x layers x key-value heads x head size x 4 bytes. The rows are B x n, at most
512, and at most what fits into 0.4 of what the weights leave of 80 GB. An evaluation takes the rows
of 32 x 64.
Seconds: new tokens x the time of a step, plus 8 x weights x tokens at 40 % of an H100's peak
FLOP/s. A step takes the larger of 2 ms for 24 layers and of the bytes read at half of the
bandwidth. The two shares (40 % and half) are assumed, not measured."""


def needs(flags: Namespace, prompt: int = 512, new: int = 1024, micro: int = 8192) -> None:
    """Print a table of memory and time. Nothing is run but one layer, to count what it keeps.

    prompt, new: tokens of a prompt and of a completion; micro: of a micro-batch.
    """
    print(
        f"prompts of {prompt}, completions of {new} tokens, all of full length; a micro-batch of "
        f"{micro} tokens; GB"
    )
    print("\n| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
    for name, (model_class, config) in PAPER_MODELS.items():
        with torch.device("meta"):
            model = model_class(config)
        weights, layers = count_weights(model), config.num_hidden_layers
        fixed = weights * (2 + 4 + 4 + 8 + 2)
        kept = micro * layers * bytes_kept_by_a_layer(model, config)
        # Checkpointing keeps the input of each layer, and all of the layer that is recomputed.
        checkpointed = micro * (layers * 2 * config.hidden_size) + kept / layers
        size = f"{name} ({weights / 1e9:.2f} billion)"
        for queries, n in ((32, 1), (32, 8), (32, 64)):
            cache, peak, round_seconds = round_needs(model, queries * n, prompt, new, fixed, kept)
            print(
                f"| {size} | {fixed / 1e9:.1f} | {kept / 1e9:.1f} | {checkpointed / 1e9:.1f} "
                f"| {queries} x {n} | {cache / 1e9:.1f} | {peak / 1e9:.0f} | {round_seconds:.0f} |"
            )
    print(f"\n{FORMULAS}")


def round_needs(
    model: PreTrainedModel, rollouts: int, prompt: int, new: int, fixed: float, kept: float
) -> tuple[float, float, float]:
    """(bytes of the cache, bytes at the peak, seconds) of a round; FORMULAS says how.

    fixed: bytes of weights, gradients, optimizer and reference; kept: bytes of a micro-batch.
    """
    weights = count_weights(model)
    layers, heads, size = memory.cache_shape(model)
    token_bytes = 2 * layers * heads * size * 2  # bfloat16 keys and values
    free = memory.CACHE_SHARE * (H100_MEMORY - fixed)
    rows = min(rollouts, rollout.MAX_ROWS, int(free / token_bytes / (prompt + new)))
    cache = rows * (prompt + new) * token_bytes
    logits = 4 * 2**28  # some copies of the piece that the loss computes at a time
    # The peak is in a forward and backward pass, or in the optimizer's step with its copy.
    peak = fixed + cache + max(kept + logits, 4 * weights)

    bytes_read = 2 * weights + cache * (prompt + new / 2) / (prompt + new)
    step = max(bytes_read / H100_BANDWIDTH / 0.5, 2e-3 / 24 * layers)
    waves = max(1, rollouts / rows)
    flops = 8 * weights * rollouts * (prompt + new)  # 6 for the update, 2 for the reference
    return cache, peak, waves * new * step + flops / H100_FLOPS / 0.4


def bytes_kept_by_a_layer(
    model: PreTrainedModel, config: PreTrainedConfig, tokens: int = 64
) -> float:
    """Bytes a token that autograd keeps of one layer in bfloat16, except for its weights."""
    layer = type(model.model.layers[0])(config, 0).bfloat16()
    config._attn_implementation = "sdpa"
    hidden = torch.zeros(1, tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    size = memory.cache_shape(model)[2]
    cosines = torch.zeros(1, tokens, size, dtype=torch.bfloat16)
    sines = torch.zeros(1, tokens, size, dtype=torch.bfloat16)
    not_counted = {
        tensor.untyped_storage().data_ptr() for tensor in [*layer.parameters(), cosines, sines]
    }
    kept = {}  # bytes by address: two tensors that share their numbers count once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(hidden, position_embeddings=(cosines, sines))
    del output  # only now, because memory that is freed could be taken again at the same address
    return sum(kept.values()) / tokens
