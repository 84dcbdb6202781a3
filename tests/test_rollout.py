"""The sampler: its log-probabilities are those of the distribution sampled from, whatever happens to the batch."""

import gc
import weakref

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

import data
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
        ids = torch.tensor([prompt + tokens], device=model.device)
        logits = model(ids, use_cache=False).logits[0, len(prompt) - 1:-1].float().cpu()
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(tokens)[:, None]).squeeze(1)


class Recording:
    """What a CUDA graph does, on the CPU: the step's operations are recorded once, on the tensors where they stand,
    and run again. A step that read anything but its fixed places (a Python number, a new tensor) would be caught."""

    def __init__(self, step):
        self.program = make_fx(step)()
        self.outputs = step()

    def replay(self):
        for place, value in zip(self.outputs, self.program(), strict=True):
            place.copy_(value)


PATHS = {  # ways through the sampler: what each must bring about by itself is asserted below
    "all at once": {},
    "refilled": {"cache_tokens": 100},
    "one row": {"cache_tokens": 20},
    "blocks": {"every": 5},
    "blocks, refilled": {"every": 5, "cache_tokens": 140},
    "graphs": {"every": 5, "grain": 8, "graphs": True},
    "graphs, refilled": {"every": 3, "grain": 8, "graphs": True, "cache_tokens": 150},
    "a capture that fails": {"every": 3, "grain": 8, "fails": True},
    "small prefills": {"prefill": 4},
}


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """A function: rollout.sample by one of the paths, a GPU's among them."""
    wanted = dict(PATHS[request.param])
    bound = {"cache_tokens": wanted.pop("cache_tokens", None)}
    graphs, fails = wanted.pop("graphs", False), wanted.pop("fails", False)
    monkeypatch.setitem(rollout.PACES, "cpu", rollout.PACES["cpu"]._replace(**wanted))

    def capture(engine, key):
        if fails:
            raise RuntimeError("this driver is too old")
        recording = Recording(lambda: engine.step(*key))
        return recording, recording.outputs

    if graphs or fails:
        init = rollout.Engine.__init__

        def with_graphs(engine, *args):
            init(engine, *args)
            engine.graphs = {}

        monkeypatch.setattr(rollout.Engine, "__init__", with_graphs)
        monkeypatch.setattr(rollout.Engine, "capture", capture)

    def sample(model, *args, **kwargs):
        rollout.ENGINES.pop(model, None)
        return rollout.sample(model, *args, **{**bound, **kwargs})

    sample.name = request.param
    return sample


def test_logprobs_equal_a_full_forward_pass(model, path, capsys):
    temperature = 0.9 if path.name in ("refilled", "graphs") else 1.0
    rollouts = path(model, PROMPTS, 8, max_new_tokens=12, end_ids=MANY_ENDS, temperature=temperature, seed=3)
    lengths = [len(r.tokens) for r in rollouts]
    assert len(rollouts) == 24 and len(set(lengths)) > 4  # rows ended along the way
    assert any(r.cut for r in rollouts) and not all(r.cut for r in rollouts)
    for i, r in enumerate(rollouts):
        assert len(r.logprobs) == len(r.tokens) <= 12  # the end-of-sequence token has its log-probability too
        assert r.cut == (r.tokens[-1] not in MANY_ENDS)
        assert not set(r.tokens[:-1]) & MANY_ENDS
        expected = full_forward(model, PROMPTS[i // 8], r.tokens, temperature)
        assert torch.allclose(torch.tensor(r.logprobs), expected, atol=1e-4)
    engine = rollout.ENGINES[model]
    assert engine.rows < 24 or "refilled" not in path.name
    assert (engine.rows == 1) == (path.name == "one row")
    assert ("graphs" in path.name) == bool(engine.graphs)
    assert capsys.readouterr().err.count("too old") == (path.name == "a capture that fails")


def test_a_seed_gives_the_same_rollouts_by_every_path(checkpoint, path):
    model = rollout.load(checkpoint("llama"), "cpu")[0].double()  # in float32 a batch's size changes the last bits
    kwargs = {"max_new_tokens": 12, "end_ids": MANY_ENDS, "seed": 7}
    plain = rollout.sample(model, PROMPTS, 8, **kwargs)
    assert [r.tokens for r in path(model, PROMPTS, 8, **kwargs)] == [r.tokens for r in plain]


def test_a_seed_gives_the_same_rollouts_on_a_smaller_card():
    model, tokenizer = rollout.load("tiny-qwen2", "cpu")
    prompts = data.encode(tokenizer, data.load("tiny-gsm", "test")[:64])
    kwargs = {"max_new_tokens": 64, "end_ids": rollout.end_ids(model, tokenizer), "seed": 1}
    one = rollout.sample(model, prompts, 4, **kwargs)
    rows = [rollout.ENGINES[model].rows]
    for bound in (1500, 4000):
        two = rollout.sample(model, prompts, 4, cache_tokens=bound, **kwargs)
        rows.append(rollout.ENGINES[model].rows)
        assert sum(a.tokens == b.tokens for a, b in zip(one, two, strict=True)) >= 0.99 * len(one)
    assert rows == [256, 10, 28]


@pytest.mark.parametrize("n, bound", [(1, None), (4, 200), (9, 100)])
def test_nothing_is_computed_twice_or_for_nothing(model, monkeypatch, n, bound):
    """Each prompt token but the last goes through the model once, each drawn token but the last once, and no step
    looks at more positions than its longest row has."""
    prefilled, decoded = [], 0
    prefill, step = rollout.Engine.prefill, rollout.Engine.step

    def watch_prefill(engine, prompts, copies, first):
        prefilled.extend(map(tuple, prompts))
        assert max(copies) <= engine.rows
        prefill(engine, prompts, copies, first)

    def watch_step(engine, rows, length, temperature):
        nonlocal decoded
        decoded += rows
        assert length == engine.position[:rows].max() + 1
        assert engine.rows * engine.width <= (bound or 1e9)
        return step(engine, rows, length, temperature)

    monkeypatch.setattr(rollout.Engine, "prefill", watch_prefill)
    monkeypatch.setattr(rollout.Engine, "step", watch_step)
    prompts = [[5 + i] * (2 + i % 5) for i in range(10)]
    rollouts = rollout.sample(model, prompts, n, max_new_tokens=12, end_ids=MANY_ENDS, seed=0, cache_tokens=bound)
    assert decoded == sum(len(r.tokens) for r in rollouts)
    parts = -(-n // rollout.ENGINES[model].rows)  # 2 where 9 rollouts meet 5 rows
    assert parts == (2 if n == 9 else 1)
    assert sorted(prefilled) == sorted(map(tuple, prompts * parts))


def test_the_bound_on_the_cache(model):
    kwargs = {"max_new_tokens": 5, "end_ids": set()}
    rollout.sample(model, PROMPTS, 4, **kwargs)
    first = rollout.ENGINES[model]
    rollout.sample(model, PROMPTS[:2], 2, **kwargs)
    assert rollout.ENGINES[model] is first  # one cache serves all calls that it is large enough for
    rollout.sample(model, PROMPTS, 4, cache_tokens=40, **kwargs)
    second = rollout.ENGINES[model]
    assert second is not first and second.rows * second.width <= 40
    for prompts in (PROMPTS[1:], PROMPTS, PROMPTS[1:]):  # of other widths, as a train and a test set are
        rollout.sample(model, prompts, 4, cache_tokens=40, **kwargs)
        assert rollout.ENGINES[model] is second
    with pytest.raises(ValueError, match="--cache-tokens 12 cannot hold one rollout"):
        rollout.sample(model, PROMPTS, 4, cache_tokens=12, **kwargs)
    assert model.config._attn_implementation == "sdpa"
    engine, gone = weakref.ref(first), weakref.ref(model)
    del first
    assert engine() is None  # the memory of a cache goes when another takes its place
    assert gone() is not None


def test_the_default_bound_is_half_of_what_is_free(model, monkeypatch):
    """... counting what the cache of the call before holds; and it does not creep."""
    layers, heads, size = rollout.cache_shape(model)
    token_bytes, width = 2 * layers * heads * size * 4, len(PROMPTS[0]) + 5 + 1
    total = 20 * width * token_bytes

    def free(device):
        engine = rollout.ENGINES.get(model)
        return total - (engine.rows * engine.width * token_bytes if engine else 0)

    monkeypatch.setattr(rollout, "free_memory", free)
    engines = []
    for _ in range(3):
        rollout.sample(model, PROMPTS, 20, max_new_tokens=5, end_ids=set())
        engines.append(rollout.ENGINES[model])
    assert engines[0].rows == 10 and engines[0] is engines[1] is engines[2]


def test_a_model_that_diverged_is_named_and_leaves_no_trace(model):
    kwargs = {"max_new_tokens": 5, "end_ids": set(), "seed": 1}
    good = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = rollout.sample(model, PROMPTS, 4, **kwargs)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        rollout.sample(model, PROMPTS, 4, **kwargs)
    model.load_state_dict(good)
    assert rollout.sample(model, PROMPTS, 4, **kwargs) == before


def test_a_frozen_part_stays_in_eval_mode(model):
    model.train()
    model.get_input_embeddings().eval()
    rollout.sample(model, PROMPTS, max_new_tokens=2, end_ids=set())
    assert model.training and not model.get_input_embeddings().training


def test_models_that_the_cache_cannot_serve_are_refused(checkpoint, tmp_path):
    tokenizer = rollout.load(checkpoint("qwen2"), "cpu")[1]
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                 num_key_value_heads=1)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    for name, made in (("sliding", MistralForCausalLM(MistralConfig(sliding_window=8, **sizes))),
                       ("dynamic", LlamaForCausalLM(LlamaConfig(rope_parameters=rope, **sizes)))):
        made.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match="full attention" if name == "sliding" else "rotary frequencies"):
            rollout.load(str(tmp_path / name), "cpu")
    MistralForCausalLM(MistralConfig(sliding_window=None, **sizes)).save_pretrained(tmp_path / "sliding")
    rollout.load(str(tmp_path / "sliding"), "cpu")


def test_an_engine_does_not_keep_its_model(checkpoint):
    model = rollout.load(checkpoint("qwen2"), "cpu")[0]
    rollout.sample(model, PROMPTS, max_new_tokens=2, end_ids=set())
    engine = weakref.ref(rollout.ENGINES[model])
    del model
    gc.collect()
    assert engine() is None


@pytest.mark.parametrize("name", NAMES)
def test_sampling_in_bfloat16(name, checkpoint):
    """The weights are rounded, the rotary frequencies are not, and the log-probabilities are right to rounding."""
    model, plain = (rollout.load(checkpoint(name), "cpu", dtype)[0] for dtype in (torch.bfloat16, torch.float32))
    assert all(torch.equal(p, q.bfloat16()) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    assert all(torch.equal(b, c) and b.dtype == c.dtype for b, c in zip(model.buffers(), plain.buffers(), strict=True))
    for i, r in enumerate(rollout.sample(model, PROMPTS, 4, max_new_tokens=12, end_ids=MANY_ENDS, seed=5)):
        assert torch.allclose(torch.tensor(r.logprobs), full_forward(model, PROMPTS[i // 4], r.tokens, 1), atol=0.1)


def test_parts_of_a_call_give_the_rollouts_of_the_whole(model):
    model, kwargs = model.double(), {"max_new_tokens": 12, "end_ids": MANY_ENDS, "seed": 2}
    whole = rollout.sample(model, PROMPTS, 4, **kwargs)
    for which in ([0, 2], [1]):
        part = rollout.sample(model, [PROMPTS[i] for i in which], 4, numbers=which, **kwargs)
        assert [r.tokens for r in part] == [r.tokens for i in which for r in whole[4 * i:4 * i + 4]]


def test_progress_and_an_interruption(model):
    counts = []
    kwargs = {"max_new_tokens": 12, "end_ids": MANY_ENDS, "seed": 2}
    rollouts = rollout.sample(model, PROMPTS, 4, progress=counts.append, **kwargs)
    assert sum(counts) == 12 and len(counts) > 2

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout.sample(model, PROMPTS, 4, progress=stop, **kwargs)
    assert model.config._attn_implementation == "sdpa"
    assert rollout.sample(model, PROMPTS, 4, **kwargs) == rollouts
    assert rollout.sample(model, [], 4, **kwargs) == []


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(model):
    model = model.double()
    kwargs = {"max_new_tokens": 12, "end_ids": MANY_ENDS, "seed": 2}
    plain = rollout.sample(model, PROMPTS, 8, **kwargs)
    compiled = rollout.sample(model, PROMPTS, 8, compiled=True, **kwargs)
    assert rollout.ENGINES[model].kind[-1]
    assert [r.tokens for r in compiled] == [r.tokens for r in plain]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bound", [None, 9000])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
def test_a_gpu_samples_what_it_says(bound, dtype, tolerance):
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=5000, hidden_size=256, intermediate_size=256, num_hidden_layers=2,
                                         num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1)).cuda()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    rollouts = rollout.sample(model, PROMPTS, 40, max_new_tokens=40, end_ids=set(range(100)), cache_tokens=bound)
    engine = rollout.ENGINES[model]
    assert engine.graphs and (engine.rows == 120) == (bound is None)
    for i, r in enumerate(rollouts):
        expected = full_forward(model, PROMPTS[i // 40], r.tokens, 1.0)
        assert torch.allclose(torch.tensor(r.logprobs), expected, atol=tolerance)


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


def test_seeds(model):
    kwargs = {"max_new_tokens": 8, "end_ids": MANY_ENDS}
    one = rollout.sample(model, PROMPTS, 4, seed=1, **kwargs)
    assert one == rollout.sample(model, PROMPTS, 4, seed=1, **kwargs)
    assert [r.tokens for r in one] != [r.tokens for r in rollout.sample(model, PROMPTS, 4, seed=2, **kwargs)]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_follow_the_softmax(model, temperature):
    count = 6000
    rollouts = rollout.sample(model, [PROMPTS[0]], count, max_new_tokens=1, end_ids=set(), temperature=temperature,
                              seed=0)
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


def test_a_large_vocabulary_is_searched_in_two_steps():
    """Token by token: at the middle of its part of the unit interval each token is found, in any block."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 5000, generator=generator)
    chances = torch.softmax(logits.double(), -1)[0]
    middle = chances.cumsum(0) - chances / 2
    wide = (chances > 1e-6).nonzero().squeeze(1)  # float32 chances: narrower ones may be off by their own width
    drawn, logprobs = rollout.draw(logits.expand(len(wide), -1), 1.0, middle[wide])
    assert len(wide) > 2000 and torch.equal(drawn, wide)
    assert torch.allclose(logprobs, torch.log_softmax(logits, -1)[0, wide], atol=1e-5)
    last, _ = rollout.draw(logits, 1.0, torch.tensor([1 - 2.0**-53], dtype=torch.float64))
    assert last.item() == 4999


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
