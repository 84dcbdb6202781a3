"""The sampler: its log-probabilities are those of the distribution sampled from, whatever happens to the batch."""

import pytest
import torch

import rollout

NAMES = ["qwen2", "llama", "olmo2"]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [300, 20], [40, 41, 42, 43]]
MANY_ENDS = set(range(100))  # a random model must be given many ends for its rows to retire at different times


@pytest.fixture(params=NAMES)
def model(request, checkpoint):
    return rollout.load(checkpoint(request.param), "cpu")[0]


def full_forward(model, prompt, tokens, temperature):
    """Log-probabilities of the tokens by one plain pass over the finished sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens]), use_cache=False).logits[0, len(prompt) - 1:-1]
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(tokens)[:, None]).squeeze(1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("max_rows", [512, 3])
def test_logprobs_equal_a_full_forward_pass(model, temperature, max_rows):
    rollouts = rollout.sample(model, PROMPTS, 5, max_new_tokens=12, end_ids=MANY_ENDS, temperature=temperature,
                              seed=3, max_rows=max_rows)
    lengths = [len(r.tokens) for r in rollouts]
    assert len(rollouts) == 15 and len(set(lengths)) > 4  # rows retired along the way
    assert any(r.cut for r in rollouts) and not all(r.cut for r in rollouts)
    for i, r in enumerate(rollouts):
        assert len(r.logprobs) == len(r.tokens)  # the end-of-sequence token has its log-probability too
        assert r.cut == (r.tokens[-1] not in MANY_ENDS)
        assert not set(r.tokens[:-1]) & MANY_ENDS
        expected = full_forward(model, PROMPTS[i // 5], r.tokens, temperature)
        assert torch.allclose(torch.tensor(r.logprobs), expected, atol=1e-4)


def test_an_end_in_the_last_place_is_no_cut(model):
    everything = set(range(model.config.vocab_size))
    assert not any(r.cut for r in rollout.sample(model, PROMPTS, 2, max_new_tokens=1, end_ids=everything))
    assert all(r.cut for r in rollout.sample(model, PROMPTS, 2, max_new_tokens=1, end_ids=set()))


def test_cached_greedy_equals_uncached_greedy(model):
    rollouts = rollout.sample(model, PROMPTS, 1, max_new_tokens=10, end_ids=MANY_ENDS, temperature=0)
    for prompt, r in zip(PROMPTS, rollouts, strict=True):
        ids = list(prompt)
        for _ in range(10):
            with torch.no_grad():
                ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
            if ids[-1] in MANY_ENDS:
                break
        assert r.tokens == ids[len(prompt):]


def test_a_completion_does_not_depend_on_its_neighbours(model):
    model = model.double()  # in float32 the last bits of a product depend on the size of the batch
    kwargs = {"max_new_tokens": 10, "end_ids": MANY_ENDS, "temperature": 0}
    together = rollout.sample(model, PROMPTS, 2, **kwargs)
    for i, prompt in enumerate(PROMPTS):
        alone = rollout.sample(model, [prompt], 1, **kwargs)[0]
        assert together[2 * i].tokens == together[2 * i + 1].tokens == alone.tokens


def test_seeds_and_waves(model):
    model = model.double()
    kwargs = {"max_new_tokens": 8, "end_ids": MANY_ENDS}
    one = rollout.sample(model, PROMPTS, 4, seed=1, **kwargs)
    assert one == rollout.sample(model, PROMPTS, 4, seed=1, **kwargs)
    assert [r.tokens for r in one] != [r.tokens for r in rollout.sample(model, PROMPTS, 4, seed=2, **kwargs)]
    in_waves = rollout.sample(model, PROMPTS, 4, seed=1, max_rows=4, **kwargs)
    assert [r.tokens for r in in_waves] == [r.tokens for r in one]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_follow_the_softmax(model, temperature):
    count = 6000
    rollouts = rollout.sample(model, [PROMPTS[0]], count, max_new_tokens=1, end_ids=set(), temperature=temperature,
                              seed=0, max_rows=count)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1) * count
    seen = torch.bincount(torch.tensor([r.tokens[0] for r in rollouts]), minlength=len(logits)).float()
    common = expected >= 5
    table = torch.stack([torch.cat([x[common], x[~common].sum()[None]]) for x in (seen, expected)])
    chi_square = ((table[0] - table[1]) ** 2 / table[1]).sum().item()
    freedom = table.shape[1] - 1
    assert freedom >= 10
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_inverse_of_the_cumulative_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]]))
    for u, token in ((0.0, 0), (0.49, 0), (0.51, 2), (0.79, 2), (0.81, 3), (1 - 1e-12, 3)):
        drawn, logprob = rollout.draw(logits, 1.0, torch.tensor([u], dtype=torch.float64))
        assert drawn.item() == token and torch.allclose(logprob, logits[:, token])


def test_dropout_is_off_while_sampling(model):
    model.train()  # these checkpoints have a dropout of 0.5 in their attention
    rollouts = rollout.sample(model, PROMPTS, 1, max_new_tokens=5, end_ids=set(), seed=0)
    assert model.training
    model.eval()
    for prompt, r in zip(PROMPTS, rollouts, strict=True):
        assert torch.allclose(torch.tensor(r.logprobs), full_forward(model, prompt, r.tokens, 1.0), atol=1e-4)


def test_unusable_arguments(model):
    for bad in ({"n": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="at least"):
            rollout.sample(model, PROMPTS, **{"max_new_tokens": 3, "end_ids": set(), **bad})
    with pytest.raises(ValueError, match="no tokens"):
        rollout.sample(model, [[]], max_new_tokens=3, end_ids=set())
    with pytest.raises(ValueError, match="--model no/such-model"):
        rollout.load("no/such-model")


def test_all_end_ids_are_found(checkpoint):
    model, tokenizer = rollout.load(checkpoint("llama"), "cpu")
    model.generation_config.eos_token_id = [7, 8, 9]
    assert rollout.end_ids(model, tokenizer) == {7, 8, 9, tokenizer.eos_token_id}
    model.generation_config.eos_token_id = None
    assert rollout.end_ids(model, tokenizer) == {tokenizer.eos_token_id}
