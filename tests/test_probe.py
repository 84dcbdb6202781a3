"""The probe's figures on vectors whose signal and noise are known, and its gradients against autograd."""

import numpy as np
import pytest
import torch

import bandit
import data
import likelihood
import probe
import rollout


def test_describe_known_vectors():
    generator = torch.Generator().manual_seed(0)
    direction = torch.zeros(400)
    direction[0] = 3.0
    noise = torch.randn(2000, 400, generator=generator) * 0.5
    found = probe.describe(direction + noise, direction)
    assert found["SNR"] == pytest.approx(9 / (400 * 0.25), rel=0.05)  # |E g|^2 over the sum of the variances
    assert found["a round"] == pytest.approx(3 / (9 + 100) ** 0.5, rel=0.02)
    assert found["cosine"] > 0.98 and found["uphill"] == 1.0
    few = [probe.describe(torch.randn(4, 400, generator=generator), direction) for _ in range(300)]
    assert abs(np.mean([f["SNR"] for f in few])) < 0.01  # no signal: the noise of four rounds is not taken for one
    assert np.mean([f["uphill"] for f in few]) == pytest.approx(0.5, abs=0.06)


def test_adam_steps_as_torch_does():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(50))
    optimizer, moments = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0), (torch.zeros(50), torch.zeros(50), 0)
    for _ in range(3):
        ascent = torch.randn(50)
        weight.grad = -ascent
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        before = weight.detach().clone()
        optimizer.step()
        assert torch.allclose(weight - before, probe.adam_step(ascent, moments), atol=1e-5)
        state = optimizer.state[weight]
        moments = -state["exp_avg"], state["exp_avg_sq"].clone(), moments[2] + 1


def test_an_estimate_is_the_policy_gradient(checkpoint):
    """... of the rewards' advantage, token mean, trained rollouts only; the model is left as it was."""
    model, tokenizer = rollout.load(checkpoint("llama"), "cpu")
    model.eval()
    queries = data.load("tiny-gsm", "train")[:5]
    prompts = data.encode(tokenizer, queries)
    policy = probe.Policy(model, tokenizer, queries, prompts, {}, None)
    before = [p.detach().clone() for p in model.parameters()]
    setting = probe.Setting(3, 2, 1, "group")
    chosen, rollouts, _ = probe.draw(policy, 3, 3, seed=1, length=6)
    rewards = torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 1, 0]])
    found = probe.estimate(policy, setting, chosen, rollouts, rewards, 6)
    advantage = bandit.standardized(rewards)[:, :2]
    total, tokens = 0, 0
    for row in range(3):
        for column in range(2):
            completion = rollouts[3 * row + column].tokens
            logprobs = likelihood.completion_logprobs(model, [prompts[chosen[row]]], [completion])
            total, tokens = total + advantage[row, column] * logprobs.sum(), tokens + len(completion)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total / tokens, list(model.parameters()))])
    assert torch.allclose(found, expected, atol=1e-5) and found.norm() > 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.slow
def test_the_probe_end_to_end(tmp_path, monkeypatch, capsys):
    small = {name: s._replace(queries=max(1, s.queries // 32)) for name, s in probe.SETTINGS.items()}
    monkeypatch.setattr(probe, "SETTINGS", small)
    monkeypatch.setattr("sys.argv", ["probe.py", "--out", str(tmp_path), "--rounds", "2", "--reference-rounds", "2",
                                     "--run-rounds", "2", "--max-new-tokens", "16"])
    probe.main()
    page = (tmp_path / "probe.md").read_text()
    assert page.count("| base |") == 8 and page.count("| round 2 |") == 9  # no window at the base; a ceiling each
    assert page.strip() in capsys.readouterr().out
    assert (tmp_path / "probe.png").stat().st_size > 0 and len((tmp_path / "probe.csv").read_text().splitlines()) == 16


def test_the_norms_of_scores(checkpoint, monkeypatch):
    model, tokenizer = rollout.load(checkpoint("qwen2"), "cpu")
    model.eval()
    queries = data.load("tiny-gsm", "train")[:8]
    prompts = data.encode(tokenizer, queries)
    policy = probe.Policy(model, tokenizer, queries, prompts, {}, None)
    monkeypatch.setattr(probe.evaluate, "judge", lambda tokenizer, queries, rollouts: (
        np.array([len(r.tokens) % 2 == 0 or i == 0 for i, r in enumerate(rollouts)]), None, None))
    chosen, rollouts, rewards = probe.draw(policy, 8, 1, 10**7, 5)
    assert 0 < rewards.sum() < 8
    squares = []
    for i, one in zip(chosen, rollouts, strict=True):
        logprob = likelihood.completion_logprobs(model, [prompts[i]], [one.tokens]).sum()
        squares.append(sum((g**2).sum().item() for g in torch.autograd.grad(logprob, list(model.parameters()))))
    right = rewards.numpy().ravel() > 0
    squares = np.array(squares)
    expected = right.mean(), squares[right].mean(), squares[~right].mean()
    assert probe.score_norms(policy, 5, 8) == pytest.approx(expected, rel=1e-4)
