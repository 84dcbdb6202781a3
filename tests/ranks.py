"""What test_distributed.py runs under torchrun: updates of given completions, or a run of train.py
in which one process fails."""

import os
import sys

import pytest
import torch
from helpers import ROUND_COMPLETIONS, fail_at_call, flatten, small_batch

import bandit
import train
from infra import distributed, models, optimizer


def update(
    checkpoint: str, rounds: list[list[float]], changed: dict[str, object]
) -> tuple[torch.Tensor, dict]:
    """The weights after one update for each list of advantages, and what the last one returned.

    In float64, because Adam makes a whole step of a gradient that is only rounding.
    changed: the fields of bandit.UpdateConfig that differ from their defaults.
    """
    model, reference = (models.load(checkpoint, "cpu")[0].double() for _ in range(2))
    masters = optimizer.MasterWeights(model, torch.float64)
    adamw = optimizer.adamw(masters, 1e-2)
    config = bandit.UpdateConfig(**changed)
    sampler_logprobs = [[-1.0] * len(completion) for completion in ROUND_COMPLETIONS[:3]]
    for advantages in rounds:
        batch = small_batch(torch.tensor(advantages).double(), sampler_logprobs)
        measured = bandit.update(model, adamw, batch, config, reference)
    return flatten(model), measured


def update_in_this_process(checkpoint: str, cases: str) -> None:
    """Run each case of a file, and save what came out beside it under this process's rank."""
    distributed.start()
    for number, (rounds, changed) in enumerate(torch.load(cases)):
        result = update(checkpoint, rounds, changed)
        torch.save(result, f"{cases}.{number}.{distributed.rank()}")
    distributed.wait_and_exit()


if __name__ == "__main__":
    if sys.argv[1] == "update":
        update_in_this_process(*sys.argv[2:])
    else:  # the flags of train.py; the second process fails in round 3
        if os.environ["RANK"] == "1":
            error = ValueError("this one cannot go on")
            fail_at_call(pytest.MonkeyPatch(), bandit, "advantages", 3, error)
        train.main(sys.argv[1:])
