"""The optimizer: float32 master weights keep what bfloat16 would lose."""

import copy

import pytest
import torch
from helpers import ROUND_COMPLETIONS, ROUND_PROMPTS, flatten, small_batch

import bandit
from infra import models, optimizer

PROMPTS, COMPLETIONS = ROUND_PROMPTS[:3], ROUND_COMPLETIONS[:3]


def test_a_step_of_a_millionth_is_not_lost(checkpoint):
    """Twenty AdamW steps at a learning rate of 1e-6 move a weight by 2e-5. In bfloat16 alone they
    change nothing."""
    model, _ = models.load(checkpoint("qwen2"), "cpu")
    plain = copy.deepcopy(model).bfloat16()
    masters = optimizer.MasterWeights(model, torch.bfloat16)
    adamw = optimizer.adamw(masters, 1e-6, weight_decay=0.0)
    plain_adamw = torch.optim.AdamW(plain.parameters(), lr=1e-6, weight_decay=0.0)
    before, plain_before = flatten(masters.weights), flatten(plain)
    batch = small_batch([1.0, 1.0, 1.0])
    for _ in range(20):
        bandit.update(model, adamw, batch)
        bandit.update(plain, plain_adamw, batch)
        assert torch.equal(flatten(model), flatten(masters.weights).bfloat16())

    moved = (flatten(masters.weights) - before).abs()
    used = moved[moved > 0]  # the embeddings of tokens that never came have no gradient
    assert len(used) > 0.5 * len(moved)
    assert used.median().item() == pytest.approx(2e-5, rel=0.2)
    # A number near zero can take small steps in bfloat16 too.
    is_large = plain_before.abs() > 1e-3
    assert torch.equal(flatten(plain)[is_large], plain_before[is_large])


def test_masters_sum_gradients_in_float32(checkpoint):
    """Three hundred equal micro-batches. A sum in bfloat16 would stop growing at 256 times its
    first term."""
    model, _ = models.load(checkpoint("llama"), "cpu")
    masters = optimizer.MasterWeights(model, torch.bfloat16)
    sums = []
    for times in (1, 300):
        for weight in masters.weights:
            weight.grad = None
        for _ in range(times):
            bandit.completion_logprobs(model, PROMPTS, COMPLETIONS).sum().backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        sums.append(flatten(weight.grad for weight in masters.weights))
    assert torch.allclose(sums[1], 300 * sums[0], rtol=1e-3)


def test_float32_needs_no_second_copy(checkpoint):
    model, _ = models.load(checkpoint("olmo2"), "cpu")
    masters = optimizer.MasterWeights(model)
    pairs = zip(masters.weights, model.parameters(), strict=True)
    assert all(master is parameter for master, parameter in pairs)


def test_masters_are_saved_and_given_back(checkpoint):
    """Loading sets the model to the rounded masters; at the end the model gets the masters."""
    model, _ = models.load(checkpoint("qwen2"), "cpu")
    masters = optimizer.MasterWeights(model, torch.bfloat16)
    state = {name: 1.001 * weight for name, weight in masters.state_dict().items()}
    masters.load_state_dict(state)
    assert torch.equal(flatten(masters.weights), flatten(state.values()))
    assert torch.equal(flatten(model), flatten(state.values()).bfloat16())
    masters.move_into_model()
    assert model.dtype == torch.float32
    assert torch.equal(flatten(model), flatten(state.values()))


def test_the_gradient_is_clipped_to_its_norm():
    """Of norm 5, clipped to 1, a step of plain descent has norm 1 times the learning rate."""
    weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    norms = optimizer.clip_and_step(torch.optim.SGD(weights, lr=0.5), weights, 1.0)
    assert norms["grad_norm"] == pytest.approx(5.0)
    assert norms["update_norm"] == pytest.approx(0.5)
    assert flatten(weights).tolist() == pytest.approx([-0.3, 0.0, -0.4], abs=1e-6)


def test_an_optimizer_that_was_saved_steps_like_one_that_was_not(checkpoint):
    """In one process. test_distributed.py does the same with two."""

    def start():
        model, _ = models.load(checkpoint("qwen2"), "cpu")
        masters = optimizer.MasterWeights(model, torch.bfloat16)
        return model, masters, optimizer.adamw(masters, 1e-3)

    model, masters, adamw = start()
    bandit.update(model, adamw, small_batch([1.0, -1.0, 2.0]))
    saved = copy.deepcopy((masters.state_dict(), optimizer.gather_state(adamw)))
    bandit.update(model, adamw, small_batch([0.5, 1.0, -1.0]))

    other_model, other_masters, other_adamw = start()
    other_masters.load_state_dict(saved[0])
    optimizer.load_state(other_adamw, saved[1])
    bandit.update(other_model, other_adamw, small_batch([0.5, 1.0, -1.0]))
    assert torch.equal(flatten(masters.weights), flatten(other_masters.weights))


def test_a_frozen_table_has_no_master(checkpoint):
    """Some architectures hold their sinusoids as a parameter that is never trained."""
    model, _ = models.load(checkpoint("qwen2"), "cpu")
    model.get_input_embeddings().weight.requires_grad_(False)
    masters = optimizer.MasterWeights(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert len(masters.weights) == len(list(model.parameters())) - 1
    bandit.update(model, optimizer.adamw(masters, 1e-3), small_batch([1.0, 1.0]))
    masters.load_state_dict(masters.state_dict())
