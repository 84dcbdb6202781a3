"""How sure a figure is: few seeds, shares near 0 and 1, and many comparisons at once."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05  # the share of intervals that may miss by chance


class Interval(NamedTuple):
    mean: float
    half: float  # half of the width


# --- differences between seeds --------------------------------------------------------------------


def t_p_value(t: float, freedom: int) -> float:
    """The two-sided p-value of Student's t.

    With t = sqrt(freedom) tan(angle) the density becomes cos(angle)^(freedom - 1), which is easy to
    integrate.
    """

    def area(start: float) -> float:
        angles = np.linspace(start, math.pi / 2, 2001)
        return np.trapezoid(np.cos(angles) ** (freedom - 1), angles)

    return float(area(math.atan(abs(t) / math.sqrt(freedom))) / area(0))


@functools.cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t whose two-sided p-value is `level`: half of an interval, in standard errors."""
    low, high = 0.0, math.pi / 2  # of the angle; bisection
    for _ in range(50):
        middle = (low + high) / 2
        is_inside = t_p_value(math.sqrt(freedom) * math.tan(middle), freedom) > level
        low, high = (middle, high) if is_inside else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of the values; nan for a single one."""
    if len(values) < 2:
        return math.nan
    return float(np.std(np.asarray(values, dtype=float), ddof=1)) / math.sqrt(len(values))


def t_interval(differences: Sequence[float]) -> Interval:
    """Equation (11): the mean of one difference a seed, and its 95 % interval.

    The width is nan for a single seed. Without any, the mean is nan too.
    """
    if len(differences) < 2:
        return Interval(differences[0] if len(differences) else math.nan, math.nan)
    half = t_quantile(len(differences) - 1) * standard_error(differences)
    return Interval(float(np.mean(differences)), half)


def p_value(differences: Sequence[float]) -> float:
    """Of the hypothesis that the mean difference is zero (paired t-test); nan for a single seed."""
    if len(differences) < 2:
        return math.nan
    mean, error = float(np.mean(differences)), standard_error(differences)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return t_p_value(mean / error, len(differences) - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: below 0.05, a finding survives that all were tested at once.

    In a family of true null hypotheses one is rejected with probability 0.05 at most.
    """
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def odd_seed(values: Sequence[float]) -> int | None:
    """The index of a value that does not look like the others, where there is one.

    Each value is compared with the mean and spread of the others by a t-test, at the level of 0.05
    for all together. A t interval assumes that there is none: with one seed in five collapsing, it
    covers far less than it says.
    """
    values = np.asarray(values, dtype=float)
    count = len(values)
    if count < 4:
        return None
    p_values = []
    for i in range(count):
        others = np.delete(values, i)
        error = others.std(ddof=1) * math.sqrt(1 + 1 / (count - 1))
        distance = abs(values[i] - others.mean())
        # Differences below the resolution of a test set are no sign of anything.
        p_values.append(t_p_value(distance / max(error, 1e-3), count - 2))
    least = int(np.argmin(p_values))
    return least if p_values[least] < LEVEL / count else None


# --- shares ---------------------------------------------------------------------------------------


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` yes-or-no outcomes (Wilson 1927).

    It stays within 0 and 1, and is right near both, where the standard error tends to zero.
    """
    z = 1.959964
    center = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z**2 / count
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)
