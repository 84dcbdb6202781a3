"""A bandit so small that every outcome of a round can be written down.

It has two contexts of unequal success rates and four arms of one, two, three and three tokens. An
arm is a path in a tree, so its tokens have probabilities of their own:

    a | b x | b y z | b y w
"""

import itertools
import math
from argparse import Namespace

import torch

import bandit
import train
from bandit import ADVANTAGES, RoundRewards
from rollout import Rollout

PATHS = [(0,), (1, 2), (1, 3, 4), (1, 3, 5)]  # the tokens of each arm
LENGTHS = torch.tensor([1, 2, 3, 3])
LONGEST = 3
RIGHT = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]).double()  # [context, arm]
THETA = torch.tensor(
    [[1.8, -0.2, 0.5, 0.1, -0.4, 0.6], [0.1, 0.7, -0.3, 0.4, 0.2, -0.6]], dtype=torch.float64
)
WINDOW = 8


def token_logprobs(theta, context):
    """For each arm the log-probabilities of its tokens."""
    first, second, third = torch.log_softmax(theta[context].view(3, 2), -1)
    return [
        first[:1],
        torch.stack([first[1], second[0]]),
        torch.stack([first[1], second[1], third[0]]),
        torch.stack([first[1], second[1], third[1]]),
    ]


def arm_logprobs(theta, context):
    return torch.stack([tokens.sum() for tokens in token_logprobs(theta, context)])


def gradient(value, theta):
    return torch.autograd.grad(value, theta, retain_graph=True)[0]


def success_rate(theta, context):
    return (arm_logprobs(theta, context).exp() * RIGHT[context]).sum()


def gradient_of_success_rate(context):
    theta = THETA.clone().requires_grad_()
    return gradient(success_rate(theta, context), theta)


def combined(weights, contexts=(0, 1)):
    """The update that gives context c the weight w_c, with tokens summed over a constant:
    the sum of w_c * grad p_c."""
    total = sum(
        weight * gradient_of_success_rate(context)
        for context, weight in zip(contexts, weights, strict=True)
    )
    return total / (len(contexts) * LONGEST)


def expected_update(
    name, n, contexts=(0, 1), loss_mean="constant", extra=0, history=(), alike=False
):
    """E[-grad loss] over all outcomes of a round of n rollouts in each context, with the real loss
    and weights, and with train.to_batch's choice of what is trained on.

    extra: rollouts of each context for the statistics only.
    history: what the windows hold before the round.
    alike: tell the advantage that all arms are equally long and equally likely.
    """
    theta = THETA.clone().requires_grad_()
    tokens = [token_logprobs(theta, context) for context in contexts]
    logprobs_of_arms = torch.stack([arm_logprobs(THETA, context) for context in contexts])
    rewards_of_arms = RIGHT[list(contexts)]
    if ADVANTAGES[name].needs == "signs":
        rewards_of_arms = 2 * rewards_of_arms - 1
    greedy_arms = logprobs_of_arms.argmax(dim=1, keepdim=True)
    greedy = rewards_of_arms.gather(1, greedy_arms).squeeze(1)

    size, group_size = len(contexts), n + extra
    args = Namespace(rollouts=n, baseline_rollouts=extra)
    prompts = [[place] for place in range(size)]
    expected_loss = 0.0 * theta.sum()
    for outcome in itertools.product(range(4), repeat=size * group_size):
        arms = torch.tensor(outcome).view(size, group_size)
        rewards, logprobs = rewards_of_arms.gather(1, arms), logprobs_of_arms.gather(1, arms)
        lengths = LENGTHS[arms].double()
        windows = {context: list(history) for context in contexts}
        histories = bandit.remember(windows, contexts, rewards, WINDOW)
        seen = (torch.ones_like(lengths), -torch.ones_like(lengths)) if alike else (
            lengths, logprobs)  # fmt: skip
        advantages = bandit.advantages(name, RoundRewards(rewards, greedy, histories, *seen), n)

        rollouts = [Rollout(list(PATHS[arm]), [], False) for arm in outcome]
        batch = train.to_batch(args, prompts, rollouts, advantages)
        trained = [list(PATHS[arm]) for arm in arms[:, :n].flatten()]
        assert batch.completions == trained and advantages.shape == (size, n), (
            f"{name}: the extra rollouts are trained on. Of {size} x {n} + {extra} rollouts the "
            f"update must get {size} x {n}; it gets {len(batch.completions)}, with advantages of "
            f"the shape {list(advantages.shape)}"
        )
        if not advantages.any():
            continue
        value = loss_of(batch, tokens, loss_mean)
        expected_loss = expected_loss + logprobs.sum().exp().item() * value
    return -gradient(expected_loss, theta)


def loss_of(batch, tokens, loss_mean):
    """bandit.loss of a round. tokens: the log-probabilities of each context's arms."""
    lengths = torch.tensor([len(path) for path in batch.completions])
    logprobs = torch.cat([
        tokens[place][PATHS.index(tuple(path))]
        for (place,), path in zip(batch.prompts, batch.completions, strict=True)
    ])  # fmt: skip
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    weights = bandit.LOSS_MEANS[loss_mean](lengths, LONGEST).double()
    return bandit.loss(logprobs, logprobs.detach(), batch.advantages[owner], weights[owner])


def weights_and_rest(update, contexts):
    """For each context the w for which its part of the update is nearest to w * grad p, and the
    rest as a share of that part. math.inf: a rest beside a w of 0."""
    found = []
    for context in contexts:
        along = gradient_of_success_rate(context)[context]
        part = update[context] * len(contexts) * LONGEST
        weight = (part @ along / (along @ along)).item()
        size, rest = abs(weight) * along.norm().item(), (part - weight * along).norm().item()
        found.append((weight, rest / size if size > 1e-9 else (math.inf if rest > 1e-9 else 0.0)))
    return found
