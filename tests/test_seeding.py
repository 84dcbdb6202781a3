"""Every random number of a run: a later version must draw the same ones, or no run can be repeated
and none can be continued."""

import numpy as np
import pytest

from infra.seeding import Purpose, permutation, seed_for

NUMBERS = {
    "SUBSET": 0,
    "ORDER": 1,
    "ROLLOUTS": 2,
    "TRAIN_EVALUATION": 3,
    "TEST_EVALUATION": 4,
    "PASS_AT_K": 5,
    "SAMPLES": 6,
}


def test_purposes_keep_their_numbers():
    assert {purpose.name: purpose.value for purpose in Purpose} == NUMBERS


@pytest.mark.parametrize("name, number", NUMBERS.items())
def test_seeds_are_those_of_the_seed_sequence(name, number):
    for seed in (0, 1, 12345):
        for round_number in (0, 1, 999):
            sequence = np.random.SeedSequence([seed, number, round_number])
            wanted = int(sequence.generate_state(1)[0])
            assert seed_for(seed, Purpose[name], round_number) == wanted
    assert seed_for(0, Purpose[name]) == seed_for(0, Purpose[name], 0)


def test_some_seeds_as_numbers():
    """A new release of numpy would have to keep them too."""
    assert seed_for(0, Purpose.ROLLOUTS, 0) == 3_141_116_543
    assert seed_for(0, Purpose.ROLLOUTS, 119) == 3_708_406_382
    assert seed_for(1, Purpose.TEST_EVALUATION, 40) == 736_306_983
    assert permutation(0, Purpose.ORDER, 0, size=8).tolist() == [1, 3, 7, 6, 0, 4, 2, 5]


def test_no_two_purposes_or_rounds_share_a_seed():
    seeds = {
        seed_for(seed, purpose, number)
        for seed in range(3)
        for purpose in Purpose
        for number in range(100)
    }
    assert len(seeds) == 3 * len(Purpose) * 100


def test_permutations_are_those_of_the_default_generator():
    for seed in (0, 7):
        wanted = np.random.default_rng([seed, 0]).permutation(100)
        assert (permutation(seed, Purpose.SUBSET, size=100) == wanted).all()
        for epoch in (0, 1, 5):
            wanted = np.random.default_rng([seed, 1, epoch]).permutation(24)
            assert (permutation(seed, Purpose.ORDER, epoch, size=24) == wanted).all()
