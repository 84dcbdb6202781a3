"""Which models are served: random checkpoints of two layers go through load, sampler, loss and an
update, and the sampler and the loss agree with a plain forward pass. The others are refused."""

import pytest
import torch
import transformers
from helpers import MANY_ENDS, ROOT, full_forward_logprobs, small_run_flags
from transformers import AutoTokenizer

import bandit
import rollout
import train
from infra import models
from infra.kv_cache import grouped_attention
from infra.optimizer import MasterWeights, adamw

WINDOW = {"sliding_window": 8}
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
NO_GROUPS = {"num_key_value_heads": None}  # of heads that share a key
SERVED = [  # the name of an architecture, and what its configuration has besides the sizes
    ("Qwen2", {}),
    ("Qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    ("Qwen3", {"head_dim": 16}),
    ("Qwen3Moe", {"head_dim": 16, **EXPERTS}),
    ("Llama", {}),
    ("Mistral", WINDOW),
    ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
    ("Olmo", {}),
    ("Olmo2", {}),
    ("Olmo3", MIXED),
    ("Phi", {}),
    ("Phi3", WINDOW),
    ("Gemma", {"head_dim": 16}),
    ("Gemma3", {**MIXED, "head_dim": 16, "final_logit_softcapping": 3.0}),
    ("SmolLM3", {"no_rope_layers": [1, 0]}),
    ("Granite", {"logits_scaling": 4.0}),
    ("Cohere", {"logit_scale": 0.25}),
    ("Cohere2", {**MIXED, "logit_scale": 0.25}),
    ("Starcoder2", WINDOW),
    ("GPT2", NO_GROUPS),
    ("GPTNeoX", NO_GROUPS),
    ("OPT", {**NO_GROUPS, "ffn_dim": 64, "word_embed_proj_dim": 16, "init_std": 0.3}),
    ("BioGpt", NO_GROUPS),
    ("Falcon", {**NO_GROUPS, "alibi": False}),
]  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
          "v_head_dim": 8, "n_routed_experts": 4, "moe_intermediate_size": 16, "n_group": 1,
          "topk_group": 1, "num_experts_per_tok": 2}  # fmt: skip
LLAMA4 = {"layer_types": ["full_attention"] * 2, "head_dim": 16, "num_local_experts": 4}
REFUSED = [
    ("Llama", {"rope_parameters": DYNAMIC}, "rotary frequencies"),
    ("Gemma3", {**MIXED, "head_dim": 16, "rope_parameters": {
        "full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default"}}},
        "rotary frequencies"),
    ("Llama4", LLAMA4, "temperature"),
    ("Llama4", {**LLAMA4, "layer_types": ["chunked_attention"] * 2}, "chunked_attention"),
    ("Gemma2", {"head_dim": 16}, "no scaled-dot-product attention"),
    ("Bert", {**NO_GROUPS, "is_decoder": False}, "another probability in a pass without a cache"),
    ("DeepseekV3", LATENT, "does not serve DeepseekV3ForCausalLM"),
    ("Doge", {}, "does not serve DogeForCausalLM"),
    ("Falcon", {**NO_GROUPS, "alibi": True}, "does not serve FalconForCausalLM"),
    ("Mamba", {}, "Mamba|no scaled-dot-product"),
    ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "layers of conv"),
]  # fmt: skip


def save_random_model(folder, name, settings):
    """A checkpoint of two layers. Large weights make attention sharp, so that errors show."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / "qwen2")
    classes = transformers
    if name == "Llama4":
        from transformers.models import llama4 as classes
    config_class = getattr(classes, f"{name}TextConfig", None) or getattr(classes, f"{name}Config")
    model_class = getattr(classes, f"{name}ForCausalLM", None) or getattr(
        classes, f"{name}LMHeadModel"
    )
    end = tokenizer.eos_token_id
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "initializer_range": 0.3, "attention_dropout": 0.5,
        "dropout": 0.5, "bos_token_id": 0, "eos_token_id": end, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    model = model_class(config_class(**{**sizes, **settings}))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases are zeros otherwise, and factors of norms ones
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name, settings", SERVED)
def test_load_sampler_loss_and_update(tmp_path, name, settings):
    """The first prompt is longer than the windows."""
    path = save_random_model(tmp_path, name, settings)
    model, _ = rollout.load(path, "cpu")
    prompts = [list(range(10, 40)), [5, 6], [100, 103, 50, 7, 9]]
    rollouts = rollout.sample(
        model, prompts, 3, max_new_tokens=16, end_ids=MANY_ENDS, seed=1, cache_tokens=120
    )
    prompts = [prompt for prompt in prompts for _ in range(3)]
    completions = [one.tokens for one in rollouts]
    with torch.no_grad():
        pairs = zip(prompts, completions, strict=True)
        expected = torch.cat([full_forward_logprobs(model, *pair) for pair in pairs])
    found = torch.tensor([logprob for one in rollouts for logprob in one.logprobs])
    assert torch.allclose(found, expected, atol=1e-4)
    models.recompute_layers(model)
    trained = bandit.completion_logprobs(model, prompts, completions)
    assert torch.allclose(trained, expected, atol=1e-4)

    advantages = torch.tensor([1.0, -1.0, 0.5] * 3)
    sampler_logprobs = [one.logprobs for one in rollouts]
    figures = bandit.update(
        model, adamw(MasterWeights(model), lr=1e-3),
        bandit.UpdateBatch(prompts, completions, advantages, sampler_logprobs),
    )  # fmt: skip
    assert figures["update_norm"] > 0 and figures["largest_sampler_mismatch"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name, settings", SERVED)
def test_a_run(tmp_path, problems, no_figure, name, settings):
    """It is trained in bfloat16 and saved; the saved model is served again."""
    path = save_random_model(tmp_path / "model", name, settings)
    out = tmp_path / "run"
    train.main(small_run_flags(
        path, problems, out, "--rounds", "2", "--kl", "0.01", "--dtype", "bfloat16",
    ))  # fmt: skip
    rollout.load(str(out / "model"), "cpu")


@pytest.mark.parametrize("name, settings, message", REFUSED)
def test_what_is_refused(tmp_path, name, settings, message):
    path = save_random_model(tmp_path, name, settings)
    with pytest.raises(ValueError, match=message) as error:
        rollout.load(path, "cpu")
        train.main(["--model", path, "--out", str(tmp_path / "run")])
    assert len(str(error.value).splitlines()) == 1 and path in str(error.value)


def test_a_window_that_the_attention_does_not_know_is_refused(tmp_path):
    """The mask of a step is ours. It must be the one that the model makes for itself."""
    model, _ = models.load(save_random_model(tmp_path, "Mistral", WINDOW), "cpu")
    module = model.model.layers[0].self_attn
    query, key = torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 12, 8)
    with pytest.raises(ValueError, match="another window"):
        grouped_attention(module, query, key, key, torch.zeros(1, 1, 1, 12))
