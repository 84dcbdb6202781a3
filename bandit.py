"""The learner: rewards become advantages, advantages become a loss, the loss becomes one step of the policy.

    python bandit.py        # the same functions on a tabular bandit whose optimum is known: theory beside practice

Reinforcement fine-tuning as a batched contextual bandit (arXiv:2601.22532): a query is a context, a whole completion
an arm, its verdict the reward. One round pulls n arms for each of B contexts and takes one step along
    grad J = E[A * grad log pi(completion | query)],    log pi(completion) = sum of the log pi of its tokens.
Every design choice is one line of a table below: ADVANTAGES (what A is), LOSS_MEANS (how tokens are averaged),
KL_ESTIMATORS (how far from the base model the policy is).

Left out, with reason: a value network, GAE and discounts (one reward, at the end: a bandit has no later states);
dynamic sampling and the overlong penalty (they change what is sampled or rewarded, not what is done with it).
"""

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

EPSILON = 1e-6  # keeps a group without spread from dividing by zero, as in the paper's code


# --- 1. advantages ----------------------------------------------------------------------------------------------


class Pulls(NamedTuple):
    """The rewards of one round."""

    rewards: torch.Tensor  # [B, n + m]: n trained rollouts of each query, then m extra ones for the statistics only
    greedy: torch.Tensor | None = None  # [B]: reward of the greedy completion, for remax
    windows: list | None = None  # B lists: the last rewards of each query, this round's included, for window


def centered(rewards, sample=None):
    """rewards - mean of the sample (default: themselves), along the last axis. Where the sample has no spread it is
    exactly 0: the rounding of a mean of 0.1s, divided by a std of 0 and epsilon, would be an advantage."""
    sample = rewards if sample is None else sample
    spread = sample.amax(-1, keepdim=True) > sample.amin(-1, keepdim=True)
    return torch.where(spread, rewards - sample.mean(-1, keepdim=True), 0.0)


def standardized(rewards, sample=None):
    """(rewards - mean) / (std + eps) of the sample; the std is the sample's, divided by n - 1."""
    sample = rewards if sample is None else sample
    return centered(rewards, sample) / (sample.std(-1, keepdim=True) + EPSILON)


def over_batch(transform, rewards):
    return transform(rewards.reshape(-1)).view_as(rewards)


def rloo(pulls):
    others = pulls.rewards.shape[1] - 1
    return pulls.rewards - (pulls.rewards.sum(dim=1, keepdim=True) - pulls.rewards) / others


def mixed_groups(pulls):
    right = pulls.rewards == pulls.rewards.max()
    return right.any(dim=1, keepdim=True) & ~right.all(dim=1, keepdim=True)


def window(pulls):
    rows = []
    for rewards, history in zip(pulls.rewards, pulls.windows, strict=True):
        history = torch.tensor(history, dtype=rewards.dtype)
        alone = len(history) == 1  # nothing to compare with yet: the raw reward
        rows.append(rewards if alone else standardized(rewards, history))
    return torch.stack(rows)


def window_mean(pulls):
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


def check(name, batch, n, extra=0, window=0, right=1.0, wrong=0.0):
    """Raise ValueError, in one sentence, for a setting that cannot mean what it says."""
    needs = ADVANTAGES[name].needs
    if needs == "group" and n + extra < 2:
        raise ValueError(f"--advantage {name} compares the rollouts of one query and there is only one: give "
                         "--rollouts or --baseline-rollouts, or write --advantage reward")
    if needs == "batch" and batch * n < 2:
        raise ValueError(f"--advantage {name} compares the rollouts of a batch and there is only one: write "
                         "--advantage reward")
    if extra and needs != "group":
        raise ValueError(f"--baseline-rollouts {extra} would be sampled for nothing: --advantage {name} has no "
                         "statistics of the group")
    if needs == "window" and window < 2:
        raise ValueError(f"--advantage {name} needs --window of at least 2 rewards, the paper's is 8")
    if needs == "window" and n > window:
        raise ValueError(f"--window {window} cannot hold the {n} rewards that --rollouts {n} brings at once")
    if needs != "window" and window:
        raise ValueError(f"--window {window} is of no use to --advantage {name}: write --advantage window")
    if right <= wrong:
        raise ValueError(f"--right-reward {right:g} must be above --wrong-reward {wrong:g}")
    if needs == "signs" and not wrong < 0 < right:
        meant = "there is nothing to learn from" if name == "nsr" else "it is --advantage reward, up to a factor"
        raise ValueError(f"--advantage {name} needs a positive --right-reward and a negative --wrong-reward (1 and -1 "
                         f"in the literature): with {right:g} and {wrong:g} {meant}")


def remember(windows, prompts, rewards, size):
    """Put this round's rewards [B, n] into the windows (prompt text -> list of its last `size` rewards).

    All new rewards enter before any window is read; returns the B windows.
    """
    for prompt, row in zip(prompts, rewards.tolist(), strict=True):
        windows[prompt] = (windows.get(prompt, []) + row)[-size:]
    return [windows[prompt] for prompt in prompts]


# --- 2. the loss ------------------------------------------------------------------------------------------------

LOSS_MEANS = {  # weight of each token of a completion, [N], from the lengths [N] of all N completions of the round
    # one mean over all tokens: long completions weigh more (DAPO, arXiv:2503.14476; the paper's)
    "token": lambda lengths, longest: torch.full((len(lengths),), 1 / lengths.sum().item()),
    # the mean over sequences of the mean within each: a token of a long completion weighs less (GRPO)
    "sequence": lambda lengths, longest: 1 / (len(lengths) * lengths.float()),
    # a sum over a constant: the only one of the three whose gradient is that of the objective (Dr. GRPO)
    "constant": lambda lengths, longest: torch.full((len(lengths),), 1 / (len(lengths) * longest)),
}

KL_ESTIMATORS = {  # of d = log pi - log pi_ref, for samples of pi (Schulman's note; arXiv:2510.01555)
    "k1": lambda d: d,  # unbiased for KL(pi||ref) as a number; as a loss its expected gradient is zero
    "k2": lambda d: d**2 / 2,  # as a loss of the whole completion: the gradient of KL(pi||ref)
    "k3": lambda d: torch.exp(-d) + d - 1,  # unbiased and never negative; as a loss: the gradient of KL(ref||pi)
}


def loss(logprobs, old, advantage, weight, clip_low=0.2, clip_high=0.2, kl=0.0, kl_estimator="k3", reference=None):
    """The scalar to descend; every argument but the last five is [tokens], all completions in one line.

    logprobs: of the policy, with gradient; old: of the policy that sampled, without; reference: of the base model.
    weight: from LOSS_MEANS, so that the losses of parts of a round add up to the loss of the whole.
    The value says nothing about learning: with one step a round the ratio is 1 and the value is -A, but its gradient
    is -A * grad log pi, the policy gradient.
    """
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)  # binds only after the first of several steps a round
    per_token = -torch.minimum(ratio * advantage, clipped * advantage)
    if kl:
        per_token = per_token + kl * KL_ESTIMATORS[kl_estimator](logprobs - reference)
    return (weight * per_token).sum()


# --- 3. the update of a language model --------------------------------------------------------------------------


HEAD_NUMBERS = 2**26  # logits held at a time: 256 MB in float32
CAP = 2.0  # of the weight by which --correct-sampler corrects
ALONE = SimpleNamespace(share=list, add_up=lambda tensors: None, gather=lambda value: [value])  # see distributed.py


def completion_logprobs(model, prompts, completions, temperature=1.0):
    """Log-probability of every completion token, [tokens], row after row, the end-of-sequence token included.

    Rows are padded on the right only: with causal attention no real token ever sees the padding, positions count
    from 0 by themselves, and the padding is never picked below, whatever its id.
    Of the [rows, length, vocabulary] logits there is never more than a piece: the head is applied to the tokens that
    count, some at a time, and once more for each piece on the way back, in float32 from the logits on.
    """
    ids = torch.zeros(len(prompts), max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True)),
                      dtype=torch.long)
    picked = torch.zeros_like(ids, dtype=torch.bool)
    for row, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, :len(p) + len(c)] = torch.tensor(p + c)
        picked[row, len(p):len(p) + len(c)] = True
    ids, picked = ids.to(model.device), picked.to(model.device)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    hidden, targets = hidden[:, :-1][picked[:, 1:]], ids[picked]  # a token is predicted at the place before it
    head = model.get_output_embeddings()

    def chosen(hidden, targets):
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    size = max(1, HEAD_NUMBERS // head.weight.shape[0])
    if len(targets) <= size:
        return chosen(hidden, targets)
    return torch.cat([checkpoint(chosen, *piece, use_reentrant=False)
                      for piece in zip(hidden.split(size), targets.split(size), strict=True)])


@torch.no_grad()
def check_head(model):
    """Raise ValueError for a model whose logits are not its head's output alone (some are scaled, or capped)."""
    ids = torch.tensor([[1, 2]], device=model.device)
    plain = model.get_output_embeddings()(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(plain, model(input_ids=ids, use_cache=False).logits):
        raise ValueError("this model does something to its logits after its head, which the loss would not know")


def parts(lengths, budget):
    """Row numbers in groups of like length whose padded size stays within `budget` tokens (a row at least)."""
    groups = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and lengths[row] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def update(model, optimizer, prompts, completions, advantage, *, loss_mean="token", longest=1, temperature=1.0,
           epochs=1, clip_low=0.2, clip_high=0.2, kl=0.0, kl_estimator="k3", reference=None, max_grad_norm=1.0,
           micro_tokens=2048, sampled=None, correct=False, processes=ALONE):
    """One round's step (or `epochs` of them) on N completions; what the optimizer holds is changed in place.

    prompts, completions: N lists of token ids; advantage: [N]; longest: the constant of --loss-mean constant;
    reference: the base model, needed if kl > 0. Completions of advantage zero cost nothing: without a KL term they
    have no gradient, so they are not run; their tokens stay in the denominator.
    sampled: N lists, the log-probabilities that the sampler gave; correct: weigh each token by how much likelier it
    is here than there, at most CAP (truncated importance sampling, Ionides 2008).
    processes: where there are several, which of the rows this one runs (share), the sum of tensors over all of them
    (add_up) and the values of all (gather); each is given the whole round.
    Returns the loss (mean of the epochs), the norms of the gradient (before clipping) and of the step, both of the
    last epoch; of the tokens that were run, before the first step, the mean k3 of KL(pi||ref) and the mean and the
    largest gap between the sampler's log-probability and this one. Raises ValueError if the gradient is not finite.
    """
    lengths = torch.tensor([len(c) for c in completions])
    weights = LOSS_MEANS[loss_mean](lengths, longest)
    used = [i for i in range(len(completions)) if kl or advantage[i] != 0]
    used = processes.share(sorted(used, key=lambda i: len(prompts[i]) + len(completions[i])))
    groups = [[used[j] for j in part] for part in
              parts([len(prompts[i]) + len(completions[i]) for i in used], micro_tokens)]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    old, base, ratio = {}, {}, {}
    sums = torch.zeros(4, dtype=torch.float64)  # of the loss, the KL, the gaps, and the tokens that were run
    largest = 0.0
    for epoch in range(epochs):
        for p in parameters:  # zeros, not None: a round without any gradient still steps (momentum, weight decay)
            p.grad = torch.zeros_like(p)
        for k, rows in enumerate(groups):
            texts = [prompts[i] for i in rows], [completions[i] for i in rows]
            logprobs = completion_logprobs(model, *texts, temperature)
            spread = torch.tensor(rows).repeat_interleave(lengths[rows])  # the completion of each token
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
                        ratio[k] = gap.exp().clamp(max=CAP)
            value = loss(logprobs, old[k], advantage[spread].to(logprobs),
                         weights[spread].to(logprobs) * ratio.get(k, 1), clip_low, clip_high, kl, kl_estimator,
                         base.get(k))
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
    total, kl_sum, gaps, run = sum(processes.gather(sums)).tolist()
    largest = max(processes.gather(largest))
    return {"loss": total, "grad_norm": norm.item(), "update_norm": step.item(),
            "kl": kl_sum / lengths.sum().item() if kl else None,
            "gap": gaps / run if run else None, "largest_gap": largest if run else None}


# --- 4. run as a script: the same functions where everything is known -------------------------------------------


def exact_weight(name, p, n=8, other=0.5):
    """w(p) of E[update of a query] = w(p) * grad p: what the advantage makes of a success rate p, 0/1 rewards
    (+1/-1 for those that need signs).

    E[A * grad log pi] = E[A | right] * grad p + E[A | wrong] * grad (1 - p), so w(p) = E[A | right] - E[A | wrong].
    Enumerated: the number right among the other n - 1 rollouts, and among the n rollouts of a second query in the
    batch, whose success rate is `other`.
    """
    def binomial(k, count, rate):
        return math.comb(count, k) * rate**k * (1 - rate)**(count - k)

    wrong = -1.0 if ADVANTAGES[name].needs == "signs" else 0.0
    weight = 0.0
    for mine in range(n):
        for theirs in range(n + 1):
            chance = binomial(mine, n - 1, p) * binomial(theirs, n, other)
            for own, sign in ((1.0, 1), (wrong, -1)):
                rewards = torch.full((2, n), wrong, dtype=torch.float64)
                rewards[0, 0] = own
                rewards[0, 1:1 + mine] = 1
                rewards[1, :theirs] = 1
                pulls = Pulls(rewards, torch.tensor([p > 0.5, other > 0.5]).double(), rewards.tolist())
                weight += sign * chance * ADVANTAGES[name].compute(pulls)[0, 0].item()
    return weight


class Table:
    """A softmax policy over K arms in each of C contexts; each arm of each context is right or wrong.

    The right arms are `right` [C, K]; the success rates of the first policy differ widely between contexts.
    """

    def __init__(self, contexts=8, arms=10, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.right = torch.zeros(contexts, arms)
        self.right[:, 0] = 1
        self.start = torch.randn(contexts, arms, generator=generator)
        self.start[:, 0] += torch.linspace(-2, 5, contexts)

    def success(self, theta):
        return (torch.softmax(theta, -1) * self.right).sum(-1)

    def round(self, theta, name, n, generator, windows):
        """One round over all contexts: (loss with gradient, number of wrong pulls)."""
        arms = torch.multinomial(torch.softmax(theta.detach(), -1), n, replacement=True, generator=generator)
        verdicts = self.right.gather(1, arms)
        rewards = 2 * verdicts - 1 if ADVANTAGES[name].needs == "signs" else verdicts
        greedy = self.right.gather(1, theta.detach().argmax(-1, keepdim=True)).squeeze(1)
        needs_window = ADVANTAGES[name].needs == "window"
        history = remember(windows, range(len(theta)), rewards, 8) if needs_window else None
        advantage = advantages(name, Pulls(rewards, greedy, history), n).reshape(-1)
        logprobs = torch.log_softmax(theta, -1).gather(1, arms).reshape(-1)  # an arm is a completion of one token
        weight = LOSS_MEANS["constant"](torch.ones(len(logprobs)), 1)
        return loss(logprobs, logprobs.detach(), advantage, weight), (1 - verdicts).sum().item()


def play(table, name, lr, n=8, rounds=60, seed=0):
    """Learn by plain gradient descent; the regret: all wrong pulls, the optimum being never to make one."""
    theta, windows = table.start.clone().requires_grad_(), {}
    generator = torch.Generator().manual_seed(seed)
    regret = 0
    for _ in range(rounds):
        value, wrong = table.round(theta, name, n, generator, windows)
        (gradient,) = torch.autograd.grad(value, theta)
        theta = (theta - lr * gradient).detach().requires_grad_()
        regret += wrong
    return regret


def noise_of(table, name, n=8, rounds=100):
    """Variance of the gradient at the first policy over the squared norm of its mean."""
    theta, windows, generator = table.start.clone().requires_grad_(), {}, torch.Generator().manual_seed(1)
    for _ in range(8):
        table.round(theta, name, n, generator, windows)  # fills the windows
    gradients = torch.stack([torch.autograd.grad(table.round(theta, name, n, generator, windows)[0], theta)[0]
                             for _ in range(rounds)]).flatten(1)
    variance = gradients.var(dim=0).sum()
    squared_mean = gradients.mean(dim=0).square().sum() - variance / rounds  # less what its own noise adds
    return (variance / squared_mean).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = Table()
    rates = (0.05, 0.25, 0.5, 0.75, 0.95)
    seeds, rates_of_learning = range(5), (4, 16, 64)
    print("A contextual bandit of 8 contexts and 10 arms, one of them right; 60 rounds of 8 pulls a context.\n"
          "regret: wrong pulls of 3840, mean of 5 seeds ± standard error, at three learning rates of plain gradient\n"
          "descent; noise: variance of the gradient over its squared mean, at the first policy;\n"
          "w(p): the expected update of a query of success rate p is w(p) * grad p (exact, for 8 rollouts; where the\n"
          "batch enters: beside one other query of success rate 0.5). raft, psr, nsr and w-reinforce get +1 and -1;\n"
          "raft and psr are then the raw reward, and a window of 8 filled by 8 rollouts is the group, by algebra.\n")
    print(f"{'advantage':21}" + "".join(f"{f'regret, lr {lr}':>16}" for lr in rates_of_learning)
          + f"{'noise':>7}   w(p) at p =" + "".join(f"{p:>6}" for p in rates) + "   formula")
    print(f"{'(never learning)':21}" + f"{3840 * (1 - table.success(table.start).mean()):>10.0f}{'':6}" * 3)
    for name, row in ADVANTAGES.items():
        line = f"{name:21}"
        for lr in rates_of_learning:
            regrets = torch.tensor([play(table, name, lr, seed=seed) for seed in seeds])
            line += f"{regrets.mean():>10.0f} ± {regrets.std() / len(seeds)**0.5:<3.0f}"
        weights = "".join(f"{exact_weight(name, p):6.2f}" for p in rates)
        print(f"{line}{noise_of(table, name):>7.1f}{'':14}{weights}   {row.formula}")
