"""What several tests share: small checkpoints in the hub's format, and the folder of real data."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for the hub; read when transformers is imported

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tiny")]
torch.set_num_threads(1)

ARCHITECTURES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A function: the folder of a random model of an architecture, with the tiny tokenizer, as the hub holds them."""
    made = {}

    def make(name):
        if name not in made:
            config, model = ARCHITECTURES[name]
            folder = tmp_path_factory.mktemp(name)
            tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / name)
            torch.manual_seed(0)
            made_model = model(config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
                                      num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                      initializer_range=0.2, attention_dropout=0.5, bos_token_id=None,
                                      eos_token_id=tokenizer.eos_token_id))
            made_model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
            made_model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[name] = folder
        return str(made[name])

    return make


@pytest.fixture
def micro(tmp_path, checkpoint):
    """A function: run train.py with a random model on 24 + 8 queries, put into tmp_path: returns the run's folder."""
    for split, count in (("train", 24), ("test", 8)):
        lines = (ROOT / "tiny" / f"gsm_{split}.jsonl").read_text().splitlines()[:count]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    def run(out, *flags):
        argv = ["--model", checkpoint("qwen2"), "--data", str(tmp_path), "--out", str(tmp_path / out), "--batch-size",
                "8", "--rounds", "6", "--eval-every", "2", "--save-every", "2", "--max-new-tokens", "6",
                "--eval-samples", "2", "--lr", "0.001", *flags]
        import train  # here, not above: it needs the path set there

        train.main(argv)
        return tmp_path / out

    return run


@pytest.fixture
def coin(monkeypatch):
    """A verifier that pays half of all completions, so that a random model has something to learn from."""
    import evaluate

    monkeypatch.setattr(evaluate, "judge", lambda tokenizer, queries, rollouts: (
        np.array([sum(r.tokens) % 2 == 0 for r in rollouts]), np.ones(len(rollouts), dtype=bool),
        ["?"] * len(rollouts)))


@pytest.fixture
def real_data():
    """The folder with GSM8K's files: RFT_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("RFT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set RFT_DATA to the folder with gsm8k_train.jsonl.gz")
    return folder


@pytest.fixture
def script_says(monkeypatch, capsys):
    """A function: the words with which a script's main ends on these flags, which must be a failure."""
    def run(module, *flags):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *flags])
        with pytest.raises(SystemExit) as stop:
            module.main()
        assert stop.value.code != 0
        return stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err.strip()

    return run
