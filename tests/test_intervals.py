"""Intervals and tests: against printed tables, numbers worked by hand, and simulation."""

import math

import numpy as np
import pytest

from infra import intervals

# Two-sided 95 and 99 %, as printed in every table of Student's t.
T_TABLE = {
    1: (12.706, 63.657), 2: (4.303, 9.925), 4: (2.776, 4.604), 9: (2.262, 3.250),
    30: (2.042, 2.750), 1000: (1.962, 2.581),
}  # fmt: skip


@pytest.mark.parametrize("freedom", T_TABLE)
def test_students_t_is_that_of_the_tables(freedom):
    for level, printed in zip((0.05, 0.01), T_TABLE[freedom], strict=True):
        assert intervals.t_quantile(freedom, level) == pytest.approx(printed, abs=6e-4)
        assert intervals.t_p_value(printed, freedom) == pytest.approx(level, rel=2e-3)


def test_one_degree_of_freedom_is_cauchys_distribution():
    assert intervals.t_p_value(1, 1) == pytest.approx(0.5)
    assert intervals.t_p_value(-3, 1) == pytest.approx(1 - 2 * math.atan(3) / math.pi)


def test_the_interval_over_seeds_by_hand():
    """1, 2 and 6: mean 3, standard deviation sqrt(7), standard error sqrt(7 / 3), t 4.303."""
    mean, half = intervals.t_interval([1, 2, 6])
    assert mean == 3
    assert half == pytest.approx(4.303 * math.sqrt(7 / 3), rel=1e-3)
    assert intervals.t_interval([0.5])[0] == 0.5
    assert math.isnan(intervals.t_interval([0.5])[1])
    assert math.isnan(intervals.t_interval([])[0])


def test_the_interval_excludes_zero_where_the_p_value_is_below_a_twentieth():
    generator = np.random.default_rng(0)
    decisions = set()
    for _ in range(200):
        values = generator.normal(0.8, 1, 4)
        mean, half = intervals.t_interval(values)
        is_significant = intervals.p_value(values) < 0.05
        assert is_significant == (abs(mean) > half)
        decisions.add(is_significant)
    assert decisions == {True, False}
    assert intervals.p_value([0.1, 0.1, 0.1]) == 0
    assert intervals.p_value([0, 0, 0]) == 1
    assert math.isnan(intervals.p_value([0.3]))


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.04, times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04; never falling."""
    adjusted = intervals.holm([0.04, 0.01, 0.03, 0.02])
    assert adjusted == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert intervals.holm([0.9, 0.8]) == [1, 1]
    assert intervals.holm([]) == []


def test_holm_keeps_the_chance_of_a_false_finding_at_a_twentieth():
    """Of families of five true null hypotheses, 23 % have a p-value below 0.05."""
    p_values = np.random.default_rng(0).random((4000, 5))
    plain = (p_values.min(axis=1) < 0.05).mean()
    held = np.mean([min(intervals.holm(family)) < 0.05 for family in p_values])
    assert plain == pytest.approx(0.226, abs=0.02)
    assert held == pytest.approx(0.05, abs=0.012)


def test_an_odd_seed_is_found_and_ordinary_ones_rarely():
    assert intervals.odd_seed([0.71, 0.72, 0.05, 0.73, 0.72]) == 2
    assert intervals.odd_seed([0.71, 0.72, 0.70, 0.73, 0.72]) is None
    assert intervals.odd_seed([0.72, 0.72, 0.72, 0.72, 0.721]) is None
    assert intervals.odd_seed([0.1, 0.9]) is None  # too few to tell
    generator = np.random.default_rng(0)
    found = [intervals.odd_seed(generator.normal(0.7, 0.02, 5)) is not None for _ in range(1000)]
    assert 0.01 < np.mean(found) < 0.07


def test_wilsons_interval():
    """64 of 64: at least 64 / (64 + 1.96 ** 2). 5 of 10: the printed example 0.2366 to 0.7634."""
    low, high = intervals.wilson(1, 64)
    assert (low, high) == (pytest.approx(64 / (64 + 1.96**2), abs=1e-4), 1)
    assert intervals.wilson(0, 64) == (0, pytest.approx(1 - low))
    assert intervals.wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_wilsons_interval_covers_where_the_standard_error_does_not():
    """97 % right, 64 queries: exactly, from the binomial distribution."""
    count, share = 64, 0.97
    covered = normal = 0.0
    for right in range(count + 1):
        chance = math.comb(count, right) * share**right * (1 - share) ** (count - right)
        low, high = intervals.wilson(right / count, count)
        covered += chance * (low <= share <= high)
        error = math.sqrt(right / count * (1 - right / count) / count)
        normal += chance * (abs(right / count - share) <= 1.96 * error)
    assert covered > 0.93
    assert normal < 0.87
