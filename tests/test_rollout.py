"""The sampler: its log-probabilities are those of the distribution that it draws from, whatever
happens to the batch."""

from collections.abc import Callable

import pytest
import torch
from helpers import MANY_ENDS, NAMES, PROMPTS, full_forward_logprobs, greedy_completion
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

import rollout
from infra import distributed, models
from infra.cuda_graphs import StepGraphs, run_directly


@pytest.fixture(params=NAMES)
def model(request, load_model) -> PreTrainedModel:
    return load_model(request.param, torch.float32)


def expected_logprobs(
    model: PreTrainedModel, prompt: list[int], one: rollout.Rollout, temperature: float = 1.0
) -> torch.Tensor:
    with torch.no_grad():
        return full_forward_logprobs(model, prompt, one.tokens, temperature)


def all_tokens(rollouts: list[rollout.Rollout]) -> list[list[int]]:
    return [one.tokens for one in rollouts]


# --- the ways through the sampler, a GPU's among them ---------------------------------------------


class RecordedStep:
    """What a CUDA graph does, on the CPU.

    The operations of a step are recorded once, on the tensors where they are in memory, and run
    again. A step that reads anything but these tensors (a Python number, a new tensor) would go
    wrong here as it would in a CUDA graph.
    """

    def __init__(self, step: Callable):
        self.program = make_fx(step)()
        self.outputs = step()

    def replay(self) -> None:
        for output, value in zip(self.outputs, self.program(), strict=True):
            output.copy_(value)


def record(graphs: StepGraphs, step: Callable, *arguments: int | float) -> tuple:
    """In place of StepGraphs.capture, which needs a GPU."""
    recorded = RecordedStep(lambda: step(*arguments))
    return recorded, recorded.outputs


def fail_to_record(graphs: StepGraphs, step: Callable, *arguments: int | float) -> None:
    raise RuntimeError("this driver is too old")


def has_graphs(decoder: rollout.Decoder) -> bool:
    return decoder.run is not run_directly and bool(decoder.run.graphs)


# Each way is given by a bound on the cache and by fields of DecodeConfig. What it must bring about
# is asserted below.
GRAPHS = {"length_multiple": 8, "graphs": True}
WAYS = {
    "all at once": (None, {}),
    "refilled": (100, {}),
    "one row": (20, {}),
    "blocks": (None, {"steps_per_block": 5}),
    "blocks, refilled": (140, {"steps_per_block": 5}),
    "graphs": (None, {"steps_per_block": 5, **GRAPHS}),
    "graphs, refilled": (150, {"steps_per_block": 3, **GRAPHS}),
    "a capture that fails": (None, {"steps_per_block": 3, **GRAPHS}),
    "small prefills": (None, {"prefill_tokens": 4}),
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> Callable:
    """A function: rollout.sample by one of the ways."""
    cache_tokens, settings = WAYS[request.param]
    config = rollout.DECODE_CONFIGS["cpu"]._replace(**settings)
    monkeypatch.setitem(rollout.DECODE_CONFIGS, "cpu", config)
    fails = request.param == "a capture that fails"
    monkeypatch.setattr(StepGraphs, "capture", fail_to_record if fails else record)

    def sample(model, *args, **kwargs):
        rollout.DECODERS.pop(model, None)
        return rollout.sample(model, *args, **{"cache_tokens": cache_tokens, **kwargs})

    sample.name = request.param
    return sample


def test_logprobs_equal_a_full_forward_pass(model, way, capsys):
    temperature = 0.9 if way.name in ("refilled", "graphs") else 1.0
    kwargs = {"max_new_tokens": 12, "end_ids": MANY_ENDS, "temperature": temperature, "seed": 3}
    rollouts = way(model, PROMPTS, 8, **kwargs)
    lengths = [len(one.tokens) for one in rollouts]
    assert len(rollouts) == 24
    assert len(set(lengths)) > 4  # rows ended along the way
    assert any(one.truncated for one in rollouts)
    assert not all(one.truncated for one in rollouts)
    for i, one in enumerate(rollouts):
        # The end-of-sequence token has its log-probability too.
        assert len(one.logprobs) == len(one.tokens) <= 12
        assert one.truncated == (one.tokens[-1] not in MANY_ENDS)
        assert not set(one.tokens[:-1]) & MANY_ENDS
        expected = expected_logprobs(model, PROMPTS[i // 8], one, temperature)
        assert torch.allclose(torch.tensor(one.logprobs), expected, atol=1e-4)
    decoder = rollout.DECODERS[model]
    assert decoder.rows < 24 or "refilled" not in way.name
    assert (decoder.rows == 1) == (way.name == "one row")
    assert ("graphs" in way.name) == has_graphs(decoder)
    assert capsys.readouterr().err.count("too old") == (way.name == "a capture that fails")


def test_a_seed_gives_the_same_rollouts_by_every_way(load_model, way):
    model = load_model("llama")  # in float32 the size of a batch changes the last bits
    kwargs = {"max_new_tokens": 12, "end_ids": MANY_ENDS, "seed": 7}
    plain = rollout.sample(model, PROMPTS, 8, **kwargs)
    assert all_tokens(way(model, PROMPTS, 8, **kwargs)) == all_tokens(plain)


def test_without_graphs_no_extra_rows_are_decoded(load_model, monkeypatch):
    """Rows are rounded up so that few graphs are captured. After a failed capture there are none,
    and the extra rows would be work for nothing."""
    config = rollout.DECODE_CONFIGS["cpu"]._replace(graphs=True)
    monkeypatch.setitem(rollout.DECODE_CONFIGS, "cpu", config)
    monkeypatch.setattr(StepGraphs, "capture", fail_to_record)
    rows, step = [], rollout.Decoder.step

    def watch_step(decoder, *arguments):
        rows.append(arguments[0])
        return step(decoder, *arguments)

    monkeypatch.setattr(rollout.Decoder, "step", watch_step)
    model = load_model("llama")
    kwargs = {"max_new_tokens": 3, "end_ids": set()}
    rollout.sample(model, PROMPTS, 2, **kwargs)
    rollout.sample(model, PROMPTS[:1], 5, **kwargs)  # in the same cache, which has six rows
    assert rows == [6, 6, 6, 5, 5, 5]


def test_new_weights_are_sampled_after_a_capture(load_model, monkeypatch):
    """A captured step reads the weights where they were. It must be captured again if they move."""
    config = rollout.DECODE_CONFIGS["cpu"]._replace(steps_per_block=3, **GRAPHS)
    monkeypatch.setitem(rollout.DECODE_CONFIGS, "cpu", config)
    monkeypatch.setattr(StepGraphs, "capture", record)
    model = load_model("llama")
    kwargs = {"max_new_tokens": 6, "end_ids": set(), "seed": 1}
    before = rollout.sample(model, PROMPTS, 2, **kwargs)
    for parameter in model.parameters():
        parameter.data = 1.5 * parameter.data
    after = rollout.sample(model, PROMPTS, 2, **kwargs)
    assert all_tokens(after) != all_tokens(before)
    for i, one in enumerate(after):
        expected = expected_logprobs(model, PROMPTS[i // 2], one)
        assert torch.allclose(torch.tensor(one.logprobs).double(), expected, atol=1e-4)


# --- the model around a call ----------------------------------------------------------------------


def test_a_model_that_diverged_is_named_and_leaves_no_trace(model):
    """A nan in the cache would reach later rollouts: a mask multiplies by 0, and 0 * nan is nan."""
    kwargs = {"max_new_tokens": 5, "end_ids": set(), "seed": 1}
    good = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = rollout.sample(model, PROMPTS, 4, **kwargs)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        rollout.sample(model, PROMPTS, 4, **kwargs)
    model.load_state_dict(good)
    assert rollout.sample(model, PROMPTS, 4, **kwargs) == before


def test_dropout_is_off_while_sampling(model):
    model.train()  # these checkpoints have a dropout of 0.5 in their attention
    rollouts = rollout.sample(model, PROMPTS, 1, max_new_tokens=5, end_ids=set(), seed=0)
    assert model.training
    model.eval()
    for prompt, one in zip(PROMPTS, rollouts, strict=True):
        expected = expected_logprobs(model, prompt, one)
        assert torch.allclose(torch.tensor(one.logprobs), expected, atol=1e-4)


def test_a_frozen_part_stays_in_eval_mode(model):
    model.train()
    model.get_input_embeddings().eval()
    rollout.sample(model, PROMPTS, max_new_tokens=2, end_ids=set())
    assert model.training
    assert not model.get_input_embeddings().training


def test_progress_and_an_interruption(model):
    counts = []
    kwargs = {"max_new_tokens": 12, "end_ids": MANY_ENDS, "seed": 2}
    rollouts = rollout.sample(model, PROMPTS, 4, progress=counts.append, **kwargs)
    assert sum(counts) == 12
    assert len(counts) > 2

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout.sample(model, PROMPTS, 4, progress=stop, **kwargs)
    assert model.config._attn_implementation == "sdpa"
    assert rollout.sample(model, PROMPTS, 4, **kwargs) == rollouts
    assert rollout.sample(model, [], 4, **kwargs) == []


def test_unusable_arguments(model):
    for bad in ({"n": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="at least"):
            rollout.sample(model, PROMPTS, **{"max_new_tokens": 3, "end_ids": set(), **bad})
    with pytest.raises(ValueError, match="no tokens"):
        rollout.sample(model, [[]], max_new_tokens=3, end_ids=set())


# --- which tokens are drawn -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_sampling_in_bfloat16(name, checkpoint):
    model = models.load(checkpoint(name), "cpu", torch.bfloat16)[0]
    rollouts = rollout.sample(model, PROMPTS, 4, max_new_tokens=12, end_ids=MANY_ENDS, seed=5)
    for i, one in enumerate(rollouts):
        expected = expected_logprobs(model, PROMPTS[i // 4], one)
        assert torch.allclose(torch.tensor(one.logprobs), expected, atol=0.1)


def test_a_call_has_the_rows_of_a_new_decoder(model):
    """Previously 32 rollouts after 28 shared the 28 rows, and a resumed run, which has no earlier
    call, decoded in another order: its sums were rounded differently."""
    kwargs = {"max_new_tokens": 4, "end_ids": MANY_ENDS}
    for count in (28, 32):
        rollout.sample(model, [[5, 6]] * count, **kwargs)
        assert rollout.DECODERS[model].rows == count
    kept = rollout.DECODERS[model]
    rollout.sample(model, [[5, 6]] * 8, **kwargs)
    assert rollout.DECODERS[model] is kept


def test_parts_of_a_call_give_the_rollouts_of_the_whole(model):
    model = model.double()
    kwargs = {"max_new_tokens": 12, "end_ids": MANY_ENDS, "seed": 2}
    whole = rollout.sample(model, PROMPTS, 4, **kwargs)
    for indices in ([0, 2], [1]):
        prompts = [PROMPTS[i] for i in indices]
        part = rollout.sample(model, prompts, 4, prompt_indices=indices, **kwargs)
        expected = [one for i in indices for one in whole[4 * i : 4 * i + 4]]
        assert all_tokens(part) == all_tokens(expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_shards_of_all_processes_make_the_whole(load_model, monkeypatch, world_size):
    model = load_model("llama")
    prompts = [*PROMPTS, [50, 51], [60, 61, 62]]
    kwargs = {"max_new_tokens": 12, "end_ids": MANY_ENDS, "seed": 2}
    whole = rollout.sample(model, prompts, 2, **kwargs)
    shards = [range(len(prompts))[rank::world_size] for rank in range(world_size)]
    parts = []
    for shard in shards:
        shard_prompts = [prompts[i] for i in shard]
        parts.append(rollout.sample(model, shard_prompts, 2, prompt_indices=shard, **kwargs))
    counts = []
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    monkeypatch.setattr(distributed, "all_gather", lambda part: parts)
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        sharded = rollout.sample_sharded(model, prompts, 2, progress=counts.append, **kwargs)
        assert all_tokens(sharded) == all_tokens(whole)
    # Each process shows its own count times the number of processes.
    assert sum(counts) == world_size * len(whole)


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(load_model):
    model = load_model("qwen2", torch.float64)
    kwargs = {"max_new_tokens": 12, "end_ids": MANY_ENDS, "seed": 2}
    plain = rollout.sample(model, PROMPTS, 8, **kwargs)
    compiled = rollout.sample(model, PROMPTS, 8, compiled=True, **kwargs)
    assert rollout.DECODERS[model].kind[-1]
    assert all_tokens(compiled) == all_tokens(plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bound", [None, 9000])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
def test_a_gpu_samples_what_it_says(bound, dtype, tolerance):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=5000,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    model = Qwen2ForCausalLM(config).cuda()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    kwargs = {"max_new_tokens": 40, "end_ids": set(range(100)), "cache_tokens": bound}
    rollouts = rollout.sample(model, PROMPTS, 40, **kwargs)
    decoder = rollout.DECODERS[model]
    assert has_graphs(decoder)
    assert (decoder.rows == 120) == (bound is None)
    for i, one in enumerate(rollouts):
        expected = expected_logprobs(model, PROMPTS[i // 40], one)
        assert torch.allclose(torch.tensor(one.logprobs), expected, atol=tolerance)


def test_an_end_in_the_last_place_does_not_truncate(model):
    everything = set(range(model.config.vocab_size))
    ended = rollout.sample(model, PROMPTS, 2, max_new_tokens=1, end_ids=everything)
    assert not any(one.truncated for one in ended)
    endless = rollout.sample(model, PROMPTS, 2, max_new_tokens=1, end_ids=set())
    assert all(one.truncated for one in endless)


def test_cached_greedy_equals_uncached_greedy(model):
    kwargs = {"max_new_tokens": 10, "end_ids": MANY_ENDS}
    rollouts = rollout.sample(model, PROMPTS, 1, temperature=0, **kwargs)
    for prompt, one in zip(PROMPTS, rollouts, strict=True):
        assert one.tokens == greedy_completion(model, prompt, **kwargs)


def test_a_completion_does_not_depend_on_its_neighbours(model):
    model = model.double()  # in float32 the size of a batch changes the last bits
    kwargs = {"max_new_tokens": 10, "end_ids": MANY_ENDS, "temperature": 0}
    together = rollout.sample(model, PROMPTS, 2, **kwargs)
    for i, prompt in enumerate(PROMPTS):
        alone = rollout.sample(model, [prompt], 1, **kwargs)[0]
        assert together[2 * i].tokens == together[2 * i + 1].tokens == alone.tokens


def test_seeds(model):
    kwargs = {"max_new_tokens": 8, "end_ids": MANY_ENDS}
    one = rollout.sample(model, PROMPTS, 4, seed=1, **kwargs)
    assert one == rollout.sample(model, PROMPTS, 4, seed=1, **kwargs)
    other = rollout.sample(model, PROMPTS, 4, seed=2, **kwargs)
    assert all_tokens(one) != all_tokens(other)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_follow_the_softmax(model, temperature):
    """A chi-square test; tokens that are expected fewer than 5 times count as one."""
    count = 6000
    kwargs = {"max_new_tokens": 1, "end_ids": set(), "temperature": temperature, "seed": 0}
    rollouts = rollout.sample(model, [PROMPTS[0]], count, **kwargs)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1) * count
    first_tokens = torch.tensor([one.tokens[0] for one in rollouts])
    seen = torch.bincount(first_tokens, minlength=len(logits)).float()
    common = expected >= 5
    seen, expected = (
        torch.cat([counts[common], counts[~common].sum()[None]]) for counts in (seen, expected)
    )
    chi_square = ((seen - expected) ** 2 / expected).sum().item()
    freedom = len(seen) - 1
    assert freedom >= 10
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_inverse_of_the_cumulative_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]]))
    cases = ((0.0, 0), (0.49, 0), (0.51, 2), (0.79, 2), (0.81, 3), (1 - 1e-12, 3))
    for uniform, token in cases:
        uniforms = torch.tensor([uniform], dtype=torch.float64)
        drawn, logprob = rollout.sample_token(logits, 1.0, uniforms)
        assert drawn.item() == token
        assert torch.allclose(logprob, logits[:, token])


def test_a_large_vocabulary_is_searched_in_two_steps():
    """The middle of each token's part of the unit interval gives this token, in any block."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 5000, generator=generator)
    probs = torch.softmax(logits.double(), -1)[0]
    middle = probs.cumsum(0) - probs / 2
    # The sampler's probabilities are float32: a narrower part may be off by its own width.
    wide = (probs > 1e-6).nonzero().squeeze(1)
    drawn, logprobs = rollout.sample_token(logits.expand(len(wide), -1), 1.0, middle[wide])
    assert len(wide) > 2000
    assert torch.equal(drawn, wide)
    assert torch.allclose(logprobs, torch.log_softmax(logits, -1)[0, wide], atol=1e-5)
    almost_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    last, _ = rollout.sample_token(logits, 1.0, almost_one)
    assert last.item() == 4999
