"""What several test files share: a small round of completions, log-probabilities by one plain
forward pass, flat weights, the command line of a small run, and the log of a run."""

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import bandit
import data
import evaluate
from infra.run_folder import read_lines

ROOT = Path(__file__).parent.parent
NAMES = ["qwen2", "llama", "olmo2"]  # of the tiny models, and of their architectures
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [300, 20], [40, 41, 42, 43]]
# A random model needs many end ids for its rows to end at different times.
MANY_ENDS = set(range(100))

# A small round for the update. The id that ends a completion is also the one that pads: the real
# one must count and the padding must not.
END = 0
ROUND_PROMPTS = [[5, 6, 7, 8, 9], [30, 31], [50, 51, 52], [60, 61, 62, 63]]
ROUND_COMPLETIONS = [[70, END], [80, 81, 82, 83, END], [90, 91, 92], [100, END]]


def small_batch(
    advantages: list[float] | torch.Tensor, sampler_logprobs: list[list[float]] | None = None
) -> bandit.UpdateBatch:
    """The first len(advantages) completions of the small round, with these advantages."""
    n = len(advantages)
    return bandit.UpdateBatch(
        ROUND_PROMPTS[:n], ROUND_COMPLETIONS[:n], torch.as_tensor(advantages), sampler_logprobs
    )


# --- files ----------------------------------------------------------------------------------------


def write_rows(path: Path, *rows: dict | list | str) -> str:
    """Write rows, given as objects or as text, into a .jsonl or .jsonl.gz file; its path."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    text = "".join(line + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


# --- models ---------------------------------------------------------------------------------------


def full_forward_logprobs(
    model: torch.nn.Module, prompt: list[int], completion: list[int], temperature: float = 1.0
) -> torch.Tensor:
    """The log-probabilities of a completion's tokens by one plain pass over the finished sequence.

    With gradient, on the CPU, in float32 at least.
    """
    ids = torch.tensor([prompt + completion], device=model.device)
    logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].cpu()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs = torch.log_softmax(logits / temperature, -1)
    return logprobs.gather(1, torch.tensor(completion)[:, None]).squeeze(1)


@torch.no_grad()
def greedy_completion(
    model: torch.nn.Module, prompt: list[int], end_ids: set[int], max_new_tokens: int
) -> list[int]:
    """The likeliest token again and again, each by one plain pass over all tokens so far."""
    tokens: list[int] = []
    while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in end_ids):
        logits = model(torch.tensor([prompt + tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens


def flatten(tensors: Any) -> torch.Tensor:
    """All numbers of some tensors, or of a model's parameters, as one vector."""
    if isinstance(tensors, torch.nn.Module):
        tensors = tensors.parameters()
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


# --- runs of train.py -----------------------------------------------------------------------------

QUERIES = {"train": 24, "test": 8}  # of the small runs


def small_run_flags(
    model: Path | str, problems: Path | str, out: Path | str, *flags: str
) -> list[str]:
    """The command line of a run that takes a second: 6 rounds of 8 queries, 6 tokens long."""
    settings = {
        "--model": model,
        "--data": problems,
        "--out": out,
        "--batch-size": 8,
        "--rounds": 6,
        "--eval-every": 2,
        "--save-every": 2,
        "--max-new-tokens": 6,
        "--eval-samples": 2,
        "--lr": 0.001,
        "--dtype": "float32",
    }
    return [str(word) for item in settings.items() for word in item] + list(flags)


def is_paid(tokens: list[int]) -> bool:
    """The verdict of the `coin_verifier` fixture on a completion."""
    return sum(tokens) % 2 == 0


def grade_by_coin(tokenizer, queries, rollouts, score=None) -> evaluate.Grades:
    """What the `coin_verifier` fixture puts in place of evaluate.grade."""
    right = np.array([is_paid(one.tokens) for one in rollouts], dtype=bool)
    score, query = score or evaluate.scorer(), data.Query("?", "1", "####", None)
    paid = np.array([score("#### 1" if good else "", query)[0] for good in right])
    return evaluate.Grades(right, np.ones(len(right), dtype=bool), ["?"] * len(right), paid)


def read_log(folder: Path, name: str = "metrics") -> list[dict]:
    """The lines of a run's log without what depends on the clock."""
    lines = read_lines(folder / f"{name}.jsonl")
    return [{key: line[key] for key in line if "second" not in key} for line in lines]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a finished run's model."""
    return load_file(folder / "model" / "model.safetensors")


def assert_equal_runs(one: Path, two: Path) -> None:
    """Two runs have the same logs, except for times, and the same final weights, bit for bit."""
    assert read_log(one) == read_log(two)
    assert read_log(one, "evals") == read_log(two, "evals")
    ours, theirs = read_weights(one), read_weights(two)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def mean_and_error(verdicts: list[int]) -> tuple[float, float]:
    """The mean of verdicts and its standard error, written out."""
    return np.mean(verdicts), np.std(verdicts, ddof=1) / len(verdicts) ** 0.5


# --- interruptions --------------------------------------------------------------------------------


def fail_at_call(monkeypatch: Any, owner: Any, name: str, number: int, error: Exception) -> None:
    """Make the call with this number (from 1) of owner.name raise an error."""
    function, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def record_calls(monkeypatch: Any, owner: Any, name: str) -> list[tuple[tuple, dict, Any]]:
    """A list that gets (args, kwargs, result) of every call of owner.name."""
    function, calls = getattr(owner, name), []

    def recording(*args, **kwargs):
        result = function(*args, **kwargs)
        calls.append((args, kwargs, result))
        return result

    monkeypatch.setattr(owner, name, recording)
    return calls


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Look at a condition a hundred times a second until it holds, or for so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def wait_for_rounds(folder: Path, count: int, process: Popen, seconds: float = 90) -> None:
    """Wait until a run has logged `count` rounds, or until its process has ended."""

    def is_over() -> bool:
        return process.poll() is not None or len(read_log(folder)) >= count

    wait_until(is_over, seconds)
