"""The learner: rewards become advantages, advantages become a loss, the loss becomes one step of the policy.

    python tabular.py       # these functions on a tabular bandit whose optimum is known: theory beside practice

Reinforcement fine-tuning as a batched contextual bandit (arXiv:2601.22532): a query is a context, a whole completion
an arm, its verdict the reward. One round pulls n arms for each of B contexts and takes one AdamW step on an estimate of
    E[A * grad log pi(completion | query)],    log pi(completion) = sum of the log pi of its tokens,
which is the gradient of the expected reward for A = R.
Every design choice is one line of a table below: ADVANTAGES (what A is), LOSS_MEANS (how tokens are averaged),
KL_ESTIMATORS (how far from the base model the policy is).

Left out, with reason: a value network, GAE and discounts (one reward, at the end: a bandit has no later states);
dynamic sampling and the overlong penalty (they change what is sampled or rewarded, not what is done with it).
"""

from types import SimpleNamespace
from typing import NamedTuple

import torch

from likelihood import completion_logprobs, parts

EPSILON = 1e-6  # keeps a group without spread from dividing by zero, as in the paper's code


# --- 1. advantages ----------------------------------------------------------------------------------------------


class Pulls(NamedTuple):
    """The rewards of one round."""

    rewards: torch.Tensor  # [B, n + m]: n trained rollouts of each query, then m extra ones for the statistics only
    greedy: torch.Tensor | None = None  # [B]: reward of the greedy completion, for remax
    windows: list | None = None  # B lists: the last rewards of each query, this round's included, for window


def centered(rewards, sample=None):
    """rewards [..., n] - mean of the sample [..., k] (default: themselves): of a group, the left of equation (5) of the
    README (Dr. GRPO, arXiv:2503.20783). Exactly 0 where the sample has no spread: the rounding of a mean of 0.1s,
    divided by a std of 0 and epsilon, would be an advantage."""
    sample = rewards if sample is None else sample
    spread = sample.amax(-1, keepdim=True) > sample.amin(-1, keepdim=True)
    return torch.where(spread, rewards - sample.mean(-1, keepdim=True), 0.0)


def standardized(rewards, sample=None):
    """(rewards [..., n] - mean) / (std + eps) of the sample [..., k], equation (6) (GRPO, arXiv:2402.03300); the std
    is divided by k - 1."""
    sample = rewards if sample is None else sample
    return centered(rewards, sample) / (sample.std(-1, keepdim=True) + EPSILON)


def over_batch(transform, rewards):
    """The transform of all rewards [B, n + m] at once."""
    return transform(rewards.reshape(-1)).view_as(rewards)


def rloo(pulls):
    """The right of equation (5), [B, n + m]: the reward less the mean of the others of its group."""
    others = pulls.rewards.shape[1] - 1
    return pulls.rewards - (pulls.rewards.sum(dim=1, keepdim=True) - pulls.rewards) / others


def mixed_groups(pulls):
    """[B, 1] of bool: whether a query has right and wrong rollouts."""
    right = pulls.rewards == pulls.rewards.max()
    return right.any(dim=1, keepdim=True) & ~right.all(dim=1, keepdim=True)


def window(pulls):
    """Equation (6) with the statistics of each query's window in the group's place, [B, n + m]."""
    rows = [(rewards, torch.tensor(history, dtype=rewards.dtype))
            for rewards, history in zip(pulls.rewards, pulls.windows, strict=True)]
    return torch.stack([standardized(rewards, history) if len(history) > 1 else rewards  # alone: the raw reward
                        for rewards, history in rows])


def window_mean(pulls):
    """The mean of each query's window, [B, n + m]."""
    means = torch.tensor([sum(history) / len(history) for history in pulls.windows])
    return means[:, None].expand_as(pulls.rewards)


class Advantage(NamedTuple):
    compute: object  # Pulls -> [B, n + m]
    needs: str  # "group": several rewards a query; "batch": several a round; "greedy", "window", "signs"; or ""
    formula: str
    source: str


ADVANTAGES = {
    "reward": Advantage(lambda p: p.rewards, "", "R", "the paper's baseline, arXiv:2601.22532"),
    "group": Advantage(lambda p: standardized(p.rewards), "group", "(R - mean_G) / (std_G + eps)",
                       "GRPO, arXiv:2402.03300"),
    "group-centered": Advantage(lambda p: centered(p.rewards), "group", "R - mean_G",
                                "Dr. GRPO, arXiv:2503.20783 (with --loss-mean constant)"),
    "rloo": Advantage(rloo, "group", "R - mean of the others", "RLOO, arXiv:2402.14740"),
    "remax": Advantage(lambda p: p.rewards - p.greedy[:, None], "greedy", "R - R(greedy)", "arXiv:2310.10505"),
    "batch-centered": Advantage(lambda p: over_batch(centered, p.rewards), "batch", "R - mean_B", "Williams 1992"),
    "reinforce++": Advantage(lambda p: over_batch(standardized, p.rewards), "batch", "(R - mean_B) / (std_B + eps)",
                             "arXiv:2501.03262"),
    "reinforce++-baseline": Advantage(lambda p: over_batch(standardized, centered(p.rewards)), "group",
                                      "R - mean_G, whitened over the batch", "arXiv:2501.03262"),
    "lite-ppo": Advantage(lambda p: centered(p.rewards) / (p.rewards.std() + EPSILON), "group",
                          "(R - mean_G) / (std_B + eps)", "arXiv:2508.08221 (with --loss-mean token)"),
    "raft": Advantage(lambda p: p.rewards.clamp(min=0), "signs", "max(R, 0)", "arXiv:2504.11343"),
    "reinforce-rej": Advantage(lambda p: p.rewards * mixed_groups(p), "group", "R, 0 where G is all right or wrong",
                               "arXiv:2504.11343"),
    "psr": Advantage(lambda p: p.rewards.clamp(min=0), "signs", "R where R > 0 (raft by another name)",
                     "arXiv:2506.01347"),
    "nsr": Advantage(lambda p: p.rewards.clamp(max=0), "signs", "R where R < 0", "arXiv:2506.01347"),
    "w-reinforce": Advantage(lambda p: torch.where(p.rewards > 0, 0.1 * p.rewards, p.rewards), "signs",
                             "0.1 R where R > 0, else R", "arXiv:2506.01347"),
    "window": Advantage(window, "window", "(R - mean_W) / (std_W + eps)", "arXiv:2601.22532"),
    "group-mean": Advantage(lambda p: p.rewards.mean(dim=1, keepdim=True).expand_as(p.rewards), "group",
                            "mean_G", "the paper's code, in no experiment"),
    "window-mean": Advantage(window_mean, "window", "mean_W", "the paper's code, in no experiment"),
}


def advantages(name, pulls, n):
    """The advantages [B, n] of the n trained rollouts; the extra ones only entered the statistics."""
    return ADVANTAGES[name].compute(pulls)[:, :n]


def remember(windows, prompts, rewards, size):
    """Put this round's rewards [B, n] into the windows (prompt text -> list of its last `size` rewards).

    All new rewards enter before any window is read; returns the B windows.
    """
    for prompt, row in zip(prompts, rewards.tolist(), strict=True):
        windows[prompt] = (windows.get(prompt, []) + row)[-size:]
    return [windows[prompt] for prompt in prompts]


# --- 2. the loss ------------------------------------------------------------------------------------------------

LOSS_MEANS = {  # equation (8): weight of each token of a completion, [N], from the lengths [N] of all N of the round
    # one mean over all tokens: a long completion weighs more than a short one (DAPO, arXiv:2503.14476; the paper's)
    "token": lambda lengths, longest: torch.full((len(lengths),), 1 / lengths.sum().item()),
    # the mean over completions of the mean within each: all completions weigh alike (GRPO)
    "sequence": lambda lengths, longest: 1 / (len(lengths) * lengths.float()),
    # a sum over a constant: the only one whose gradient is that of the objective, up to a factor (Dr. GRPO)
    "constant": lambda lengths, longest: torch.full((len(lengths),), 1 / (len(lengths) * longest)),
}

KL_ESTIMATORS = {  # equation (9), of d = log pi - log pi_ref, for samples of pi (Schulman's note; arXiv:2510.01555)
    # as a loss, of a whole completion or of a token whose prefix is held fixed, the expected gradient is
    "k1": lambda d: d,  # zero (as a number it is unbiased for KL(pi||ref))
    "k2": lambda d: d**2 / 2,  # that of KL(pi||ref)
    "k3": lambda d: torch.exp(-d) + d - 1,  # that of KL(ref||pi) (as a number it is unbiased and never negative)
}


def loss(logprobs, old, advantage, weight, clip_low=0.2, clip_high=0.2, kl=0.0, kl_estimator="k3", reference=None):
    """Equation (7), the scalar to descend; the tensors are [tokens], all completions in one line, the rest numbers.

    logprobs: of the policy, with gradient; old: of the policy that sampled, without; reference: of the base model.
    weight: from LOSS_MEANS, so that the losses of parts of a round add up to the loss of the whole.
    The value says nothing about learning: at one step a round the ratio is 1 and the value, but for a KL, the sum of
    -weight * A; its gradient is that of -weight * A * log pi. The clip is PPO's (arXiv:1707.06347).
    """
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)  # binds only after the first of several steps a round
    per_token = -torch.minimum(ratio * advantage, clipped * advantage)
    if kl:
        per_token = per_token + kl * KL_ESTIMATORS[kl_estimator](logprobs - reference)
    return (weight * per_token).sum()


# --- 3. the update of a language model --------------------------------------------------------------------------

MAX_CORRECTION = 2.0  # of --correct-sampler
ALONE = SimpleNamespace(share=list, add_up=lambda tensors: None, gather=lambda value: [value])  # see distributed.py


def update(model, optimizer, prompts, completions, advantage, *, loss_mean="token", longest=1, temperature=1.0,
           epochs=1, clip_low=0.2, clip_high=0.2, kl=0.0, kl_estimator="k3", reference=None, max_grad_norm=1.0,
           micro_tokens=2048, sampled=None, correct=False, processes=ALONE):
    """One round's step (or `epochs` of them) along equation (2) on N completions; the weights change in place.

    prompts, completions: N lists of token ids; advantage: [N]; longest: the constant of --loss-mean constant;
    reference: the base model, needed if kl > 0. Completions of advantage zero cost nothing: without a KL term they
    have no gradient, so they are not run; their tokens stay in the denominator.
    sampled: N lists, the sampler's log-probabilities; correct: weigh each token by how much likelier it is here than
    there, up to a cap (truncated importance sampling, Ionides 2008). processes: where there are several, each is given
    the whole round, and these say which rows are its own (share) and bring sums and values together (add_up, gather).
    Returns the loss (mean of the epochs), the norms of the gradient (before clipping) and of the step, both of the
    last epoch; of the tokens run before the first step the mean k3 of KL(pi||ref), and the mean and the largest gap to
    the sampler's log-probability. Raises ValueError if the gradient is not finite.
    """
    lengths = torch.tensor([len(c) for c in completions])
    weights = LOSS_MEANS[loss_mean](lengths, longest)
    used = [i for i in range(len(completions)) if kl or advantage[i] != 0]
    used = processes.share(sorted(used, key=lambda i: len(prompts[i]) + len(completions[i])))
    micro_batches = [[used[j] for j in part] for part in
                     parts([len(prompts[i]) + len(completions[i]) for i in used], micro_tokens)]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    old, base, correction = {}, {}, {}
    sums, largest = torch.zeros(4, dtype=torch.float64), 0.0  # of the loss, the KL, the gaps, the tokens run; a gap
    for epoch in range(epochs):
        for p in parameters:  # zeros, not None: a round without any gradient still steps (momentum, weight decay)
            p.grad = torch.zeros_like(p)
        for k, rows in enumerate(micro_batches):
            texts = [prompts[i] for i in rows], [completions[i] for i in rows]
            logprobs = completion_logprobs(model, *texts, temperature)
            owner = torch.tensor(rows).repeat_interleave(lengths[rows])  # the completion of each token
            if epoch == 0:
                old[k] = logprobs.detach()  # nothing has moved yet: this is the policy that sampled
                if kl:
                    with torch.no_grad():
                        base[k] = completion_logprobs(reference, *texts, temperature)
                    sums[1] += KL_ESTIMATORS["k3"](old[k] - base[k]).sum().item()
                if sampled:
                    gap = old[k] - torch.tensor([x for i in rows for x in sampled[i]]).to(old[k])
                    sums[2:] += torch.tensor([gap.abs().sum().item(), len(gap)])
                    largest = max(largest, gap.abs().max().item())
                    if correct:
                        correction[k] = gap.exp().clamp(max=MAX_CORRECTION)
            weight = weights[owner].to(logprobs) * correction.get(k, 1)
            value = loss(logprobs, old[k], advantage[owner].to(logprobs), weight, clip_low, clip_high, kl,
                         kl_estimator, base.get(k))
            value.backward()
            sums[0] += value.item() / epochs
        processes.add_up([p.grad for p in parameters])
        before = [p.detach().clone() for p in parameters]
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if not norm.isfinite():
            raise ValueError("the gradient is not finite: the learning rate is too high, or a reward too large")
        optimizer.step()
        step = torch.stack([(p.detach() - q).norm() for p, q in zip(parameters, before, strict=True)]).norm()
    optimizer.zero_grad()
    total, kl_sum, gaps, tokens = sum(processes.gather(sums)).tolist()
    largest = max(processes.gather(largest))
    return {"loss": total, "grad_norm": norm.item(), "update_norm": step.item(),
            "kl": kl_sum / lengths.sum().item() if kl else None,
            "gap": gaps / tokens if tokens else None, "largest_gap": largest if tokens else None}
