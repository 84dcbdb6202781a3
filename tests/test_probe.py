"""The probe's figures on vectors of known signal and noise, and its gradients against autograd."""

import numpy as np
import pytest
import torch
from helpers import flatten

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
    noise = torch.randn(2000, 400, generator=generator) * 0.5
    found = probe.describe(direction + noise, direction)
    assert tuple(found) == probe.MEASURES
    assert found["SNR"] == pytest.approx(9 / (400 * 0.25), rel=0.05)  # |E g|^2 / sum of variances
    assert found["a round"] == pytest.approx(3 / (9 + 100) ** 0.5, rel=0.02)
    assert found["cosine"] > 0.98
    assert found["uphill"] == 1.0

    # Without any signal, the noise of four rounds is not taken for one.
    estimates = [torch.randn(4, 400, generator=generator) for _ in range(300)]
    few = [probe.describe(estimate, direction) for estimate in estimates]
    assert abs(np.mean([found["SNR"] for found in few])) < 0.01
    assert np.mean([found["uphill"] for found in few]) == pytest.approx(0.5, abs=0.06)


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
    return probe.Policy(model.eval(), tokenizer, some, data.encode(tokenizer, some), {}, None)


def test_an_estimate_is_the_policy_gradient(checkpoint):
    """With the advantage of the rewards, the token mean, and the trained rollouts only."""
    policy = random_policy(checkpoint("llama"), 5)
    model = policy.model
    before = [p.detach().clone() for p in model.parameters()]
    setting = probe.Setting(3, 2, 1, "group")
    sampled = probe.sample_round(policy, 3, 3, seed=1, max_new_tokens=6)
    rewards = torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 1, 0]])
    found = probe.estimate(policy, setting, sampled._replace(rewards=rewards), 6)

    advantages = bandit.standardized(rewards)[:, :2]
    total, tokens = 0, 0
    for row in range(3):
        prompt = policy.prompts[sampled.chosen[row]]
        for column in range(2):
            completion = sampled.rollouts[3 * row + column].tokens
            logprobs = bandit.completion_logprobs(model, [prompt], [completion])
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
        right = [len(one.tokens) % 2 == 0 or i == 0 for i, one in enumerate(rollouts)]
        return evaluate.Grades(np.array(right), None, None, None)

    monkeypatch.setattr(evaluate, "grade", grade)
    chosen, rollouts, rewards = probe.sample_round(policy, 8, 1, probe.SCORE_SEED, 5)
    assert 0 < rewards.sum() < 8
    squares = []
    for i, one in zip(chosen, rollouts, strict=True):
        logprob = bandit.completion_logprobs(policy.model, [policy.prompts[i]], [one.tokens]).sum()
        gradient = torch.autograd.grad(logprob, list(policy.model.parameters()))
        squares.append(sum((g**2).sum().item() for g in gradient))
    squares = np.array(squares)
    right = rewards.numpy().ravel() > 0
    expected = right.mean(), squares[right].mean(), squares[~right].mean()
    assert probe.score_norms(policy, 5, 8) == pytest.approx(expected, rel=1e-4)


# --- from end to end ------------------------------------------------------------------------------


def test_too_few_rounds_are_refused(tmp_path, script_says):
    said = script_says(probe, "--rounds", "1", "--out", str(tmp_path))
    assert "--rounds and --reference-rounds must be at least 2" in said


@pytest.mark.slow
def test_the_probe_end_to_end(tmp_path, monkeypatch, capsys):
    small = {
        name: setting._replace(queries=max(1, setting.queries // 32))
        for name, setting in probe.SETTINGS.items()
    }
    monkeypatch.setattr(probe, "SETTINGS", small)
    probe.main([
        "--out", str(tmp_path), "--rounds", "2", "--reference-rounds", "2", "--run-rounds", "2",
        "--max-new-tokens", "16",
    ])  # fmt: skip
    page = (tmp_path / "probe.md").read_text()
    # Eight settings and the ceiling, but no window at the base.
    assert page.count("| base |") == 8
    assert page.count("| round 2 |") == 9
    assert page.strip() in capsys.readouterr().out
    assert (tmp_path / "probe.png").stat().st_size > 0
    assert len((tmp_path / "probe.csv").read_text().splitlines()) == 16
