"""The probe's figures on vectors of known signal and noise, and its gradients against autograd."""

import numpy as np
import pytest
import torch
from helpers import flatten, grade_by_coin

import bandit
import data
import evaluate
from infra import models
from lab import probe

# --- the figures ----------------------------------------------------------------------------------


def test_describe_known_vectors():
    generator = torch.Generator().manual_seed(0)
    direction = torch.zeros(400)
    direction[0] = 3.0
    noise = torch.randn(500, 400, generator=generator) * 0.5
    found = probe.describe(direction + noise, direction)
    assert tuple(found) == (*probe.MEASURES, "noise")
    assert found["noise"].value == pytest.approx(400 * 0.25, rel=0.02)
    # |E g|^2 / sum of variances
    assert found["SNR"].value == pytest.approx(9 / (400 * 0.25), rel=0.05)
    assert found["a round"].value == pytest.approx(3 / (9 + 100) ** 0.5, rel=0.02)
    assert found["cosine"].value > 0.98
    assert found["uphill"] == (1.0, 0.0)

    # Without any signal, the noise of four rounds is not taken for one.
    estimates = [torch.randn(4, 400, generator=generator) for _ in range(300)]
    few = [probe.describe(estimate, direction) for estimate in estimates]
    assert abs(np.mean([found["SNR"].value for found in few])) < 0.01
    assert np.mean([found["uphill"].value for found in few]) == pytest.approx(0.5, abs=0.06)


def test_jackknife_errors_are_the_spread_over_repetitions():
    """Of the figures of 12 rounds, each repeated 400 times with other noise."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.zeros(100)
    direction[0] = 3.0
    found = []
    for _ in range(400):
        noise = torch.randn(12, 100, generator=generator) * 0.5
        found.append(probe.describe(direction + noise, direction))
    for name in ("SNR", "a round", "cosine"):
        spread = np.std([each[name].value for each in found])
        error = np.mean([each[name].error**2 for each in found]) ** 0.5
        assert 0.8 < error / spread < 1.5, name  # the jackknife errs on the side of caution

    # Of a mean, the jackknife's error is the usual one.
    sample = np.random.default_rng(0).normal(size=20)
    without_one = (sample.sum() - sample) / 19
    usual = sample.std(ddof=1) / 20**0.5
    assert probe.jackknife_error(without_one) == pytest.approx(usual)


def test_the_noise_between_queries_is_told_from_that_within():
    """Of estimates whose query brings noise of variance 1 and whose rollout brings 3."""
    generator = torch.Generator().manual_seed(0)

    def noise_of_rounds(queries, rollouts):
        between = torch.randn(300, queries, 1, 10, generator=generator)
        within = 3**0.5 * torch.randn(300, queries, rollouts, 10, generator=generator)
        estimates = (between + within).mean(dim=(1, 2))
        return probe.describe(estimates, torch.ones(10))["noise"]

    share = probe.share_between_queries(noise_of_rounds(32, 8), noise_of_rounds(256, 1))
    assert abs(share.value - 0.25) < 3 * share.error
    assert 0.005 < share.error < 0.03


def test_the_baseline_of_least_variance():
    """The constant at which the variance of (R - b) s is least, found by trying all of them."""
    generator = np.random.default_rng(1)
    right = generator.random(500) < 0.3
    scores = generator.normal(size=(500, 5)) * np.where(right, 1, 2)[:, None]
    squares = (scores**2).sum(axis=1)
    found, error = probe.best_baseline(probe.Scores(right, squares, None, None))
    tried = np.linspace(0, 1, 1001)
    second_moments = [(((right - b)[:, None] * scores) ** 2).sum() for b in tried]
    assert found == pytest.approx(tried[np.argmin(second_moments)], abs=1e-3)
    assert 0 < error < 0.05

    # V(b) / V(0) is that second moment beside the raw reward's, and b = 1 leaves the wrong ones.
    measured = probe.Scores(right, squares, None, None)
    for b in (0.0, 0.1, 0.5):
        ratio = probe.variance_ratio(measured, b).value
        assert ratio == pytest.approx(second_moments[round(1000 * b)] / second_moments[0])
    only_wrong = squares[~right].sum() / squares[right].sum()
    assert probe.variance_ratio(measured, 1.0).value == pytest.approx(only_wrong)


def test_the_report_compares_the_baselines():
    scores = probe.Scores(
        right=np.array([True, True, False, False]),
        squared_norms=np.array([1.0, 1.0, 9.0, 9.0]),
        lengths=np.array([4.0, 5.0, 1.0, 2.0]),
        surprises=np.array([1.0, 2.0, 4.0, 5.0]),
    )
    said = probe.scores_in_words("base", scores)
    assert "least variance is 0.10 ± " in said
    assert "the mean reward 0.50." in said
    assert "the constant is 0.75, with -log pi 0.25." in said
    assert "b = -0.2: 1.80 ± " in said  # (2 x 1.44 + 18 x 0.04) / 2


def test_settings_are_read_from_text():
    assert probe.to_setting("8x1+7 rloo") == probe.Setting(8, 1, 7, "rloo")
    assert probe.to_setting("64x1 batch-centered") == probe.Setting(64, 1, 0, "batch-centered")
    assert probe.to_setting("8x8 psr").advantage == "raft"
    for name in bandit.ADVANTAGES:
        assert probe.to_setting(f"8x8 {name}").advantage == name
    with pytest.raises(ValueError, match='"8x1 group": .* there is only one'):
        probe.to_setting("8x1 group")
    for text in ("8x8", "8x8 nosuch", "0x8 group", "x group"):
        with pytest.raises(ValueError, match="write queries x rollouts"):
            probe.to_setting(text)


def test_adam_steps_as_torch_does():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(50))
    optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0)
    moments = probe.Moments(torch.zeros(50), torch.zeros(50), 0)
    for _ in range(3):
        ascent = torch.randn(50)
        weight.grad = -ascent
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        before = weight.detach().clone()
        optimizer.step()
        assert torch.allclose(weight - before, probe.adam_step(ascent, moments), atol=1e-5)
        state = optimizer.state[weight]
        first, second = -state["exp_avg"], state["exp_avg_sq"].clone()
        moments = probe.Moments(first, second, moments.steps + 1)


# --- the gradients --------------------------------------------------------------------------------


def random_policy(folder: str, queries: int) -> probe.Policy:
    """The model of a folder on the first train queries of tiny-gsm."""
    model, tokenizer = models.load(folder, "cpu")
    some = data.load("tiny-gsm", "train")[:queries]
    prompts = data.encode(tokenizer, some)
    return probe.Policy(
        model.eval(), tokenizer, some, prompts, {}, None, max_new_tokens=6, temperature=0.7
    )


def test_an_estimate_is_the_policy_gradient(checkpoint):
    """With the advantage of the rewards, the token mean, and the trained rollouts only."""
    policy = random_policy(checkpoint("llama"), 5)
    model = policy.model
    before = [p.detach().clone() for p in model.parameters()]
    setting = probe.Setting(3, 2, 1, "group")
    sampled = probe.sample_round(policy, 3, 3, seed=1)
    rewards = torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 1, 0]])
    found = probe.estimate(policy, setting, sampled._replace(rewards=rewards))

    advantages = bandit.standardized(rewards)[:, :2]
    total, tokens = 0, 0
    for row in range(3):
        prompt = policy.prompts[sampled.chosen[row]]
        for column in range(2):
            completion = sampled.rollouts[3 * row + column].tokens
            logprobs = bandit.completion_logprobs(model, [prompt], [completion], 0.7)
            total = total + advantages[row, column] * logprobs.sum()
            tokens += len(completion)
    expected = flatten(torch.autograd.grad(total / tokens, list(model.parameters())))
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.norm() > 0
    # The model is left as it was.
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_norms_of_scores(checkpoint, monkeypatch):
    policy = random_policy(checkpoint("qwen2"), 8)

    def grade(tokenizer, queries, rollouts):
        right = [i % 3 == 0 for i in range(len(rollouts))]
        return evaluate.Grades(np.array(right), None, None, None)

    monkeypatch.setattr(evaluate, "grade", grade)
    chosen, rollouts, rewards = probe.sample_round(policy, 8, 1, probe.SCORE_SEED)
    assert 0 < rewards.sum() < 8
    squares = []
    for i, one in zip(chosen, rollouts, strict=True):
        prompt = policy.prompts[i]
        logprobs = bandit.completion_logprobs(policy.model, [prompt], [one.tokens], 0.7)
        gradient = torch.autograd.grad(logprobs.sum(), list(policy.model.parameters()))
        squares.append(sum((g**2).sum().item() for g in gradient))
    found = probe.measure_scores(policy, 8)
    assert found.squared_norms == pytest.approx(squares, rel=1e-4)
    assert (found.right == (rewards.numpy().ravel() > 0)).all()
    assert found.lengths.tolist() == [len(one.tokens) for one in rollouts]
    assert found.surprises == pytest.approx([-sum(one.logprobs) for one in rollouts])


def test_every_advantage_can_be_probed(checkpoint, monkeypatch):
    """Each row by its name, with the histories, the greedy completions and the signs it needs.

    The gradient is that of advantages which are computed here from all that a row may look at.
    """
    policy = random_policy(checkpoint("qwen2"), 4)
    policy.windows.update({query.prompt: [1.0, 0.0] for query in policy.queries})
    monkeypatch.setattr(evaluate, "grade", grade_by_coin)
    sampled = probe.sample_round(policy, 4, 4, seed=1)
    assert 0 < sampled.rewards.sum() < 16
    _, greedy = probe.sample_and_pay(policy, sampled.chosen, 1, temperature=0, seed=7)
    measured = bandit.lengths_and_logprobs(sampled.rollouts, 4)
    prompts = [policy.prompts[i] for i in sampled.chosen for _ in range(4)]
    completions = [one.tokens for one in sampled.rollouts]
    for name, row in bandit.ADVANTAGES.items():
        rewards = 2 * sampled.rewards - 1 if row.needs == "signs" else sampled.rewards
        histories = [[1.0, 0.0, *some] for some in rewards.tolist()]
        advantages = row.compute(bandit.RoundRewards(rewards, greedy[:, 0], histories, *measured))
        batch = bandit.UpdateBatch(prompts, completions, advantages.reshape(-1))
        expected = -probe.gradient_of_loss(policy, batch, "token")
        found = probe.estimate(policy, probe.to_setting(f"4x4 {name}"), sampled)
        assert torch.equal(found, expected), name
        assert found.norm() > 0, name


# --- from end to end ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_probe_end_to_end(tmp_path, monkeypatch, capsys):
    small = {
        name: setting._replace(queries=max(1, setting.queries // 32))
        for name, setting in probe.SETTINGS.items()
    }
    monkeypatch.setattr(probe, "SETTINGS", small)
    probe.main([
        "--out", str(tmp_path), "--rounds", "3", "--reference-rounds", "2", "--run-rounds", "2",
        "--max-new-tokens", "16",
    ])  # fmt: skip
    page = (tmp_path / "probe.md").read_text()
    # Nine settings and the ceiling, but no window at the base.
    assert page.count("| base |") == 9
    assert page.count("| round 2 |") == 10
    assert page.count("lies between queries") == 2
    assert page.strip() in capsys.readouterr().out
    assert (tmp_path / "probe.png").stat().st_size > 0
    assert len((tmp_path / "probe.csv").read_text().splitlines()) == 18
    with pytest.raises(SystemExit, match="has --model tiny-qwen2, not tiny-llama"):
        probe.main(["--model", "tiny-llama", "--out", str(tmp_path), "--run-rounds", "2"])
