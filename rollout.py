"""Sampling: prompts go in, completions with the log-probability of every token come out.

    python rollout.py --model tiny-qwen2 --data tiny-gsm        # print a few completions

The loop is ours, over the transformers model (not `generate`), because an estimator of the policy gradient needs to
know exactly which distribution each token came from:
- a prompt goes through the model once ("prefill"); its cached keys and values are then copied to its n rollouts;
- one token a row and step is drawn from softmax(logits / temperature), nothing cut off: no top-k, no top-p, no
  penalties, whatever generation_config.json asks for. What is sampled from is what is differentiated later;
- a row retires at any of the model's end-of-sequence ids (several are usual), that token included, and the batch
  shrinks;
- each rollout has its own random numbers, one per position, so what it becomes does not depend on its neighbours.

Left out, with reason: beam search and top-p (another policy than the one trained). Token ids only, never text.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.utils import logging

TINY = Path(__file__).parent / "tiny"


class Rollout(NamedTuple):
    tokens: list[int]  # the completion; ends with the end-of-sequence token unless it was cut
    logprobs: list[float]  # of each token, under the distribution that it was sampled from
    cut: bool  # True if max_new_tokens came before the end-of-sequence token


@torch.no_grad()
def sample(model, prompts, n=1, *, max_new_tokens, end_ids, temperature=1.0, seed=0, max_rows=512):
    """n rollouts of each prompt: a list of len(prompts) * n Rollouts, those of one prompt side by side.

    prompts: list of lists of token ids, of any lengths; end_ids: the ids that end a completion.
    temperature 0 is greedy decoding, whose log-probabilities are those at temperature 1.
    max_rows bounds the rows, hence the memory, that are decoded at a time. The same seed gives the same rollouts.
    """
    if n < 1 or max_new_tokens < 1 or temperature < 0:
        raise ValueError(f"n and max_new_tokens must be at least 1 and temperature at least 0, "
                         f"not {n}, {max_new_tokens} and {temperature}")
    if any(not prompt for prompt in prompts):
        raise ValueError("a prompt has no tokens")
    was_training = model.training
    model.eval()  # dropout would make the samples come from another policy
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(prompts) * n, max_new_tokens, generator=generator, dtype=torch.float64)
    rollouts = [None] * len(noise)
    # Prompts of like length share a wave, so that little of its cache is padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    per_wave = max(1, max_rows // n)
    for start in range(0, len(order), per_wave):
        wave = order[start:start + per_wave]
        rows = torch.tensor([i * n + j for i in wave for j in range(n)])
        done = decode(model, [prompts[i] for i in wave], n, max_new_tokens, end_ids, temperature, noise[rows])
        for row, rollout in zip(rows.tolist(), done, strict=True):
            rollouts[row] = rollout
    model.train(was_training)
    return rollouts


def decode(model, prompts, n, max_new_tokens, end_ids, temperature, noise):
    """One wave: the rollouts of `prompts`, n each. noise: [rows, max_new_tokens] in [0, 1)."""
    device = model.device
    width, rows = max(map(len, prompts)), len(prompts) * n
    # Left padding puts the last prompt token of all rows into one column; positions count from the first real one.
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    pad = torch.tensor([width - len(p) for p in prompts], device=device)
    columns = torch.arange(width + max_new_tokens, device=device)
    visible = columns >= pad[:, None]  # [prompts, width + max_new_tokens]: every column but the padding
    causal = columns[:width] <= columns[:width, None]
    itself = torch.eye(width, dtype=torch.bool, device=device)  # gives a padding token something to attend to
    layers = [Columns(max_new_tokens) for _ in range(model.config.num_hidden_layers)]
    cache = Cache(layers=layers)
    logits = forward(model, ids, causal & visible[:, None, None, :width] | itself,
                     (columns[:width] - pad[:, None]).clamp(min=0), cache)

    expand = torch.arange(len(prompts), device=device).repeat_interleave(n)
    for layer in layers:
        layer.keep(expand)
    logits, visible, position = logits[expand], visible[expand], (width - pad)[expand]
    noise, ends = noise.to(device), torch.tensor(sorted(end_ids), device=device)
    tokens = torch.zeros(rows, max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(rows, max_new_tokens, device=device)
    length = torch.full((rows,), max_new_tokens, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    live = torch.arange(rows, device=device)  # the rollout that each row of the cache belongs to
    for t in range(max_new_tokens):
        token, logprob = draw(logits, temperature, noise[live, t])
        tokens[live, t], logprobs[live, t] = token, logprob
        ends_now = torch.isin(token, ends) & ~ended[live]
        if ends_now.any():
            length[live[ends_now]] = t + 1
            ended[live[ends_now]] = True
            stay = (~ended[live]).nonzero().squeeze(1)
            if len(stay) == 0:
                break
            if len(stay) <= 0.75 * len(live):  # to retire rows copies the cache: not for every single one
                live, token, visible, position = live[stay], token[stay], visible[stay], position[stay]
                for layer in layers:
                    layer.keep(stay)
        if t + 1 < max_new_tokens:
            mask = visible[:, None, None, :width + t + 1]
            logits = forward(model, token[:, None], mask, position[:, None], cache)
            position = position + 1
    return [Rollout(tokens_row[:k], logprobs_row[:k], not was_ended) for tokens_row, logprobs_row, k, was_ended in
            zip(tokens.tolist(), logprobs.tolist(), length.tolist(), ended.tolist(), strict=True)]


def forward(model, ids, mask, positions, cache):
    """Logits [rows, vocabulary] after the last of `ids` [rows, columns]; mask: True where attention may look."""
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                 logits_to_keep=1).logits[:, -1]


def draw(logits, temperature, u):
    """One token a row and its log-probability, both [rows]: the inverse of the cumulative distribution at u [rows].

    Cumulated in float64: in float32 a third of a vocabulary of 150,000 tokens would get no width at all.
    """
    if temperature == 0:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        token = logprobs.argmax(dim=-1)
    else:
        logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
        cumulative = logprobs.double().exp().cumsum(dim=-1)
        token = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True).squeeze(1)
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, logprobs.gather(1, token[:, None]).squeeze(1)


class Columns(CacheLayerMixin):
    """The cached keys and values of one layer, [rows, heads, columns, head size], written column after column.

    transformers' own dynamic cache copies everything at every token; this one makes room for `extra` more columns
    when rows are chosen after the prefill, and then writes in place.
    """

    is_sliding = False

    def __init__(self, extra):
        super().__init__()
        self.extra, self.used = extra, 0

    def lazy_initialization(self, keys, values):
        self.is_initialized = True

    def update(self, keys, values, *args, **kwargs):
        new = keys.shape[2]
        if self.keys is None:
            self.keys, self.values = keys, values
        else:
            self.keys[:, :, self.used:self.used + new] = keys
            self.values[:, :, self.used:self.used + new] = values
        self.used += new
        return self.keys[:, :, :self.used], self.values[:, :, :self.used]

    def keep(self, rows):
        """Keep these rows, in this order (a row may be named several times)."""
        room = self.used + self.extra if self.keys.shape[2] == self.used else self.keys.shape[2]
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), old.shape[1], room, old.shape[3])
            new[:, :, :self.used] = old[rows, :, :self.used]
            setattr(self, name, new)

    def get_seq_length(self, *args):
        return self.used

    def get_mask_sizes(self, query_length):
        return self.used + query_length, 0

    def get_max_length(self):
        return -1

    get_max_cache_shape = get_max_length  # its name in older releases of transformers


# --- loading a model -------------------------------------------------------------------------------------------


def load(name, device=None):
    """(model in float32, tokenizer) of `tiny-qwen2`, `tiny-llama`, `tiny-olmo2`, a folder, or a model of the hub.

    Raises ValueError, in one sentence, when there is no such model.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # its bar of loaded weights would stand between ours
    path = str(TINY / name[5:]) if name in ("tiny-qwen2", "tiny-llama", "tiny-olmo2") else name
    try:
        if "/" not in path and not Path(path).exists():  # not worth asking the hub, whose models are owner/name
            raise ValueError("no such folder")
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    except Exception as error:  # a missing folder, a damaged file, an unknown architecture, no network: many kinds
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"--model {name}: neither tiny-qwen2, tiny-llama, tiny-olmo2 nor a folder nor a model of "
                         f"the hub that can be loaded ({reason})") from None
    if set(getattr(model.config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise ValueError(f"--model {name}: has layers without full attention, which the sampler has no cache for")
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer


def end_ids(model, tokenizer):
    """All ids that end a completion: the generation config's (chat models name several) and the tokenizer's."""
    ids = model.generation_config.eos_token_id
    ids = set(ids) if isinstance(ids, (list, tuple)) else {ids}
    return (ids | {tokenizer.eos_token_id}) - {None}


if __name__ == "__main__":
    import data

    parser = data.Parser(description="Print a few completions of a model.")
    parser.add_argument("--model", default="tiny-qwen2", help="tiny-qwen2, tiny-llama, tiny-olmo2, a path, a hub name")
    parser.add_argument("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, gsm8k, math or a path")
    parser.add_argument("--queries", type=int, default=3, help="how many queries")
    parser.add_argument("--rollouts", type=int, default=3, help="completions per query")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        if args.queries < 1:
            raise ValueError(f"--queries {args.queries} must be at least 1")
        queries = data.load(args.data, "test")[:args.queries]
        model, tokenizer = load(args.model)
        rollouts = sample(model, data.encode(tokenizer, queries), args.rollouts, seed=args.seed,
                          max_new_tokens=args.max_new_tokens, end_ids=end_ids(model, tokenizer),
                          temperature=args.temperature)
    except (ValueError, OSError) as error:
        sys.exit(f"rollout.py: {error}")
    for i, query in enumerate(queries):
        print(f"\n=== {query.prompt}\n    (reference answer: {query.gold})")
        for rollout in rollouts[i * args.rollouts:(i + 1) * args.rollouts]:
            how = "cut by length" if rollout.cut else "ended by itself"
            print(f"--- {len(rollout.tokens)} tokens, log-probability {sum(rollout.logprobs):.2f}, {how}")
            print(tokenizer.decode(rollout.tokens, skip_special_tokens=True))
