"""What the sections of bench.py share: the model, and ratios of times taken in turn."""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import data
from infra import models

CAP = 64  # new tokens of a completion


class Workload(NamedTuple):
    """The size of a call of the sampler, and the calls of one measurement."""

    queries: int
    rollouts: int  # of each query
    calls: int


WORKLOADS = {
    "32x1": Workload(32, 1, calls=4),
    "32x8": Workload(32, 8, calls=2),
    "set": Workload(1024, 1, calls=1),
}

LARGE_WORKLOADS = {"64x1": Workload(64, 1, calls=1)}  # of a model that is not tiny


class Setup(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    queries: list[data.Query]
    prompts: list[list[int]]  # the token ids of the queries
    end_ids: set[int]


def load_setup(flags: Namespace) -> Setup:
    """The model and the train set that the flags name, on the CPU."""
    model, tokenizer = models.load(flags.model, "cpu")
    models.set_threads(model, flags.threads)
    queries = data.load(flags.data, "train")
    prompts = data.encode(tokenizer, queries)
    return Setup(model, tokenizer, queries, prompts, models.end_ids(model, tokenizer))


class Ratio(NamedTuple):
    """Their time over ours: above 1 we are faster. The range is over the repeats."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:6.2f}  ({self.low:.2f} to {self.high:.2f})"


def time_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of times that were taken in turn: repeat by repeat, so that what slows the machine
    for a while slows both."""
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))


def time_in_turn(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, name: str
) -> tuple[list[float], list[float]]:
    """Seconds of each function, [repeats] both, after a run of each that is not counted."""
    our_times, their_times = [], []
    for turn in tqdm(range(repeats + 1), desc=name, leave=False, disable=None):
        our_seconds, their_seconds = seconds(ours), seconds(theirs)
        if turn > 0:
            our_times.append(our_seconds)
            their_times.append(their_seconds)
    return our_times, their_times


def seconds(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start
