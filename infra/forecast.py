"""What is ahead of a run: how many completions it will sample, and how long that will take."""

import contextlib
import time
from argparse import Namespace
from collections.abc import Iterator

WORTH_SAYING = 600  # seconds: a shorter run needs no forecast of its time


class Forecast:
    """The rounds and evaluations that are left: in completions, and in hours once some were timed.

    args: the flags of train.py.
    train, test: how many queries the two sets have.
    done, evaluated: the round that the run is at, and that of its last evaluation (-1: none).
    """

    def __init__(self, args: Namespace, train: int, test: int, done: int, evaluated: int):
        self.args, self.done, self.evaluated = args, done, evaluated
        self.train, self.test = (min(size, args.eval_limit or size) for size in (train, test))
        self.round_seconds = self.completion_seconds = 0.0  # of the last round, of an evaluation
        self.is_said = False

    def evaluation_size(self, number: int) -> int:
        """Completions of the evaluation at this round; 0 if there is none."""
        args = self.args
        if number in (0, args.rounds):  # sampled, greedy, and the pass@k
            pass_at_k = args.eval_samples * min(args.eval_queries, self.test)
            return 2 * (self.train + self.test) + (pass_at_k if args.eval_samples > 1 else 0)
        is_due = args.eval_every and number % args.eval_every == 0
        return self.train + self.test if is_due else 0

    def round_size(self) -> int:
        """Rollouts of a round, those for the statistics of a group included."""
        args = self.args
        return args.batch_size * (args.rollouts + args.baseline_rollouts)

    def sizes_ahead(self) -> list[int]:
        """Completions of each evaluation that is left."""
        numbers = range(self.evaluated + 1, self.args.rounds + 1)
        return [size for number in numbers if (size := self.evaluation_size(number))]

    def in_words(self) -> str:
        sizes = self.sizes_ahead()
        left = self.args.rounds - self.done
        trained = self.args.batch_size * self.args.rollouts * left
        words = (
            f"ahead: {self.round_size() * left:,} rollouts to learn from, and {sum(sizes):,} "
            f"completions in {len(sizes)} evaluations (fewer: --eval-every, --eval-limit, "
            "--eval-samples 1)"
        )
        return words + f"; {trained:,} rollouts are trained on" * bool(self.args.baseline_rollouts)

    @contextlib.contextmanager
    def evaluation(self, number: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.completion_seconds = seconds / self.evaluation_size(number)
        self.evaluated = number

    @contextlib.contextmanager
    def round(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.round_seconds = time.perf_counter() - start
        self.done += 1

    def time_in_words(self) -> str:
        """How long the rest takes, once, as soon as it is known; empty for a short run."""
        sizes = self.sizes_ahead()
        if self.is_said or not (self.round_seconds and self.completion_seconds):
            return ""
        self.is_said = True
        of_rounds = (self.args.rounds - self.done) * self.round_seconds
        of_evaluations = sum(sizes) * self.completion_seconds
        if of_rounds + of_evaluations < WORTH_SAYING:
            return ""
        return (
            f"at this pace: about {(of_rounds + of_evaluations) / 3600:.1f} hours, of them "
            f"{of_evaluations / 3600:.1f} for evaluations (completions grow longer or shorter)"
        )
