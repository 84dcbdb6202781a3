"""How good is a policy: pass@1, pass@k and greedy accuracy on a problem set, with standard errors.

    python evaluate.py --model tiny-qwen2 --data tiny-gsm --split test --samples 16
    python evaluate.py --model runs/default/model --against tiny-qwen2      # the paired difference

pass@k is the chance that at least one of k completions is right. From n >= k samples of a query, c
of them right, its unbiased estimate is 1 - C(n-c, k) / C(n, k) (arXiv:2107.03374).

Standard errors are over queries: how much another set of such queries would change the figure. With
one sample a query, as the paper evaluates, they include the noise of sampling. Two policies are
compared query by query (paired), so what makes a query hard cancels.
"""

import infra  # noqa: F401 (first, because from here on Ctrl-C ends in a sentence)

# isort: split
import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import bandit
import data
import reward
import rollout
from infra import distributed, flags, memory, models
from infra.curve import plus_minus
from infra.intervals import standard_error, t_interval
from infra.reward_file import RewardFile
from infra.seeding import Purpose, seed_for
from infra.train_state import TrainState

# --- grading --------------------------------------------------------------------------------------


# A completion and its query become what is paid, whether it is right, and in the asked format.
Scorer = Callable[[str, data.Query], tuple[float, bool, bool]]


class Grades(NamedTuple):
    right: np.ndarray  # bool: the scorer calls it right
    in_format: np.ndarray  # bool: an answer in the asked format; with a reward file always True
    texts: list[str]  # the completions
    paid: np.ndarray  # float: the rewards


def scorer(
    reward_file: str | None = None, right_reward: float = 1.0, wrong_reward: float = 0.0
) -> Scorer:
    """The reward of a file (--reward), or the verifier, which pays one of two amounts."""
    if reward_file:
        return RewardFile(reward_file)

    def score(completion: str, query: data.Query) -> tuple[float, bool, bool]:
        verdict = reward.judge(completion, query.gold, query.form)
        right = verdict.correct
        return right_reward if right else wrong_reward, right, verdict.extracted is not None

    return score


def grade(
    tokenizer: PreTrainedTokenizerBase, queries: list[data.Query],
    rollouts: list[rollout.Rollout], score: Scorer | None = None,
) -> Grades:  # fmt: skip
    """Grade rollouts, ordered query by query with equally many of each.

    A truncated completion loses an answer at its very end (after ####, or in a box without
    braces), because it may be half a number. A scorer that reads other numbers sees all of them.
    score: by default the verifier, which pays 1 or 0.
    """
    score = score or scorer()
    n = len(rollouts) // len(queries)
    # Without the end-of-sequence id: some tokenizers do not call it special, so it would be text.
    tokens = [one.tokens if one.truncated else one.tokens[:-1] for one in rollouts]
    # Of an empty list batch_decode makes one empty text, so it is not called.
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True) if tokens else []
    right = np.zeros(len(rollouts), dtype=bool)
    in_format = np.zeros(len(rollouts), dtype=bool)
    paid = np.zeros(len(rollouts))
    for i, (one, text) in enumerate(zip(rollouts, texts, strict=True)):
        if one.truncated:
            text = reward.without_open_answer(text)
        paid[i], right[i], in_format[i] = score(text, queries[i // n])
    return Grades(right, in_format, texts, paid)


def grade_once(*args: Any) -> Grades:
    """`grade`, by the main process for all of them. Every process must call it.

    So a reward file is asked once a completion, and one that would answer differently the next time
    cannot divide the processes.
    """
    grades = grade(*args) if distributed.is_main_process() else None
    return distributed.all_gather(grades)[0]


# --- statistics -----------------------------------------------------------------------------------


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Equation (10), the unbiased pass@k from `samples` >= k samples (arXiv:2107.03374)."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def mean_and_se(values: Sequence[float]) -> tuple[float, float]:
    """The mean of one value a query, and its standard error (nan for a single query).

    If the values are verdicts, the mean estimates pass@1, equation (1).
    """
    return float(np.mean(values)), standard_error(values)


def mean_pass_at_k(right: np.ndarray, k: int) -> tuple[float, float]:
    """pass@k over queries with its standard error, from right [queries, samples]."""
    samples = right.shape[1]
    return mean_and_se([pass_at_k(samples, int(count), k) for count in right.sum(axis=1)])


def with_error(value: float, se: float) -> str:
    """ "0.312 ± 0.021"; the standard error of a single query is unknown."""
    return f"{value:.3f}{plus_minus(se)}"


def between_query_std(right: np.ndarray) -> float:
    """The std of the success rate between queries, from right [queries, samples], without the
    noise of sampling."""
    rates = right.mean(axis=1)
    sampling_variance = (rates * (1 - rates) / (right.shape[1] - 1)).mean()
    return max(0.0, rates.var(ddof=1) - sampling_variance) ** 0.5


# --- sampling and grading -------------------------------------------------------------------------


def sample_and_grade(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[data.Query],
    samples: int, *, temperature: float = 1.0, seed: int = 0, progress: str | None = None,
    score: Scorer | None = None, **sampling: Any,
) -> tuple[np.ndarray, np.ndarray, list[rollout.Rollout]]:  # fmt: skip
    """(right, in_format), both [queries, samples] of bool, and the rollouts.

    The mean of `right` at one sample a query estimates equation (1).
    temperature: 0 is greedy.
    progress: the words beside a bar, which is shown on a terminal only.
    score: as in `grade`.
    sampling: what else rollout.sample takes.
    """
    hidden = None if progress and distributed.is_main_process() else True
    total = len(queries) * samples
    with tqdm(total=total, desc=progress, leave=False, disable=hidden) as bar:
        rollouts = rollout.sample_sharded(
            model, data.encode(tokenizer, queries), samples, temperature=temperature, seed=seed,
            progress=bar.update, **{"end_ids": models.end_ids(model, tokenizer), **sampling},
        )  # fmt: skip
    grades = grade_once(tokenizer, queries, rollouts, score)
    shape = (len(queries), samples)
    return grades.right.reshape(shape), grades.in_format.reshape(shape), rollouts


# --- what a training run measures -----------------------------------------------------------------

SHOWN = 4  # test queries whose completions are kept
KL_QUERIES = 64  # test queries on which the KL to the base model is measured


def evaluate_run(
    args: Namespace, state: TrainState, sets: data.ProblemSets, before_or_after: bool
) -> None:
    """Write this round's two lines (train, test) to evals.jsonl."""
    state.timer.enter("evaluation")
    lines, results = [], []
    limit = args.eval_limit
    for split, queries in (("train", sets.train[:limit]), ("test", sets.test[:limit])):
        line = evaluate_split(args, state, split, queries, before_or_after)
        # JSON has no nan, which is the standard error of a single query.
        line = {key: None if value != value else value for key, value in line.items()}
        lines.append(line)
        results.append(f"{split} {line['pass@1']:.3f}{plus_minus(line['se'])}")
    state.folder.append("evals", *lines)  # together, so that a log holds whole evaluations
    state.evaluated = state.round
    state.timer.enter("sampling")
    tqdm.write(f"round {state.round:>4}: pass@1 " + ", ".join(results))


def evaluate_split(
    args: Namespace, state: TrainState, split: str, queries: list[data.Query],
    before_or_after: bool,
) -> dict:  # fmt: skip
    """The line of one split: pass@1 with one sample a query at --eval-temperature; before and after
    the run also greedy accuracy, and pass@k on the test set (docs/log.md explains the fields)."""
    is_test = split == "test"

    def measure(some: list[data.Query], samples: int, name: str, **options: float) -> tuple:
        return sample_and_grade(
            state.model, state.tokenizer, some, samples, progress=f"{name}, {split}",
            score=state.score,
            **{"temperature": args.eval_temperature, **options}, **state.sampling,
        )  # fmt: skip

    purpose = Purpose.TEST_EVALUATION if is_test else Purpose.TRAIN_EVALUATION
    right, in_format, rollouts = measure(
        queries, 1, "pass@1", seed=seed_for(args.seed, purpose, state.round)
    )
    value, se = mean_and_se(right[:, 0])
    line = {
        "round": state.round,
        "split": split,
        "pass@1": value,
        "se": se,
        "in_format": in_format.mean(),
        "length": np.mean([len(one.tokens) for one in rollouts]),
        "truncated": np.mean([one.truncated for one in rollouts]),
    }
    if before_or_after:
        greedy, _, _ = measure(queries, 1, "greedy", temperature=0)
        line["greedy"], line["greedy_se"] = mean_and_se(greedy[:, 0])
    k = args.eval_samples
    if is_test and before_or_after and k > 1:
        seed = seed_for(args.seed, Purpose.PASS_AT_K, state.round)
        right_k, _, _ = measure(queries[: args.eval_queries], k, f"pass@{k}", seed=seed)
        line[f"pass@{k}"], line[f"pass@{k}_se"] = mean_pass_at_k(right_k, k)
    if is_test and distributed.is_main_process():
        base = state.load_base_model() if state.round else None  # at first it is the policy
        measured = queries[:KL_QUERIES], rollouts[:KL_QUERIES]
        line["kl"] = kl_to_base(args, state, base, *measured) if base else 0.0
        line["samples"] = eval_samples(args, state, base, queries, rollouts, right[:, 0])
    line["right"] = right[:, 0].astype(int).tolist()
    return line


def kl_to_base(
    args: Namespace, state: TrainState, base: PreTrainedModel, queries: list[data.Query],
    rollouts: list[rollout.Rollout],
) -> float:  # fmt: skip
    """The mean k3 per token of the KL to the base model, on rollouts of the policy, in nats.

    Both policies are at the temperature of the rollouts.
    """
    prompts, completions = data.encode(state.tokenizer, queries), [one.tokens for one in rollouts]
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    distances = []
    with torch.no_grad():
        for rows in bandit.micro_batches(lengths, args.micro_tokens):
            pair = [prompts[i] for i in rows], [completions[i] for i in rows]
            policy_logprobs, base_logprobs = (
                bandit.completion_logprobs(model, *pair, args.eval_temperature)
                for model in (state.model, base)
            )
            distances.append(policy_logprobs - base_logprobs)
    return bandit.KL_ESTIMATORS["k3"](torch.cat(distances)).mean().item()


def eval_samples(
    args: Namespace, state: TrainState, base: PreTrainedModel | None, queries: list[data.Query],
    rollouts: list[rollout.Rollout], right: np.ndarray,
) -> list[dict]:  # fmt: skip
    """What became of the first SHOWN queries in this evaluation, token by token: lab/page.py.

    base: None stands for the policy itself.
    """
    samples = []
    for i, query in enumerate(queries[:SHOWN]):
        tokens = rollouts[i].tokens
        logprobs = rollouts[i].logprobs
        base_logprobs = logprobs
        if base:
            with torch.no_grad():
                prompts = data.encode(state.tokenizer, [query])
                base_logprobs = bandit.completion_logprobs(
                    base, prompts, [tokens], args.eval_temperature
                ).tolist()
        samples.append({
            "prompt": query.prompt,
            "gold": query.gold,
            "right": bool(right[i]),
            "tokens": [state.tokenizer.decode([token]) for token in tokens],
            "logprobs": [round(x, 4) for x in logprobs],
            "logprobs_base": [round(x, 4) for x in base_logprobs],
        })  # fmt: skip
    return samples


def sample_lines(args: Namespace, state: TrainState, sets: data.ProblemSets) -> list[dict]:
    """The lines of samples.jsonl: two completions of each of the first SHOWN test queries,
    before and after, with the log-probabilities of their tokens under both policies."""
    policies = {"before": state.load_base_model(), "after": state.model}
    queries = sets.test[:SHOWN]
    prompts = data.encode(state.tokenizer, queries)
    seed = seed_for(args.seed, Purpose.SAMPLES)
    lines = []
    for name, model in policies.items():
        rollouts = rollout.sample(
            model, prompts, 2, temperature=args.eval_temperature, seed=seed, **state.sampling
        )
        right, _, texts, paid = grade(state.tokenizer, queries, rollouts, state.score)
        for i, one in enumerate(rollouts):
            query, prompt = queries[i // 2], prompts[i // 2]
            line = {
                "query": i // 2,
                "prompt": query.prompt,
                "gold": query.gold,
                "policy": name,
                "completion": texts[i],
                "right": bool(right[i]),
                "reward": float(paid[i]),
                "truncated": one.truncated,
                "tokens": [state.tokenizer.decode([token]) for token in one.tokens],
            }
            for other, policy in policies.items():
                with torch.no_grad():
                    logprobs = bandit.completion_logprobs(
                        policy, [prompt], [one.tokens], args.eval_temperature
                    )
                line[f"logprobs_{other}"] = [round(x, 4) for x in logprobs.tolist()]
            lines.append(line)
    return sorted(lines, key=lambda line: line["query"])


# --- the command line -----------------------------------------------------------------------------


def main() -> None:
    parser = flags.FlagParser(description=__doc__.split("\n")[0])
    flag, count = parser.add_argument, flags.at_least(1)
    flag("--model", default="tiny-qwen2", help="a tiny model, a folder, a model of the hub")
    flag("--against", help="a second model: prints --model minus this one, paired by query")
    flag("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, tiny-sums, gsm8k, math or a path")
    flag("--split", default="test", choices=["train", "test"])
    flag("--reward", metavar="FILE.py",
         help="says what is right, as in train.py (default: the verifier)")
    flag("--queries", type=count, help="only the first K queries (default: all)")
    flag("--samples", type=count, default=16, help="completions a query")
    flag("--temperature", type=flags.within(0.01, 100.0), default=1.0,
         help="greedy is always shown too")
    flag("--max-new-tokens", type=count,
         help="bound on a completion (default: {}, or {} if --model is not tiny)"
              .format(*models.NEW_TOKENS))
    flag("--cache-tokens", type=count, help="bound on the sampler's memory, in cached tokens")
    flag("--seed", type=flags.at_least(0), default=0)
    flag("--out", type=flags.path,
         help="a file for one JSON line per query and model (default: none)")
    args = parser.parse_args()
    try:
        compare(args)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        sys.exit(f"evaluate.py: {memory.in_words(error)}")


def compare(args: Namespace) -> None:
    """Print what the flags ask for; raise ValueError, in one sentence, for bad ones."""
    if args.against == args.model:
        raise ValueError(f"--against {args.against} is --model itself")
    score = scorer(args.reward)
    queries = data.load(args.data, args.split, needs_gold=not args.reward)[: args.queries]
    names = [name for name in (args.model, args.against) if name]
    loaded = {name: rollout.load(name, dtype=models.compute_dtype()) for name in names}
    models.set_threads(loaded[args.model][0])
    if args.out:
        open(args.out, "a").close()  # fail now, not after the sampling

    rates = {}
    longest = args.max_new_tokens or models.NEW_TOKENS[0 if models.is_tiny(args.model) else 1]
    sampling = {"max_new_tokens": longest, "cache_tokens": args.cache_tokens, "score": score}
    for number, name in enumerate(names):
        right, in_format, rollouts = sample_and_grade(
            *loaded[name], queries, args.samples, temperature=args.temperature, seed=args.seed,
            progress=f"{name}, sampled", **sampling,
        )  # fmt: skip
        greedy, _, _ = sample_and_grade(
            *loaded[name], queries, 1, temperature=0, progress=f"{name}, greedy", **sampling
        )
        rates[name] = right.mean(axis=1)
        print(
            f"\n{name} on {args.data}, {args.split}: {len(queries)} queries x {args.samples} "
            f"samples at temperature {args.temperature:g}; value ± standard error"
        )
        print_figures(queries, right, greedy[:, 0], None if args.reward else in_format)
        truncated = np.mean([one.truncated for one in rollouts])
        print(f"  cut at {longest} tokens  {truncated:.3f}")
        if args.out:
            with open(args.out, "a" if number else "w") as file:
                for i, query in enumerate(queries):
                    line = {"model": name, "query": i, "level": query.level, "gold": query.gold}
                    line |= {"right": right[i].astype(int).tolist(), "greedy": int(greedy[i, 0])}
                    file.write(json.dumps(line) + "\n")
    if args.out:
        print(f"\na JSON line per query: {Path(args.out)}")
    if args.against:
        value, half = t_interval(rates[args.model] - rates[args.against])
        interval = f"[{value - half:+.3f}, {value + half:+.3f}]"
        print(
            f"\n{args.model} - {args.against}: pass@1 {value:+.3f}, 95 % interval "
            f"{interval if len(queries) > 1 else 'unknown'}, paired over {len(queries)} queries"
        )


def print_figures(
    queries: list[data.Query], right: np.ndarray, greedy: np.ndarray, in_format: np.ndarray | None
) -> None:
    """pass@k for powers of two, greedy accuracy, the share in format, and pass@1 by level.

    in_format: None if a reward file judged, which knows no format.
    """
    for k in (2**i for i in range(right.shape[1].bit_length())):
        value, se = mean_pass_at_k(right, k)
        print(f"  pass@{k:<3} {with_error(value, se)}")
    value, se = mean_and_se(greedy)
    print(f"  greedy   {with_error(value, se)}")
    if in_format is not None:
        print(f"  answers in the asked format: {in_format.mean():.3f}")
    levels = np.array([query.level or 0 for query in queries])
    for level in sorted(set(levels) - {0}):
        here = levels == level
        value, se = mean_and_se(right[here].mean(axis=1))
        rest = f"greedy {greedy[here].mean():.3f} ({here.sum()} queries)"
        print(f"  level {level}: pass@1 {with_error(value, se)}, {rest}")


if __name__ == "__main__":
    main()
