"""Loading a model: weights and tokenizer, number format, CPU threads, end-of-sequence ids."""

import copy
import functools
import importlib.util
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, logging

from infra.rows import TINY

TINY_MODELS = ("tiny-qwen2", "tiny-llama", "tiny-olmo2")
TINY_BYTES = 20e6  # a folder with less than this of weights counts as tiny
NEW_TOKENS = 64, 1024  # bound on a completion: of a tiny model, and of any other
FEW_PARAMETERS = 5_000_000  # below it one CPU thread is the default
# Code that comes with a model is never run, and nobody is asked whether it may.
OPTIONS = {"dtype": torch.float32, "attn_implementation": "sdpa", "trust_remote_code": False}


def load(
    name: str, device: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with its tokenizer.

    name: tiny-qwen2, tiny-llama, tiny-olmo2, a folder, a .gguf file, or a model of the hub.
    device: the GPU by default, if there is one.
    dtype: of the weights.
    Raises ValueError, in one sentence, for a model that does not exist or cannot be served.
    rollout.load also checks that the sampler serves it.
    """
    if not name:
        raise ValueError("--model: the name is empty")
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # it would be drawn between our own bars
    path = str(TINY / name.removeprefix("tiny-")) if name in TINY_MODELS else name
    try:
        if "/" not in path and not Path(path).exists():
            raise ValueError("no such folder")  # hub models are owner/name: do not ask the hub
        if path.endswith(".gguf"):
            model, tokenizer, missing = copy.deepcopy(load_gguf(Path(path)))
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model, report = AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True, **OPTIONS
            )
            missing = report["missing_keys"]
        has_tokens = bool(tokenizer("ab 12")["input_ids"])
    except Exception as error:  # missing folder, damaged file, unknown architecture, no network
        raise ValueError(loading_problem(name, path, error)) from None
    if missing := sorted(missing):  # they would be random numbers
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ValueError(
            f"--model {name}: its files lack the weights {missing[0]}{others} of a "
            f"{type(model).__name__}"
        )
    if not has_tokens:
        raise ValueError(f"--model {name}: its tokenizer knows no tokens: is a file missing?")
    check_architecture(name, model)
    # model.to(dtype) would also round the rotary frequencies, so only parameters are converted.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if model.generation_config.eos_token_id is None:
        end = tokenizer.eos_token and f"{tokenizer.eos_token} is taken from its tokenizer"
        say_once(
            f"--model {name}: its configuration names no token that ends a completion, and "
            f"{end or 'its tokenizer names none: every completion will be truncated'}"
        )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device or default_device), tokenizer


@functools.cache
def say_once(sentence: str) -> None:
    """Print a sentence to stderr, unless this process has done so."""
    print(sentence, file=sys.stderr)


@functools.lru_cache(maxsize=1)
def load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """A model with its tokenizer and chat template from a GGUF file, its weights in float32.

    Also the names of weights that the file lacks.

    A GGUF file often holds weights of four or eight bits. transformers reads them, and would then
    refuse to save the model because its configuration says that it is quantized. So the weights
    move into a new model without that setting. The result is kept, because reading takes half a
    minute for 135 million parameters, and an evaluation needs the base model again.
    """
    if not path.exists():
        raise ValueError("no such file")
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(missing)
        raise ValueError(f"a GGUF file needs another package: pip install {packages}")
    file = {"gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(
        str(path.parent), trust_remote_code=False, **file
    )
    quantized, report = AutoModelForCausalLM.from_pretrained(
        str(path.parent), output_loading_info=True, **file, **OPTIONS
    )
    config = copy.deepcopy(quantized.config)
    del config.quantization_config
    with torch.device("meta"):  # no memory for weights that are replaced at once
        model = AutoModelForCausalLM.from_config(config, **OPTIONS)
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.tie_weights()
    for ours, theirs in zip(model.modules(), quantized.modules(), strict=True):
        for name, buffer in theirs.named_buffers(recurse=False):  # rotary frequencies
            setattr(ours, name, buffer)
    model.generation_config = quantized.generation_config
    return model.eval(), tokenizer, report["missing_keys"]


def loading_problem(name: str, path: str, error: Exception) -> str:
    """One sentence that says why a model cannot be loaded."""
    if "gated" in str(error).lower():
        return (
            f"--model {name}: its owners ask you to accept their terms first, on "
            f"https://huggingface.co/{name}; then log in with `hf auth login`, or name a folder "
            "with its files"
        )
    reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    if "trust_remote_code" in str(error):
        return f"--model {name}: its architecture is code in its own files, which is not run here"
    if "does not support an attention implementation" in reason:
        return (
            f"--model {name}: transformers has no scaled-dot-product attention for its "
            "architecture, and the sampler needs it"
        )
    if (Path(path) / "evals.jsonl").exists():
        return f"--model {name} is the folder of a run: name {Path(name) / 'model'}"
    if Path(path).exists():
        return f"--model {name} is there and cannot be loaded ({reason})"
    return (
        f"--model {name}: neither tiny-qwen2, tiny-llama, tiny-olmo2 nor a folder, a .gguf file or "
        f"a model of the hub that can be loaded ({reason})"
    )


def check_architecture(name: str, model: PreTrainedModel) -> None:
    """Raise ValueError for a model that is known not to suit the sampler's cache.

    rollout.check finds what a short completion shows. This is about long ones, and about words.
    """
    config = model.config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or {}
    ropes = [ropes, *(each for each in ropes.values() if isinstance(each, dict))]
    others = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention", "sliding_attention"
    }  # fmt: skip
    if not hasattr(config, "num_attention_heads"):
        problem = (
            f"{type(model).__name__} has no attention heads, and the sampler's cache holds their "
            "keys and values"
        )
    elif others:
        problem = f"the sampler's cache cannot serve its layers of {', '.join(sorted(others))}"
    elif any(rope.get("rope_type") in ("dynamic", "longrope") for rope in ropes):
        problem = (
            "its rotary frequencies depend on the longest row of a batch, so a rollout would "
            "depend on its neighbours"
        )
    elif getattr(config, "attn_temperature_tuning", False):  # Llama 4
        problem = "its attention reads its temperature from the length of another cache than ours"
    else:
        return
    raise ValueError(f"--model {name}: {problem}")


def check_prompts(model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> None:
    """Raise ValueError for prompts that the model cannot read, or cannot continue that far."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if (highest := max(map(max, prompts))) >= vocabulary:
        raise ValueError(
            f"a prompt holds the token {highest}, and the model's vocabulary ends at "
            f"{vocabulary - 1}: its tokenizer is another model's"
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts))
    if positions and longest + new_tokens > positions:
        sentence = (
            f"--max-new-tokens {new_tokens}: with the longest prompt, of {longest} tokens, a row "
            f"has more than the {positions} positions that the model "
        )
        if not any("rotary" in module_name for module_name, _ in model.named_modules()):
            raise ValueError(f"{sentence}has")
        say_once(f"{sentence}was made for")


def logits_of(
    model: PreTrainedModel, output: ModelOutput, hidden: torch.Tensor
) -> torch.Tensor:
    """The logits [N, vocabulary] of hidden states [N, size], by the model's own code.

    Some models scale or cap their logits after the head. So the model runs as it is, and in the
    place of its decoder stands a function that returns these hidden states in `output`.
    """
    decoder = model.get_decoder()
    given = type(output)(**{**output, "last_hidden_state": hidden[None]})
    decoder.forward = lambda *args, **kwargs: given
    try:
        return model(inputs_embeds=hidden[None], use_cache=False).logits[0]
    finally:
        del decoder.forward


def recompute_layers(model: PreTrainedModel) -> None:
    """Gradient checkpointing without dropout.

    The layers recompute in train mode only, so they are in it, and everything else is in eval mode.
    Some layers (OPT's) apply dropout themselves, at a rate of their own: it becomes 0.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        module.training = isinstance(module, GradientCheckpointingLayer)
        if module.training:
            for name in [name for name in vars(module) if "dropout" in name]:
                if isinstance(getattr(module, name), float):
                    setattr(module, name, 0.0)


def is_tiny(name: str) -> bool:
    """Whether a model is one of ours, or a folder with less than 20 MB of weights."""
    if name in TINY_MODELS:
        return True
    sizes = [file.stat().st_size for file in Path(name).glob("*.safetensors")]
    return bool(sizes) and sum(sizes) < TINY_BYTES


def compute_dtype() -> torch.dtype:
    """The number format to compute in: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def set_threads(model: PreTrainedModel, threads: int | None = None) -> None:
    """Set the number of CPU threads: `threads`, or by default what suits the size of the model.

    The products of a tiny model are too small to share: two threads gain a quarter, and two runs
    side by side gain more. A larger model gets as many threads as torch finds cores.
    """
    is_small = sum(p.numel() for p in model.parameters()) < FEW_PARAMETERS
    torch.set_num_threads(threads or (1 if is_small else torch.get_num_threads()))


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every id that ends a completion: those of the generation config and the tokenizer's.

    Chat models often name several.
    """
    ids = model.generation_config.eos_token_id
    ids = set(ids) if isinstance(ids, (list, tuple)) else {ids}
    return (ids | {tokenizer.eos_token_id}) - {None}
