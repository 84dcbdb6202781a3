"""Why a design choice helps or not: the gradient estimates themselves, at a fixed policy.

    python -m lab.probe     # at the base model and half-way through a run; takes minutes
    python -m lab.probe --advantage maxrl opo    # these rows of bandit.ADVANTAGES too, at 32 x 8

A setting turns the rollouts of one round into one estimate g of the policy gradient. Many
independent rounds at a fixed policy, each of 256 sampled rollouts, show how good that estimate is.
They are compared with a reference: the gradient of the expected reward of a completion, estimated
without bias (RLOO, tokens summed) from thousands of other rollouts.

    cosine    between the mean of the estimates and the reference. Its ceiling is the cosine of two
              halves of the reference.
    a round   the mean cosine of single estimates: what one update sees
    SNR       |E g|^2 / (sum of the variances), without the bias of a finite number of rounds
    uphill    the share of rounds whose estimate has a positive product with the reference

The same figures describe the step that Adam makes of each estimate. At the base model this is its
first step, which is nearly the sign of g. Half-way it uses the moments that the run has gathered.
Half-way means after 30 rounds of 256 x 1 with a window of 8. The histories of that run serve the
window's advantage. The base model has no histories, so there the window would be the raw reward
and is left out.

The last lines of the report show why subtracting the mean reward may not help. The variance of
(R - b) * score, where the score is the gradient of a completion's log-probability, is least at
b = E[R |score|^2] / E[|score|^2]. Where wrong completions have the larger scores, that is far
below the mean reward. The same constant with lengths in the place of |score|^2 is what
`bandit.opo` subtracts, with -log pi what `bandit.least_variance` does.
"""

import argparse
import copy
import csv
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

WINDOW = 8  # rewards of a query that the run remembers
SCORED = 256  # completions whose scores are measured
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


SETTINGS = {  # each samples 256 rollouts a round
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


def sample_round(policy: Policy, queries: int, n: int, seed: int, max_new_tokens: int) -> Round:
    """n rollouts each of some random queries, with their rewards."""
    generator = np.random.default_rng([seed, 0])
    chosen = generator.choice(len(policy.queries), queries, replace=False)
    rollouts, rewards = sample_and_pay(policy, chosen, n, max_new_tokens, seed=seed)
    return Round(chosen, rollouts, rewards.view(queries, n))


def rewards_of_greedy(policy: Policy, chosen: np.ndarray, max_new_tokens: int) -> torch.Tensor:
    """The rewards of the greedy completions of these queries, [queries]."""
    return sample_and_pay(policy, chosen, 1, max_new_tokens, temperature=0)[1]


def sample_and_pay(
    policy: Policy, chosen: np.ndarray, n: int, max_new_tokens: int, **options: float
) -> tuple[list[rollout.Rollout], torch.Tensor]:
    """n rollouts of each of these queries, and their rewards of 1 and 0, [queries * n]."""
    rollouts = rollout.sample(
        policy.model, [policy.prompts[i] for i in chosen], n, max_new_tokens=max_new_tokens,
        end_ids=models.end_ids(policy.model, policy.tokenizer), **options,
    )  # fmt: skip
    grades = evaluate.grade(policy.tokenizer, [policy.queries[i] for i in chosen], rollouts)
    return rollouts, torch.tensor(grades.right, dtype=torch.float32)


def estimate(
    policy: Policy, setting: Setting, sampled: Round, max_new_tokens: int
) -> torch.Tensor:
    """The ascent direction of one round: minus the loss's gradient, unclipped, [parameters]."""
    chosen, rollouts, rewards = sampled
    n = setting.rollouts + setting.baseline_rollouts
    needs = bandit.ADVANTAGES[setting.advantage].needs
    if needs == "signs":
        rewards = 2 * rewards - 1
    windows = greedy = None
    if needs == "window":
        texts = [policy.queries[i].prompt for i in chosen]
        windows = bandit.remember(copy.deepcopy(policy.windows), texts, rewards, WINDOW)
    if needs == "greedy":
        greedy = rewards_of_greedy(policy, chosen, max_new_tokens)
    measured = bandit.lengths_and_logprobs(rollouts, n)
    round_rewards = bandit.RoundRewards(rewards, greedy, windows, *measured)
    advantages = bandit.advantages(setting.advantage, round_rewards, setting.rollouts)

    trained = [i for i in range(len(rollouts)) if i % n < setting.rollouts]
    batch = bandit.UpdateBatch(
        prompts=[policy.prompts[chosen[i // n]] for i in trained],
        completions=[rollouts[i].tokens for i in trained],
        advantages=advantages.reshape(-1),
    )
    return -gradient_of_loss(policy.model, batch, setting.loss_mean, max_new_tokens)


def gradient_of_loss(
    model: PreTrainedModel, batch: bandit.UpdateBatch, loss_mean: str, max_new_tokens: int = 1
) -> torch.Tensor:
    """The gradient, [parameters], that bandit.update would step along; the model is unchanged."""
    recorder = Recorder(model)
    config = bandit.UpdateConfig(loss_mean, max_new_tokens, max_grad_norm=float("inf"))
    bandit.update(model, recorder, batch, config)
    return recorder.gradient


class Scores(NamedTuple):
    """One completion each of some queries: what the constant of least variance follows from."""

    rewards: np.ndarray  # [count], 1 and 0
    squared_norms: np.ndarray  # [count], |score|^2
    lengths: np.ndarray  # [count], tokens
    logprobs: np.ndarray  # [count], log pi

    def constant(self, weights: np.ndarray) -> float:
        """The mean of the rewards in which each completion counts by its weight."""
        return (weights * self.rewards).sum() / weights.sum()


def measure_scores(policy: Policy, max_new_tokens: int, count: int = SCORED) -> Scores:
    """One completion each of `count` queries, with the squared norm of its score.

    They give the constant b of least variance, which equation (4) of the lecture leaves free.
    """
    chosen, rollouts, rewards = sample_round(policy, count, 1, SCORE_SEED, max_new_tokens)
    squared_norms = []
    for i, one in zip(chosen, rollouts, strict=True):
        batch = bandit.UpdateBatch([policy.prompts[i]], [one.tokens], torch.ones(1))
        gradient = gradient_of_loss(policy.model, batch, "constant")
        squared_norms.append(gradient.square().sum().item())
    measured = bandit.lengths_and_logprobs(rollouts, count)
    lengths, logprobs = (values.numpy().ravel() for values in measured)
    return Scores(rewards.numpy().ravel(), np.array(squared_norms), lengths, logprobs)


# --- how good estimates are -----------------------------------------------------------------------


def adam_step(
    gradient: torch.Tensor, moments: Moments, max_grad_norm: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
) -> torch.Tensor:  # fmt: skip
    """The step that Adam makes of an ascent direction, divided by the learning rate.

    Adam is arXiv:1412.6980. As in train.py the gradient is clipped first.
    """
    first, second, steps = moments
    gradient = gradient * min(1, max_grad_norm / (gradient.norm().item() + 1e-6))
    first = betas[0] * first + (1 - betas[0]) * gradient
    second = betas[1] * second + (1 - betas[1]) * gradient**2
    steps += 1
    unbiased_first = first / (1 - betas[0] ** steps)
    unbiased_second = second / (1 - betas[1] ** steps)
    return unbiased_first / (unbiased_second.sqrt() + eps)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm()).clamp(min=1e-30)).item()


def describe(estimates: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """The four MEASURES of estimates [rounds, parameters] against a reference [parameters]."""
    mean = estimates.mean(dim=0)
    noise = estimates.var(dim=0).sum()
    # The noise of a mean over few rounds adds to its squared norm, so it is subtracted.
    signal = mean @ mean - noise / len(estimates)
    return {
        "cosine": cosine(mean, reference),
        "a round": float(np.mean([cosine(g, reference) for g in estimates])),
        "SNR": (signal / noise).item(),
        "uphill": (estimates @ reference > 0).float().mean().item(),
    }


class Findings(NamedTuple):
    """What the probe finds at one policy."""

    settings: dict[str, dict[str, dict[str, float]]]  # setting -> "gradient", "adam" -> measures
    ceiling: float  # the cosine of the two halves of the reference


def probe(
    policy: Policy, settings: dict[str, Setting], rounds: int, reference_rounds: int,
    max_new_tokens: int,
) -> Findings:  # fmt: skip
    """Compare the estimates of every setting with the reference, at one policy.

    A policy without windows leaves out the settings that need them.
    rounds: estimates of each setting. reference_rounds: of both halves of the reference together.
    """
    halves = []
    for first_seed in (REFERENCE_SEED, 2 * REFERENCE_SEED):
        halves.append(estimate_reference(policy, reference_rounds // 2, first_seed, max_new_tokens))
    has_windows = bool(policy.windows)
    settings = {
        name: setting
        for name, setting in settings.items()
        if has_windows or bandit.ADVANTAGES[setting.advantage].needs != "window"
    }
    estimates = {name: [] for name in settings}
    for seed in tqdm(range(rounds), desc="rounds", disable=None):
        sampled = {}  # settings of one shape use the same rollouts, so that they compare in pairs
        for name, setting in settings.items():
            shape = setting.queries, setting.rollouts + setting.baseline_rollouts
            if shape not in sampled:
                sampled[shape] = sample_round(policy, *shape, seed, max_new_tokens)
            estimates[name].append(estimate(policy, setting, sampled[shape], max_new_tokens))

    reference = sum(halves) / 2
    found = {}
    for name, gradients in estimates.items():
        steps = [adam_step(gradient, policy.moments) for gradient in gradients]
        found[name] = {
            "gradient": describe(torch.stack(gradients), reference),
            "adam": describe(torch.stack(steps), reference),
        }
    return Findings(found, ceiling=cosine(*halves))


def estimate_reference(
    policy: Policy, rounds: int, first_seed: int, max_new_tokens: int
) -> torch.Tensor:
    """The mean of the reference's estimate over some rounds, [parameters]."""
    queries, n = REFERENCE.queries, REFERENCE.rollouts
    estimates = []
    for i in tqdm(range(rounds), desc="reference", disable=None):
        sampled = sample_round(policy, queries, n, first_seed + i, max_new_tokens)
        estimates.append(estimate(policy, REFERENCE, sampled, max_new_tokens))
    return torch.stack(estimates).mean(dim=0)


def load_policies(args: argparse.Namespace) -> Iterator[tuple[str, Policy]]:
    """Yield (name, policy): the base model, then the end of a run, which is made if need be."""
    queries = data.load(args.data, "train")
    base, tokenizer = models.load(args.model)
    models.set_threads(base)
    prompts = data.encode(tokenizer, queries)
    size = sum(p.numel() for p in base.parameters())
    moments = Moments(torch.zeros(size), torch.zeros(size), 0)
    yield "base", Policy(base.eval(), tokenizer, queries, prompts, {}, moments)

    folder = Path(args.run or Path(args.out) / "run")
    if not checkpoint.list_checkpoints(folder):
        batch_size = min(256, len(queries))
        train.main([
            "--model", args.model, "--data", args.data, "--out", str(folder),
            "--advantage", "window", "--window", str(WINDOW), "--batch-size", str(batch_size),
            "--rounds", str(args.run_rounds), "--max-new-tokens", str(args.max_new_tokens),
            "--eval-every", "0", "--eval-samples", "1",
        ])  # fmt: skip
    state = checkpoint.load_newest(folder)
    model, _ = models.load(args.model)
    optimizer.MasterWeights(model).load_state_dict(state["model"])
    by_weight = [row for _, row in sorted(state["optimizer"]["state"].items())]
    first = torch.cat([row["exp_avg"].reshape(-1) for row in by_weight])
    second = torch.cat([row["exp_avg_sq"].reshape(-1) for row in by_weight])
    # The run descended the loss; estimates ascend, so the first moment changes its sign.
    moments = Moments(-first, second, state["round"])
    windows = state["windows"]
    name = f"round {state['round']}"
    yield name, Policy(model.eval(), tokenizer, queries, prompts, windows, moments)


# --- the report -----------------------------------------------------------------------------------


def write_report(
    args: argparse.Namespace, found: dict[str, Findings], scores: dict[str, Scores]
) -> None:  # fmt: skip
    """Write probe.md, probe.csv and probe.png into args.out; print the first.

    found, scores: of each policy, what `probe` and `measure_scores` return.
    """
    folder = Path(args.out)
    headings = [f"{kind}: {measure}" for kind in ("gradient", "Adam") for measure in MEASURES]
    rows = []
    for policy, (settings, _) in found.items():
        for name, both in settings.items():
            values = [both[kind][measure] for kind in ("gradient", "adam") for measure in MEASURES]
            rows.append([policy, name, *values])
    with open(folder / "probe.csv", "w", newline="") as file:
        csv.writer(file).writerows([["policy", "setting", *headings], *rows])

    lines = [f"| policy | setting | {' | '.join(headings)} |", "|---" * 10 + "|"]
    for policy, findings in found.items():
        for _, name, *values in [row for row in rows if row[0] == policy]:
            shown = " | ".join(f"{value:.3f}" for value in values)
            lines.append(f"| {policy} | {name} | {shown} |")
        ceiling = f"ceiling: two halves of the reference | {findings.ceiling:.3f}"
        lines.append(f"| {policy} | {ceiling} |" + " |" * 7)
    more = " ".join(["", "--advantage", *args.advantage]) if args.advantage else ""
    command = (
        f"`python -m lab.probe --model {args.model} --data {args.data} --rounds {args.rounds} "
        f"--reference-rounds {args.reference_rounds}{more}`: {args.rounds} rounds of 256 rollouts "
        f"a setting, a reference of {256 * args.reference_rounds:,} rollouts."
    )
    paragraphs = [command, "\n".join(lines)]
    for policy, each in scores.items():
        right, squares = each.rewards > 0, each.squared_norms
        p, best = right.mean(), each.constant(squares)
        by_length, by_logprob = each.constant(each.lengths), each.constant(-each.logprobs)
        paragraphs.append(
            f"At {policy}: {p:.2f} of {SCORED} completions right; mean squared norm of the score "
            f"{squares[right].mean():,.0f} for right ones, {squares[~right].mean():,.0f} for wrong "
            f"ones; the constant baseline of least variance is {best:.2f}, the mean reward "
            f"{p:.2f}. With lengths in place of the squared norms (opo) the constant would be "
            f"{by_length:.2f}, with -log pi (least-variance) {by_logprob:.2f}."
        )
    text = "\n\n".join(paragraphs)
    (folder / "probe.md").write_text(text + "\n")
    draw(folder / "probe.png", found, list(settings_of(args)))
    print(text)


def draw(path: Path, found: dict[str, Findings], names: list[str]) -> None:
    """The cosine of one round with the reference, by setting: of the estimate, of Adam's step.

    names: of the settings, from top to bottom.
    """
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    styles = [(-0.15, curve.BLUE, "o"), (0.15, curve.ORANGE, "s")]  # one for each policy
    titles = {"gradient": "the estimate", "adam": "the step that Adam makes of it"}
    for panel, (kind, title) in zip(panels, titles.items(), strict=True):
        for style, (policy, findings) in zip(styles, found.items(), strict=True):
            offset, color, marker = style
            cosines = [both[kind]["a round"] for both in findings.settings.values()]
            places = [names.index(name) + offset for name in findings.settings]
            panel.plot(cosines, places, marker, color=color, label=policy)
            if kind == "gradient":
                panel.axvline(
                    findings.ceiling, color=color, linestyle=":", linewidth=1,
                    label=f"ceiling, {policy}",
                )  # fmt: skip
        panel.set(xlabel="mean cosine of one round with the reference", title=title)
        panel.axvline(0, color=curve.GREY, linewidth=0.8)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    panels[1].legend(*panels[0].get_legend_handles_labels(), fontsize=8)
    figure.savefig(path, dpi=110)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.FlagParser(description=__doc__.split("\n")[0])
    flag = parser.add_argument
    flag("--model", default="tiny-qwen2", help="a tiny model, a folder, a model of the hub")
    flag("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, tiny-sums, gsm8k, math or a path")
    flag("--run", help="the folder of a run with --advantage window (default: one is made)")
    flag("--run-rounds", type=int, default=30, help="rounds of the run that is made")
    flag("--rounds", type=int, default=24, help="estimates of each setting")
    flag("--reference-rounds", type=int, default=64,
         help="rounds of 256 rollouts for the reference, half of them for each of its two halves")
    flag("--max-new-tokens", type=int, default=64, help="truncate completions here")
    flag("--advantage", nargs="+", default=[], type=bandit.row_name, choices=bandit.ADVANTAGES,
         metavar="NAME", help="probe these rows of bandit.ADVANTAGES too, at 32 x 8")
    flag("--out", default="runs/probe", help="the folder of the report")
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace) -> dict[str, Setting]:
    """The settings of every report, then those that the flags add."""
    return SETTINGS | {f"32x8 {name}": Setting(32, 8, 0, name) for name in args.advantage}


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    found, scores = {}, {}
    try:
        if args.rounds < 2 or args.reference_rounds < 2 or args.run_rounds < 1:
            raise ValueError(
                "--rounds and --reference-rounds must be at least 2, --run-rounds at least 1"
            )
        Path(args.out).mkdir(parents=True, exist_ok=True)
        for name, policy in load_policies(args):
            found[name] = probe(
                policy, settings_of(args), args.rounds, args.reference_rounds, args.max_new_tokens
            )
            scores[name] = measure_scores(policy, args.max_new_tokens)
    except (ValueError, OSError) as error:
        sys.exit(f"probe.py: {error}")
    write_report(args, found, scores)


if __name__ == "__main__":
    main()
