"""Advantages and the loss: every estimator against exact enumeration, every formula against numbers
worked by hand. test_bandit_update.py has the update.

The enumerated bandit has two contexts of unequal success rates and four arms of one, two, three and
three tokens. An arm is a path in a tree, so its tokens have probabilities of their own:

    a | b x | b y z | b y w
"""

import itertools
import math

import pytest
import torch

import bandit
from bandit import ADVANTAGES, RoundRewards
from lab import tabular

LENGTHS = torch.tensor([1, 2, 3, 3])
LONGEST = 3
RIGHT = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]).double()  # [context, arm]
THETA = torch.tensor(
    [[1.8, -0.2, 0.5, 0.1, -0.4, 0.6], [0.1, 0.7, -0.3, 0.4, 0.2, -0.6]], dtype=torch.float64
)


# --- the enumerated bandit ------------------------------------------------------------------------


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


def success_rates():
    return [success_rate(THETA, context).item() for context in (0, 1)]


def combined(weights, contexts=(0, 1)):
    """The update that gives context c the weight w_c, with tokens summed over a constant:
    the sum of w_c * grad p_c."""
    theta = THETA.clone().requires_grad_()
    total = sum(
        weight * gradient(success_rate(theta, context), theta)
        for context, weight in zip(contexts, weights, strict=True)
    )
    return total / (len(contexts) * LONGEST)


def expected_update(name, n, contexts=(0, 1), loss_mean="constant", extra=0, history=()):
    """E[-grad loss] over all outcomes of a round of n rollouts in each context, with the real loss
    and weights.

    extra: rollouts of each context for the statistics only.
    history: what the windows hold before the round.
    """
    theta = THETA.clone().requires_grad_()
    tokens = [token_logprobs(theta, context) for context in contexts]
    chances = [arm_logprobs(THETA, context).exp() for context in contexts]
    rewards_of_arms = RIGHT[list(contexts)]
    if ADVANTAGES[name].needs == "signs":
        rewards_of_arms = 2 * rewards_of_arms - 1
    greedy_arms = torch.stack([chance.argmax() for chance in chances])
    greedy = rewards_of_arms.gather(1, greedy_arms[:, None]).squeeze(1)

    size = len(contexts)
    expected_loss = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for outcome in itertools.product(range(4), repeat=size * (n + extra)):
        arms = torch.tensor(outcome).view(size, n + extra)
        chance = math.prod(chances[c][arm].item() for c in range(size) for arm in arms[c])
        rewards = rewards_of_arms.gather(1, arms)
        windows = {context: list(history) for context in contexts}
        histories = bandit.remember(windows, contexts, rewards, 8)
        round_rewards = RoundRewards(rewards, greedy, histories)
        advantages = bandit.advantages(name, round_rewards, n).reshape(-1)
        if not advantages.any():
            continue
        trained = arms[:, :n]
        lengths = LENGTHS[trained].reshape(-1)
        logprobs = torch.cat([tokens[c][arm] for c in range(size) for arm in trained[c]])
        owner = torch.arange(size * n).repeat_interleave(lengths)
        weights = bandit.LOSS_MEANS[loss_mean](lengths, LONGEST).double()
        value = bandit.loss(logprobs, logprobs.detach(), advantages[owner], weights[owner])
        expected_loss = expected_loss + chance * value
    return -gradient(expected_loss, theta)


@pytest.mark.parametrize(
    "name, n", [("reward", 1), ("reward", 2), ("rloo", 2), ("remax", 1), ("remax", 2)]
)
def test_unbiased_estimators(name, n):
    """The raw reward, RLOO and ReMax: the expected update is grad J, the mean of the grad p."""
    assert torch.allclose(expected_update(name, n), combined([1, 1]), atol=1e-12)
    assert torch.allclose(expected_update(name, n + 2, [1]), combined([1], [1]), atol=1e-12)


def test_centering_shrinks_the_gradient():
    """By 1 - 1/k for a mean over k rollouts, the own one included."""
    cases = [
        ("group-centered", 2, (0, 1), 1 / 2),
        ("group-centered", 4, (0,), 3 / 4),
        ("batch-centered", 2, (0, 1), 3 / 4),
        ("batch-centered", 1, (0, 1), 1 / 2),
    ]
    for name, n, contexts, weight in cases:
        wanted = combined([weight] * len(contexts), contexts)
        assert torch.allclose(expected_update(name, n, contexts), wanted, atol=1e-12), (name, n)


def test_learning_from_one_sign_only():
    """R is +1 or -1, so grad J is 2 grad p. The right ones alone give half, the wrong ones too."""
    for name, weight in (("psr", 1), ("raft", 1), ("nsr", 1), ("w-reinforce", 1.1)):
        wanted = combined([weight] * 2)
        assert torch.allclose(expected_update(name, 2), wanted, atol=1e-12), name


@pytest.mark.parametrize("name", ["group", "window"])
def test_normalising_by_the_group_reweights_contexts(name):
    """With two or three rollouts the weights are equal. From four on, contexts that are rarely or
    nearly always solved weigh more."""

    def weight(p):
        # One right of four: std 1/2, A = 1.5 and -0.5. Two: A = 0.866 and -0.866. Three: A = 0.5
        # and -1.5. Without epsilon.
        q, both = 1 - p, 0.5 + math.sqrt(0.75)
        return 1.5 * q**3 + 3 * p * q**2 * both + 3 * p**2 * q * both + 1.5 * p**3

    weights = [weight(p) for p in success_rates()]
    assert abs(weights[0] - weights[1]) > 0.01
    for c in (0, 1):
        got = expected_update(name, 4, [c])
        assert torch.allclose(got, combined([weights[c]], [c]), atol=1e-5)
        assert not torch.allclose(got, combined([weights[1 - c]], [c]), atol=3e-4)


def test_extra_rollouts_serve_the_statistics_only():
    """1 trained + 2 extra: the weight of a group of three (2 / sqrt(3) at any p), the gradient of
    one rollout."""
    group = expected_update("group", 1, [0], extra=2)
    assert torch.allclose(group, combined([2 / math.sqrt(3)], [0]), atol=1e-5)
    rloo = expected_update("rloo", 1, [1], extra=2)
    assert torch.allclose(rloo, combined([1], [1]), atol=1e-12)


def test_window_with_a_history():
    """The window 1 0 0 R: with R = 1 mean 1/2 and std 0.577, so A = 0.866; with R = 0 mean 1/4 and
    std 1/2, so A = -0.5."""
    got = expected_update("window", 1, [0], history=(1.0, 0.0, 0.0))
    assert torch.allclose(got, combined([math.sqrt(0.75) + 0.5], [0]), atol=1e-5)


CENTERED = [
    name
    for name, row in ADVANTAGES.items()
    if row.needs in ("group", "batch", "window") and "- mean" in row.formula
]


@pytest.mark.parametrize("name", CENTERED)
def test_no_spread_no_advantage(name):
    """Equal rewards give exactly 0, also where their mean is rounded. Previously the rounding error
    was divided by epsilon, which made a strong signal of it."""
    rewards = torch.full((3, 7), 0.1)
    round_rewards = RoundRewards(rewards, windows=rewards.tolist())
    assert not ADVANTAGES[name].compute(round_rewards).any()


def test_filtered_groups_reweight_contexts():
    for c, p in enumerate(success_rates()):
        weight = 1 - p**3  # the chance that the other three are not all right too
        got = expected_update("reinforce-rej", 4, [c])
        assert torch.allclose(got, combined([weight], [c]), atol=1e-12)


def test_group_mean_as_the_advantage():
    """Only a rollout's own share of the mean correlates with it."""
    for name in ("group-mean", "window-mean"):
        assert torch.allclose(expected_update(name, 2), combined([1 / 2] * 2), atol=1e-6)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_exact_weight_is_that_of_the_enumeration(name):
    one, two = success_rates()
    weights = [tabular.exact_weight(name, one, 2, two), tabular.exact_weight(name, two, 2, one)]
    if name == "remax":
        # exact_weight takes the greedy arm to be right where p > 1/2, which is not so here. With
        # any baseline the weight is 1.
        weights = [1, 1]
    assert torch.allclose(expected_update(name, 2), combined(weights), atol=1e-6)


def test_length_bias_of_the_means():
    """A ratio of sums is not unbiased here: only the constant has the objective's gradient."""

    def cosine(a, b):
        return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()

    objective = combined([1, 1])
    constant = expected_update("reward", 1, loss_mean="constant")
    assert cosine(constant, objective) == pytest.approx(1, abs=1e-12)
    cosines = {}
    for mean in ("token", "sequence"):
        updates = [expected_update("reward", n, loss_mean=mean) for n in (1, 2, 3)]
        cosines[mean] = [cosine(update, objective) for update in updates]
    assert cosines["token"][0] < 0.99
    assert cosines["sequence"][0] < 0.99

    # In context 0 arms 0 (one token) and 3 (three tokens) are right. The sequence mean pays a token
    # of the short one three times as much as one of the long one, so it pushes towards the short
    # arm more than the objective does.
    theta = THETA.clone().requires_grad_()
    short = gradient(arm_logprobs(theta, 0)[0], theta)
    sequence = expected_update("reward", 1, loss_mean="sequence")
    assert cosine(sequence[:1], short[:1]) > cosine(objective[:1], short[:1])

    # With more completions in the mean the bias of the token mean vanishes. That of the sequence
    # mean stays.
    one, two, three = cosines["token"]
    assert one < two < three
    assert 1 - three < (1 - one) / 5
    assert cosines["sequence"] == pytest.approx([cosines["sequence"][0]] * 3)


# --- advantages by hand ---------------------------------------------------------------------------


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    std = math.sqrt(15 / 56)  # of 3 ones and 5 zeros
    assert rewards.std().item() == pytest.approx(std)

    def compute(name):
        return ADVANTAGES[name].compute(RoundRewards(rewards))

    group = compute("group")[0].tolist()  # the std of the group is 1/2
    assert group == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert compute("group-centered")[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    first, second = compute("rloo").tolist()
    assert first == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    assert second == pytest.approx([2 / 3, 2 / 3, -2 / 3, -2 / 3])
    assert compute("batch-centered")[1].tolist() == [0.625, 0.625, -0.375, -0.375]
    assert compute("reinforce++")[1, 0].item() == pytest.approx(0.625 / std, abs=1e-5)
    assert compute("lite-ppo")[0, 0].item() == pytest.approx(0.75 / std, abs=1e-5)
    spread = math.sqrt((0.75**2 + 3 * 0.25**2 + 4 * 0.5**2) / 7)  # of R - mean_G over the batch
    assert compute("reinforce++-baseline")[1, 0].item() == pytest.approx(0.5 / spread, abs=1e-5)

    groups = torch.tensor([[1.0, 1], [0, 0], [1, 0]])
    round_rewards = RoundRewards(groups, greedy=torch.tensor([1.0, 0, 1]))
    mixed_only = ADVANTAGES["reinforce-rej"].compute(round_rewards)
    assert mixed_only.tolist() == [[0, 0], [0, 0], [1, 0]]
    assert ADVANTAGES["remax"].compute(round_rewards).tolist() == [[0, 0], [0, 0], [0, -1]]


def test_one_rollout_and_seven_for_its_baseline():
    rewards = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0], [0.0, 1, 0, 0, 0, 0, 0, 0]])
    advantages = bandit.advantages("group", RoundRewards(rewards), 1)
    assert advantages.shape == (2, 1)
    two_of_eight = math.sqrt((2 * 0.75**2 + 6 * 0.25**2) / 7)  # the std; the mean is 1/4
    one_of_eight = math.sqrt((0.875**2 + 7 * 0.125**2) / 7)
    assert advantages[0, 0].item() == pytest.approx(0.75 / two_of_eight, abs=1e-5)
    assert advantages[1, 0].item() == pytest.approx(-0.125 / one_of_eight, abs=1e-5)


def test_window_by_hand():
    windows = {}

    def visit(*rewards):
        rewards = torch.tensor([rewards])
        histories = bandit.remember(windows, ["q"], rewards, 3)
        round_rewards = RoundRewards(rewards, windows=histories)
        return ADVANTAGES["window"].compute(round_rewards)[0].tolist()

    assert visit(1.0) == [1.0]  # alone: the raw reward
    assert visit(0.0) == pytest.approx([-0.5 / math.sqrt(0.5)], abs=1e-5)  # window 1 0
    assert visit(0.0) == pytest.approx([-1 / 3 / math.sqrt(1 / 3)], abs=1e-5)  # window 1 0 0
    assert visit(0.0) == [0.0]  # window 0 0 0: the 1 has left
    # Two rollouts at once: both enter, the window is 0 1 0, and one mean and std serve both.
    wanted = [2 / 3 / math.sqrt(1 / 3), -1 / 3 / math.sqrt(1 / 3)]
    assert visit(1.0, 0.0) == pytest.approx(wanted, abs=1e-5)
    assert windows == {"q": [0.0, 1.0, 0.0]}


def test_a_query_that_comes_twice_in_a_batch_has_one_window():
    rewards = torch.tensor([[1.0], [0], [0]])
    assert bandit.remember({}, ["q", "r", "q"], rewards, 8) == [[1, 0], [0], [1, 0]]


def test_no_window_remembers_nothing():
    windows = {"q": [1.0]}
    assert bandit.remember(windows, ["q"], torch.tensor([[0.0]]), 0) == []
    assert windows == {"q": [1.0]}


# --- the loss by hand -----------------------------------------------------------------------------


def test_loss_means_by_hand():
    lengths = torch.tensor([1, 4, 5])
    wanted = {
        "token": [1 / 10] * 3,
        "sequence": [1 / 3, 1 / 12, 1 / 15],
        "constant": [1 / 24] * 3,
    }
    for name, weights in wanted.items():
        assert bandit.LOSS_MEANS[name](lengths, 8).tolist() == pytest.approx(weights)


@pytest.mark.parametrize("advantage, ratio, value, slope", [
    (1.0, 1.5, -1.2, 0.0),
    (1.0, 0.5, -0.5, -0.5),
    (-1.0, 1.5, 1.5, 1.5),
    (-1.0, 0.5, 0.8, 0.0),
    (2.0, 1.1, -2.2, -2.2),
])  # fmt: skip
def test_clip_by_hand(advantage, ratio, value, slope):
    """d ratio / d logprob is the ratio, and nothing where the clip binds."""
    logprobs = torch.tensor([math.log(ratio)] * 4, requires_grad=True)
    advantages, weights = torch.full((4,), advantage), torch.full((4,), 0.25)
    loss = bandit.loss(logprobs, torch.zeros(4), advantages, weights)
    assert loss.item() == pytest.approx(value)
    assert torch.autograd.grad(loss, logprobs)[0].sum().item() == pytest.approx(slope)


def test_the_upper_clip_has_a_bound_of_its_own():
    one = torch.ones(1)
    loss = bandit.loss(torch.tensor([math.log(1.5)]), torch.zeros(1), one, one, 0.2, 0.28)
    assert loss.item() == pytest.approx(-1.28)


@pytest.mark.parametrize("name, values, slopes", [
    ("k1", [0.5, -1.0], [1, 1]),
    ("k2", [0.125, 0.5], [0.5, -1.0]),
    ("k3", [math.exp(-0.5) - 0.5, math.e - 2], [1 - math.exp(-0.5), 1 - math.e]),
])  # fmt: skip
def test_kl_estimators_by_hand(name, values, slopes):
    d = torch.tensor([0.5, -1.0], requires_grad=True)
    estimate = bandit.KL_ESTIMATORS[name](d)
    assert estimate.tolist() == pytest.approx(values)
    assert torch.autograd.grad(estimate.sum(), d)[0].tolist() == pytest.approx(slopes)


def test_the_kl_term_of_the_loss_by_hand():
    """0.1 times k2 of a distance of 0.5, with an advantage of zero."""
    logprobs = torch.tensor([-1.0], requires_grad=True)
    loss = bandit.loss(
        logprobs, logprobs.detach(), torch.zeros(1), torch.ones(1), kl=0.1, kl_estimator="k2",
        reference_logprobs=torch.tensor([-1.5]),
    )  # fmt: skip
    assert loss.item() == pytest.approx(0.0125)
    assert torch.autograd.grad(loss, logprobs)[0].item() == pytest.approx(0.05)


def test_expected_gradients_of_the_kl_estimators():
    """Of whole completions, on-policy (arXiv:2510.01555): k1 has none, k2 that of KL(pi||ref), k3
    that of KL(ref||pi)."""
    theta = THETA.clone().requires_grad_()
    logprobs, reference = arm_logprobs(theta, 0), arm_logprobs(THETA.flip(0), 0)
    wanted = {
        "k1": torch.zeros_like(THETA),
        "k2": gradient((logprobs.exp() * (logprobs - reference)).sum(), theta),
        "k3": gradient((reference.exp() * (reference - logprobs)).sum(), theta),
    }
    chances = logprobs.detach().exp()
    for name, expected in wanted.items():
        estimate = bandit.KL_ESTIMATORS[name](logprobs - reference)
        got = gradient((chances * estimate).sum(), theta)
        assert torch.allclose(got, expected, atol=1e-12), name
