"""The peers of the table: transformers' generate, TRL's GRPOTrainer, and Math-Verify.

Each gets the same work as our code, in turn with it: the same model, prompts, stopping rule and
distribution (temperature 1, nothing cut off), the same cap on the length, the same threads.
"""

import contextlib
import itertools
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, TrainerCallback

import bandit
import data
import evaluate
import reward
import rollout
from infra import models
from lab.bench_timing import (
    CAP,
    LARGE_WORKLOADS,
    WORKLOADS,
    Setup,
    Workload,
    load_setup,
    seconds,
    time_in_turn,
)
from lab.bench_verifier import boxed, load_math_verify, verdict_times

BATCH_SIZES = (32, 64, 128, 256)  # of generate; each workload takes the fastest
LOWEST_RATE = 1e-9  # a learning rate at which the policy stays what it is


class Comparison(NamedTuple):
    """One line of the table."""

    name: str
    units: int  # tokens, rounds or verdicts in each of the times
    ours: Sequence[float]  # seconds, [repeats]
    theirs: Sequence[float]


# --- transformers' generate -----------------------------------------------------------------------


def against_generate(flags: Namespace) -> Iterator[Comparison]:
    """The sampler against model.generate, in seconds a token."""
    setup = load_setup(flags)
    workloads = WORKLOADS if models.is_tiny(flags.model) else LARGE_WORKLOADS
    for name, workload in workloads.items():
        yield compare_with_generate(f"generate_{name}", setup, workload, flags.repeats)


def compare_with_generate(name: str, setup: Setup, workload: Workload, repeats: int) -> Comparison:
    count, n, calls = workload
    batches = [setup.prompts[i * count : (i + 1) * count] for i in range(calls)]
    seeds = itertools.count()
    our_tokens, their_tokens = [], []

    def ours() -> None:
        tokens = 0
        for prompts in batches:
            rollouts = rollout.sample(
                setup.model, prompts, n, max_new_tokens=CAP, end_ids=setup.end_ids,
                seed=next(seeds),
            )  # fmt: skip
            tokens += sum(len(one.tokens) for one in rollouts)
        our_tokens.append(tokens)

    def generate_all(batch_size: int) -> int:
        return sum(
            generate(setup.model, prompts, n, setup.end_ids, batch_size) for prompts in batches
        )

    sizes = [size for size in BATCH_SIZES if size <= count * n]
    best = sizes[0]
    if len(sizes) > 1:
        best = min(sizes, key=lambda size: seconds(generate_all, size))

    def theirs() -> None:
        their_tokens.append(generate_all(best))

    # The two draw different completions, so each time is divided by the tokens that it took. The
    # first count belongs to the run that is not timed.
    our_times, their_times = time_in_turn(ours, theirs, repeats, name)
    return Comparison(
        name, 1, np.divide(our_times, our_tokens[1:]), np.divide(their_times, their_tokens[1:])
    )


@torch.no_grad()
def generate(
    model: PreTrainedModel, prompts: list[list[int]], n: int, end_ids: set[int], batch_size: int,
    max_new_tokens: int = CAP,
) -> int:  # fmt: skip
    """The number of tokens that model.generate draws for n completions of each prompt.

    Prompts of similar length share a batch. end_ids may be empty.
    """
    # generate would take None for the model's own ids. This id is never drawn.
    ids = sorted(end_ids) or [model.config.vocab_size]
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
        max_new_tokens=max_new_tokens, num_return_sequences=n, eos_token_id=ids, pad_token_id=0,
    )  # fmt: skip
    prompts = sorted(prompts, key=len)
    step = max(1, batch_size // n)
    tokens = 0
    for start in range(0, len(prompts), step):
        batch = prompts[start : start + step]
        width = max(len(prompt) for prompt in batch)
        padded = [[0] * (width - len(prompt)) + prompt for prompt in batch]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch]
        output = model.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=config,
        )
        completions = output[:, width:]
        is_end = torch.isin(completions, torch.tensor(ids, device=model.device))
        # Up to the first end, which is counted; all of them without one.
        lengths = is_end.int().argmax(dim=1) + 1
        lengths = torch.where(is_end.any(dim=1), lengths, completions.shape[1])
        tokens += lengths.sum().item()
    return tokens


# --- TRL ------------------------------------------------------------------------------------------


class RoundTimer(TrainerCallback):
    """Times each round inside TRL's loop, and one of ours after each."""

    def __init__(self, our_round):
        self.our_round = our_round
        self.start = None
        self.our_times, self.their_times = [], []

    def on_step_begin(self, *args, **kwargs) -> None:
        # Every later round begins where the one before ended: with its sampling.
        if self.start is None:
            self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs) -> None:
        self.their_times.append(time.perf_counter() - self.start)
        self.our_times.append(seconds(self.our_round))
        self.start = time.perf_counter()


def against_trl(flags: Namespace) -> Iterator[Comparison]:
    """A round of 32 queries with 8 rollouts each and the group's advantage against GRPOTrainer."""
    import datasets
    import trl

    setup = load_setup(flags)
    optimizer = torch.optim.AdamW(setup.model.parameters(), lr=LOWEST_RATE)
    rounds = itertools.count()

    def our_round() -> None:
        start = 32 * next(rounds) % 1024
        queries, prompts = setup.queries[start : start + 32], setup.prompts[start : start + 32]
        rollouts = rollout.sample(
            setup.model, prompts, 8, max_new_tokens=CAP, end_ids=setup.end_ids, seed=start
        )
        right = evaluate.grade(setup.tokenizer, queries, rollouts).right
        rewards = torch.tensor(right, dtype=torch.float32).view(32, 8)
        advantages = bandit.advantages("group", bandit.RoundRewards(rewards), 8)
        batch = bandit.UpdateBatch(
            prompts=[prompt for prompt in prompts for _ in range(8)],
            completions=[one.tokens for one in rollouts],
            advantages=advantages.reshape(-1),
        )
        bandit.update(setup.model, optimizer, batch)

    form = setup.queries[0].form

    def pay(prompts, completions, gold, **kwargs) -> list[float]:
        return [
            float(reward.is_correct(completion[0]["content"], answer, form))
            for completion, answer in zip(completions, gold, strict=True)
        ]

    rows = [
        {"prompt": [{"role": "user", "content": query.prompt}], "gold": query.gold}
        for query in setup.queries
    ]
    timer = RoundTimer(our_round)
    with tempfile.TemporaryDirectory() as folder, quiet():
        config = trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=64,  # of 32 to 256 the fastest
            gradient_accumulation_steps=4,
            num_generations=8,
            max_completion_length=CAP,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            beta=0.0,
            learning_rate=LOWEST_RATE,
            lr_scheduler_type="constant",
            max_steps=flags.repeats + 1,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        trainer = trl.GRPOTrainer(
            model=models.load(flags.model, "cpu")[0],
            args=config,
            processing_class=setup.tokenizer,
            train_dataset=datasets.Dataset.from_list(rows),
            reward_funcs=pay,
            callbacks=[timer],
        )
        trainer.train()
    # The first round of each is a warm-up.
    yield Comparison("trl_round", 1, timer.our_times[1:], timer.their_times[1:])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, and with what would be printed in stderr, so the table stays whole."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


# --- Math-Verify ----------------------------------------------------------------------------------


def against_math_verify(flags: Namespace) -> Iterator[Comparison]:
    """reward.py against Math-Verify, on answers of tiny-math."""
    math_verify = load_math_verify()
    golds = [query.gold for query in data.load("tiny-math", "test")[:200]]
    pairs = [(boxed(gold), gold) for gold in golds]
    our_times, their_times = time_in_turn(
        lambda: verdict_times(reward.is_correct, pairs),
        lambda: verdict_times(math_verify, pairs),
        flags.repeats,
        "verifier",
    )
    yield Comparison("verifier", len(pairs), our_times, their_times)
