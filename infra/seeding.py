"""One seed for each purpose and round.

Every random number of a run derives from its seed, what it is for, and the round. So nothing random
has to be stored, and a run that was killed and resumed draws the same numbers as one that was not.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are for. The values are part of every seed: changing one changes runs."""

    SUBSET = 0  # which queries --queries keeps
    ORDER = 1  # the order of the train set, by epoch
    ROLLOUTS = 2  # the rollouts of a round
    TRAIN_EVALUATION = 3
    TEST_EVALUATION = 4
    PASS_AT_K = 5
    SAMPLES = 6  # the completions shown at the end


def seed_for(seed: int, purpose: Purpose, number: int = 0) -> int:
    """The sampler's seed for one purpose in one round."""
    return int(np.random.SeedSequence([seed, purpose, number]).generate_state(1)[0])


def permutation(seed: int, purpose: Purpose, *numbers: int, size: int) -> np.ndarray:
    """A random order of range(size) for one purpose."""
    return np.random.default_rng([seed, purpose, *numbers]).permutation(size)
