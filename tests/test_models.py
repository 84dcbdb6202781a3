"""Loading models: those of the hub with all their peculiarities, and those that are refused."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    NAMES,
    ROOT,
    ROUND_COMPLETIONS,
    ROUND_PROMPTS,
    flatten,
    full_forward_logprobs,
    small_run_flags,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import data
import rollout
import train
from bandit import completion_logprobs
from infra import models
from infra.checkpoint import load_newest

# --- a model of the hub ---------------------------------------------------------------------------


@pytest.fixture(params=NAMES)
def published(request, tmp_path):
    """(name, folder): a checkpoint as its owners publish it, in bfloat16 and in shards, with what
    is peculiar to the architecture."""
    name, folder = request.param, tmp_path / "published"
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / name)
    model = make_peculiar_model(name, tokenizer)
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, do_sample=True, top_k=20, top_p=0.8,
        repetition_penalty=1.1,
    )  # fmt: skip
    model.bfloat16().save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return name, folder


def make_peculiar_model(name, tokenizer):
    end = tokenizer.eos_token_id
    sizes = {
        "vocab_size": len(tokenizer) + 7,  # more rows than tokens
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "bos_token_id": None,
    }
    torch.manual_seed(0)
    if name == "qwen2":  # tied embeddings, and biases on queries, keys and values
        model = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, eos_token_id=end, **sizes))
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.q_proj.bias)
        return model
    if name == "llama":  # three ends, no padding token, a template that asks for the date
        tokenizer.pad_token = None
        tokenizer.chat_template = (
            "{% set day = strftime_now('%d %b %Y') %}Today Date: {{ day }}\n"
            "{{ messages[0]['content'] }}"
        )
        config = LlamaConfig(eos_token_id=[end, 5, 9], pad_token_id=None, **sizes)
        return LlamaForCausalLM(config)
    return Olmo2ForCausalLM(Olmo2Config(eos_token_id=end, pad_token_id=end, **sizes))


def test_a_published_model_is_loaded_and_sampled(published):
    """Every end ends a completion; what generation_config.json asks for is not done."""
    name, folder = published
    model, tokenizer = models.load(str(folder), "cpu")
    end_ids = models.end_ids(model, tokenizer)
    end = tokenizer.eos_token_id
    assert end_ids == ({end, 5, 9} if name == "llama" else {end})
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert is_tied == (name == "qwen2")
    assert model.dtype == torch.float32

    rollouts = rollout.sample(model, ROUND_PROMPTS[:3], 40, max_new_tokens=20, end_ids=end_ids)
    for one in rollouts:
        assert one.truncated != (one.tokens[-1] in end_ids)
        assert not end_ids & set(one.tokens[:-1])
    if name == "llama":
        assert {one.tokens[-1] for one in rollouts} >= end_ids
        query = data.Query("Hi", "1", "####", None)
        text = tokenizer.decode(data.encode(tokenizer, [query])[0])
        assert text == "Today Date: 26 Jul 2024\nHi"


def test_a_published_model_is_trained_and_saved(published, problems, tmp_path, coin_verifier):
    """The saved model computes what the masters of the last checkpoint compute."""
    _, folder = published
    out = tmp_path / "run"
    train.main(small_run_flags(
        folder, problems, out, "--rounds", "2", "--eval-samples", "1", "--eval-every", "0",
        "--lr", "0.01", "--dtype", "bfloat16", "--kl", "0.001", "--save-every", "1",
    ))  # fmt: skip
    model, tokenizer = models.load(str(folder), "cpu")
    masters = load_newest(out)["model"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            assert not torch.equal(weight, masters[name])
            weight.copy_(masters[name])
        saved = AutoModelForCausalLM.from_pretrained(out / "model")
        ids = torch.tensor([ROUND_PROMPTS[0] + ROUND_COMPLETIONS[0]])
        assert saved.dtype == torch.float32
        assert torch.equal(saved(ids).logits, model(ids).logits)
    saved_tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert saved_tokenizer.get_vocab() == tokenizer.get_vocab()


# --- models that are refused ----------------------------------------------------------------------


def test_a_gated_model_says_what_to_do(monkeypatch):
    name = "meta-llama/Llama-3.2-1B-Instruct"

    def refuse(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it ...")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=f"https://huggingface.co/{name}; then log in"):
        models.load(name)


@pytest.mark.parametrize("name", ["no/such-model", "no-such-model"])
def test_a_model_that_does_not_exist(name):
    with pytest.raises(ValueError, match=f"--model {name}: neither tiny-qwen2") as error:
        models.load(name)
    assert len(str(error.value).splitlines()) == 1


def test_weights_that_are_missing_are_an_error(checkpoint, tmp_path):
    """transformers would fill them with random numbers, other ones at each load, and train on."""
    shutil.copytree(checkpoint("llama"), tmp_path / "torn")
    weights = load_file(tmp_path / "torn" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "torn" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"torn: its files lack the weights model\.layers\.1\.mlp"):
        models.load(str(tmp_path / "torn"))


def test_a_classifier_has_no_head_to_sample_from(checkpoint, tmp_path):
    shutil.copytree(checkpoint("llama"), tmp_path / "classifier")
    config = AutoConfig.from_pretrained(checkpoint("llama"))
    config.pad_token_id, config.tie_word_embeddings = 0, False
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="lack the weights lm_head"):
        models.load(str(tmp_path / "classifier"))


def test_recomputed_layers_have_no_dropout():
    """OPT's layers call dropout themselves, with the mode that recomputing needs."""
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(
        vocab_size=512, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, dropout=0.5, init_std=0.3,
    )).eval()  # fmt: skip
    expected = completion_logprobs(model, ROUND_PROMPTS, ROUND_COMPLETIONS)
    models.recompute_layers(model)
    found = completion_logprobs(model, ROUND_PROMPTS, ROUND_COMPLETIONS)
    assert torch.allclose(found, expected, atol=1e-5)
    assert any(module.training for module in model.modules())


def test_logits_are_the_models_own(checkpoint):
    """The loss takes them piece by piece, with whatever the model does to them after its head."""
    model, _ = models.load(checkpoint("llama"), "cpu")
    forward = type(model).forward

    class Scaled(type(model)):
        def forward(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            output.logits = 0.5 * output.logits.tanh()
            return output

    model.__class__ = Scaled
    plain = [
        full_forward_logprobs(model, *pair)
        for pair in zip(ROUND_PROMPTS, ROUND_COMPLETIONS, strict=True)
    ]
    found = completion_logprobs(model, ROUND_PROMPTS, ROUND_COMPLETIONS)
    assert torch.allclose(found, torch.cat(plain), atol=1e-6)
    grads = torch.autograd.grad(found.sum(), list(model.parameters()))
    expected = torch.autograd.grad(torch.cat(plain).sum(), list(model.parameters()))
    assert torch.allclose(flatten(grads), flatten(expected), atol=1e-4)


def test_weights_that_are_not_numbers_are_named(checkpoint):
    model, _ = models.load(checkpoint("llama"), "cpu")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"weight model\.layers\.1\.mlp\.up_proj"):
        rollout.check("torn", model)


def test_a_sampler_that_is_wrong_is_noticed(checkpoint, monkeypatch):
    """As it is for any architecture of which we do not know that its cache is another."""
    model, _ = models.load(checkpoint("llama"), "cpu")
    rollout.check("good", model, completion_logprobs)
    with pytest.raises(ValueError, match="another probability"):
        rollout.check("bad", model, lambda *args: completion_logprobs(*args) + 0.01)
    monkeypatch.setattr(rollout.Decoder, "prefill", lambda *args: None)
    with pytest.raises(ValueError, match="does not serve LlamaForCausalLM"):
        rollout.check("bad", model)


def test_code_that_comes_with_a_model_is_not_run(checkpoint, tmp_path):
    shutil.copytree(checkpoint("llama"), tmp_path / "own")
    classes = {"AutoConfig": "own.A", "AutoModelForCausalLM": "own.B"}
    config = {"model_type": "own", "auto_map": classes}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    (tmp_path / "own" / "own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ValueError, match="code in its own files, which is not run"):
        models.load(str(tmp_path / "own"))


@pytest.mark.parametrize("name, text, message", [
    ("tokenizer.json", None, "its tokenizer knows no tokens"),
    ("tokenizer.json", "", "is there and cannot be loaded"),
    ("config.json", "[1]", "is there and cannot be loaded"),
    ("config.json", "[" * 100_000, "is there and cannot be loaded"),
    ("model.safetensors", None, "is there and cannot be loaded"),
])  # fmt: skip
def test_files_that_are_missing_or_damaged(checkpoint, tmp_path, name, text, message):
    folder = tmp_path / "torn"
    shutil.copytree(checkpoint("qwen2"), folder)
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        models.load(str(folder))
    assert len(str(error.value).splitlines()) == 1


# --- prompts --------------------------------------------------------------------------------------


def sample_once(model, prompt, new_tokens):
    return rollout.sample(model, [prompt], max_new_tokens=new_tokens, end_ids=set())


def test_a_token_that_the_model_does_not_know_is_named(checkpoint):
    model, _ = models.load(checkpoint("qwen2"), "cpu")
    vocabulary = model.config.vocab_size
    sample_once(model, [vocabulary - 1], 1)
    with pytest.raises(ValueError, match=f"the token {vocabulary}, .* ends at {vocabulary - 1}"):
        sample_once(model, [5, vocabulary], 1)


def test_positions_that_a_model_has_not_learned_are_refused(capsys):
    """Rotary ones go on, and it is said once."""
    torch.manual_seed(0)
    learned = GPT2LMHeadModel(GPT2Config(
        vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=12)).eval()  # fmt: skip
    sample_once(learned, [1] * 5, 7)
    with pytest.raises(ValueError, match="--max-new-tokens 8: .* of 5 tokens, .* the 12 positions"):
        sample_once(learned, [1] * 5, 8)
    rotary = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=12)).eval()  # fmt: skip
    models.say_once.cache_clear()
    for _ in range(2):
        sample_once(rotary, [1] * 5, 8)
    assert capsys.readouterr().err.count("more than the 12 positions that the model was made") == 1


# --- number format, end ids, size -----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_rounded_and_rotary_frequencies_are_not(name, checkpoint):
    half, full = (
        models.load(checkpoint(name), "cpu", dtype)[0] for dtype in (torch.bfloat16, torch.float32)
    )
    for rounded, weight in zip(half.parameters(), full.parameters(), strict=True):
        assert torch.equal(rounded, weight.bfloat16())
    for ours, theirs in zip(half.buffers(), full.buffers(), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_all_end_ids_are_found(checkpoint):
    model, tokenizer = models.load(checkpoint("llama"), "cpu")
    model.generation_config.eos_token_id = [7, 8, 9]
    assert models.end_ids(model, tokenizer) == {7, 8, 9, tokenizer.eos_token_id}
    model.generation_config.eos_token_id = None
    assert models.end_ids(model, tokenizer) == {tokenizer.eos_token_id}


def test_an_end_that_no_configuration_names_is_said(checkpoint, tmp_path, capsys):
    """The tokenizer's own may be another one, and then every completion is truncated."""
    shutil.copytree(checkpoint("llama"), tmp_path / "endless")
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "endless" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
    models.load(str(tmp_path / "endless"))
    assert "names no token that ends a completion, and" in capsys.readouterr().err


def test_which_models_are_tiny(checkpoint, tmp_path):
    assert models.is_tiny("tiny-olmo2")
    assert models.is_tiny(checkpoint("qwen2"))
    assert not models.is_tiny("Qwen/Qwen2.5-0.5B-Instruct")
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(20_000_001)
    assert not models.is_tiny(str(tmp_path))


@pytest.mark.parametrize("parameters, asked, threads", [
    (4_999_999, None, 1),
    (5_000_000, None, 6),
    (4_999_999, 3, 3),
])  # fmt: skip
def test_a_tiny_model_gets_one_thread(monkeypatch, parameters, asked, threads):
    found = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    weight = SimpleNamespace(numel=lambda: parameters)
    models.set_threads(SimpleNamespace(parameters=lambda: [weight]), asked)
    assert found == [threads]
