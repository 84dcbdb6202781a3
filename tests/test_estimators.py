"""Every row of bandit.ADVANTAGES against what it declares: all outcomes of small rounds are
enumerated, with the real loss. A new row is tested by its being there.

    python -m pytest tests/test_estimators.py -k NAME
"""

import math

import enumeration
import pytest
import torch
from enumeration import RIGHT, THETA, WINDOW, expected_update, success_rate, weights_and_rest

import bandit
import train
from bandit import ADVANTAGES, RoundRewards, gradient_times
from infra import flags
from lab import tabular

# Rounds that are enumerated: contexts, rollouts of each, and more for the statistics.
ROUNDS = [
    ((0,), 2, 0),
    ((0, 1), 1, 0),
    ((0,), 1, 2),
    ((1,), 1, 2),
    ((0,), 4, 0),
    ((1,), 4, 0),
    ((0, 1), 2, 0),
]


def is_accepted(needs, contexts, n, extra):
    """Whether train.py would run an advantage with these needs on rounds of this shape."""
    window = WINDOW if needs == "window" else 0
    wrong = -1.0 if needs == "signs" else 0.0
    try:
        flags.check_settings("", needs, len(contexts), n, extra, window, 1.0, wrong)
    except ValueError:
        return False
    return True


def check_expected_update(name):
    """The expected update of the row, by enumeration, is what the row declares, and what
    lab.tabular shows."""
    row = ADVANTAGES[name]
    kind, weight, reason = row.expected
    is_neither = kind == "neither"
    accepted = [shape for shape in ROUNDS if is_accepted(row.needs, *shape)]
    assert accepted, f"{name}: train.py refuses it whatever the round"
    assert not is_neither or reason, f"{name} declares neither without a reason"
    rests = []
    for contexts, n, extra in accepted:
        update = expected_update(name, n, contexts, extra=extra, alike=is_neither)
        for context, (found, rest) in zip(
            contexts, weights_and_rest(update, contexts), strict=True
        ):
            p = success_rate(THETA, context).item()
            place = f"{name}, {len(contexts)} x {n} + {extra} rollouts, p = {p:.2f}"
            compare(place, p, n + extra, len(contexts), found, rest, weight)
            if len(contexts) == 2:
                other = success_rate(THETA, 1 - context).item()
                exact = tabular.exact_weight(name, p, n, other)
                assert found == pytest.approx(exact, rel=1e-5), f"{place}: lab.tabular's w(p)"
        if is_neither:
            update = expected_update(name, n, contexts, extra=extra)
            for found, rest in weights_and_rest(update, contexts):
                assert found > 0, f"{name}: the update points away from the objective's gradient"
                rests.append(rest)
    assert not is_neither or max(rests) > 1e-3, (
        f"{name} declares neither, but its update is a multiple of grad p"
    )


def compare(place, p, G, B, found, rest, weight):
    """One query's enumerated update, found * grad p and a rest, with the declared weight."""
    assert math.isfinite(found), (
        f"{place}: advantages are not finite: is a mean or std taken over the wrong axis?"
    )
    assert found > -1e-9, (
        f"{place}: the update points away from the objective's gradient, it is {found:.4f} * "
        "grad p: its sign is reversed"
    )
    assert rest < 1e-5, (
        f"{place}: the update is no multiple of grad p, {rest:.1%} of it point elsewhere: declare "
        "neither, with the reason"
    )
    if weight is None:
        assert found > 1e-9, f"{place}: w(p) must be positive and is {found:.4f}"
        return
    declared = weight(p, G, B)
    assert declared > 0, f"{place}: the row declares {declared:.4f} * grad p: w must be positive"
    assert found == pytest.approx(declared, rel=2e-5), (
        f"{place}: the update is {found:.4f} * grad p and the row declares {declared:.4f}"
        + likely_reason(found / declared, G, B)
    )


def likely_reason(ratio, G, B):
    """What a wrong factor looks like."""
    if abs(ratio) < 1e-9:
        return ": it vanishes; a mean over the wrong axis compares a rollout with itself"
    for size, what in ((G, "the group"), (G * B, "the batch")):
        for power in (0.5, 1):
            factor = (size / max(1, size - 1)) ** power
            if math.isclose(max(ratio, 1 / ratio), factor, rel_tol=1e-4):
                return f": n and n - 1 are confused, n being the size of {what} ({size})"
    return ""


def some_round(needs, B=3, G=5, graded=False):
    """A round of random verdicts, lengths and log-probabilities. graded: the right ones are paid
    unequally."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randint(2, (B, G), generator=generator).double()
    rewards[:, 0], rewards[:, 1] = 1, 0
    rewards = rewards * torch.rand(B, G, generator=generator) if graded else rewards
    rewards = 2 * rewards - 1 if needs == "signs" else rewards
    greedy = rewards[:, 2]
    lengths = torch.randint(1, 9, (B, G), generator=generator).double()
    logprobs = -lengths * torch.rand(B, G, generator=generator)
    return RoundRewards(rewards, greedy, rewards.tolist(), lengths, logprobs)


def check_order(name):
    """If the rollouts of each group change places, so do their advantages, and nothing else. The
    rewards are verdicts, then graded."""
    row = ADVANTAGES[name]
    order = torch.tensor([3, 0, 4, 1, 2])
    for graded in (False, True):
        before = some_round(row.needs, graded=graded)
        after = RoundRewards(
            before.rewards[:, order], before.greedy, before.rewards[:, order].tolist(),
            before.lengths[:, order], before.logprobs[:, order],
        )  # fmt: skip
        found = row.compute(before)
        assert found.isfinite().all() and found.any(), (
            f"{name}: the advantages of {'graded rewards' if graded else 'verdicts'} are all 0, or "
            f"not finite: {found}"
        )
        assert torch.allclose(row.compute(after), found[:, order]), (
            f"{name}: the advantages depend on the order of the rollouts within their group"
        )


def check_spread(name):
    """Equal rewards give exactly 0 where the row claims it, and only there. A mean of equal rewards
    may be rounded: previously that error was divided by epsilon, a strong signal."""
    row = ADVANTAGES[name]
    largest = 0.0
    for value in (0.1,) if row.needs == "rate" else (0.1, -0.1):
        rewards = torch.full((3, 7), value)
        others = some_round(row.needs, 3, 7)
        greedy = torch.zeros(3)
        found = row.compute(
            RoundRewards(rewards, greedy, rewards.tolist(), others.lengths, others.logprobs)
        )
        largest = max(largest, found.abs().max().item())
    if row.needs_spread:
        assert largest == 0, (
            f"{name} claims needs_spread, but rewards that are all 0.1 in size give advantages up "
            f"to {largest:.3g}"
        )
    else:
        assert largest > 0, f"{name} gives 0 to equal rewards: it should say needs_spread=True"


CHECKS = [check_expected_update, check_order, check_spread]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ADVANTAGES)
def test_every_row_does_what_it_declares(name, check):
    check(name)


def test_a_window_with_a_history():
    """The window 1 0 0 R: with R = 1 mean 1/2 and std 0.577, so A = 0.866; with R = 0 mean 1/4 and
    std 1/2, so A = -0.5."""
    update = expected_update("window", 1, (0,), history=(1.0, 0.0, 0.0))
    ((weight, rest),) = weights_and_rest(update, (0,))
    assert weight == pytest.approx(math.sqrt(0.75) + 0.5, rel=1e-5)
    assert rest < 1e-5


# --- wrong estimators fail ------------------------------------------------------------------------


def complaint(name, monkeypatch, **changed):
    """What the checks say of a row with these changed fields."""
    monkeypatch.setitem(ADVANTAGES, name, ADVANTAGES[name]._replace(**changed))
    try:
        for check in CHECKS:
            check(name)
    except AssertionError as error:
        return str(error)
    pytest.fail(f"no check notices this change of {name}; if the row itself fails, mend it first")


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_reversed_sign_fails(name, monkeypatch):
    compute = ADVANTAGES[name].compute
    said = complaint(name, monkeypatch, compute=lambda r: -compute(r))
    assert "points away from the objective's gradient" in said


def test_a_reversed_sign_cannot_be_declared(monkeypatch):
    wrong = {"compute": lambda r: -r.rewards, "expected": gradient_times(lambda G, B: -1)}
    assert "points away" in complaint("reward", monkeypatch, **wrong)
    wrong["compute"] = lambda r: r.rewards
    assert "w must be positive" in complaint("reward", monkeypatch, **wrong)


def over_queries(compute):
    """The same with the mean over the queries of a rollout, in place of the rollouts of a query."""
    return lambda r: compute(RoundRewards(r.rewards.T, None, None, r.lengths.T, r.logprobs.T)).T


@pytest.mark.filterwarnings("ignore:std")  # of a single reward
@pytest.mark.parametrize("name", ["group", "group-centered", "opo", "maxrl"])
def test_a_mean_over_the_wrong_axis_fails(name, monkeypatch):
    said = complaint(name, monkeypatch, compute=over_queries(ADVANTAGES[name].compute))
    assert "wrong axis" in said


def test_n_in_place_of_n_minus_1_fails(monkeypatch):
    """In the std of a group, and in the mean of the others. There the update stays unbiased, but
    equal rewards would teach something."""

    def with_population_std(r):
        std = r.rewards.std(dim=1, keepdim=True, correction=0)
        return bandit.centered(r.rewards) / (std + bandit.EPSILON)

    said = complaint("group", monkeypatch, compute=with_population_std)
    assert "n and n - 1 are confused, n being the size of the group" in said

    def with_all(r):
        others = r.rewards.sum(dim=1, keepdim=True) - r.rewards
        return r.rewards - others / r.rewards.shape[1]

    assert "claims needs_spread" in complaint("rloo", monkeypatch, compute=with_all)

    def with_one_less(r):
        mean = r.rewards.sum(dim=1, keepdim=True) / (r.rewards.shape[1] - 1)
        return bandit.zero_without_spread(r.rewards - mean, r.rewards)

    said = complaint("group-centered", monkeypatch, compute=with_one_less)
    assert "the row declares" in said


def test_extra_rollouts_that_are_trained_on_fail(monkeypatch):
    real = train.to_batch

    def with_all(args, *rest):
        args = type(args)(rollouts=args.rollouts + args.baseline_rollouts, baseline_rollouts=0)
        return real(args, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "to_batch", with_all)
        with pytest.raises(AssertionError, match="the extra rollouts are trained on"):
            check_expected_update("group")
    monkeypatch.setattr(
        bandit, "advantages", lambda name, rewards, n: ADVANTAGES[name].compute(rewards)
    )
    with pytest.raises(AssertionError, match="the extra rollouts are trained on"):
        check_expected_update("group")


def test_the_enumeration_has_queries_of_unequal_success_rates():
    one, two = (success_rate(THETA, context).item() for context in (0, 1))
    assert abs(one - two) > 0.2
    assert len(set(enumeration.LENGTHS[RIGHT[0] > 0].tolist())) == 2
