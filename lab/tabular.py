"""The learner where everything is known: bandit.py's own functions on a tabular bandit.

    python -m lab.tabular               # regret, noise and expected update of each advantage
    python -m lab.tabular rloo maxrl    # of these rows of bandit.ADVANTAGES only
"""

import torch

from bandit import (
    ADVANTAGES,
    LOSS_MEANS,
    RoundRewards,
    advantages,
    binomial,
    loss,
    remember,
    row_name,
)
from infra import flags

WINDOW = 8  # rewards that each context remembers, for the advantages that need a window
PULLS = 8  # of each context in a round
ROUNDS = 60
SEEDS = range(5)
LEARNING_RATES = (4, 16, 64)
RATES = (0.05, 0.25, 0.5, 0.75, 0.95)  # success rates at which w(p) is shown

INTRODUCTION = """\
A contextual bandit with 8 contexts and 10 arms, one of them right; 60 rounds of 8 pulls a context.

regret  wrong pulls of 3840, mean of 5 seeds ± standard error, at three learning rates of plain
        gradient descent
noise   variance of the gradient over its squared mean, at the first policy
w(p)    the expected update of a query of success rate p is w(p) * grad p: exact, for 8 rollouts,
        beside one other query of success rate 0.5 for the advantages that use the whole batch
update  what the row declares: the gradient of the objective times a constant, a reweighting of the
        queries, or neither

raft (also called psr), nsr and w-reinforce get the rewards +1 and -1, the others 1 and 0. So raft
equals the raw reward. A window of 8 that 8 rollouts fill equals the group. An arm is a completion
of one token, so all lengths are 1, and opo equals group-centered. w(p) of opo and least-variance is
that of completions that are equally long and equally likely.
"""


# --- theory: the expected update, by enumeration --------------------------------------------------


def exact_weight(name: str, p: float, n: int = 8, other: float = 0.5) -> float:
    """w(p) of equation (6) of the lecture: E[update of a query] = w(p) * grad p.

    name: the advantage. Rewards are 0 and 1, or -1 and 1 for an advantage that needs signs.
    p: the success rate of the query. The greedy completion is right where p > 1/2.
    n: the rollouts of the query; the window holds exactly these.
    other: the success rate of a second query, which shares the batch.

    E[A * grad log pi] = E[A | right] * grad p + E[A | wrong] * grad (1 - p), so
    w(p) = E[A | right] - E[A | wrong]. Both expectations are sums over how many of the other n - 1
    rollouts are right, and how many of the second query's n.
    """
    wrong = -1.0 if ADVANTAGES[name].needs == "signs" else 0.0
    greedy = torch.tensor([p > 0.5, other > 0.5]).double()
    weight = 0.0
    for right_here in range(n):
        for right_there in range(n + 1):
            chance = binomial(right_here, n - 1, p) * binomial(right_there, n, other)
            for first, sign in ((1.0, 1), (wrong, -1)):
                rewards = torch.full((2, n), wrong, dtype=torch.float64)
                rewards[0, 0] = first
                rewards[0, 1 : 1 + right_here] = 1
                rewards[1, :right_there] = 1
                ones = torch.ones_like(rewards)  # completions of one length, equally likely
                round_rewards = RoundRewards(rewards, greedy, rewards.tolist(), ones, -ones)
                advantage = ADVANTAGES[name].compute(round_rewards)[0, 0].item()
                weight += sign * chance * advantage
    return weight


# --- practice: learning ---------------------------------------------------------------------------


class TabularBandit:
    """A softmax policy over K arms in each of C contexts; arm 0 is right.

    right: [C, K], 1 for the right arm and 0 for the others.
    start: [C, K], the logits of the first policy. Its success rates differ widely.
    """

    def __init__(self, contexts: int = 8, arms: int = 10, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.right = torch.zeros(contexts, arms)
        self.right[:, 0] = 1
        self.start = torch.randn(contexts, arms, generator=generator)
        self.start[:, 0] += torch.linspace(-2, 5, contexts)

    def success_rates(self, logits: torch.Tensor) -> torch.Tensor:
        """The chance of the right arm in each context, [C]."""
        return (torch.softmax(logits, -1) * self.right).sum(-1)

    def play_round(
        self, logits: torch.Tensor, name: str, n: int, generator: torch.Generator,
        windows: dict[int, list[float]],
    ) -> tuple[torch.Tensor, float]:  # fmt: skip
        """The loss of one round with its gradient, and the number of wrong pulls.

        logits: [C, K]. name: the advantage. n: pulls of each context.
        windows: the last rewards of each context, changed in place.
        """
        needs = ADVANTAGES[name].needs
        policy = torch.softmax(logits.detach(), -1)
        arms = torch.multinomial(policy, n, replacement=True, generator=generator)
        verdicts = self.right.gather(1, arms)
        rewards = 2 * verdicts - 1 if needs == "signs" else verdicts

        greedy_arms = logits.detach().argmax(-1, keepdim=True)
        greedy = self.right.gather(1, greedy_arms).squeeze(1)
        size = WINDOW if needs == "window" else 0
        histories = remember(windows, range(len(logits)), rewards, size)
        # An arm is a completion of one token.
        logprobs = torch.log_softmax(logits, -1).gather(1, arms)
        lengths = torch.ones_like(rewards)
        round_rewards = RoundRewards(rewards, greedy, histories, lengths, logprobs.detach())
        advantage = advantages(name, round_rewards, n).reshape(-1)

        logprobs = logprobs.reshape(-1)
        weights = LOSS_MEANS["constant"](torch.ones(len(logprobs)), 1)
        value = loss(logprobs, logprobs.detach(), advantage, weights)
        return value, (1 - verdicts).sum().item()


def regret(bandit: TabularBandit, name: str, lr: float, seed: int = 0) -> float:
    """The wrong pulls while learning by plain gradient descent; the optimum makes none."""
    logits = bandit.start.clone().requires_grad_()
    windows = {}
    generator = torch.Generator().manual_seed(seed)
    total = 0
    for _ in range(ROUNDS):
        value, wrong = bandit.play_round(logits, name, PULLS, generator, windows)
        (gradient,) = torch.autograd.grad(value, logits)
        logits = (logits - lr * gradient).detach().requires_grad_()
        total += wrong
    return total


def gradient_noise(bandit: TabularBandit, name: str, rounds: int = 100) -> float:
    """The variance of the gradient over its squared mean, at the first policy."""
    logits = bandit.start.clone().requires_grad_()
    windows = {}
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):  # fill the windows
        bandit.play_round(logits, name, PULLS, generator, windows)
    gradients = []
    for _ in range(rounds):
        value, _ = bandit.play_round(logits, name, PULLS, generator, windows)
        gradients.append(torch.autograd.grad(value, logits)[0])
    gradients = torch.stack(gradients).flatten(1)
    variance = gradients.var(dim=0).sum()
    # The noise of the mean adds to its squared norm, so it is subtracted.
    squared_mean = gradients.mean(dim=0).square().sum() - variance / rounds
    return (variance / squared_mean).item()


# --- the table ------------------------------------------------------------------------------------


def print_table(names: list[str]) -> None:
    """One line for each of these advantages: theory beside practice."""
    bandit = TabularBandit()
    headings = "".join(f"{f'regret, lr {lr}':>16}" for lr in LEARNING_RATES)
    rates = "".join(f"{p:>6}" for p in RATES)
    print(f"{'advantage':21}{headings}{'noise':>7}   w(p) at p ={rates}   {'update':12}formula")

    pulls = ROUNDS * PULLS * len(bandit.start)
    never = pulls * (1 - bandit.success_rates(bandit.start).mean())
    print(f"{'(never learning)':21}" + f"{never:>10.0f}{'':6}" * len(LEARNING_RATES))

    for name in names:
        row = ADVANTAGES[name]
        line = f"{name:21}"
        for lr in LEARNING_RATES:
            regrets = torch.tensor([regret(bandit, name, lr, seed=seed) for seed in SEEDS])
            error = regrets.std() / len(SEEDS) ** 0.5
            line += f"{regrets.mean():>10.0f} ± {error:<3.0f}"
        weights = "".join(f"{exact_weight(name, p):6.2f}" for p in RATES)
        noise = gradient_noise(bandit, name)
        print(f"{line}{noise:>7.1f}{'':14}{weights}   {row.expected.kind:12}{row.formula}")


def main(argv: list[str] | None = None) -> None:
    parser = flags.FlagParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", type=row_name,
                        help="rows of bandit.ADVANTAGES (default: all)")  # fmt: skip
    names = parser.parse_args(argv).names or list(ADVANTAGES)
    for name in names:
        if name not in ADVANTAGES:
            parser.error(f"{name} is no advantage; there are: {', '.join(ADVANTAGES)}")
    torch.set_num_threads(1)
    print(INTRODUCTION)
    print_table(names)


if __name__ == "__main__":
    main()
