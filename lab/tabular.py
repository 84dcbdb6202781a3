"""The learner where everything is known: bandit.py's own functions on a tabular bandit.

    python tabular.py        # regret, noise and expected update of each advantage: theory beside practice
"""

import math

import torch

from bandit import ADVANTAGES, LOSS_MEANS, Pulls, advantages, loss, remember


def exact_weight(name, p, n=8, other=0.5):
    """w(p) of E[update of a query] = w(p) * grad p: what the advantage makes of a success rate p, 0/1 rewards
    (+1/-1 for those that need signs); beside equation (6) of the README.

    E[A * grad log pi] = E[A | right] * grad p + E[A | wrong] * grad (1 - p), so w(p) = E[A | right] - E[A | wrong].
    n is the group and the window; the greedy completion is right where p > 1/2. Enumerated: the number right among
    the other n - 1 rollouts, and among the n rollouts of a second query in the batch, whose success rate is `other`.
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
    """A softmax policy over K arms in each of C contexts; arm 0 is right.

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
