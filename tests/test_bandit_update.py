"""The update of a language model: log-probabilities against full forward passes, the step against
plain gradients."""

import math

import numpy as np
import pytest
import torch
from helpers import (
    END,
    NAMES,
    ROUND_COMPLETIONS,
    ROUND_PROMPTS,
    flatten,
    full_forward_logprobs,
    small_batch,
)
from torch.utils._python_dispatch import TorchDispatchMode

import bandit
import rollout
from bandit import UpdateConfig

# --- the log-probabilities of completions ---------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_completion_token_counts_once_and_no_padding(name, load_model):
    model = load_model(name)
    got = bandit.completion_logprobs(model, ROUND_PROMPTS, ROUND_COMPLETIONS)
    rounds = zip(ROUND_PROMPTS, ROUND_COMPLETIONS, strict=True)
    expected = torch.cat([full_forward_logprobs(model, p, c) for p, c in rounds])
    assert got.shape == (12,)  # 2 + 5 + 3 + 2 tokens; three completions end, one is truncated
    assert torch.allclose(got, expected, atol=1e-5)


class LargestLogits(TorchDispatchMode):
    """How many numbers the largest tensor has whose last axis is the vocabulary, the head's weights
    not counted."""

    def __init__(self, vocabulary, hidden):
        super().__init__()
        self.vocabulary, self.weights, self.numbers = vocabulary, (hidden, vocabulary), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if not isinstance(tensor, torch.Tensor) or tensor.shape == self.weights:
                continue
            if tensor.shape[-1:] == (self.vocabulary,):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("name", NAMES)
def test_logprobs_in_pieces_are_those_of_the_whole(name, load_model, monkeypatch):
    """The head is applied to three tokens at a time; values and gradients stay the same."""
    prompts, completions = ROUND_PROMPTS[:3], ROUND_COMPLETIONS[:3]
    factors = torch.arange(10.0)  # so that each token has a gradient of its own
    plain = load_model(name)
    rows = zip(prompts, completions, strict=True)
    expected = torch.cat([full_forward_logprobs(plain, p, c, 0.7) for p, c in rows])
    (expected * factors).sum().backward()

    found = []
    for tokens_at_a_time in (10, 3):
        model = load_model(name)
        vocabulary = model.config.vocab_size
        if tokens_at_a_time == 3:
            monkeypatch.setattr(bandit, "LOGITS_AT_A_TIME", 3 * vocabulary)
        with LargestLogits(vocabulary, model.config.hidden_size) as largest:
            got = bandit.completion_logprobs(model, prompts, completions, temperature=0.7)
            (got * factors).sum().backward()
        assert largest.numbers == tokens_at_a_time * vocabulary
        assert torch.allclose(got, expected, atol=1e-10)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(ours.grad, theirs.grad, atol=1e-9)
        found.append(got)
    assert torch.allclose(*found, atol=1e-12)


def test_micro_batches_cover_all_rows_within_the_budget():
    lengths = [5, 100, 7, 30, 31, 6, 2]
    groups = bandit.micro_batches(lengths, 64)
    assert sorted(sum(groups, [])) == list(range(7))
    for group in groups:
        padded = max(lengths[i] for i in group) * len(group)
        assert padded <= 64 or len(group) == 1


# --- the update of a language model ---------------------------------------------------------------

UNCLIPPED = UpdateConfig(max_grad_norm=1e9)


def descend(model, batch, config=UNCLIPPED, lr=1.0, reference=None):
    """One update by plain gradient descent; what it returns."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return bandit.update(model, optimizer, batch, config, reference)


@pytest.mark.parametrize("name", NAMES)
def test_update_is_the_policy_gradient(name, load_model):
    """One step of plain gradient descent against the token mean, written out row by row."""
    model = load_model(name)
    advantages = [1.0, -0.5, 0.0, 2.0]
    value = 0.0
    for advantage, prompt, completion in zip(
        advantages, ROUND_PROMPTS, ROUND_COMPLETIONS, strict=True
    ):
        value = value - advantage * full_forward_logprobs(model, prompt, completion).sum() / 12
    wanted = flatten(torch.autograd.grad(value, list(model.parameters())))
    before = flatten(model)

    step = descend(model, small_batch(advantages), lr=0.1)
    assert torch.allclose(flatten(model), before - 0.1 * wanted, atol=1e-6)
    assert step["grad_norm"] == pytest.approx(wanted.norm().item(), rel=1e-4)
    assert step["update_norm"] == pytest.approx(0.1 * wanted.norm().item(), rel=1e-4)


@pytest.mark.parametrize("loss_mean", bandit.LOSS_MEANS)
def test_micro_batches_add_up_to_the_whole(load_model, loss_mean):
    results = []
    for micro_tokens in (1, 14, 10000):
        model, reference = load_model("qwen2"), load_model("qwen2")
        with torch.no_grad():
            reference.lm_head.weight.mul_(1.1)
        config = UNCLIPPED._replace(
            loss_mean=loss_mean, max_new_tokens=6, kl=0.1, micro_tokens=micro_tokens
        )
        step = descend(model, small_batch([1.0, -0.5, 0.0, 2.0]), config, reference=reference)
        results.append((flatten(model), step["loss"], step["kl"]))
    for other in results[1:]:
        assert torch.allclose(results[0][0], other[0], atol=1e-6)
        assert results[0][1:] == pytest.approx(other[1:], rel=1e-5)


def test_a_round_of_zeros_still_takes_its_step(load_model):
    """Its gradient is zero, but the optimizer has momentum."""
    model = load_model("qwen2", torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    first = bandit.update(model, optimizer, small_batch([1.0] * 4))
    second = bandit.update(model, optimizer, small_batch([0.0] * 4))
    assert first["update_norm"] > 0
    assert second["grad_norm"] == 0
    assert second["loss"] == 0
    assert second["update_norm"] > 0


def test_clip_binds_only_after_the_first_step(load_model):
    def run(epochs, clip):
        model = load_model("qwen2", torch.float32)
        config = UNCLIPPED._replace(epochs_per_round=epochs, clip_low=clip, clip_high=clip)
        descend(model, small_batch([1.0] * 4), config, lr=5.0)
        return flatten(model)

    assert torch.equal(run(1, 0.01), run(1, 100.0))
    assert not torch.allclose(run(3, 0.01), run(3, 100.0))


def test_the_reference_pulls_back(load_model):
    """Without an advantage, and with k2, the step goes down weight * d * grad logprob, where d is a
    token's distance to the reference."""
    model, reference = load_model("qwen2"), load_model("qwen2")
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.3)
    before = flatten(model)
    batch = small_batch([0.0, 0.0, 0.0])
    logprobs = bandit.completion_logprobs(model, batch.prompts, batch.completions)
    with torch.no_grad():
        d = logprobs - bandit.completion_logprobs(reference, batch.prompts, batch.completions)
    value = (0.1 * d * logprobs / 10).sum()
    wanted = flatten(torch.autograd.grad(value, list(model.parameters())))

    config = UNCLIPPED._replace(kl=0.1, kl_estimator="k2")
    step = descend(model, batch, config, reference=reference)
    assert torch.allclose(flatten(model), before - wanted, atol=1e-8)
    assert step["kl"] == pytest.approx((torch.exp(-d) + d - 1).mean().item())


def test_the_mismatch_to_the_sampler_and_its_correction(load_model):
    """The sampler's log-probabilities are given: 0.5 lower for the tokens of the first completion,
    3 lower for the last token, so its factor exp(3) is capped at 2."""
    advantages = [1.0, -1.0, 2.0]
    prompts, completions = ROUND_PROMPTS[:3], ROUND_COMPLETIONS[:3]
    logprobs = bandit.completion_logprobs(load_model("qwen2"), prompts, completions).detach()
    mismatch = torch.tensor([0.5, 0.5] + [0.0] * 7 + [3.0])
    sampler_logprobs = [part.tolist() for part in (logprobs - mismatch).split([2, 5, 3])]
    batch = small_batch(advantages, sampler_logprobs)

    def step(correct_sampler):
        model = load_model("qwen2")
        before = flatten(model)
        measured = descend(model, batch, UNCLIPPED._replace(correct_sampler=correct_sampler))
        return measured, flatten(model) - before

    measured, plain = step(correct_sampler=False)
    assert measured["sampler_mismatch"] == pytest.approx(0.4)  # (2 * 0.5 + 3) / 10
    assert measured["largest_sampler_mismatch"] == pytest.approx(3.0)

    _, corrected = step(correct_sampler=True)
    model = load_model("qwen2")
    weights = torch.tensor([np.exp(0.5)] * 2 + [-1.0] * 5 + [2.0] * 2 + [2.0 * 2.0])
    value = (weights / 10 * bandit.completion_logprobs(model, prompts, completions)).sum()
    wanted = flatten(torch.autograd.grad(value, list(model.parameters())))
    assert torch.allclose(corrected, wanted, atol=1e-6)
    assert not torch.allclose(plain, wanted, atol=1e-4)


def test_without_the_samplers_logprobs_there_is_no_mismatch(load_model):
    step = descend(load_model("qwen2"), small_batch([1.0, 1.0]))
    assert step["sampler_mismatch"] is None
    assert step["largest_sampler_mismatch"] is None
    assert step["kl"] is None


def test_a_gradient_that_is_not_finite_changes_nothing(load_model):
    model = load_model("qwen2")
    before = flatten(model)
    with pytest.raises(ValueError, match="the gradient is not finite"):
        descend(model, small_batch([math.inf, 1.0]))
    assert torch.equal(flatten(model), before)


def test_reward_rises_on_a_small_problem(load_model):
    """Even first tokens are right: the whole chain, from sampling to the step, within seconds."""
    model = load_model("llama", torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    prompts = [prompt for prompt in ROUND_PROMPTS for _ in range(8)]
    shares = []
    for seed in range(40):
        rollouts = rollout.sample(
            model, ROUND_PROMPTS, 8, max_new_tokens=2, end_ids={END}, seed=seed
        )
        rewards = torch.tensor([float(one.tokens[0] % 2 == 0) for one in rollouts])
        completions = [one.tokens for one in rollouts]
        bandit.update(model, optimizer, bandit.UpdateBatch(prompts, completions, rewards))
        shares.append(rewards.mean().item())
    assert np.mean(shares[:5]) < 0.7
    assert np.mean(shares[-5:]) > 0.95
