"""What the paper's models need of a GPU's memory and time: calculated, not measured."""

from argparse import Namespace

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

import rollout
from infra import memory
from lab.bench_gpu import QWEN_SHAPE, count_weights

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
CARD_HEADS = ("model", "B x n", "cache", "peak", "flags that it needs")
# What to try, in this order, until a round fits: the name of the flags, tokens of a micro-batch,
# gradient checkpointing, and a reference model for the KL term.
WAYS_TO_FIT = [
    ("none", 8192, False, True),
    ("--micro-tokens 4096", 4096, False, True),
    ("--micro-tokens 2048", 2048, False, True),
    ("--micro-tokens 2048 --gradient-checkpointing", 2048, True, True),
    ("--micro-tokens 2048 --gradient-checkpointing --kl 0", 2048, True, False),
]
USABLE = 0.95  # of a card's memory; the rest is the driver's, and lost between blocks
FORMULAS = """\
Peak: 20 bytes a weight (2 bfloat16, 4 master, 4 gradient, 8 Adam, 2 reference), plus the cache,
plus what a micro-batch keeps (counted on one layer), plus 1 GB of logits.
Cache: rows x length x layers x key-value heads x head size x 4 bytes. The rows are B x n, at most
512, and at most what fits into 0.4 of what the weights leave of the card. An evaluation takes the
rows of 32 x 64."""
TIMES = """\
Seconds: new tokens x the time of a step, plus 8 x weights x tokens at 40 % of an H100's peak
FLOP/s. A step takes the larger of 2 ms for 24 layers and of the bytes read at half of the
bandwidth. The two shares (40 % and half) are assumed, not measured."""


class Needs:
    """Bytes of one model's weights and passes, for prompts and completions of full length.

    prompt, new: tokens of a prompt and of a completion.
    """

    def __init__(self, name: str, prompt: int, new: int):
        model_class, self.config = PAPER_MODELS[name]
        with torch.device("meta"):
            self.model = model_class(self.config).bfloat16()
        self.weights = count_weights(self.model)
        self.name = f"{name} ({self.weights / 1e9:.2f} billion)"
        self.prompt, self.new = prompt, new
        self.layer_bytes = bytes_kept_by_a_layer(self.model, self.config)

    def fixed(self, has_reference: bool = True) -> int:
        """Weights, master weights, gradients, optimizer, reference."""
        return self.weights * (2 + 4 + 4 + 8 + 2 * has_reference)

    def kept(self, micro: int, checkpointing: bool = False) -> float:
        """What a micro-batch keeps for its backward pass."""
        layers = self.config.num_hidden_layers
        if not checkpointing:
            return micro * layers * self.layer_bytes
        # Checkpointing keeps the input of each layer, and all of the layer that is recomputed.
        return micro * (layers * 2 * self.config.hidden_size + self.layer_bytes)

    def rows(self, rollouts: int, fixed: float, card: float) -> int:
        """Rows of the sampler's cache; 0 if not even one fits."""
        free = memory.CACHE_SHARE * max(0, card - fixed)
        fitting = int(free / memory.cache_bytes_per_token(self.model) / (self.prompt + self.new))
        return min(rollouts, rollout.MAX_ROWS, fitting)

    def cache(self, rows: int) -> int:
        return rows * (self.prompt + self.new) * memory.cache_bytes_per_token(self.model)

    def peak(self, fixed: float, cache: float, kept: float) -> float:
        """A forward and backward pass, or the optimizer's step with its copy of the weights."""
        logits = 4 * 2**28  # some copies of the piece that the loss computes at a time
        return fixed + cache + max(kept + logits, 4 * self.weights)

    def seconds(self, rollouts: int, rows: int) -> float:
        """Of a round on an H100."""
        length = self.prompt + self.new
        bytes_read = 2 * self.weights + self.cache(rows) * (self.prompt + self.new / 2) / length
        layers = self.config.num_hidden_layers
        step = max(bytes_read / H100_BANDWIDTH / 0.5, 2e-3 / 24 * layers)
        waves = max(1, rollouts / rows)
        flops = 8 * self.weights * rollouts * length  # 6 for the update, 2 for the reference
        return waves * self.new * step + flops / H100_FLOPS / 0.4


def needs(flags: Namespace, prompt: int = 512, new: int = 1024, micro: int = 8192) -> None:
    """Print a table of memory and time. Nothing is run but one layer, to count what it keeps.

    flags.card: a card's memory in GB, to be told which flags a round needs to fit; None: an H100.
    prompt, new: tokens of a prompt and of a completion; micro: of a micro-batch.
    """
    at = f"micro-batches of {micro} tokens on an H100 of 80 GB"
    if flags.card:
        at = f"a card of {flags.card:g} GB, {USABLE:.0%} of it usable"
    print(f"prompts of {prompt}, completions of {new} tokens, all of full length; {at}; in GB")
    heads = CARD_HEADS if flags.card else HEADS
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name in PAPER_MODELS:
        model = Needs(name, prompt, new)
        for queries, n in ((32, 1), (32, 8), (32, 64)):
            if flags.card:
                print_fit(model, queries, n, flags.card * 1e9)
                continue
            fixed, kept = model.fixed(), model.kept(micro)
            rows = model.rows(queries * n, fixed, H100_MEMORY)
            cache = model.cache(rows)
            print(
                f"| {model.name} | {fixed / 1e9:.1f} | {kept / 1e9:.1f} "
                f"| {model.kept(micro, True) / 1e9:.1f} | {queries} x {n} | {cache / 1e9:.1f} "
                f"| {model.peak(fixed, cache, kept) / 1e9:.0f} "
                f"| {model.seconds(queries * n, rows):.0f} |"
            )
    print("\n" + FORMULAS + ("" if flags.card else "\n" + TIMES))


def print_fit(model: Needs, queries: int, n: int, card: float) -> None:
    """A line of the table for a card: the first way to fit that does."""
    for way, micro, checkpointing, has_reference in WAYS_TO_FIT:
        fixed = model.fixed(has_reference)
        rows = model.rows(queries * n, fixed, card)
        cache = model.cache(rows)
        peak = model.peak(fixed, cache, model.kept(micro, checkpointing))
        if rows and peak <= USABLE * card:
            figures = f"{cache / 1e9:.1f} | {peak / 1e9:.1f} | {way}"
            break
    else:
        figures = f"| {peak / 1e9:.1f} | does not fit"
    print(f"| {model.name} | {queries} x {n} | {figures} |")


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
