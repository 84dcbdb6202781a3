"""Whether bfloat16 pays on this processor: sampling and the update's passes in both formats.

Processors with bfloat16 products (`lscpu | grep -o -w -e avx512_bf16 -e amx_bf16`) do them about
twice as fast as in float32. On others they are imitated, and many times slower.
"""

from argparse import Namespace

import torch
from transformers import PreTrainedModel

import bandit
import rollout
from infra import models
from lab.bench_timing import load_setup, time_in_turn, time_ratio

QUERIES, NEW_TOKENS = 32, 16  # small, because a format that does not pay may be very slow


def dtype(flags: Namespace) -> None:
    """Print how many times faster bfloat16 is than float32 on the CPU; below 1 it is slower."""
    setup = load_setup(flags)
    prompts = setup.prompts[:QUERIES]
    float32 = setup.model
    bfloat16, _ = models.load(flags.model, "cpu", torch.bfloat16)

    def sample(model: PreTrainedModel) -> list[rollout.Rollout]:
        """Completions of equal length in both formats: nothing ends one."""
        return rollout.sample(model, prompts, max_new_tokens=NEW_TOKENS, end_ids=set())

    completions = [one.tokens for one in sample(float32)]

    def learn(model: PreTrainedModel) -> None:
        bandit.completion_logprobs(model, prompts, completions).sum().backward()
        model.zero_grad()

    print(f"{flags.model}, {torch.get_num_threads()} thread(s): float32's time over bfloat16's")
    for name, part in (("sampling", sample), ("forward and backward pass", learn)):
        times = time_in_turn(
            lambda part=part: part(bfloat16), lambda part=part: part(float32), flags.repeats, name
        )
        print(f"{name:26}{time_ratio(*times)}")
