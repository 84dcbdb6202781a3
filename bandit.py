"""The learner: rewards become advantages, advantages become a loss, the loss becomes one step.

    python -m lab.tabular       # the same functions on a bandit whose optimum is known

Reinforcement fine-tuning as a batched contextual bandit (arXiv:2601.22532): a query is a context, a
whole completion is an arm, its verdict is the reward. A round pulls n arms for each of B contexts
and takes one optimizer step along an estimate of

    E[A * grad log pi(completion | query)],   log pi(completion) = the sum of log pi of its tokens.

For A = R this is the gradient of the expected reward. Each design choice is a row of a table:
ADVANTAGES says what A is, LOSS_MEANS how tokens are averaged, KL_ESTIMATORS how the distance to the
base model is measured. Equation numbers refer to course/lecture.md.

Left out, and why: a value network, GAE and discounts (a bandit has one reward, at the end); dynamic
sampling and the overlong penalty (they change what is sampled or rewarded, before this file).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from infra import distributed, models
from infra.optimizer import clip_and_step
from infra.update_statistics import UpdateStatistics

EPSILON = 1e-6  # keeps a group without spread from dividing by zero, as in the paper's code

# --- 1. advantages: from the rewards of a round ---------------------------------------------------


class RoundRewards(NamedTuple):
    """All that an advantage may look at. n rollouts of each query are trained; m more serve
    statistics."""

    rewards: torch.Tensor  # [B, n + m], the trained rollouts first
    greedy: torch.Tensor | None = None  # [B], of the greedy completions; only remax reads it
    windows: list[list[float]] | None = None  # for each query its last rewards, this round's too
    lengths: torch.Tensor | None = None  # [B, n + m], tokens of each completion
    logprobs: torch.Tensor | None = None  # [B, n + m], log pi of each, as the sampler drew it


def lengths_and_logprobs(rollouts: list, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last two fields of RoundRewards, from the rollouts (of rollout.py) of B queries."""
    lengths = torch.tensor([float(len(one.tokens)) for one in rollouts])
    logprobs = torch.tensor([float(sum(one.logprobs)) for one in rollouts])
    return lengths.view(-1, group_size), logprobs.view(-1, group_size)


def zero_without_spread(advantages: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """The advantages [..., n], but exactly 0 where all rewards of the sample [..., k] are equal.

    A mean of equal rewards can be off by a rounding error, and `standardized` would divide that
    error by epsilon.
    """
    has_spread = sample.amax(-1, keepdim=True) > sample.amin(-1, keepdim=True)
    return torch.where(has_spread, advantages, 0.0)


def centered(rewards: torch.Tensor, sample: torch.Tensor | None = None) -> torch.Tensor:
    """rewards [..., n] minus the mean of the sample [..., k] (by default, of the rewards).

    With a group as the sample, this is the left of equation (5) (Dr. GRPO, arXiv:2503.20783).
    """
    sample = rewards if sample is None else sample
    return zero_without_spread(rewards - sample.mean(-1, keepdim=True), sample)


def standardized(rewards: torch.Tensor, sample: torch.Tensor | None = None) -> torch.Tensor:
    """(rewards [..., n] - mean) / (std + eps) of the sample [..., k]; the std divides by k - 1.

    With a group as the sample, this is equation (6) (GRPO, arXiv:2402.03300).
    """
    sample = rewards if sample is None else sample
    return centered(rewards, sample) / (sample.std(-1, keepdim=True) + EPSILON)


def over_batch(transform: Callable, rewards: torch.Tensor) -> torch.Tensor:
    """The transform of all rewards [B, n + m] of the round at once."""
    return transform(rewards.reshape(-1)).view_as(rewards)


def rloo(round_rewards: RoundRewards) -> torch.Tensor:
    """Each reward minus the mean of its group's others, [B, n + m]: equation (5), right."""
    rewards = round_rewards.rewards
    others = rewards.shape[1] - 1
    mean_of_others = (rewards.sum(dim=1, keepdim=True) - rewards) / others
    return zero_without_spread(rewards - mean_of_others, rewards)


def maxrl(round_rewards: RoundRewards) -> torch.Tensor:
    """(R - mean_G) / mean_G, [B, n + m]; 0 for a group without a right answer.

    It is derived for rewards of 1 and 0 only. As the group grows, the expected update becomes
    grad log p: that of maximum likelihood. Raises ValueError for a negative reward.
    """
    if (lowest := round_rewards.rewards.min()) < 0:
        raise ValueError(f"--advantage maxrl divides by the mean reward: none may be {lowest:g}")
    mean = round_rewards.rewards.mean(dim=1, keepdim=True)
    return torch.where(mean > 0, centered(round_rewards.rewards) / mean, 0.0)


def opo(round_rewards: RoundRewards) -> torch.Tensor:
    """Each reward minus its group's mean, in which a completion counts by its length, [B, n + m].

    This is the constant of least variance if the squared norm of a score grows with the length.
    """
    rewards, lengths = round_rewards.rewards, round_rewards.lengths
    mean = (lengths * rewards).sum(dim=1, keepdim=True) / lengths.sum(dim=1, keepdim=True)
    return zero_without_spread(rewards - mean, rewards)


def least_variance(round_rewards: RoundRewards) -> torch.Tensor:
    """Each reward minus a mean of its group's others, in which they count by -log pi, [B, n + m].

    The constant of least variance is E[R |score|^2] / E[|score|^2] (lecture, 4). The norm of a
    score needs a backward pass of its own. What the group shows of it is -log pi: the score of a
    token is small where its probability is near 1. `lab.probe` measures how well that does. The
    completion itself is left out of its mean, so the update stays unbiased.
    """
    rewards = round_rewards.rewards
    weights = EPSILON - round_rewards.logprobs
    others = weights.sum(dim=1, keepdim=True) - weights
    mean_of_others = ((weights * rewards).sum(dim=1, keepdim=True) - weights * rewards) / others
    return zero_without_spread(rewards - mean_of_others, rewards)


def window(round_rewards: RoundRewards) -> torch.Tensor:
    """Equation (6) with each query's window as the sample, [B, n + m].

    A window that holds a single reward has no spread to compare with: the raw reward stands.
    """
    rows = []
    for rewards, history in zip(round_rewards.rewards, round_rewards.windows, strict=True):
        sample = torch.tensor(history, dtype=rewards.dtype)
        rows.append(standardized(rewards, sample) if len(history) > 1 else rewards)
    return torch.stack(rows)


def window_mean(round_rewards: RoundRewards) -> torch.Tensor:
    """The mean of each query's window, [B, n + m]."""
    means = torch.tensor([sum(history) / len(history) for history in round_rewards.windows])
    return means[:, None].expand_as(round_rewards.rewards)


class Expected(NamedTuple):
    """What a row says of its expected update. tests/test_estimators.py holds it to that.

    The update is E[A * grad log pi] of a query of success rate p, where a right answer pays 1 and
    a wrong one 0 (-1 if the row needs "signs"). B is the number of queries in the batch, G that of
    rewards in the query's group or window.
    """

    kind: str  # "gradient", "reweighted" or "neither"
    weight: Callable[[float, int, int], float] | None  # w(p, G, B): the update is w * grad p
    reason: str = ""


def gradient_times(constant: Callable[[int, int], float]) -> Expected:
    """constant(G, B) * grad p for each query: the gradient of the objective, up to a factor."""
    return Expected("gradient", lambda p, G, B: constant(G, B))


def reweighted(weight: Callable[[float, int, int], float] | None = None) -> Expected:
    """w(p, G, B) * grad p with w > 0: some queries count more. None: w has no closed form."""
    return Expected("reweighted", weight)


def neither(reason: str, weight: Callable[[float, int, int], float]) -> Expected:
    """No multiple of grad p, for this reason. The weight holds where all completions are equally
    long and equally likely."""
    return Expected("neither", weight, reason)


def binomial(right: int, draws: int, rate: float) -> float:
    """The chance that `right` of `draws` are right, each with chance `rate`."""
    return math.comb(draws, right) * rate**right * (1 - rate) ** (draws - right)


def standardized_weight(p: float, G: int, B: int = 1) -> float:
    """w(p) of equation (6): (1 - 1/G) * E[std of the group] / (p (1 - p)). A group of one: 1."""
    stds = [math.sqrt(right * (G - right) / (G * max(1, G - 1))) for right in range(G + 1)]
    mean = sum(binomial(right, G, p) * std for right, std in enumerate(stds))
    return (1 - 1 / G) * mean / (p * (1 - p)) if G > 1 else 1.0


class Advantage(NamedTuple):
    """One row of the table. In formulas G is the query's group, B the batch, W the window."""

    compute: Callable[[RoundRewards], torch.Tensor]  # [B, n + m]
    # What it must be given: several rewards of a "group" or a "batch"; a group with wrong answers
    # at 0 ("rate"); a "window"; the "greedy" completion; rewards of both "signs"; or nothing, "".
    needs: str
    formula: str
    source: str
    expected: Expected  # the update
    needs_spread: bool = False  # whether two or more equal rewards give exactly 0


# To add an advantage, add a row and run tests/test_estimators.py (docs/your_own.md).
ADVANTAGES = {
    "reward": Advantage(lambda r: r.rewards, "", "R", "the paper's baseline, arXiv:2601.22532",
                        gradient_times(lambda G, B: 1)),
    "group": Advantage(lambda r: standardized(r.rewards), "group",
                       "(R - mean_G) / (std_G + eps)", "GRPO, arXiv:2402.03300",
                       reweighted(standardized_weight), needs_spread=True),
    "group-centered": Advantage(lambda r: centered(r.rewards), "group", "R - mean_G",
                                "Dr. GRPO, arXiv:2503.20783 (with --loss-mean constant)",
                                gradient_times(lambda G, B: 1 - 1 / G), needs_spread=True),
    "rloo": Advantage(rloo, "group", "R - mean of the others", "RLOO, arXiv:2402.14740",
                      gradient_times(lambda G, B: 1), needs_spread=True),
    "maxrl": Advantage(maxrl, "rate", "(R - mean_G) / mean_G", "MaxRL, arXiv:2602.02710",
                       reweighted(lambda p, G, B: (1 - (1 - p) ** (G - 1)) / p),
                       needs_spread=True),
    "opo": Advantage(opo, "group", "R - sum(L R) / sum(L) of G, L: tokens", "arXiv:2505.23585",
                     neither("the mean contains R itself, more of it the longer it is",
                             lambda p, G, B: 1 - 1 / G), needs_spread=True),
    "least-variance": Advantage(least_variance, "group",
                                "R - sum(S R) / sum(S) of the others, S: -log pi", "lecture, 4",
                                gradient_times(lambda G, B: 1), needs_spread=True),
    "remax": Advantage(lambda r: r.rewards - r.greedy[:, None], "greedy",
                       "R - R(greedy)", "arXiv:2310.10505", gradient_times(lambda G, B: 1)),
    "batch-centered": Advantage(lambda r: over_batch(centered, r.rewards), "batch",
                                "R - mean_B", "Williams 1992",
                                gradient_times(lambda G, B: 1 - 1 / (G * B)), needs_spread=True),
    "reinforce++": Advantage(lambda r: over_batch(standardized, r.rewards), "batch",
                             "(R - mean_B) / (std_B + eps)", "arXiv:2501.03262",
                             reweighted(), needs_spread=True),
    "reinforce++-baseline": Advantage(lambda r: over_batch(standardized, centered(r.rewards)),
                                      "group", "R - mean_G, standardized over B",
                                      "arXiv:2501.03262", reweighted(), needs_spread=True),
    "lite-ppo": Advantage(lambda r: centered(r.rewards) / (r.rewards.std() + EPSILON), "group",
                          "(R - mean_G) / (std_B + eps)",
                          "arXiv:2508.08221 (with --loss-mean token)", reweighted(),
                          needs_spread=True),
    "raft": Advantage(lambda r: r.rewards.clamp(min=0), "signs", "max(R, 0), also called psr",
                      "RAFT, arXiv:2504.11343; PSR, arXiv:2506.01347",
                      gradient_times(lambda G, B: 1)),
    "nsr": Advantage(lambda r: r.rewards.clamp(max=0), "signs", "R where R < 0, else 0",
                     "arXiv:2506.01347", gradient_times(lambda G, B: 1)),
    "w-reinforce": Advantage(lambda r: torch.where(r.rewards > 0, 0.1 * r.rewards, r.rewards),
                             "signs", "0.1 R where R > 0, else R", "arXiv:2506.01347",
                             gradient_times(lambda G, B: 1.1)),
    "reinforce-rej": Advantage(lambda r: zero_without_spread(r.rewards, r.rewards), "group",
                               "R; 0 where G is all right or wrong", "arXiv:2504.11343",
                               reweighted(lambda p, G, B: 1 - p ** (G - 1)), needs_spread=True),
    "window": Advantage(window, "window", "(R - mean_W) / (std_W + eps)", "arXiv:2601.22532",
                        reweighted(standardized_weight), needs_spread=True),
    # These two are in the code of the paper's authors and in none of its experiments. A mean in
    # the reward's place knows of a completion only its own share of that mean.
    "group-mean": Advantage(lambda r: r.rewards.mean(dim=1, keepdim=True).expand_as(r.rewards),
                            "group", "mean_G", "the paper's code, in no experiment",
                            gradient_times(lambda G, B: 1 / G)),
    "window-mean": Advantage(window_mean, "window", "mean_W",
                             "the paper's code, in no experiment",
                             gradient_times(lambda G, B: 1 / G)),
}
OTHER_NAMES = {"psr": "raft", "grpo": "group"}  # the same row under another name


def row_name(name: str) -> str:
    """The name of an advantage as the table has it."""
    return OTHER_NAMES.get(name, name)


def advantages(name: str, round_rewards: RoundRewards, n: int) -> torch.Tensor:
    """The advantages [B, n] of the trained rollouts; the others only enter the statistics."""
    return ADVANTAGES[name].compute(round_rewards)[:, :n]


def remember(
    windows: dict[str, list[float]], prompts: Iterable[str], rewards: torch.Tensor, size: int
) -> list[list[float]]:
    """Put the rewards [B, n] of a round into the windows; return the B windows of its queries.

    They take the group's place in equation (6).
    windows: the last `size` rewards of each prompt, changed in place; with size 0 nothing is kept.
    All new rewards enter before any window is read.
    """
    if size == 0:
        return []
    for prompt, new in zip(prompts, rewards.tolist(), strict=True):
        windows[prompt] = (windows.get(prompt, []) + new)[-size:]
    return [windows[prompt] for prompt in prompts]


# --- 2. the loss: from the log-probabilities of tokens --------------------------------------------

# Equation (8): the weight of each token of a completion, [N], from the lengths [N] of all N
# completions of the round. T is --max-new-tokens.
LOSS_MEANS = {
    # One mean over all tokens: long completions weigh more (the paper's; DAPO, arXiv:2503.14476).
    "token": lambda lengths, T: torch.full((len(lengths),), 1 / lengths.sum().item()),
    # The mean over completions of the mean within each: all completions weigh the same (GRPO).
    "sequence": lambda lengths, T: 1 / (len(lengths) * lengths.float()),
    # A sum over a constant: the only one with the objective's gradient, up to a factor (Dr. GRPO).
    "constant": lambda lengths, T: torch.full((len(lengths),), 1 / (len(lengths) * T)),
}

# Equation (9), of d = log pi - log pi_ref of tokens sampled from pi (Schulman; arXiv:2510.01555).
# As numbers, k1 and k3 are unbiased estimates of KL(pi||ref), and k3 is never negative. In the loss
# (for a completion, or a token with its prefix held fixed) their expected gradients differ.
KL_ESTIMATORS = {
    "k1": lambda d: d,  # expected gradient: zero
    "k2": lambda d: d**2 / 2,  # expected gradient: that of KL(pi||ref)
    "k3": lambda d: torch.exp(-d) + d - 1,  # expected gradient: that of KL(ref||pi)
}


def loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor,
    weights: torch.Tensor, clip_low: float = 0.2, clip_high: float = 0.2, kl: float = 0.0,
    kl_estimator: str = "k3", reference_logprobs: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Equation (7), a scalar to descend. All tensors are [tokens], completion after completion.

    logprobs: of the policy, with gradient; old_logprobs: of the policy that sampled, without.
    weights: from LOSS_MEANS, so that the losses of micro-batches add up to the loss of the round.
    reference_logprobs: of the base model, needed if kl > 0.

    The value says nothing about learning: with one step a round the ratio is 1, and the value is
    minus the sum of weights * A (plus the KL term). Its gradient is that of -weights * A * log pi.
    The clip is PPO's (arXiv:1707.06347). It can only bind after the first of several steps.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = -torch.minimum(ratio * advantages, clipped * advantages)
    if kl:
        distance = logprobs - reference_logprobs
        per_token = per_token + kl * KL_ESTIMATORS[kl_estimator](distance)
    return (weights * per_token).sum()


# --- 3. the log-probabilities of completions: one forward pass, with gradient ---------------------

LOGITS_AT_A_TIME = 2**26  # 256 MB in float32


def completion_logprobs(
    model: PreTrainedModel, prompts: list[list[int]], completions: list[list[int]],
    temperature: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """The log-probability of every completion token, [tokens], completion after completion.

    These are the terms of equation (3), the end-of-sequence token included. Rows are padded on the
    right: with causal attention no real token sees the padding, positions count from 0, and the
    mask below never picks it, whatever its id.
    """
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    is_completion = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, : lengths[row]] = torch.tensor(prompt + completion)
        is_completion[row, len(prompt) : lengths[row]] = True
    ids, is_completion = ids.to(model.device), is_completion.to(model.device)
    output = model.get_decoder()(input_ids=ids, use_cache=False)
    # The hidden state at one place predicts the token at the next.
    hidden = output.last_hidden_state[:, :-1][is_completion[:, 1:]]
    targets = ids[is_completion]

    def logprobs_of(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = models.logits_of(model, output, hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    # All logits [rows, length, vocabulary] at once would be the largest tensor by far. So the head
    # is applied to the completion tokens only, a piece at a time, and again in the backward pass.
    piece = max(1, LOGITS_AT_A_TIME // model.get_output_embeddings().weight.shape[0])
    if len(targets) <= piece:
        return logprobs_of(hidden, targets)
    pieces = zip(hidden.split(piece), targets.split(piece), strict=True)
    return torch.cat([checkpoint(logprobs_of, h, t, use_reentrant=False) for h, t in pieces])


def micro_batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Row numbers in groups of similar length, each at most `budget` tokens with its padding.

    A row that is longer than the budget has a group of its own.
    """
    groups = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        # Rows come in order of length, so this row sets the width of the group that it joins.
        if groups and lengths[row] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


# --- 4. the update of a language model ------------------------------------------------------------

MAX_CORRECTION = 2.0  # the cap of --correct-sampler


class UpdateConfig(NamedTuple):
    """The flags of train.py that the update reads, under the same names."""

    loss_mean: str = "token"
    max_new_tokens: int = 1  # the constant of --loss-mean constant
    temperature: float = 1.0
    epochs_per_round: int = 1  # optimizer steps on the same rollouts
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.0
    kl_estimator: str = "k3"
    max_grad_norm: float = 1.0
    micro_tokens: int = 2048
    correct_sampler: bool = False


class UpdateBatch(NamedTuple):
    """N completions to learn from."""

    prompts: list[list[int]]  # N lists of token ids
    completions: list[list[int]]  # N lists of token ids
    advantages: torch.Tensor  # [N]
    sampler_logprobs: list[list[float]] | None = None  # of each token, from the sampler


@dataclass
class MicroBatch:
    """Completions that go through the model together. Tensors are [tokens]."""

    prompts: list[list[int]]
    completions: list[list[int]]
    advantages: torch.Tensor
    weights: torch.Tensor
    sampler_logprobs: torch.Tensor | None
    old_logprobs: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None

    def keep_old_logprobs(self, logprobs: torch.Tensor) -> None:
        """Before the first step the policy is still the one that sampled.

        The other tensors move to the device of its log-probabilities.
        """
        self.old_logprobs = logprobs.detach()
        self.advantages = self.advantages.to(logprobs)  # its device and number format
        self.weights = self.weights.to(logprobs)


def update(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: UpdateBatch,
    config: UpdateConfig = UpdateConfig(), reference: PreTrainedModel | None = None,
) -> dict[str, float | None]:  # fmt: skip
    """One optimizer step (or config.epochs_per_round) along equation (2); changes the weights.

    reference: the base model, needed if config.kl > 0.
    With several processes each is given the whole round and runs its part of it.
    Returns the figures of UpdateStatistics, and the norms of the gradient and of the last step.
    Raises ValueError if the gradient is not finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = split_round(batch, config)
    all_tokens = sum(len(completion) for completion in batch.completions)
    statistics = UpdateStatistics(all_tokens, has_kl=bool(config.kl))
    for epoch in range(config.epochs_per_round):
        # Zeros instead of None: a round without any gradient still steps (momentum, weight decay).
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

        for part in parts:
            logprobs = completion_logprobs(
                model, part.prompts, part.completions, config.temperature
            )
            if epoch == 0:
                part.keep_old_logprobs(logprobs)
                compare_with_sampler(part, config, statistics)
                compare_with_reference(part, reference, config, statistics)
            value = loss(
                logprobs, part.old_logprobs, part.advantages, part.weights, config.clip_low,
                config.clip_high, config.kl, config.kl_estimator, part.reference_logprobs,
            )  # fmt: skip
            value.backward()
            statistics.loss += value.item() / config.epochs_per_round

        distributed.all_reduce_sum([parameter.grad for parameter in parameters])
        norms = clip_and_step(optimizer, parameters, config.max_grad_norm)
    optimizer.zero_grad()
    return statistics.over_all_processes(norms)


def split_round(batch: UpdateBatch, config: UpdateConfig) -> list[MicroBatch]:
    """This process's micro-batches of a round.

    Completions of advantage 0 are run only if there is a KL term; they always count in the mean.
    """
    lengths = torch.tensor([len(completion) for completion in batch.completions])
    totals = [len(p) + len(c) for p, c in zip(batch.prompts, batch.completions, strict=True)]
    weights = LOSS_MEANS[config.loss_mean](lengths, config.max_new_tokens)
    used = [i for i in range(len(totals)) if config.kl or batch.advantages[i] != 0]
    used = distributed.shard(sorted(used, key=lambda i: totals[i]))

    parts = []
    for group in micro_batches([totals[i] for i in used], config.micro_tokens):
        rows = [used[i] for i in group]
        # Each token takes the advantage and the weight of its completion.
        owner = torch.tensor(rows).repeat_interleave(lengths[rows])
        sampler_logprobs = None
        if batch.sampler_logprobs:
            sampler_logprobs = torch.tensor([x for i in rows for x in batch.sampler_logprobs[i]])
        parts.append(MicroBatch(
            [batch.prompts[i] for i in rows], [batch.completions[i] for i in rows],
            batch.advantages[owner], weights[owner], sampler_logprobs,
        ))  # fmt: skip
    return parts


def compare_with_sampler(
    part: MicroBatch, config: UpdateConfig, statistics: UpdateStatistics
) -> None:
    """Log how far sampler and trainer differ; --correct-sampler also changes part.weights.

    The two round differently. --correct-sampler weights each token by how much likelier it is in
    the update than in the sampler, up to a cap (truncated importance sampling, Ionides 2008).
    """
    if part.sampler_logprobs is None:
        return
    mismatch = part.old_logprobs - part.sampler_logprobs.to(part.old_logprobs)
    statistics.add_mismatch(mismatch)
    if config.correct_sampler:
        part.weights = part.weights * mismatch.exp().clamp(max=MAX_CORRECTION)


def compare_with_reference(
    part: MicroBatch, reference: PreTrainedModel | None, config: UpdateConfig,
    statistics: UpdateStatistics,
) -> None:  # fmt: skip
    """With a KL term: set part.reference_logprobs for the loss, and add their k3 to the log."""
    if not config.kl:
        return
    with torch.no_grad():
        part.reference_logprobs = completion_logprobs(
            reference, part.prompts, part.completions, config.temperature
        )
    distance = part.old_logprobs - part.reference_logprobs
    statistics.kl += KL_ESTIMATORS["k3"](distance).sum().item()
