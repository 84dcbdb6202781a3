"""Memory: what is free, what the sampler's cache may take, what to lower when it runs out."""

import traceback
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from infra.run_folder import ROOT

CACHE_SHARE = 0.4  # of what weights and optimizer leave of a GPU; the update needs the rest
OPTIMIZER_BYTES = 16  # still to come for each weight: gradient, two moments, a copy, in float32
UNKNOWN = 4 * 2**30  # bytes that are assumed free where the system does not tell


def cache_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """(layers, key-value heads, head size) of the cached keys."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, size


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of the keys and values of one token."""
    return 2 * int(np.prod(cache_shape(model))) * model.dtype.itemsize


def free_memory(device: torch.device) -> int:
    """Bytes that are still free on a device; 4 GiB where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        text = Path("/proc/meminfo").read_text()
        fields = dict(line.split(":") for line in text.splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return UNKNOWN


def free_cache_tokens(model: PreTrainedModel) -> int:
    """How many tokens' keys and values the free memory holds."""
    return int(free_memory(model.device) / cache_bytes_per_token(model))


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below the number."""
    return -(-number // multiple) * multiple


def gpu_cache_tokens(name: str, model: PreTrainedModel) -> int | None:
    """Tokens that the sampler may cache beside training on a GPU; None (no bound) on a CPU.

    Raises ValueError if the gradients and moments of the model would not fit.
    """
    if model.device.type != "cuda":
        return None
    parameters = sum(p.numel() for p in model.parameters())
    free = free_memory(model.device) - OPTIMIZER_BYTES * parameters
    if free <= 0:
        raise ValueError(f"--model {name} is too large for this GPU")
    return int(CACHE_SHARE * free / cache_bytes_per_token(model))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the CPU's libraries."""
    phrases = ("can't allocate memory", "STATUS_ALLOC_FAILED")
    is_memory_error = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_memory_error or any(phrase in str(error) for phrase in phrases)


def is_bug(error: Exception) -> bool:
    """Whether a ValueError comes from a line of this repository that is no `raise`.

    Then it is a mistake in the code, perhaps in the reader's edit, and needs its traceback.
    """
    lines = traceback.extract_tb(error.__traceback__)
    if not lines or not isinstance(error, ValueError):
        return False
    is_ours = ROOT in Path(lines[-1].filename).parents and "site-packages" not in lines[-1].filename
    return is_ours and not lines[-1].line.startswith("raise")


def in_words(error: Exception) -> object:
    """What a script that only samples says of an error; raised again if it is a bug."""
    if is_out_of_memory(error):
        return "out of memory: lower --cache-tokens or --max-new-tokens"
    if isinstance(error, (ValueError, OSError)) and not is_bug(error):
        return error
    raise error


def what_to_lower(
    part: str,
    max_prompt_tokens: int,
    max_new_tokens: int,
    micro_tokens: int,
    gradient_checkpointing: bool,
    cached_tokens: int | None,
) -> str:
    """A clause that names the flag to lower after memory ran out, and its new value.

    part: what ran: "sampling", "reward", "evaluation", "update", or "step" (the optimizer's).
    cached_tokens: what the sampler's cache held; None if nothing is known.
    """
    # The sampler rounds the longest row up to a multiple of 128 positions.
    longest = round_up(max_prompt_tokens + max_new_tokens + 16, 128)
    cached_tokens = cached_tokens or 128 * longest
    smaller_cache = f"--cache-tokens {max(longest, cached_tokens // 2)}"
    if part == "step":
        return f"the optimizer's step had no room: give {smaller_cache}, or take a smaller model"
    if part == "evaluation":
        return (
            f"an evaluation had no room: give {smaller_cache}, or lower --micro-tokens to "
            f"{micro_tokens // 2}"
        )
    if part in ("sampling", "reward"):
        return f"sampling had no room: give {smaller_cache}"
    if micro_tokens >= 2 * longest:
        return (
            f"the update had no room: lower --micro-tokens from {micro_tokens} to "
            f"{micro_tokens // 2}"
        )
    if not gradient_checkpointing:
        return "the update had no room for the longest completion: add --gradient-checkpointing"
    return (
        f"the update had no room: lower --max-new-tokens from {max_new_tokens} to "
        f"{max_new_tokens // 2}, or take a smaller model"
    )
