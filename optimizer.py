"""The optimizer: AdamW on float32 masters of the weights.

A number in bfloat16 has 8 significant bits: the next one after 1 is 1.0078, and a step of 1e-6 changes nothing. So
where the model computes in bfloat16 (a GPU), each weight has a master in float32: the gradients of the micro-batches
and of the processes are added up there, AdamW steps there, and the model's weights, from which is sampled too, are
the masters rounded, after every step.
With several processes each keeps the optimizer's state of a share of the weights (torch's ZeroRedundancyOptimizer;
ZeRO, arXiv:1910.02054, stage 1).

Left out, with reason: sharding the weights themselves (FSDP): up to a few billion parameters they fit on one GPU, and
beyond that the engines named in the README are made for it.
"""

import torch
import torch.distributed as dist


class Masters:
    """The float32 weights of a model, which from now on computes in `dtype`; in float32 they are its own."""

    def __init__(self, model, dtype=torch.float32):
        self.names, self.followers = zip(*model.named_parameters(), strict=True)  # tied weights come once
        self.same_dtype = model.dtype == dtype
        self.weights = self.followers
        if self.same_dtype:
            return
        self.weights = tuple(torch.nn.Parameter(p.detach().clone()) for p in self.followers)
        for master, follower in zip(self.weights, self.followers, strict=True):
            follower.data = follower.data.to(dtype)  # not model.to(dtype): it would round the rotary frequencies too
            follower.register_post_accumulate_grad_hook(self.adding_to(master))

    @staticmethod
    def adding_to(master):
        def add(follower):
            master.grad = follower.grad.float() if master.grad is None else master.grad.add_(follower.grad)
            follower.grad = None

        return add

    @torch.no_grad()
    def follow(self, *_):
        """The model's weights are the masters, rounded."""
        if not self.same_dtype:
            torch._foreach_copy_(list(self.followers), list(self.weights))

    def state_dict(self):
        return dict(zip(self.names, (master.detach() for master in self.weights), strict=True))

    @torch.no_grad()
    def load_state_dict(self, state):
        for name, master in zip(self.names, self.weights, strict=True):
            master.copy_(state[name])
        self.follow()

    def hand_over(self):
        """The model takes the masters themselves, to be saved as they are."""
        for master, follower in zip(self.weights, self.followers, strict=True):
            follower.data = master.data


def adamw(masters, lr, weight_decay=0.01):
    """AdamW on the masters (arXiv:1711.05101), constant learning rate; its state sharded where processes are many."""
    settings = dict(lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay, foreach=False)  # which takes a copy
    if dist.is_initialized():
        from torch.distributed.optim import ZeroRedundancyOptimizer  # not above: half a second, which one process saves

        optimizer = ZeroRedundancyOptimizer(masters.weights, torch.optim.AdamW, **settings)
    else:
        optimizer = torch.optim.AdamW(masters.weights, **settings)
    optimizer.register_step_post_hook(masters.follow)
    return optimizer


def state_of(optimizer):
    """The whole state, on the first process; None on the others. All must call it."""
    if not dist.is_initialized():
        return optimizer.state_dict()
    shard = optimizer.optim.state_dict()
    shard["state"] = {i: {key: value.cpu() for key, value in row.items()} for i, row in shard["state"].items()}
    shards = None if dist.get_rank() else [None] * dist.get_world_size()
    dist.gather_object(shard, shards)
    if shards is None:
        return None
    optimizer._all_state_dicts = shards  # its own consolidate_state_dict takes minutes for this
    state, optimizer._all_state_dicts = optimizer.state_dict(), []
    return state


def load_state(optimizer, state):
    optimizer.load_state_dict(state)
    if dist.is_initialized():
        optimizer.state.clear()  # ZeRO's wrapper keeps a second copy of the shard, which nothing reads
