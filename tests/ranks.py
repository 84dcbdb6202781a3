"""What test_scale.py runs under torchrun: an update of given rollouts, or a run in which one process fails."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import bandit
import distributed
import optimizer
import rollout
import train

PROMPTS = [[5, 6, 7, 8, 9], [30, 31], [50, 51, 52]]
COMPLETIONS = [[70, 0], [80, 81, 82, 83, 0], [90, 91, 92]]


def update(model, advantages, processes=bandit.ALONE, **kwargs):
    """The weights after one update for each of the advantages, in one line, and what the last update returned.

    In float64: where a gradient is nothing but rounding, Adam makes a whole step of it.
    """
    model, reference = (rollout.load(model, "cpu")[0].double() for _ in range(2))
    masters = optimizer.Masters(model, torch.float64)
    steps = optimizer.adamw(masters, 1e-2)
    for advantage in advantages:
        said = bandit.update(model, steps, PROMPTS, COMPLETIONS, torch.tensor(advantage).double(), reference=reference,
                             sampled=[[-1.0] * len(c) for c in COMPLETIONS], processes=processes, **kwargs)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), said


if __name__ == "__main__":
    if sys.argv[1] == "update":
        distributed.start()
        for i, (advantages, kwargs) in enumerate(torch.load(sys.argv[3])):
            found = update(sys.argv[2], advantages, distributed, **kwargs)
            torch.save(found, f"{sys.argv[3]}.{i}.{distributed.rank()}")
        distributed.finish()
    else:  # train.py's flags; the second process fails in round 3
        judge, calls = train.evaluate.judge, []

        def fails(*args):
            calls.append(1)
            if len(calls) == 6 and os.environ["RANK"] == "1":
                raise ValueError("this one cannot go on")
            return judge(*args)

        train.evaluate.judge = fails
        train.main(sys.argv[1:])
