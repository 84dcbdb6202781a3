"""Advantages, the loss and its means: formulas against numbers worked by hand, expectations against
enumeration. test_estimators.py enumerates the rows of the table, test_bandit_update.py has the
update.
"""

import math

import pytest
import torch
from enumeration import THETA, arm_logprobs, combined, expected_update, gradient

import bandit
from bandit import ADVANTAGES, RoundRewards
from rollout import Rollout

# --- the means over tokens, by enumeration --------------------------------------------------------


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

    # Three right of four: mean 3/4. None: 0, and not 0/0.
    shares = ADVANTAGES["maxrl"].compute(RoundRewards(torch.tensor([[1.0, 1, 1, 0], [0] * 4])))
    assert torch.allclose(shares, torch.tensor([[1 / 3, 1 / 3, 1 / 3, -1], [0] * 4]))
    with pytest.raises(ValueError, match="--advantage maxrl divides .* none may be -1"):
        ADVANTAGES["maxrl"].compute(RoundRewards(torch.tensor([[1.0, -1, -1, -1]])))

    groups = torch.tensor([[1.0, 1], [0, 0], [1, 0]])
    round_rewards = RoundRewards(groups, greedy=torch.tensor([1.0, 0, 1]))
    mixed_only = ADVANTAGES["reinforce-rej"].compute(round_rewards)
    assert mixed_only.tolist() == [[0, 0], [0, 0], [1, 0]]
    assert ADVANTAGES["remax"].compute(round_rewards).tolist() == [[0, 0], [0, 0], [0, -1]]


def test_lengths_and_logprobs_by_hand():
    """Tokens 1, 2, 3 with log pi -2, -1, -5. opo: the mean is (1 + 3) / 6. least-variance: of the
    others 5/6, 5/7 and 2/3."""
    rollouts = [
        Rollout([7], [-2.0], False),
        Rollout([7, 8], [-0.25, -0.75], False),
        Rollout([7, 8, 9], [-1.0, -1.0, -3.0], True),
    ]
    measured = bandit.lengths_and_logprobs(rollouts, 3)
    assert [values.tolist() for values in measured] == [[[1, 2, 3]], [[-2, -1, -5]]]
    round_rewards = RoundRewards(torch.tensor([[1.0, 0, 1]]), None, None, *measured)
    by_length = ADVANTAGES["opo"].compute(round_rewards)[0].tolist()
    assert by_length == pytest.approx([1 / 3, -2 / 3, 1 / 3])
    by_logprob = ADVANTAGES["least-variance"].compute(round_rewards)[0].tolist()
    assert by_logprob == pytest.approx([1 - 5 / 6, -1, 1 - 2 / 3], abs=1e-5)

    # A policy that is sure of everything: all count the same, as in rloo.
    sure = round_rewards._replace(logprobs=torch.zeros(1, 3))
    assert torch.allclose(bandit.least_variance(sure), bandit.rloo(sure))


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
