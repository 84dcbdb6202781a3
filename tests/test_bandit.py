"""The learner: every estimator against exact enumeration, every formula against numbers worked by hand.

The enumerated bandit has two contexts of unequal success rates and four arms of one, two, three and three tokens; an
arm is a path in a tree, so that its tokens have probabilities of their own:   a | b x | b y z | b y w
"""

import itertools
import math

import pytest
import torch

import bandit
import likelihood
import rollout
import settings
import tabular
from bandit import ADVANTAGES, Pulls

LENGTHS = torch.tensor([1, 2, 3, 3])
LONGEST = 3
RIGHT = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)  # [context, arm]
THETA = torch.tensor([[1.8, -0.2, 0.5, 0.1, -0.4, 0.6], [0.1, 0.7, -0.3, 0.4, 0.2, -0.6]], dtype=torch.float64)


def token_logprobs(theta, context):
    """For each arm the log-probabilities of its tokens."""
    first, second, third = torch.log_softmax(theta[context].view(3, 2), -1)
    return [first[:1], torch.stack([first[1], second[0]]), torch.stack([first[1], second[1], third[0]]),
            torch.stack([first[1], second[1], third[1]])]


def arm_logprobs(theta, context):
    return torch.stack([tokens.sum() for tokens in token_logprobs(theta, context)])


def gradient(value, theta):
    return torch.autograd.grad(value, theta)[0]


def objective_gradients():
    """grad p of each context, [2] lists of [2, 6]."""
    theta = THETA.clone().requires_grad_()
    return [gradient((arm_logprobs(theta, c).exp() * RIGHT[c]).sum(), theta) for c in (0, 1)]


def success_rates():
    return [(arm_logprobs(THETA, c).exp() * RIGHT[c]).sum().item() for c in (0, 1)]


def expected_update(name, n, contexts=(0, 1), loss_mean="constant", extra=0, history=()):
    """E[-grad loss] over all outcomes of a round of n rollouts in each context, with the real loss and weights.

    extra: rollouts of each context for the statistics only; history: what the windows hold beforehand.
    """
    theta = THETA.clone().requires_grad_()
    tokens = [token_logprobs(theta, c) for c in contexts]
    chances = [arm_logprobs(THETA, c).exp() for c in contexts]
    signs = ADVANTAGES[name].needs == "signs"
    pays = (2 * RIGHT - 1 if signs else RIGHT)[list(contexts)]
    greedy = torch.stack([pay[chance.argmax()] for pay, chance in zip(pays, chances, strict=True)])
    total, size = torch.zeros_like(THETA), len(contexts)
    for arms in itertools.product(range(4), repeat=size * (n + extra)):
        arms = torch.tensor(arms).view(size, n + extra)
        chance = math.prod(chances[c][arm].item() for c in range(size) for arm in arms[c])
        rewards = pays.gather(1, arms)
        windows = bandit.remember({c: list(history) for c in contexts}, contexts, rewards, 8)
        advantage = bandit.advantages(name, Pulls(rewards, greedy, windows), n).reshape(-1)
        if not advantage.any():
            continue
        arms = arms[:, :n]
        lengths = LENGTHS[arms].reshape(-1)
        logprobs = torch.cat([tokens[c][arm] for c in range(size) for arm in arms[c]])
        spread = torch.arange(size * n).repeat_interleave(lengths)
        weight = bandit.LOSS_MEANS[loss_mean](lengths, LONGEST).double()
        value = bandit.loss(logprobs, logprobs.detach(), advantage[spread], weight[spread])
        total -= chance * torch.autograd.grad(value, theta, retain_graph=True)[0]
    return total


def combined(weights, contexts=(0, 1)):
    """What an update that gives context c the weight w_c is, at tokens summed over a constant."""
    gradients = objective_gradients()
    return sum(w * gradients[c] for c, w in zip(contexts, weights, strict=True)) / (len(contexts) * LONGEST)


@pytest.mark.parametrize("name, n", [("reward", 1), ("reward", 2), ("rloo", 2), ("remax", 1), ("remax", 2)])
def test_unbiased_estimators(name, n):
    """The raw reward, RLOO and ReMax: the expected update is grad J, the mean of the contexts' grad p."""
    assert torch.allclose(expected_update(name, n), combined([1, 1]), atol=1e-12)
    assert torch.allclose(expected_update(name, n + 2, [1]), combined([1], [1]), atol=1e-12)


def test_centering_shrinks_the_gradient():
    assert torch.allclose(expected_update("group-centered", 2), combined([1 / 2] * 2), atol=1e-12)
    assert torch.allclose(expected_update("group-centered", 4, [0]), combined([3 / 4], [0]), atol=1e-12)
    assert torch.allclose(expected_update("batch-centered", 2), combined([3 / 4] * 2), atol=1e-12)
    assert torch.allclose(expected_update("batch-centered", 1), combined([1 / 2] * 2), atol=1e-12)


def test_learning_from_one_sign_only():
    # R is +1 or -1, so grad J is 2 grad p; the right ones alone and the wrong ones alone each give half of it
    for name, weight in (("psr", 1), ("raft", 1), ("nsr", 1), ("w-reinforce", 1.1)):
        assert torch.allclose(expected_update(name, 2), combined([weight] * 2), atol=1e-12), name


@pytest.mark.parametrize("name", ["group", "window"])
def test_normalising_by_the_group_reweights_contexts(name):
    """With two or three rollouts the weights are still equal; from four on, what is rare or sure weighs more."""
    def weight(p):  # one right of four: std 1/2, A = 1.5 and -0.5; two: A = 0.866 and -0.866; three: 0.5 and -1.5
        q, both = 1 - p, 0.5 + math.sqrt(0.75)
        return 1.5 * q**3 + 3 * p * q**2 * both + 3 * p**2 * q * both + 1.5 * p**3

    weights = [weight(p) for p in success_rates()]
    assert abs(weights[0] - weights[1]) > 0.01
    for c in (0, 1):
        got = expected_update(name, 4, [c])  # epsilon is not in `weight`
        assert torch.allclose(got, combined([weights[c]], [c]), atol=1e-5)
        assert not torch.allclose(got, combined([weights[1 - c]], [c]), atol=3e-4)


def test_extra_rollouts_serve_the_statistics_only():
    """1 trained + 2 extra: the weight of a group of three (1.1547 at any p), the gradient of one rollout."""
    assert torch.allclose(expected_update("group", 1, [0], extra=2), combined([2 / math.sqrt(3)], [0]), atol=1e-5)
    assert torch.allclose(expected_update("rloo", 1, [1], extra=2), combined([1], [1]), atol=1e-12)


def test_window_with_a_history():
    # the window 1 0 0 R: right has mean 1/2 and std 0.577, A = 0.866; wrong has mean 1/4 and std 1/2, A = -0.5
    weight = math.sqrt(0.75) + 0.5
    got = expected_update("window", 1, [0], history=(1.0, 0.0, 0.0))
    assert torch.allclose(got, combined([weight], [0]), atol=1e-5)


@pytest.mark.parametrize("name", [n for n, row in ADVANTAGES.items() if row.needs in ("group", "batch", "window")
                                  and "- mean" in row.formula])
def test_no_spread_no_advantage(name):
    """Equal rewards give exactly 0, also where their mean is rounded: 0.1 / epsilon would be a strong signal."""
    rewards = torch.full((3, 7), 0.1)
    assert not ADVANTAGES[name].compute(Pulls(rewards, windows=rewards.tolist())).any()


def test_filtered_groups_reweight_contexts():
    for c, p in enumerate(success_rates()):  # right, and not all four are
        assert torch.allclose(expected_update("reinforce-rej", 4, [c]), combined([1 - p**3], [c]), atol=1e-12)


def test_group_mean_as_the_advantage():
    for name in ("group-mean", "window-mean"):  # only a rollout's own share of the mean correlates with it
        assert torch.allclose(expected_update(name, 2), combined([1 / 2] * 2), atol=1e-6)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_exact_weight_is_that_of_the_enumeration(name):
    one, two = success_rates()
    weights = [tabular.exact_weight(name, one, 2, two), tabular.exact_weight(name, two, 2, one)]
    if name == "remax":  # exact_weight takes the greedy arm to be right where p > 1/2; any baseline has weight 1
        weights = [1, 1]
    assert torch.allclose(expected_update(name, 2), combined(weights), atol=1e-6)


def test_length_bias_of_the_means():
    """A ratio of sums is not an unbiased estimate of anything here: the objective's gradient is another one."""
    def cosine(a, b):
        return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()

    assert cosine(expected_update("reward", 1, loss_mean="constant"), combined([1, 1])) == pytest.approx(1, abs=1e-12)
    token, sequence = (expected_update("reward", 1, loss_mean=mean) for mean in ("token", "sequence"))
    assert cosine(token, combined([1, 1])) < 0.99
    assert cosine(sequence, combined([1, 1])) < 0.99
    # In context 0 arms 0 (one token) and 3 (three tokens) are right; the sequence mean pays a token of the short
    # one three times as much as one of the long one, so it pushes to the short arm more than the objective does.
    short = gradient(arm_logprobs(theta := THETA.clone().requires_grad_(), 0)[0], theta)
    assert cosine(sequence[:1], short[:1]) > cosine(combined([1, 1])[:1], short[:1])
    # With more completions in the mean the bias of the token mean vanishes, that of the sequence mean stays.
    tokens, sequences = ([cosine(expected_update("reward", n, loss_mean=mean), combined([1, 1])) for n in (1, 2, 3)]
                         for mean in ("token", "sequence"))
    assert tokens[0] < tokens[1] < tokens[2] and 1 - tokens[2] < (1 - tokens[0]) / 5
    assert sequences == pytest.approx([sequences[0]] * 3)


# --- numbers worked by hand -------------------------------------------------------------------------------------


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    std = rewards.std()  # of 3 ones and 5 zeros: sqrt(15 / 56)
    assert std.item() == pytest.approx(math.sqrt(15 / 56))

    def compute(name):
        return ADVANTAGES[name].compute(Pulls(rewards))

    assert compute("group")[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)  # std is 1/2
    assert compute("group-centered")[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert compute("rloo").tolist() == [[1, pytest.approx(-1 / 3), pytest.approx(-1 / 3), pytest.approx(-1 / 3)],
                                        pytest.approx([2 / 3, 2 / 3, -2 / 3, -2 / 3])]
    assert compute("batch-centered")[1].tolist() == [0.625, 0.625, -0.375, -0.375]
    assert compute("reinforce++")[1, 0].item() == pytest.approx(0.625 / math.sqrt(15 / 56), abs=1e-5)
    assert compute("lite-ppo")[0, 0].item() == pytest.approx(0.75 / math.sqrt(15 / 56), abs=1e-5)
    spread = math.sqrt((0.75**2 + 3 * 0.25**2 + 4 * 0.5**2) / 7)  # of R - mean_G over the batch
    assert compute("reinforce++-baseline")[1, 0].item() == pytest.approx(0.5 / spread, abs=1e-5)
    full = Pulls(torch.tensor([[1.0, 1], [0, 0], [1, 0]]), greedy=torch.tensor([1.0, 0, 1]))
    assert ADVANTAGES["reinforce-rej"].compute(full).tolist() == [[0, 0], [0, 0], [1, 0]]
    assert ADVANTAGES["remax"].compute(full).tolist() == [[0, 0], [0, 0], [0, -1]]


def test_one_rollout_and_seven_for_its_baseline():
    rewards = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0], [0.0, 1, 0, 0, 0, 0, 0, 0]])
    advantage = bandit.advantages("group", Pulls(rewards), 1)
    assert advantage.shape == (2, 1)
    std = math.sqrt((2 * 0.75**2 + 6 * 0.25**2) / 7)  # two right of eight: mean 1/4
    assert advantage[0, 0].item() == pytest.approx(0.75 / std, abs=1e-5)
    assert advantage[1, 0].item() == pytest.approx(-0.125 / math.sqrt((0.875**2 + 7 * 0.125**2) / 7), abs=1e-5)


def test_window_by_hand():
    windows = {}

    def visit(*rewards, size=3):
        rewards = torch.tensor([rewards])
        return ADVANTAGES["window"].compute(Pulls(rewards, windows=bandit.remember(windows, ["q"], rewards, size)))

    assert visit(1.0).tolist() == [[1.0]]  # alone: the raw reward
    assert visit(0.0)[0, 0].item() == pytest.approx(-0.5 / math.sqrt(0.5), abs=1e-5)  # window 1 0
    assert visit(0.0)[0, 0].item() == pytest.approx(-1 / 3 / math.sqrt(1 / 3), abs=1e-5)  # window 1 0 0
    assert visit(0.0).tolist() == [[0.0]]  # window 0 0 0: the 1 has left
    # two rollouts at once: both enter, window 0 1 0, and one mean and std serve both
    assert visit(1.0, 0.0)[0].tolist() == pytest.approx([2 / 3 / math.sqrt(1 / 3), -1 / 3 / math.sqrt(1 / 3)], abs=1e-5)
    assert windows == {"q": [0.0, 1.0, 0.0]}
    # a query that comes twice in a batch has one window
    assert bandit.remember({}, ["q", "r", "q"], torch.tensor([[1.0], [0], [0]]), 8) == [[1, 0], [0], [1, 0]]


def test_loss_means_by_hand():
    lengths = torch.tensor([1, 4, 5])
    assert bandit.LOSS_MEANS["token"](lengths, 8).tolist() == pytest.approx([0.1] * 3)
    assert bandit.LOSS_MEANS["sequence"](lengths, 8).tolist() == pytest.approx([1 / 3, 1 / 12, 1 / 15])
    assert bandit.LOSS_MEANS["constant"](lengths, 8).tolist() == pytest.approx([1 / 24] * 3)


def test_clip_by_hand():
    old = torch.zeros(4)
    for advantage, ratio, value, slope in ((1.0, 1.5, -1.2, 0.0), (1.0, 0.5, -0.5, -0.5), (-1.0, 1.5, 1.5, 1.5),
                                           (-1.0, 0.5, 0.8, 0.0), (2.0, 1.1, -2.2, -2.2)):
        logprobs = torch.tensor([math.log(ratio)] * 4, requires_grad=True)
        loss = bandit.loss(logprobs, old, torch.full((4,), advantage), torch.full((4,), 0.25))
        assert loss.item() == pytest.approx(value), (advantage, ratio)
        # d ratio / d logprob = ratio, and nothing where the clip binds
        assert torch.autograd.grad(loss, logprobs)[0].sum().item() == pytest.approx(slope), (advantage, ratio)
    high = bandit.loss(torch.tensor([math.log(1.5)]), old[:1], torch.ones(1), torch.ones(1), 0.2, 0.28)
    assert high.item() == pytest.approx(-1.28)


def test_kl_estimators_by_hand():
    d = torch.tensor([0.5, -1.0], requires_grad=True)
    for name, values, slopes in (("k1", [0.5, -1.0], [1, 1]), ("k2", [0.125, 0.5], [0.5, -1.0]),
                                 ("k3", [math.exp(-0.5) - 0.5, math.e - 2], [1 - math.exp(-0.5), 1 - math.e])):
        estimate = bandit.KL_ESTIMATORS[name](d)
        assert estimate.tolist() == pytest.approx(values)
        assert torch.autograd.grad(estimate.sum(), d)[0].tolist() == pytest.approx(slopes)
    # as a term of the loss: 0.1 * k2 of 0.5, the advantage being zero
    logprobs = torch.tensor([-1.0], requires_grad=True)
    loss = bandit.loss(logprobs, logprobs.detach(), torch.zeros(1), torch.ones(1), kl=0.1, kl_estimator="k2",
                       reference=torch.tensor([-1.5]))
    assert loss.item() == pytest.approx(0.0125)
    assert torch.autograd.grad(loss, logprobs)[0].item() == pytest.approx(0.05)


def test_expected_gradients_of_the_kl_estimators():
    """Of whole completions, on-policy (arXiv:2510.01555): k1 nothing, k2 KL(pi||ref), k3 KL(ref||pi)."""
    theta = THETA.clone().requires_grad_()
    logp, ref = arm_logprobs(theta, 0), arm_logprobs(THETA.flip(0), 0)
    p = logp.detach().exp()
    wanted = {"k1": torch.zeros_like(THETA), "k2": gradient((logp.exp() * (logp - ref)).sum(), theta)}
    wanted["k3"] = gradient((ref.exp() * (ref - arm_logprobs(theta, 0))).sum(), theta)
    for name, expected in wanted.items():
        estimate = bandit.KL_ESTIMATORS[name](arm_logprobs(theta, 0) - ref)
        assert torch.allclose(gradient((p * estimate).sum(), theta), expected, atol=1e-12), name


@pytest.mark.parametrize("kwargs, message", [
    ({"name": "group", "n": 1}, "write --advantage reward"),
    ({"name": "rloo", "n": 1}, "write --advantage reward"),
    ({"name": "batch-centered", "n": 1, "batch": 1}, "write --advantage reward"),
    ({"name": "reward", "n": 1, "extra": 7}, "sampled for nothing"),
    ({"name": "window", "n": 1}, "needs --window"),
    ({"name": "window", "n": 16, "window": 8}, "cannot hold"),
    ({"name": "reward", "n": 1, "window": 8}, "of no use"),
    ({"name": "psr", "n": 1}, "it is --advantage reward"),
    ({"name": "nsr", "n": 1}, "nothing to learn"),
    ({"name": "reward", "n": 1, "wrong": 1.0}, "must be above"),
])
def test_settings_that_cannot_mean_what_they_say(kwargs, message):
    with pytest.raises(ValueError, match=message):
        settings.check(**{"batch": 32, **kwargs})


def test_settings_of_the_paper_are_accepted():
    settings.check("group", 32, 1, extra=7)
    settings.check("window", 256, 1, window=8)
    settings.check("psr", 32, 8, wrong=-1.0)


# --- the update of a language model -----------------------------------------------------------------------------

PROMPTS = [[5, 6, 7, 8, 9], [30, 31], [50, 51, 52], [60, 61, 62, 63]]
END = 0  # also the id that pads: the real one must count, the padding must not
COMPLETIONS = [[70, END], [80, 81, 82, 83, END], [90, 91, 92], [100, END]]


@pytest.fixture(params=["qwen2", "llama", "olmo2"])
def model(request, checkpoint):
    return rollout.load(checkpoint(request.param), "cpu")[0].double()


def plain_logprobs(model, prompt, completion):
    logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1:-1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def test_every_completion_token_counts_once_and_no_padding(model):
    got = likelihood.completion_logprobs(model, PROMPTS, COMPLETIONS)
    expected = torch.cat([plain_logprobs(model, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    assert got.shape == (12,)  # 2 + 5 + 3 + 2, four end-of-sequence tokens less the one that was cut
    assert torch.allclose(got.double(), expected, atol=1e-5)


def test_update_is_the_policy_gradient(model):
    """One step of plain gradient descent against the token mean written out, sequence by sequence."""
    advantage = torch.tensor([1.0, -0.5, 0.0, 2.0])
    before = [p.detach().clone() for p in model.parameters()]
    value = -sum(a * plain_logprobs(model, p, c).sum() for a, p, c in
                 zip(advantage, PROMPTS, COMPLETIONS, strict=True)) / 12
    gradients = torch.autograd.grad(value, list(model.parameters()))
    stats = bandit.update(model, torch.optim.SGD(model.parameters(), lr=0.1), PROMPTS, COMPLETIONS, advantage,
                          max_grad_norm=1e9)
    for p, old, g in zip(model.parameters(), before, gradients, strict=True):
        assert torch.allclose(p, old - 0.1 * g, atol=1e-6)
    norm = torch.stack([g.norm() for g in gradients]).norm().item()
    assert stats["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert stats["update_norm"] == pytest.approx(0.1 * norm, rel=1e-4)


@pytest.mark.parametrize("loss_mean", bandit.LOSS_MEANS)
def test_micro_batches_add_up_to_the_whole(checkpoint, loss_mean):
    after = []
    for micro_tokens in (1, 14, 10000):
        model = rollout.load(checkpoint("qwen2"), "cpu")[0].double()
        reference = rollout.load(checkpoint("qwen2"), "cpu")[0].double()
        with torch.no_grad():
            reference.lm_head.weight.mul_(1.1)
        stats = bandit.update(model, torch.optim.SGD(model.parameters(), lr=1.0), PROMPTS, COMPLETIONS,
                              torch.tensor([1.0, -0.5, 0.0, 2.0]), loss_mean=loss_mean, longest=6, kl=0.1,
                              reference=reference, micro_tokens=micro_tokens, max_grad_norm=1e9)
        after.append((torch.cat([p.detach().flatten() for p in model.parameters()]), stats["loss"], stats["kl"]))
    for other in after[1:]:
        assert torch.allclose(after[0][0], other[0], atol=1e-6)
        assert after[0][1:] == pytest.approx(other[1:], rel=1e-5)


def test_a_round_of_zeros_still_takes_its_step(checkpoint):
    model = rollout.load(checkpoint("qwen2"), "cpu")[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    first = bandit.update(model, optimizer, PROMPTS, COMPLETIONS, torch.ones(4))
    second = bandit.update(model, optimizer, PROMPTS, COMPLETIONS, torch.zeros(4))
    assert first["update_norm"] > 0 and second["grad_norm"] == 0 and second["loss"] == 0
    assert second["update_norm"] > 0  # momentum


def test_clip_binds_only_after_the_first_step(checkpoint):
    def run(epochs, clip):
        model = rollout.load(checkpoint("qwen2"), "cpu")[0]
        bandit.update(model, torch.optim.SGD(model.parameters(), lr=5.0), PROMPTS, COMPLETIONS, torch.ones(4),
                      epochs=epochs, clip_low=clip, clip_high=clip, max_grad_norm=1e9)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(run(1, 0.01), run(1, 100.0))
    assert not torch.allclose(run(3, 0.01), run(3, 100.0))


def test_parts_cover_all_rows_within_the_budget():
    lengths = [5, 100, 7, 30, 31, 6, 2]
    groups = likelihood.parts(lengths, 64)
    assert sorted(sum(groups, [])) == list(range(7))
    assert all(len(g) == 1 or max(lengths[i] for i in g) * len(g) <= 64 for g in groups)


def test_reward_rises_on_a_micro_problem(checkpoint):
    """Even first tokens are right: the whole chain, sampling to step, within seconds."""
    model = rollout.load(checkpoint("llama"), "cpu")[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    shares = []
    for step in range(40):
        rollouts = rollout.sample(model, PROMPTS, 8, max_new_tokens=2, end_ids={END}, seed=step)
        rewards = torch.tensor([float(r.tokens[0] % 2 == 0) for r in rollouts])
        prompts = [PROMPTS[i // 8] for i in range(32)]
        bandit.update(model, optimizer, prompts, [r.tokens for r in rollouts], rewards)
        shares.append(rewards.mean().item())
    assert sum(shares[:5]) / 5 < 0.7 and sum(shares[-5:]) / 5 > 0.95
