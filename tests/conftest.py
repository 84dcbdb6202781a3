"""Fixtures of several test files: small checkpoints in the hub's format, small runs, real data."""

import os
from collections.abc import Callable
from pathlib import Path

# No test may wait for the hub. transformers reads this when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from helpers import QUERIES, ROOT, grade_by_coin, small_run_flags  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import evaluate  # noqa: E402
import train  # noqa: E402
from infra import curve, models  # noqa: E402

torch.set_num_threads(1)

ARCHITECTURES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
}


# --- models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], str]:
    """A function: the folder of a random model of an architecture, with the tiny tokenizer."""
    folders = {}

    def make(name: str) -> str:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            save_random_model(name, folders[name])
        return str(folders[name])

    return make


def save_random_model(name: str, folder: Path) -> None:
    """Save a random model with large weights and dropout, as models are published on the hub."""
    config_class, model_class = ARCHITECTURES[name]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / name)
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        attention_dropout=0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = model_class(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def load_model(checkpoint) -> Callable[..., PreTrainedModel]:
    """A function: the random model of an architecture on the CPU, by default in float64."""

    def load(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        return models.load(checkpoint(name), "cpu")[0].to(dtype)

    return load


# --- runs of train.py -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def problems(tmp_path_factory) -> Path:
    """A folder with the first 24 train and 8 test queries of tiny-gsm."""
    folder = tmp_path_factory.mktemp("problems")
    for split, count in QUERIES.items():
        lines = (ROOT / "tiny" / f"gsm_{split}.jsonl").read_text().splitlines()[:count]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def no_figure(monkeypatch) -> None:
    """Runs draw no curve, which would take a third of the time of a short one."""
    monkeypatch.setattr(curve, "draw_curve", lambda folder: None)


@pytest.fixture
def small_run(tmp_path, checkpoint, problems, no_figure) -> Callable[..., Path]:
    """A function: run train.py with a random model for six rounds; returns the run's folder.

    Without the figure. `finished_run` has one.
    """

    def run(out: str, *flags: str) -> Path:
        train.main(small_run_flags(checkpoint("qwen2"), problems, tmp_path / out, *flags))
        return tmp_path / out

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, checkpoint, problems) -> Path:
    """The folder of a small run with the coin verifier, for tests that only read it."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "grade", grade_by_coin)
        train.main(small_run_flags(checkpoint("qwen2"), problems, out))
    return out


@pytest.fixture
def coin_verifier(monkeypatch) -> None:
    """A verifier that pays half of all completions, so that a random model has something to learn.

    A random model gives no right answer, and without any reward nothing would change.
    """
    monkeypatch.setattr(evaluate, "grade", grade_by_coin)


# --- other ----------------------------------------------------------------------------------------


@pytest.fixture
def real_data() -> Path:
    """The folder with GSM8K's files: RFT_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("RFT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; RFT_DATA names the folder of gsm8k_train.jsonl.gz")
    return folder
