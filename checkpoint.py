"""Checkpoints: everything that changes during a run, on disk, whole whatever happens.

A checkpoint is written to a temporary name, forced to the disk, then renamed, so a process that is killed at any
moment leaves the ones before it; the last two are kept, and the newest that can be read is found again.
"""

import os
import sys
from pathlib import Path

import torch

KEPT = 2


def paths(folder):
    """The checkpoints of a run's folder, the newest first."""
    return sorted(Path(folder).glob("checkpoints/round-*.pt"), reverse=True)


def save(folder, number, state):
    """Write the state (tensors, numbers, lists and dictionaries of them) as the checkpoint of a round."""
    path = Path(folder) / "checkpoints" / f"round-{number:06}.pt"
    path.parent.mkdir(exist_ok=True)
    with open(path.with_suffix(".tmp"), "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path.with_suffix(".tmp"), path)
    for old in paths(folder)[KEPT:]:
        old.unlink()


def newest(folder):
    """The newest checkpoint that can be read, on the CPU; None where there is none.

    Raises ValueError if there are some and none can be read: to start anew would write over the run.
    """
    found = paths(folder)
    for path in found:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # one copy for all processes
        except Exception as error:  # a damaged zip, a damaged pickle: torch raises many kinds
            reason = str(error).strip().split("\n")[0]
            print(f"{path} cannot be read ({reason}); trying the one before", file=sys.stderr)
    if found:
        raise ValueError(f"--resume: no checkpoint in {found[0].parent} can be read")
    return None
