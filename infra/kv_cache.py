"""The sampler's cache of keys and values, and the attention that reads it.

They plug into any transformers model through its interfaces for caches and for attention.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from infra.memory import cache_shape


def new_cache(model: PreTrainedModel, where: SimpleNamespace, rows: int, width: int) -> Cache:
    """A cache of `rows` rows of `width` tokens for all layers of a model.

    where: tells the layers where the next pass writes and reads; the caller changes it.
    """
    layers, heads, size = cache_shape(model)
    # Zeros, because masked values are still multiplied by 0, and 0 * nan is nan.
    shape = 2, rows, heads, width, size
    kind = {"dtype": model.dtype, "device": model.device}
    storages = [torch.zeros(shape, **kind) for _ in range(layers)]
    return Cache(
        layers=[KVCacheLayer(where, each, last=each is storages[-1]) for each in storages]
    )


class PrefillDone(Exception):
    """The last layer has its keys and values, so the rest of the forward pass is not needed."""


class KVCacheLayer(DynamicLayer):
    """One layer's keys and values, [2, rows, heads, width, head size]; each row has its position.

    transformers' own caches copy everything at every token, or have one length for all rows.
    """

    def __init__(self, where: SimpleNamespace, storage: torch.Tensor, last: bool):
        super().__init__()
        self.where, self.storage, self.last = where, storage, last
        self.keys, self.values = storage
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return 0  # a prefill starts at 0, and a step is given its mask and positions

    def update(self, keys, values, *args, **kwargs):
        """Write keys and values [rows, heads, columns, head size]; return all to attend to."""
        where = self.where
        if where.prefill:
            place, source = where.prefill
            self.keys[place], self.values[place] = keys[source], values[source]
            if self.last:
                # The cache is full, and a prefill needs no logits. An exception is the only way out
                # of any model's forward that skips the attention and the MLP of the last layer.
                raise PrefillDone
            return keys, values
        place = where.row[: where.rows], slice(None), where.position[: where.rows, 0]
        self.keys[place], self.values[place] = keys[:, :, 0], values[:, :, 0]
        return self.storage[:, : where.rows, :, : where.length].unbind()


def grouped_attention(module, query, key, value, attention_mask, **kwargs):
    """Attention of a step, one query a row: heads that share a key head become its queries.

    So the cache is read in place. To repeat it for every head would copy all of it at every step.
    query: [rows, heads, 1, size]. key, value: [rows, key heads, length, size].
    """
    rows, heads, columns, size = query.shape
    window = window_of(module)
    if window != kwargs.get("sliding_window"):
        raise ValueError("its attention has another window than its configuration")
    if columns > 1:  # a prefill, for which the model makes the mask
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if window and key.shape[2] > window:
        # A row sees the first columns, up to its own; of these only the last `window` are left.
        seen = (attention_mask == 0).sum(dim=-1, keepdim=True)
        too_old = torch.arange(key.shape[2], device=key.device) < seen - window
        attention_mask = attention_mask.masked_fill(too_old, -torch.inf)
    query = query.view(rows, key.shape[1], -1, size)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return output.reshape(rows, 1, heads, size), None


def window_of(module: torch.nn.Module) -> int | None:
    """How many tokens a layer's attention sees, its own included; None for all before it."""
    layer_types = getattr(module.config, "layer_types", None)
    if layer_types and layer_types[module.layer_idx] != "sliding_attention":
        return None
    return getattr(module.config, "sliding_window", None)


AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", sdpa_mask)


@contextlib.contextmanager
def decoding_mode(model: PreTrainedModel) -> Iterator[None]:
    """For a while: our attention, and every module in eval mode, because dropout would be another
    policy than the one that is trained."""
    modes = [(module, module.training) for module in model.modules()]
    attention = model.config._attn_implementation
    is_cuda = model.device.type == "cuda"
    on_device = torch.cuda.device(model.device) if is_cuda else contextlib.nullcontext()
    # All but cuDNN's attention, which makes a plan for every shape that it meets.
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    model.eval()
    model.set_attn_implementation("grouped")
    try:
        with on_device, sdpa_kernel(kernels):
            yield
    finally:
        for module, is_training in modes:
            module.training = is_training
        model.set_attn_implementation(attention)
