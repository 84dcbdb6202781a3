"""The optimizer: AdamW on float32 master weights.

A bfloat16 number has 8 significant bits: the next one after 1 is 1.0078, so a step of 1e-6 is lost.
When the model computes in bfloat16, each weight therefore has a float32 master. Gradients are
summed in the masters and AdamW steps there. After every step the model's weights become the
rounded masters. Sampling uses those rounded weights too.

With several processes each one keeps the optimizer's state of a share of the weights (torch's
ZeroRedundancyOptimizer; ZeRO stage 1, arXiv:1910.02054).

Left out: sharding the weights themselves (FSDP). Models of a few billion parameters fit on one GPU,
and for larger ones docs/engines.md names engines.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from transformers import PreTrainedModel


class MasterWeights:
    """The float32 weights of a model that computes in `dtype`; in float32 they are its own weights.

    From its construction on, gradients of the model arrive in `weights[i].grad`.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype = torch.float32):
        # Tied weights come once. A table of positions that is never trained has no gradient.
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names, self.model_weights = zip(*trained, strict=True)
        self.are_the_models_own = model.dtype == dtype
        if self.are_the_models_own:
            self.weights = self.model_weights
            return
        self.weights = tuple(torch.nn.Parameter(p.detach().clone()) for p in self.model_weights)
        for weight in model.parameters():
            # model.to(dtype) would also round the rotary frequencies.
            weight.data = weight.data.to(dtype)
        for master, weight in zip(self.weights, self.model_weights, strict=True):
            weight.register_post_accumulate_grad_hook(add_gradient_to(master))

    @torch.no_grad()
    def copy_to_model(self, *_: object) -> None:
        """Set the model's weights to the rounded masters; the optimizer calls it after a step."""
        if not self.are_the_models_own:
            torch._foreach_copy_(list(self.model_weights), list(self.weights))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            name: master.detach() for name, master in zip(self.names, self.weights, strict=True)
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, master in zip(self.names, self.weights, strict=True):
            master.copy_(state[name])
        self.copy_to_model()

    def move_into_model(self) -> None:
        """Give the model the masters themselves, so that it is saved in float32."""
        for master, weight in zip(self.weights, self.model_weights, strict=True):
            weight.data = master.data


def add_gradient_to(master: torch.nn.Parameter) -> Callable[[torch.nn.Parameter], None]:
    """A hook that adds a weight's gradient to its master's, in float32, and frees it."""

    def add(weight: torch.nn.Parameter) -> None:
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad.add_(weight.grad)
        weight.grad = None

    return add


def adamw(
    masters: MasterWeights, lr: float, weight_decay: float = 0.01
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) on the masters, at a constant learning rate."""
    options = {
        "lr": lr,
        "betas": (0.9, 0.999),
        "weight_decay": weight_decay,
        "foreach": False,  # foreach would copy all weights
    }
    if dist.is_initialized():
        # Imported here because it takes half a second, which one process does not need.
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer = ZeroRedundancyOptimizer(masters.weights, torch.optim.AdamW, **options)
    else:
        optimizer = torch.optim.AdamW(masters.weights, **options)
    optimizer.register_step_post_hook(masters.copy_to_model)
    return optimizer


def clip_and_step(
    optimizer: torch.optim.Optimizer, weights: list[torch.Tensor], max_grad_norm: float
) -> dict[str, float]:
    """Clip the gradient and step; the norms of the gradient before clipping, and of the step.

    Raises ValueError if the gradient is not finite.
    """
    before = [weight.detach().clone() for weight in weights]
    grad_norm = torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)
    if not grad_norm.isfinite():
        raise ValueError(
            "the gradient is not finite: --lr, --kl or a reward is too large"
        )
    optimizer.step()
    changes = [
        (weight.detach() - old).norm() for weight, old in zip(weights, before, strict=True)
    ]
    update_norm = torch.stack(changes).norm()
    return {"grad_norm": grad_norm.item(), "update_norm": update_norm.item()}


def gather_state(optimizer: torch.optim.Optimizer) -> dict | None:
    """The whole state, on the main process; None on the others. Every process must call it."""
    if not dist.is_initialized():
        return optimizer.state_dict()
    shard = optimizer.optim.state_dict()
    shard["state"] = {
        index: {key: value.cpu() for key, value in moments.items()}
        for index, moments in shard["state"].items()
    }
    shards = None if dist.get_rank() else [None] * dist.get_world_size()
    dist.gather_object(shard, shards)
    if shards is None:
        return None
    # Filling this private list replaces its own consolidate_state_dict, which takes minutes.
    optimizer._all_state_dicts = shards
    state = optimizer.state_dict()
    optimizer._all_state_dicts = []
    return state


def load_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load what gather_state returned, also with another number of processes."""
    optimizer.load_state_dict(state)
    if dist.is_initialized():
        optimizer.state.clear()  # the wrapper keeps a second copy of the shard, which nothing reads
