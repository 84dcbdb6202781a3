"""Checkpoints: everything that changes during a run, safe on disk whatever happens.

A checkpoint is written under a temporary name, forced to disk, then renamed. So a process that is
killed at any moment leaves the earlier checkpoints whole. The last two are kept, and the newest
one whose checksums (the zip's CRC-32 of each tensor) hold is loaded.
"""

import os
import sys
import zipfile
from pathlib import Path

import torch

KEPT = 2


def list_checkpoints(folder: Path | str) -> list[Path]:
    """The checkpoints of a run's folder, the newest first."""
    found = Path(folder).glob("checkpoints/round-*.pt")
    # As numbers: as text, round-1000000 would come before round-999999.
    return sorted(found, key=lambda path: int(path.stem.removeprefix("round-")), reverse=True)


def path_of(folder: Path | str, round_number: int) -> Path:
    return Path(folder) / "checkpoints" / f"round-{round_number:06}.pt"


def save(folder: Path | str, round_number: int, state: dict) -> None:
    """Write `state` (tensors, numbers, lists and dictionaries of them) for a round."""
    path = path_of(folder, round_number)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    for old in list_checkpoints(folder)[KEPT:]:
        old.unlink()


def load_newest(folder: Path | str) -> dict | None:
    """The newest checkpoint that can be read, on the CPU; None if there is no checkpoint.

    Raises ValueError if there are some and none can be read: starting over would overwrite the run.
    """
    found = list_checkpoints(folder)
    for path in found:
        try:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch.load would not notice
                    raise ValueError(f"the checksum of {damaged} does not hold")
            # mmap: several processes on one machine share one copy
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a damaged zip, a damaged pickle: torch raises many kinds
            reason = str(error).strip().split("\n")[0]
            print(f"{path} cannot be read ({reason}); trying the one before", file=sys.stderr)
    if found:
        raise ValueError(f"--resume: no checkpoint in {found[0].parent} can be read")
    return None
