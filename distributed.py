"""Many processes as one: `torchrun --nproc_per_node=8 train.py ...`, on one node or several.

Sampling is split by queries, and the rollouts are gathered, so that every process then holds the whole round: rewards,
advantages and windows are computed everywhere alike and need no words between processes. The update is split by
completions, each weighed by its place in the whole round, and the gradients are added up in float32. So a round's
update does not depend on the number of processes, but for rounding. A single process passes through unchanged.

Left out, with reason: DistributedDataParallel (it averages per process, and what is wanted is one sum, once a round);
asynchronous sampling (its rollouts are of an older policy: another algorithm).
"""

import contextlib
import os
import sys

import torch
import torch.distributed as dist

import rollout

SILENCE = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process)


def start():
    """Join the other processes, if torchrun started this one; each takes a GPU of its own where there are some."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    else:
        dist.init_process_group("gloo")
    if not is_first():
        sys.stdout = SILENCE  # one process speaks


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first():
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def share(rows):
    """This process's part of the rows; of rows sorted by length every process gets as many long ones."""
    return rows[rank()::world()]


def gather(value):
    """The values of all processes, a list in the order of their ranks, on each of them."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def add_up(tensors):
    """Sum each tensor over all processes, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def sample(model, prompts, n=1, *, progress=None, **kwargs):
    """rollout.sample, split by prompts over the processes; all get all rollouts, the same as one process's."""
    mine = share(range(len(prompts)))
    ours = gather(rollout.sample(model, [prompts[i] for i in mine], n, numbers=mine, **kwargs,
                                 progress=progress and (lambda count: progress(count * world()))))
    rollouts = [None] * (len(prompts) * n)
    for other, part in enumerate(ours):
        for k, i in enumerate(range(other, len(prompts), world())):
            rollouts[i * n:(i + 1) * n] = part[k * n:(k + 1) * n]
    return rollouts


class Everywhere(ValueError):
    """An error that all processes know of: the first one says it."""


def agree(function, *args):
    """function(*args) in every process; if one of them raises ValueError or OSError, all raise Everywhere."""
    result = problem = None
    with contextlib.nullcontext() if is_first() else contextlib.redirect_stderr(SILENCE):
        try:
            result = function(*args)
        except (ValueError, OSError) as error:
            problem = str(error)
    problems = [each for each in gather(problem) if each]
    if problems:
        raise Everywhere(problems[0])
    return result


def lost(error):
    """Whether an error says that another process is gone."""
    return world() > 1 and any(word in str(error) for word in ("gloo", "NCCL", "closed by peer", "Connection reset"))


def end(script, message):
    """End with a message, which every process knows of if it is Everywhere; torchrun then ends the other processes."""
    if world() == 1:
        sys.exit(f"{script}: {message}")
    if is_first() or not isinstance(message, Everywhere):
        sys.stderr.write(f"{script}, rank {rank()}: {message}\n")
        sys.stderr.flush()
    sys.stdout.flush()
    os._exit(1)  # not through the collectives in which others may wait


def finish():
    """End this process, all being done: together, and at once, for a group that one takes down while another still
    reads from it would abort there."""
    if dist.is_initialized():
        try:
            gather(None)
        except RuntimeError as error:
            if not lost(error):  # whoever went first, all is done
                raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
