"""Loading a model: weights and tokenizer, number format, CPU threads, end-of-sequence ids."""

import copy
import functools
import importlib.util
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from infra.rows import TINY

TINY_MODELS = ("tiny-qwen2", "tiny-llama", "tiny-olmo2")
TINY_BYTES = 20e6  # a folder with less than this of weights counts as tiny
FEW_PARAMETERS = 5_000_000  # below it one CPU thread is the default
OPTIONS = {"dtype": torch.float32, "attn_implementation": "sdpa"}


def load(
    name: str, device: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with its tokenizer.

    name: tiny-qwen2, tiny-llama, tiny-olmo2, a folder, a .gguf file, or a model of the hub.
    device: the GPU by default, if there is one.
    dtype: of the weights.
    Raises ValueError, in one sentence, for a model that does not exist or cannot be served.
    """
    report: dict = {}
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # it would be drawn between our own bars
    path = str(TINY / name.removeprefix("tiny-")) if name in TINY_MODELS else name
    try:
        if "/" not in path and not Path(path).exists():
            raise ValueError("no such folder")  # hub models are owner/name: do not ask the hub
        if path.endswith(".gguf"):
            model, tokenizer = copy.deepcopy(load_gguf(Path(path)))
        else:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model, report = AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True, **OPTIONS
            )
    except Exception as error:  # missing folder, damaged file, unknown architecture, no network
        raise ValueError(loading_problem(name, error)) from None
    if missing := sorted(report.get("missing_keys", [])):  # they would be random numbers
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ValueError(
            f"--model {name}: its files lack the weights {missing[0]}{others} of a "
            f"{type(model).__name__}"
        )
    check_architecture(name, model)
    # model.to(dtype) would also round the rotary frequencies, so only parameters are converted.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device or default_device), tokenizer


@functools.lru_cache(maxsize=1)
def load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with its tokenizer and chat template from a GGUF file, its weights in float32.

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
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **file)
    quantized = AutoModelForCausalLM.from_pretrained(str(path.parent), **file, **OPTIONS)
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
    return model.eval(), tokenizer


def loading_problem(name: str, error: Exception) -> str:
    """One sentence that says why a model cannot be loaded."""
    if "gated" in str(error).lower():
        return (
            f"--model {name}: its owners ask you to accept their terms first, on "
            f"https://huggingface.co/{name}; then log in with `hf auth login`, or name a folder "
            "with its files"
        )
    reason = str(error).strip().split("\n")[0]
    return (
        f"--model {name}: neither tiny-qwen2, tiny-llama, tiny-olmo2 nor a folder, a .gguf file or "
        f"a model of the hub that can be loaded ({reason})"
    )


def check_architecture(name: str, model: PreTrainedModel) -> None:
    """Raise ValueError for a model that the sampler's cache cannot serve."""
    config = model.config.get_text_config()
    if not hasattr(config, "num_attention_heads"):
        raise ValueError(
            f"--model {name}: {type(model).__name__} has no attention heads, and the sampler's "
            "cache holds their keys and values"
        )
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        has_other_layers = set(layer_types) != {"full_attention"}
    else:
        has_other_layers = bool(getattr(config, "sliding_window", None))
    if has_other_layers:
        raise ValueError(
            f"--model {name}: has layers without full attention, which the sampler's cache "
            "cannot serve"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        raise ValueError(
            f"--model {name}: its rotary frequencies depend on the longest row of a batch, so a "
            "rollout would depend on its neighbours"
        )


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise ValueError if the logits are more than the output of the head (scaled or capped).

    The loss applies the head itself, piece by piece, so it would miss what comes after it.
    """
    ids = torch.tensor([[1, 2]], device=model.device)
    try:
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        head_output = model.get_output_embeddings()(hidden)
        same = torch.allclose(head_output, model(input_ids=ids, use_cache=False).logits)
    except Exception as error:  # whatever another kind of architecture stumbles over
        kind = type(error).__name__
        raise ValueError(f"this architecture is not served: {kind}: {error}") from None
    if not same:
        raise ValueError("this model changes its logits after its head, which the loss would miss")


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
    if name.startswith("tiny-"):
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
