"""Why a design choice helps or not: the gradient estimates themselves, at a fixed policy.

    python -m lab.probe     # at the base model and half-way through a run; takes minutes
    python -m lab.probe --settings "64x1 reward" "8x8 opo" "8x1+7 rloo"    # any row of ADVANTAGES

A setting turns the rollouts of one round into one estimate g of the policy gradient. Many
independent rounds at a fixed policy show how good that estimate is. They are compared with a
reference: the gradient of the expected reward of a completion, estimated without bias (RLOO, tokens
summed) from thousands of other rollouts.

    cosine    between the mean of the estimates and the reference. Both are noisy, so that even a
              setting without a bias stays below 1. The report gives the ceiling that the noise of
              the reference sets.
    a round   the mean cosine of single estimates: what one update sees
    SNR       |E g|^2 / (sum of the variances), without the bias of a finite number of rounds
    uphill    the share of rounds whose estimate has a positive product with the reference

Standard errors are the jackknife's: each figure is computed again without each of the rounds.

The same figures describe the step that Adam makes of each estimate. At the base model this is its
first step, which is nearly the sign of g. Half-way it uses the moments that the run has gathered.
Half-way means after 30 rounds of 256 x 1 with a window of 8. The histories of that run serve the
window's advantage. The base model has no histories, so there the window would be the raw reward
and is left out.

The last lines of the report show why subtracting the mean reward may not help. The variance of
(R - b) * score, where the score is the gradient of a completion's log-probability, is least at
b = E[R |score|^2] / E[|score|^2]. Where wrong completions have the larger scores, that is far
below the mean reward. The report gives the same mean with lengths in the place of |score|^2, which
`bandit.opo` takes over a group, and with -log pi, which `bandit.least_variance` takes. It also
gives V(b) = E[(R - b)^2 |score|^2] for the constants that the rung "constant" of ablate.sh trains
with, and V(1), which is what learning from wrong completions alone leaves. At last it says how
much of the noise lies between queries, which more rollouts of the same queries do not lower.
"""

import argparse
import copy
import csv
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import bandit
import data
import evaluate
import rollout
import train
from infra import checkpoint, curve, flags, models, optimizer  # curve makes pyplot draw into files
from infra.run_folder import write_json

WINDOW = 8  # rewards of a query that the run remembers
CONSTANTS = (-0.2, 0.1, 0.2, 0.3, 0.5, 1.0)  # baselines b of V(b), beside 0
MEASURES = ("cosine", "a round", "SNR", "uphill")
# The reference and the scores have seeds that the rounds' small numbers never reach.
REFERENCE_SEED = 10**6
SCORE_SEED = 10**7


class Setting(NamedTuple):
    """How the rollouts of a round are split, and what is made of them."""

    queries: int
    rollouts: int  # of each query, to train on
    baseline_rollouts: int  # more of each query, for the statistics only
    advantage: str
    loss_mean: str = "token"


SETTINGS = {  # each samples 256 rollouts a round, but for the first
    "32x1 raw": Setting(32, 1, 0, "reward"),
    "32x1+7 group": Setting(32, 1, 7, "group"),
    "32x8 raw": Setting(32, 8, 0, "reward"),
    "32x8 group": Setting(32, 8, 0, "group"),
    "32x8 rloo, tokens summed": Setting(32, 8, 0, "rloo", "constant"),
    "4x64 group": Setting(4, 64, 0, "group"),
    "256x1 raw": Setting(256, 1, 0, "reward"),
    "256x1 batch mean": Setting(256, 1, 0, "batch-centered"),
    "256x1 window": Setting(256, 1, 0, "window"),
}
REFERENCE = Setting(32, 8, 0, "rloo", "constant")


def to_setting(text: str) -> Setting:
    """ "8x1+7 group" as a Setting; the name is a row of bandit.ADVANTAGES.

    Raises ValueError if train.py would refuse it.
    """
    match = re.fullmatch(r"(\d+)x(\d+)(?:\+(\d+))? (\S+)", text)
    name = match and bandit.row_name(match[4])
    if name not in bandit.ADVANTAGES or 0 in (int(match[1]), int(match[2])):
        names = ", ".join(bandit.ADVANTAGES)
        raise ValueError(
            f'--settings "{text}": write queries x rollouts and an advantage, as in "8x8 group" or '
            f'"8x1+7 rloo"; the advantages are {names}'
        )
    setting = Setting(int(match[1]), int(match[2]), int(match[3] or 0), name)
    needs = bandit.ADVANTAGES[name].needs
    window = WINDOW if needs == "window" else 0
    wrong_reward = -1.0 if needs == "signs" else 0.0
    try:
        flags.check_settings(name, needs, *setting[:3], window, wrong_reward=wrong_reward)
    except ValueError as error:
        raise ValueError(f'--settings "{text}": {error}') from None
    return setting


# --- a policy, its rounds and their estimates -----------------------------------------------------


class Moments(NamedTuple):
    """Adam's state for an ascent direction."""

    first: torch.Tensor  # [parameters]
    second: torch.Tensor  # [parameters]
    steps: int


class Policy(NamedTuple):
    """A fixed policy with all that an estimate needs."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    queries: list[data.Query]
    prompts: list[list[int]]
    windows: dict[str, list[float]]  # prompt text -> its last rewards
    moments: Moments | None
    max_new_tokens: int
    temperature: float = 1.0


class Round(NamedTuple):
    """The rollouts of one round, n for each query."""

    chosen: np.ndarray  # [queries], their indices
    rollouts: list[rollout.Rollout]
    rewards: torch.Tensor  # [queries, n]


class Recorder:
    """Takes the optimizer's place in bandit.update and keeps the gradient instead of stepping."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.param_groups = [{"params": list(model.parameters())}]

    def step(self) -> None:
        gradients = [p.grad.reshape(-1) for p in self.model.parameters()]
        self.gradient = torch.cat(gradients).clone()

    def zero_grad(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None


def sample_round(policy: Policy, queries: int, n: int, seed: int) -> Round:
    """n rollouts each of some random queries, with their rewards."""
    generator = np.random.default_rng([seed, 0])
    chosen = generator.choice(len(policy.queries), queries, replace=False)
    rollouts, rewards = sample_and_pay(policy, chosen, n, policy.temperature, seed)
    return Round(chosen, rollouts, rewards)


def sample_and_pay(
    policy: Policy, chosen: np.ndarray, n: int, temperature: float, seed: int
) -> tuple[list[rollout.Rollout], torch.Tensor]:
    """n rollouts of each of these queries, and their rewards of 1 and 0, [queries, n]."""
    rollouts = rollout.sample(
        policy.model, [policy.prompts[i] for i in chosen], n, seed=seed,
        max_new_tokens=policy.max_new_tokens, temperature=temperature,
        end_ids=models.end_ids(policy.model, policy.tokenizer),
    )  # fmt: skip
    grades = evaluate.grade(policy.tokenizer, [policy.queries[i] for i in chosen], rollouts)
    return rollouts, torch.tensor(grades.right, dtype=torch.float32).view(len(chosen), n)


def estimate(policy: Policy, setting: Setting, sampled: Round) -> torch.Tensor:
    """The ascent direction of one round: minus the loss's gradient, unclipped, [parameters]."""
    chosen, rollouts, rewards = sampled
    n = setting.rollouts + setting.baseline_rollouts
    needs = bandit.ADVANTAGES[setting.advantage].needs
    windows = greedy = None
    if needs == "signs":
        rewards = 2 * rewards - 1
    if needs == "window":
        texts = [policy.queries[i].prompt for i in chosen]
        windows = bandit.remember(copy.deepcopy(policy.windows), texts, rewards, WINDOW)
    if needs == "greedy":
        _, greedy = sample_and_pay(policy, chosen, 1, temperature=0, seed=0)
        greedy = greedy.squeeze(1)
    measured = bandit.lengths_and_logprobs(rollouts, n)
    round_rewards = bandit.RoundRewards(rewards, greedy, windows, *measured)
    advantages = bandit.advantages(setting.advantage, round_rewards, setting.rollouts)

    trained = [i for i in range(len(rollouts)) if i % n < setting.rollouts]
    batch = bandit.UpdateBatch(
        prompts=[policy.prompts[chosen[i // n]] for i in trained],
        completions=[rollouts[i].tokens for i in trained],
        advantages=advantages.reshape(-1),
    )
    return -gradient_of_loss(policy, batch, setting.loss_mean)


def gradient_of_loss(policy: Policy, batch: bandit.UpdateBatch, loss_mean: str) -> torch.Tensor:
    """The gradient, [parameters], that bandit.update would step along; the model is unchanged."""
    recorder = Recorder(policy.model)
    config = bandit.UpdateConfig(
        loss_mean, policy.max_new_tokens, policy.temperature, max_grad_norm=float("inf")
    )
    bandit.update(policy.model, recorder, batch, config)
    return recorder.gradient


# --- the scores of single completions -------------------------------------------------------------


class Measured(NamedTuple):
    value: float
    error: float  # the jackknife's standard error


class Scores(NamedTuple):
    """Of some completions, one for each query. The score is the gradient of log pi(completion)."""

    right: np.ndarray  # bool
    squared_norms: np.ndarray  # of the scores
    lengths: np.ndarray  # tokens
    surprises: np.ndarray  # -log pi(completion), in nats


def measure_scores(policy: Policy, count: int) -> Scores:
    """The scores of one completion each of `count` queries."""
    chosen, rollouts, rewards = sample_round(policy, count, 1, SCORE_SEED)
    squared_norms = []
    for i, one in zip(chosen, tqdm(rollouts, desc="scores", disable=None), strict=True):
        batch = bandit.UpdateBatch([policy.prompts[i]], [one.tokens], torch.ones(1))
        gradient = policy.max_new_tokens * gradient_of_loss(policy, batch, "constant")
        squared_norms.append(gradient.square().sum().item())
    measured = bandit.lengths_and_logprobs(rollouts, 1)
    lengths, logprobs = (values.numpy().ravel() for values in measured)
    return Scores(rewards.numpy().ravel() > 0, np.array(squared_norms), lengths, -logprobs)


def best_baseline(scores: Scores) -> Measured:
    """The constant b of least variance, E[R |s|^2] / E[|s|^2].

    The gradient estimate (R - b) s is unbiased for every constant b: equation (4) of the lecture.
    """
    return weighted_mean(scores.right, scores.squared_norms)


def variance_ratio(scores: Scores, constant: float) -> Measured:
    """V(b) / V(0) of a constant baseline b, where V(b) = E[(R - b)^2 |s|^2].

    All constants have the same mean gradient, so the order of V is the order of the variances.
    """
    rewards = scores.right.astype(float)
    mine, raw = (((rewards - b) ** 2 * scores.squared_norms) for b in (constant, 0.0))
    without_one = (mine.sum() - mine) / (raw.sum() - raw)
    return Measured(float(mine.sum() / raw.sum()), jackknife_error(without_one))


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> Measured:
    """The mean of the values, in which each counts by its weight."""
    products = values * weights
    without_one = (products.sum() - products) / (weights.sum() - weights)
    return Measured(float(products.sum() / weights.sum()), jackknife_error(without_one))


def jackknife_error(without_one: np.ndarray) -> float:
    """The standard error of a figure, from its n values without each of the n samples."""
    n = len(without_one)
    return float(((n - 1) / n * ((without_one - without_one.mean()) ** 2).sum()) ** 0.5)


# --- how good estimates are -----------------------------------------------------------------------


def adam_step(gradient: torch.Tensor, moments: Moments) -> torch.Tensor:
    """The step that Adam makes of an ascent direction, divided by the learning rate.

    Adam is arXiv:1412.6980. As in train.py the gradient is first clipped to norm 1.
    """
    first, second, steps = moments
    gradient = gradient * min(1, 1 / (gradient.norm().item() + 1e-6))
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    steps += 1
    unbiased_first = first / (1 - 0.9**steps)
    unbiased_second = second / (1 - 0.999**steps)
    return unbiased_first / (unbiased_second.sqrt() + 1e-8)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm()).clamp(min=1e-30)).item()


def describe(estimates: torch.Tensor, reference: torch.Tensor) -> dict[str, Measured]:
    """MEASURES and "noise" of estimates [rounds, parameters] against a reference [parameters].

    "noise" is the sum of the variances, in the estimates' own squared units.

    They depend on the products of the estimates with each other and with the reference only, so
    that leaving one round out is cheap. There must be at least three rounds.
    """
    products = (estimates @ estimates.T).double().cpu().numpy()
    along = (estimates @ reference).double().cpu().numpy() / reference.norm().item()
    values = measures(products, along)
    without_one = []
    for i in range(len(along)):
        kept = np.delete(np.arange(len(along)), i)
        without_one.append(measures(products[np.ix_(kept, kept)], along[kept]))
    return {
        name: Measured(value, jackknife_error(np.array([each[name] for each in without_one])))
        for name, value in values.items()
    }


def measures(products: np.ndarray, along: np.ndarray) -> dict[str, float]:
    """MEASURES and "noise" from the products of the estimates [rounds, rounds] and their lengths
    along the reference [rounds]."""
    rounds = len(along)
    squared_mean = products.mean()  # |mean of the estimates|^2
    noise = (products.trace() - rounds * squared_mean) / (rounds - 1)  # the sum of the variances
    # The noise of a mean over few rounds adds to its squared norm, so it is subtracted.
    signal = squared_mean - noise / rounds
    norms = np.sqrt(np.diagonal(products)).clip(min=1e-30)
    return {
        "cosine": float(along.mean() / max(squared_mean**0.5, 1e-30)),
        "a round": float((along / norms).mean()),
        "SNR": float(signal / max(noise, 1e-30)),
        "uphill": float((along > 0).mean()),
        "noise": float(noise),
    }


def share_between_queries(noise_32x8: Measured, noise_256x1: Measured) -> Measured:
    """The part of one rollout's noise that is common to all rollouts of its query.

    If the variance is W within a query and B between queries, 256 rollouts of as many queries
    leave (W + B) / 256, and 8 of each of 32 leave (W / 8 + B) / 32. So the ratio of the second to
    the first is 1 + 7 B / (W + B).
    """
    ratio = noise_32x8.value / noise_256x1.value
    relative = np.hypot(noise_32x8.error / noise_32x8.value, noise_256x1.error / noise_256x1.value)
    return Measured((ratio - 1) / 7, float(ratio * relative / 7))


class Findings(NamedTuple):
    """What the probe finds at one policy."""

    settings: dict[str, dict[str, dict[str, Measured]]]  # setting -> "gradient", "adam" -> measures
    ceiling: float  # of the cosine


def probe(policy: Policy, settings: dict[str, Setting], rounds: int, reference_rounds: int
          ) -> Findings:  # fmt: skip
    """Compare the estimates of every setting with the reference, at one policy.

    rounds: estimates of each setting. reference_rounds: of both halves of the reference together.
    """
    halves = []
    for first_seed in (REFERENCE_SEED, 2 * REFERENCE_SEED):
        halves.append(estimate_reference(policy, reference_rounds // 2, first_seed))
    reference = sum(halves) / 2
    # The cosine c of two halves is below 1 by the noise of both. The whole has half of the noise of
    # one, so a direction without any noise has the cosine sqrt(2c / (1 + c)) with it.
    reliability = max(cosine(*halves), 0)
    ceiling = (2 * reliability / (1 + reliability)) ** 0.5

    found = {}
    sampled = {}  # settings of one shape use the same rollouts, so that they compare in pairs
    bar = tqdm(total=rounds * len(settings), desc="estimates", disable=None)
    for name, setting in settings.items():
        shape = setting.queries, setting.rollouts + setting.baseline_rollouts
        estimates = reference.new_empty(rounds, len(reference))
        for seed in range(rounds):
            if (shape, seed) not in sampled:
                sampled[shape, seed] = sample_round(policy, *shape, seed)
            estimates[seed] = estimate(policy, setting, sampled[shape, seed])
            bar.update()
        found[name] = {"gradient": describe(estimates, reference)}
        for row in estimates:  # in place, for the sake of a model of many parameters
            row.copy_(adam_step(row, policy.moments))
        found[name]["adam"] = describe(estimates, reference)
    return Findings(found, ceiling)


def estimate_reference(policy: Policy, rounds: int, first_seed: int) -> torch.Tensor:
    """The mean of the reference's estimate over some rounds, [parameters]."""
    total = 0
    for i in tqdm(range(rounds), desc="reference", disable=None):
        sampled = sample_round(policy, REFERENCE.queries, REFERENCE.rollouts, first_seed + i)
        total = total + estimate(policy, REFERENCE, sampled)
    return total / rounds


def load_policies(
    args: argparse.Namespace, queries: list[data.Query]
) -> Iterator[tuple[str, Policy]]:
    """Yield (name, policy): the base model, then the end of a run, which is made if need be."""
    folder = finished_run(args, len(queries))  # first, because another run is refused here
    base, tokenizer = rollout.load(args.model)
    models.set_threads(base, args.threads)
    prompts = data.encode(tokenizer, queries)
    size = sum(p.numel() for p in base.parameters())
    zeros = torch.zeros(size, device=base.device)
    shared = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature}
    moments = Moments(zeros, zeros, 0)
    yield "base", Policy(base.eval(), tokenizer, queries, prompts, {}, moments, **shared)

    state = checkpoint.load_newest(folder)
    model = base  # its weights are replaced; a second model would take as much memory again
    optimizer.MasterWeights(model).load_state_dict(state["model"])
    by_weight = [row for _, row in sorted(state["optimizer"]["state"].items())]
    first = torch.cat([row["exp_avg"].reshape(-1) for row in by_weight]).to(zeros)
    second = torch.cat([row["exp_avg_sq"].reshape(-1) for row in by_weight]).to(zeros)
    # The run descended the loss; estimates ascend, so the first moment changes its sign.
    moments = Moments(-first, second, state["round"])
    windows = state["windows"]
    name = f"round {state['round']}"
    yield name, Policy(model.eval(), tokenizer, queries, prompts, windows, moments, **shared)


def finished_run(args: argparse.Namespace, queries: int) -> Path:
    """The folder of --run, or of a run that is made here; queries: how many there are."""
    folder = Path(args.run or Path(args.out) / "run")
    has_begun = bool(checkpoint.list_checkpoints(folder))
    if args.run and not has_begun:
        raise ValueError(f"--run {folder}: there is no run with a checkpoint")
    if not args.run:
        # A run that was stopped goes on. One of other flags is refused by --resume.
        levels = ["--levels", *map(str, args.levels)] if args.levels else []
        train.main([
            "--model", args.model, "--data", args.data, "--out", str(folder), *levels,
            "--advantage", "window", "--window", str(WINDOW), "--batch-size",
            str(min(256, queries)), "--rounds", str(args.run_rounds), "--max-new-tokens",
            str(args.max_new_tokens), "--temperature", str(args.temperature), "--eval-every", "0",
            "--eval-samples", "1", *["--resume"] * has_begun,
        ])  # fmt: skip
    return folder


# --- the report -----------------------------------------------------------------------------------


def write_report(
    args: argparse.Namespace, found: dict[str, Findings], scores: dict[str, Scores]
) -> None:
    """Write probe.md, probe.csv and probe.png into args.out; print the first.

    found, scores: of each policy, what `probe` and `measure_scores` return.
    """
    folder = Path(args.out)
    kinds = {"gradient": "gradient", "adam": "Adam"}
    headings = [f"{kind}: {measure}" for kind in kinds.values() for measure in MEASURES]
    rows = []
    for policy, (settings, _) in found.items():
        for name, both in settings.items():
            rows.append([policy, name, *(both[k][measure] for k in kinds for measure in MEASURES)])
    with open(folder / "probe.csv", "w", newline="") as file:
        table = csv.writer(file)
        both_columns = [column for heading in headings for column in (heading, f"{heading}, error")]
        table.writerow(["policy", "setting", *both_columns])
        for policy, name, *measured in rows:
            table.writerow([policy, name, *(figure for one in measured for figure in one)])

    lines = [f"| policy | setting | {' | '.join(headings)} |", "|---" * 10 + "|"]
    for policy, findings in found.items():
        for _, name, *measured in [row for row in rows if row[0] == policy]:
            shown = " | ".join(f"{one.value:.3f} ± {one.error:.3f}" for one in measured)
            lines.append(f"| {policy} | {name} | {shown} |")
        lines.append(f"| {policy} | the cosine's ceiling | {findings.ceiling:.3f} |" + " |" * 7)
    asked = [name for name in ("levels", "settings") if vars(args)[name]]
    lists = "".join(f" --{name} {shlex.join(map(str, vars(args)[name]))}" for name in asked)
    command = (
        f"`python -m lab.probe --model {args.model} --data {args.data} --temperature "
        f"{args.temperature:g} --rounds {args.rounds} --reference-rounds {args.reference_rounds}"
        f"{lists}`: {args.rounds} rounds of each setting, a reference of "
        f"{REFERENCE.queries * REFERENCE.rollouts * args.reference_rounds:,} rollouts; ± one "
        "standard error."
    )
    paragraphs = [command, "\n".join(lines)]
    paragraphs += [scores_in_words(policy, each) for policy, each in scores.items()]
    for policy, (settings, _) in found.items():
        if {"32x8 raw", "256x1 raw"} <= settings.keys():
            noises = [settings[name]["gradient"]["noise"] for name in ("32x8 raw", "256x1 raw")]
            share, error = share_between_queries(*noises)
            paragraphs.append(
                f"At {policy}: of the variance of one rollout's raw gradient {share:.2f} ± "
                f"{error:.2f} lies between queries, the rest within a query."
            )
    text = "\n\n".join(paragraphs)
    (folder / "probe.md").write_text(text + "\n")
    write_json(folder / "config.json", vars(args))
    draw(folder / "probe.png", found)
    print(text)


def scores_in_words(policy: str, scores: Scores) -> str:
    """What the scores say about the baseline."""
    right, squares = scores.right, scores.squared_norms
    text = f"At {policy}: {right.mean():.2f} of {len(right)} completions right"
    if right.all() or not right.any():
        return f"{text}, so there is no baseline of least variance to speak of."
    best, error = best_baseline(scores)
    by_length = weighted_mean(right, scores.lengths).value
    by_surprise = weighted_mean(right, scores.surprises).value
    ratios = {constant: variance_ratio(scores, constant) for constant in CONSTANTS}
    listed = ", ".join(f"{b:g}: {one.value:.2f} ± {one.error:.2f}" for b, one in ratios.items())
    return (
        f"{text}; mean squared norm of the score {squares[right].mean():,.0f} for right ones, "
        f"{squares[~right].mean():,.0f} for wrong ones; the constant baseline of least variance is "
        f"{best:.2f} ± {error:.2f}, the mean reward {right.mean():.2f}. With the length in the "
        f"place of the squared norm the constant is {by_length:.2f}, with -log pi "
        f"{by_surprise:.2f}. V(b) / V(0) at b = {listed}."
    )


def draw(path: Path, found: dict[str, Findings]) -> None:
    """The cosine of one round with the reference, by setting: of the estimate, of Adam's step."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    styles = [(-0.15, curve.BLUE, "o"), (0.15, curve.ORANGE, "s")]  # one for each policy
    titles = {"gradient": "the estimate", "adam": "the step that Adam makes of it"}
    names = list(max((findings.settings for findings in found.values()), key=len))
    for panel, (kind, title) in zip(panels, titles.items(), strict=True):
        for style, (policy, findings) in zip(styles, found.items(), strict=False):
            offset, color, marker = style
            measured = [both[kind]["a round"] for both in findings.settings.values()]
            places = [names.index(name) + offset for name in findings.settings]
            panel.errorbar(
                [one.value for one in measured], places, xerr=[2 * one.error for one in measured],
                fmt=marker, color=color, label=policy,
            )  # fmt: skip
        panel.set(xlabel="mean cosine of one round with the reference", title=title)
        panel.axvline(0, color=curve.GREY, linewidth=0.8)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    panels[1].legend(fontsize=8, title="± 2 standard errors", title_fontsize=8)
    figure.savefig(path, dpi=110)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.FlagParser(description=__doc__.split("\n")[0])
    flag = parser.add_argument
    flag("--model", default="tiny-qwen2", help="a tiny model, a folder, a model of the hub")
    flag("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, tiny-sums, gsm8k, math or a path")
    flag("--levels", type=flags.within(1, 5), nargs="+",
         help="queries of these levels only (default: all)")
    flag("--settings", nargs="+", metavar="SETTING",
         help='as in "8x1+7 group" (default: the nine of results/probe/probe.md)')
    flag("--temperature", type=flags.above(0.0), default=1.0, help="of sampling and of the scores")
    flag("--run", help="a run with a checkpoint (default: one is made, with a window)")
    flag("--run-rounds", type=flags.at_least(1), default=30, help="rounds of the run that is made")
    flag("--rounds", type=flags.at_least(3), default=24, help="estimates of each setting")
    flag("--reference-rounds", type=flags.at_least(2), default=64,
         help="rounds of 256 rollouts for the reference, half of them for each of its two halves")
    flag("--scored", type=flags.at_least(2), default=256,
         help="completions whose scores are measured, each of another query")
    flag("--max-new-tokens", type=flags.at_least(1), default=64, help="truncate completions here")
    flag("--threads", type=flags.at_least(1), help="CPU threads (default: by the model's size)")
    flag("--out", default="runs/probe", help="the folder of the report")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    found, scores = {}, {}
    try:
        settings = {text: to_setting(text) for text in args.settings or []} or SETTINGS
        Path(args.out).mkdir(parents=True, exist_ok=True)
        queries = data.load(args.data, "train")
        if args.levels:
            queries = [query for query in queries if query.level in args.levels]
        check_sizes(len(queries), settings, args.scored)
        for name, policy in load_policies(args, queries):
            # Without histories the window's advantage would be the raw reward.
            known = {
                name: setting
                for name, setting in settings.items()
                if policy.windows or bandit.ADVANTAGES[setting.advantage].needs != "window"
            }
            found[name] = probe(policy, known, args.rounds, args.reference_rounds)
            scores[name] = measure_scores(policy, args.scored)
    except (ValueError, OSError) as error:
        sys.exit(f"probe.py: {error}")
    write_report(args, found, scores)


def check_sizes(queries: int, settings: dict[str, Setting], scored: int) -> None:
    """Raise ValueError if a round asks for more queries than there are."""
    needed = {f'"{name}"': setting.queries for name, setting in settings.items()}
    needed |= {"the reference": REFERENCE.queries, f"--scored {scored}": scored}
    for name, count in needed.items():
        if count > queries:
            raise ValueError(f"{name} needs {count} queries, and there are {queries}")


if __name__ == "__main__":
    main()
