"""Many processes that behave like one: `torchrun --nproc_per_node=8 train.py ...`.

Sampling is split by queries and the rollouts are gathered, so every process holds the whole round.
The main process grades it, and all compute the same advantages. The update is split by completions,
each weighted by its place in the whole round, and the gradients are summed in float32. So an update
does not depend on the number of processes, except for rounding. With one process every function
here does nothing.

Left out: DistributedDataParallel, because it averages over processes and we need one sum a round;
asynchronous sampling, because its rollouts come from an older policy, which is another algorithm.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.distributed as dist

SILENCE = open(os.devnull, "w")  # noqa: SIM115 (stays open as long as the process)


def start() -> None:
    """Join the other processes if torchrun started this one; each takes a GPU of its own."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        device = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    if not is_main_process():
        sys.stdout = SILENCE  # one process prints


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def shard(rows: Any) -> Any:
    """This process's part of the rows. If they are sorted by length, all parts are alike."""
    return rows[rank() :: world_size()]


def all_gather(value: Any) -> list:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_sum(tensors: list[torch.Tensor]) -> None:
    """Sum each tensor over all processes, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


class AllRanksError(ValueError):
    """An error that every process knows of, so that one of them can report it."""


def raise_on_all_ranks(function: Callable, *args: Any) -> Any:
    """function(*args) in every process; if one raises ValueError or OSError, all of them raise."""
    result = problem = None
    with contextlib.nullcontext() if is_main_process() else contextlib.redirect_stderr(SILENCE):
        try:
            result = function(*args)
        except (ValueError, OSError) as error:
            problem = str(error)
    problems = [each for each in all_gather(problem) if each]
    if problems:
        raise AllRanksError(problems[0])
    return result


def is_peer_failure(error: Exception) -> bool:
    """Whether an error means that another process is gone."""
    phrases = ("gloo", "NCCL", "closed by peer", "Connection reset")
    return world_size() > 1 and any(phrase in str(error) for phrase in phrases)


def exit_with_error(script: str, message: object) -> NoReturn:
    """End this process with a message; torchrun then ends the others.

    If the message is an AllRanksError, only the main process prints it.
    """
    if world_size() == 1:
        sys.exit(f"{script}: {message}")
    if is_main_process() or not isinstance(message, AllRanksError):
        sys.stderr.write(f"{script}, rank {rank()}: {message}\n")
        sys.stderr.flush()
    sys.stdout.flush()
    os._exit(1)  # a normal exit would wait in collectives that other ranks never reach


def wait_and_exit() -> None:
    """Wait for every rank, then exit at once.

    Destroying the process group while another rank still reads from it aborts that rank.
    """
    if not dist.is_initialized():
        return
    try:
        all_gather(None)
    except RuntimeError as error:
        if not is_peer_failure(error):  # a peer that has left already has finished its work
            raise
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
