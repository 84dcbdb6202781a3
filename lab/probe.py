"""Why a design choice helps or not: the gradient estimates themselves, at a fixed policy, instead of curves.

    python probe.py                     # base model and half-way through a run; minutes; writes runs/probe/probe.md

A setting turns the rollouts of one round into one estimate g of the policy gradient. At a fixed policy many
independent rounds, each of 256 sampled rollouts, tell how good an estimate it is, against a reference: the gradient
of the objective, the expected reward of a completion, estimated without bias (RLOO, tokens summed) from thousands of
other rollouts.

    cosine    between the mean of the estimates and the reference; the cosine of two references is the ceiling
    a round   the mean cosine of single estimates: what one update sees
    SNR       |E g|^2 / (sum of the variances), without the bias of a finite number of rounds
    uphill    share of the rounds whose estimate has a positive product with the reference

The same for the step that Adam makes of each estimate: at the base model its first (nearly the sign of g), half-way
with the moments that the run has gathered. Half-way is after 30 rounds of 256 x 1 with a window of 8, whose histories
serve the window's advantage; at the base no query has one, where that advantage is the raw reward.

Beside them, why it may not help to subtract the mean reward: the variance of (R - b) * score, where the score is the
gradient of a completion's log-probability, is least at b = E[R |score|^2] / E[|score|^2], which lies far below the mean
reward where wrong completions have the larger scores.
"""

import copy
import csv
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import bandit  # noqa: E402
import checkpoint  # noqa: E402
import data  # noqa: E402
import evaluate  # noqa: E402
import optimizer  # noqa: E402
import report  # noqa: E402
import rollout  # noqa: E402
import train  # noqa: E402


class Setting(NamedTuple):
    queries: int
    rollouts: int  # trained ones of each query
    extra: int  # more, for the statistics only
    advantage: str
    loss_mean: str = "token"


SETTINGS = {  # each of 256 rollouts a round
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


class Recorder:
    """In the optimizer's place: keeps the gradient that bandit.update would have stepped along."""

    def __init__(self, model):
        self.model, self.param_groups = model, [{"params": list(model.parameters())}]

    def step(self):
        self.gradient = torch.cat([p.grad.reshape(-1) for p in self.model.parameters()]).clone()

    def zero_grad(self):
        for p in self.model.parameters():
            p.grad = None


class Policy(NamedTuple):
    model: object
    tokenizer: object
    queries: list
    prompts: list
    windows: dict  # prompt text -> its last rewards
    moments: tuple  # (first, second moment of Adam, flat; steps taken)


def draw(policy, queries, n, seed, length):
    """The rollouts of one round: (indices of the queries, rollouts, rewards [queries, n])."""
    chosen = np.random.default_rng([seed, 0]).choice(len(policy.queries), queries, replace=False)
    rollouts = rollout.sample(policy.model, [policy.prompts[i] for i in chosen], n, max_new_tokens=length, seed=seed,
                              end_ids=rollout.end_ids(policy.model, policy.tokenizer))
    right, _, _ = evaluate.judge(policy.tokenizer, [policy.queries[i] for i in chosen], rollouts)
    return chosen, rollouts, torch.tensor(right, dtype=torch.float32).view(queries, n)


def estimate(policy, setting, chosen, rollouts, rewards, length):
    """The ascent direction [parameters] of one round: minus the gradient of the loss, before any clipping."""
    n, windows = setting.rollouts + setting.extra, None
    if setting.advantage == "window":
        windows = bandit.remember(copy.deepcopy(policy.windows), [policy.queries[i].prompt for i in chosen], rewards, 8)
    advantage = bandit.advantages(setting.advantage, bandit.Pulls(rewards, None, windows), setting.rollouts)
    trained = [i for i in range(len(rollouts)) if i % n < setting.rollouts]
    recorder = Recorder(policy.model)
    bandit.update(policy.model, recorder, [policy.prompts[chosen[i // n]] for i in trained],
                  [rollouts[i].tokens for i in trained], advantage.reshape(-1), loss_mean=setting.loss_mean,
                  longest=length, max_grad_norm=float("inf"))
    return -recorder.gradient


def score_norms(policy, length, count=256):
    """(share right, mean squared norm of the score of the right completions, of the wrong ones), one rollout each: they
    give the constant b of least variance that equation (4) of the README leaves free."""
    chosen, rollouts, rewards = draw(policy, count, 1, 10**7, length)
    norms, recorder = [], Recorder(policy.model)
    for i, one in zip(chosen, rollouts, strict=True):
        bandit.update(policy.model, recorder, [policy.prompts[i]], [one.tokens], torch.ones(1), loss_mean="constant",
                      max_grad_norm=float("inf"))
        norms.append(recorder.gradient.square().sum().item())
    norms, right = np.array(norms), rewards.numpy().ravel() > 0
    return right.mean(), norms[right].mean(), norms[~right].mean()


def adam_step(gradient, moments, max_grad_norm=1.0, betas=(0.9, 0.999), eps=1e-8):
    """The step that Adam makes of an ascent direction, up to the learning rate (arXiv:1412.6980), as train.py does:
    clipped first, with the moments gathered so far."""
    first, second, steps = moments
    gradient = gradient * min(1, max_grad_norm / (gradient.norm().item() + 1e-6))
    first = betas[0] * first + (1 - betas[0]) * gradient
    second = betas[1] * second + (1 - betas[1]) * gradient**2
    steps += 1
    return first / (1 - betas[0]**steps) / ((second / (1 - betas[1]**steps)).sqrt() + eps)


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm()).clamp(min=1e-30)).item()


def describe(estimates, reference):
    """{cosine, a round, SNR, uphill} of estimates [rounds, parameters] against a reference [parameters]."""
    mean, noise = estimates.mean(dim=0), estimates.var(dim=0).sum()
    signal = mean @ mean - noise / len(estimates)  # less what the noise of a finite mean adds
    return {"cosine": cosine(mean, reference), "a round": float(np.mean([cosine(g, reference) for g in estimates])),
            "SNR": (signal / noise).item(), "uphill": (estimates @ reference > 0).float().mean().item()}


def probe(policy, rounds, reference_rounds, length, with_windows):
    """({setting: {"gradient" and "adam": what describe says}}, the ceiling of the cosine)."""
    references = [torch.stack([estimate(policy, REFERENCE, *draw(policy, 32, 8, 10**6 * half + i, length), length)
                               for i in tqdm(range(reference_rounds // 2), desc="reference", disable=None)]).mean(dim=0)
                  for half in (1, 2)]
    settings = {name: s for name, s in SETTINGS.items() if with_windows or s.advantage != "window"}
    estimates = {name: [] for name in settings}
    for i in tqdm(range(rounds), desc="rounds", disable=None):
        drawn = {}  # settings of one shape see the same rollouts: paired
        for name, setting in settings.items():
            shape = setting.queries, setting.rollouts + setting.extra
            if shape not in drawn:
                drawn[shape] = draw(policy, *shape, seed=i, length=length)
            estimates[name].append(estimate(policy, setting, *drawn[shape], length))
    reference = sum(references) / 2
    return {name: {"gradient": describe(torch.stack(many), reference),
                   "adam": describe(torch.stack([adam_step(g, policy.moments) for g in many]), reference)}
            for name, many in estimates.items()}, cosine(*references)


def policies(args):
    """The base model, and the policy of a run at its end (made here where --run names none)."""
    queries = data.load(args.data, "train")
    base, tokenizer = rollout.load(args.model)
    rollout.use_threads(base)
    prompts = data.encode(tokenizer, queries)
    size = sum(p.numel() for p in base.parameters())
    yield "base", Policy(base.eval(), tokenizer, queries, prompts, {}, (torch.zeros(size), torch.zeros(size), 0))
    folder = Path(args.run or Path(args.out) / "run")
    if not checkpoint.paths(folder):
        train.main(["--model", args.model, "--data", args.data, "--max-new-tokens", str(args.max_new_tokens),
                    "--advantage", "window", "--window", "8", "--batch-size", str(min(256, len(queries))), "--rounds",
                    str(args.run_rounds), "--eval-every", "0", "--eval-samples", "1", "--out", str(folder)])
    state = checkpoint.newest(folder)
    model, _ = rollout.load(args.model)
    optimizer.Masters(model).load_state_dict(state["model"])
    moments = [torch.cat([row[key].reshape(-1) for _, row in sorted(state["optimizer"]["state"].items())])
               for key in ("exp_avg", "exp_avg_sq")]
    yield f"round {state['round']}", Policy(model.eval(), tokenizer, queries, prompts, state["windows"],
                                            (-moments[0], moments[1], state["round"]))  # ascent, as estimates are


def main():
    parser = data.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny-qwen2")
    parser.add_argument("--data", default="tiny-gsm")
    parser.add_argument("--run", help="the folder of a run with --advantage window (default: one is made)")
    parser.add_argument("--run-rounds", type=int, default=30, help="rounds of the run that is made (default: 30)")
    parser.add_argument("--rounds", type=int, default=24, help="estimates of each setting (default: %(default)s)")
    parser.add_argument("--reference-rounds", type=int, default=64, help="rounds of 256 rollouts of the reference, "
                        "half of them in each of its two halves (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--out", default="runs/probe", help="the folder of the table and the figure")
    args = parser.parse_args()
    try:
        if args.rounds < 2 or args.reference_rounds < 2 or args.run_rounds < 1:
            raise ValueError("--rounds and --reference-rounds must be at least 2, --run-rounds at least 1")
        Path(args.out).mkdir(parents=True, exist_ok=True)
        found, scores = {}, {}
        for name, policy in policies(args):
            found[name] = probe(policy, args.rounds, args.reference_rounds, args.max_new_tokens, bool(policy.windows))
            scores[name] = score_norms(policy, args.max_new_tokens)
    except (ValueError, OSError) as error:
        sys.exit(f"probe.py: {error}")
    write(found, scores, args)


def write(found, scores, args):
    """probe.md, probe.csv and probe.png."""
    keys = ("cosine", "a round", "SNR", "uphill")
    heads = [f"{kind}: {key}" for kind in ("gradient", "Adam") for key in keys]
    lines = ["| policy | setting | " + " | ".join(heads) + " |", "|---" * 10 + "|"]
    with open(Path(args.out) / "probe.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["policy", "setting", *heads])
        for policy, (settings, ceiling) in found.items():
            for name, both in settings.items():
                values = [both[kind][key] for kind in ("gradient", "adam") for key in keys]
                rows.writerow([policy, name, *values])
                lines.append(f"| {policy} | {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
            lines.append(f"| {policy} | ceiling: two halves of the reference | {ceiling:.3f} |" + " |" * 7)
    text = (f"`python probe.py --model {args.model} --data {args.data} --rounds {args.rounds} --reference-rounds "
            f"{args.reference_rounds}`: {args.rounds} rounds of 256 rollouts a setting, a reference of "
            f"{256 * args.reference_rounds:,} rollouts.\n\n" + "\n".join(lines))
    for policy, (p, right, wrong) in scores.items():
        best = p * right / (p * right + (1 - p) * wrong)
        text += (f"\n\nAt {policy}: {p:.2f} of 256 completions right; mean squared norm of the score {right:,.0f} for "
                 f"right ones, {wrong:,.0f} for wrong ones; the constant baseline of least variance is {best:.2f}, the "
                 f"mean reward {p:.2f}.")
    (Path(args.out) / "probe.md").write_text(text + "\n")
    drawing, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for panel, kind, title in zip(panels, ("gradient", "adam"), ("the estimate", "the step that Adam makes of it"),
                                  strict=True):
        for offset, (policy, (settings, ceiling)) in zip((-0.15, 0.15), found.items(), strict=True):
            color, marker = (report.BLUE, "o") if offset < 0 else (report.ORANGE, "s")
            places = [list(SETTINGS).index(name) + offset for name in settings]
            panel.plot([both[kind]["a round"] for both in settings.values()], places, marker, color=color, label=policy)
            if kind == "gradient":
                panel.axvline(ceiling, color=color, linestyle=":", linewidth=1, label=f"ceiling, {policy}")
        panel.set(xlabel="mean cosine of one round with the reference", title=title)
        panel.axvline(0, color=report.GREY, linewidth=0.8)
    panels[0].set_yticks(range(len(SETTINGS)), list(SETTINGS))
    panels[0].invert_yaxis()
    panels[1].legend(*panels[0].get_legend_handles_labels(), fontsize=8)
    drawing.savefig(Path(args.out) / "probe.png", dpi=110)
    print(text)


if __name__ == "__main__":
    main()
