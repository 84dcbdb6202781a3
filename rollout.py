"""The sampler: prompts go in; completions come out, with the log-probability of every token.

    python rollout.py --model tiny-qwen2 --data tiny-gsm        # print a few completions

Each token is drawn from softmax(logits / temperature). Nothing is cut off: no top-k, no top-p, no
penalties, whatever generation_config.json says. A completion ends at any of the model's
end-of-sequence ids and includes it. Each rollout has its own random numbers, so it depends neither
on its neighbours nor on the size of the cache, except for rounding.

We do not call transformers' `generate`, for two reasons. The policy gradient needs the exact
distribution that each token came from. And sampling takes most of a run's time, so we save work:
- Continuous batching: a rollout that ends frees its row at once, and waiting prompts move in.
- A prompt goes through the model once (the prefill), and its n rollouts get copies of its cache.
- On a GPU a block of steps runs without waiting for the host. Each step replays a CUDA graph.

Left out: beam search and top-p (another policy than the one trained); a paged cache and one copy of
a prompt's keys for all its rollouts (they need kernels); speculative decoding (a second model).
"""

import infra  # noqa: F401 (first, because from here on Ctrl-C ends in a sentence)

# isort: split
import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from infra import distributed, flags, memory, models
from infra.cuda_graphs import StepGraphs, run_directly
from infra.kv_cache import PrefillDone, decoding_mode, new_cache


class Rollout(NamedTuple):
    tokens: list[int]  # the completion; its last token is an end-of-sequence id unless truncated
    logprobs: list[float]  # of each token, under the distribution that it was drawn from
    truncated: bool  # whether max_new_tokens came before an end-of-sequence token


class DecodeConfig(NamedTuple):
    steps_per_block: int  # steps between two checks for rows that have ended
    length_multiple: int  # the number of cached positions that a step reads is a multiple of this
    prefill_tokens: int  # prompt tokens in one forward pass
    graphs: bool  # whether a step is captured as a CUDA graph, once for each size


# On the CPU checking for finished rows is free and padding is not. On a GPU avoid host syncs, and
# round lengths so that few graphs are captured.
DECODE_CONFIGS = {
    "cpu": DecodeConfig(1, 1, prefill_tokens=2048, graphs=False),
    "cuda": DecodeConfig(16, 128, prefill_tokens=16384, graphs=True),
}
MAX_ROWS = 512  # decoded at a time; more rows share a step's fixed cost, up to this bound


@torch.inference_mode()
def sample(
    model: PreTrainedModel, prompts: list[list[int]], n: int = 1, *, max_new_tokens: int,
    end_ids: set[int], temperature: float = 1.0, seed: int = 0, cache_tokens: int | None = None,
    compiled: bool = False, progress: Callable[[int], Any] | None = None,
    prompt_indices: Sequence[int] | None = None,
) -> list[Rollout]:
    """n rollouts of each prompt: len(prompts) * n of them, those of one prompt side by side.

    prompts: token ids, of any lengths. end_ids: the ids that end a completion.
    temperature: 0 is greedy decoding, with the log-probabilities at temperature 1.
    cache_tokens: how many tokens have their keys and values cached at a time. It bounds the memory
        and does not change the rollouts, except for rounding. Default: what fits in half of the
        free memory.
    compiled: run the step through torch.compile.
    progress: called with the number of rollouts that have just ended.
    prompt_indices: the prompts' indices in a larger call of which this call is a part, so that it
        gives the same rollouts as the whole. Default: 0, 1, 2, ...
    """
    if n < 1 or max_new_tokens < 1 or temperature < 0:
        raise ValueError(f"{n=}, {max_new_tokens=} must be at least 1, {temperature=} at least 0")
    if any(not prompt for prompt in prompts):
        raise ValueError("a prompt has no tokens")
    if not prompts:
        return []
    width = check_prompts(model, prompts, max_new_tokens, cache_tokens)
    rows = min(len(prompts) * n, MAX_ROWS)
    decoder = decoder_for(model, rows, width, cache_tokens, compiled)
    indices = prompt_indices or range(len(prompts))
    scheduler = Scheduler(decoder, prompts, n, indices, max_new_tokens, end_ids, seed)
    with decoder.sampling_from(model):
        while scheduler.waiting or scheduler.live:
            # Admit: waiting prompts go into free rows.
            admitted, copies, first_row = scheduler.admit()
            decoder.prefill(admitted, copies, first_row)
            # Decode: every row in use draws a block of tokens.
            token, position, uniforms = scheduler.next_block()
            tokens, logprobs = decoder.decode(token, position, uniforms, temperature)
            # Collect: rollouts that have ended leave, and the last rows move into the gaps.
            count, free_rows, moved_rows = scheduler.collect(tokens, logprobs)
            decoder.compact(free_rows, moved_rows)
            if progress and count:
                progress(count)
    return scheduler.rollouts()


def sample_sharded(
    model: PreTrainedModel, prompts: list[list[int]], n: int = 1, *,
    progress: Callable[[int], Any] | None = None, **kwargs: Any,
) -> list[Rollout]:
    """`sample`, with the prompts split over the processes. Every process returns all rollouts."""
    world_size = distributed.world_size()
    mine = distributed.shard(range(len(prompts)))  # prompt i goes to process i % world_size
    kwargs["progress"] = progress and (lambda count: progress(count * world_size))
    ours = sample(model, [prompts[i] for i in mine], n, prompt_indices=mine, **kwargs)
    parts = distributed.all_gather(ours)
    rollouts = []
    for i in range(len(prompts)):
        start = i // world_size * n  # in the part of its process
        rollouts += parts[i % world_size][start : start + n]
    return rollouts


def decode_config(model: PreTrainedModel) -> DecodeConfig:
    return DECODE_CONFIGS.get(model.device.type, DECODE_CONFIGS["cpu"])


def check_prompts(
    model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int, cache_tokens: int | None
) -> int:
    """How many tokens a row of the cache must hold: the longest prompt and its completion.

    Raises ValueError unless model and cache have room for them.
    """
    models.check_prompts(model, prompts, max_new_tokens)
    config = decode_config(model)
    # The last block of steps may run past the end.
    longest = max(map(len, prompts)) + max_new_tokens + config.steps_per_block
    width = memory.round_up(longest, config.length_multiple)
    if cache_tokens is not None and cache_tokens < width:
        raise ValueError(f"--cache-tokens {cache_tokens} cannot hold one rollout: the longest "
                         f"prompt and --max-new-tokens need {width}")  # fmt: skip
    return width


# --- whether a model is served --------------------------------------------------------------------


def load(
    name: str, device: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """models.load, and a check of the sampler. Raises ValueError, in one sentence."""
    model, tokenizer = models.load(name, device, dtype)
    check(name, model)
    return model, tokenizer


@torch.no_grad()
def check(name: str, model: PreTrainedModel, trained: Callable | None = None) -> None:
    """Raise ValueError unless short completions have the log-probabilities of a plain pass.

    Architectures differ in more than their configurations say, so what a model does is compared.
    trained: bandit.completion_logprobs, to check what the update will compute as well.
    """
    prompts, bound = [[1, 2, 3, 4, 5], [6, 7]], 1e-3 if model.dtype == torch.float32 else 0.5
    try:
        rollouts = sample(model, prompts, max_new_tokens=3, end_ids=set())
        del DECODERS[model]
        for prompt, one in zip(prompts, rollouts, strict=True):
            logits = model(input_ids=torch.tensor([prompt + one.tokens], device=model.device),
                           use_cache=False).logits[0, len(prompt) - 1 : -1]  # fmt: skip
            expected = torch.log_softmax(logits.float(), dim=-1)
            expected = expected[range(3), one.tokens].cpu()
            found = [torch.tensor(one.logprobs)]
            if trained:
                found.append(trained(model, [prompt], [one.tokens]).float().cpu())
            if max((each - expected).abs().max().item() for each in found) > bound:
                raise ArithmeticError("a token has another probability in a pass without a cache")
    except Exception as error:  # whatever an architecture that we do not know stumbles over
        if memory.is_out_of_memory(error):
            raise
        for weight, values in model.named_parameters():
            if not values.isfinite().all():
                raise ValueError(f"--model {name}: its weight {weight} is not finite") from None
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        raise ValueError(
            f"--model {name}: the sampler does not serve {type(model).__name__} ({reason})"
        ) from None


# --- the host's side: which rollout is in which row -----------------------------------------------


class Scheduler:
    """The books: which rollout each row holds, and what each rollout has drawn.

    Rollout i is one of prompts[i // n]. Rows 0 to live - 1 are in use, without a gap.
    """

    def __init__(self, decoder, prompts, n, prompt_indices, max_new_tokens, end_ids, seed):
        self.prompts, self.n, self.prompt_indices, self.seed = prompts, n, prompt_indices, seed
        self.rows, self.steps_per_block = decoder.rows, decoder.config.steps_per_block
        self.live, self.max_new_tokens = 0, max_new_tokens
        self.end_ids = np.array(sorted(end_ids), dtype=np.int64)
        # Groups of rollouts of one prompt, which start together. The longest prompts are last here
        # and start first: prefills have little padding, and no long work is left over.
        self.waiting = []
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            for first in range(i * n, i * n + n, self.rows):  # in parts, if n is more than rows
                self.waiting.append(range(first, min(first + self.rows, i * n + n)))
        # Of each rollout: what it has drawn so far.
        count, capacity = len(prompts) * n, max_new_tokens + self.steps_per_block
        self.length = np.zeros(count, dtype=np.int64)
        self.tokens = np.zeros((count, capacity), dtype=np.int32)
        self.logprobs = np.zeros((count, capacity), dtype=np.float32)
        # Of each row: its rollout, the token that goes into the model next, that token's position,
        # and a random number in [0, 1) for each token to be drawn.
        self.state = np.zeros((3, self.rows), dtype=np.int64)
        self.rollout, self.token, self.position = self.state
        self.uniforms = np.zeros((self.rows, capacity))

    def admit(self) -> tuple[list[list[int]], list[int], int]:
        """Start waiting rollouts: (their prompts, how many rows each gets, the first new row)."""
        prompts, copies, first_row = [], [], self.live
        # One prefill should serve many rows, so wait until an eighth of them is free.
        has_room = self.live == 0 or self.rows - self.live >= self.rows // 8
        while has_room and self.waiting and len(self.waiting[-1]) <= self.rows - self.live:
            group = self.waiting.pop()
            prompts.append(self.prompts[group[0] // self.n])
            copies.append(len(group))
            for rollout in group:
                self.start(rollout, prompts[-1])
        return prompts, copies, first_row

    def start(self, rollout: int, prompt: list[int]) -> None:
        """Put a rollout in the next row."""
        # The last token of the prompt is not prefilled: it is the first to be decoded.
        self.state[:, self.live] = rollout, prompt[-1], len(prompt) - 1
        # Philox makes random bits from a key and a counter. Each rollout has a range of counters.
        stream = self.prompt_indices[rollout // self.n] * self.n + rollout % self.n
        philox = np.random.Philox(key=self.seed, counter=[0, stream, 0, 0])
        self.uniforms[self.live] = np.random.Generator(philox).random(self.uniforms.shape[1])
        self.live += 1

    def next_block(self) -> tuple[ndarray, ndarray, ndarray]:
        """What the next steps need: token [live], position [live], uniforms [steps, live]."""
        drawn = self.length[self.rollout[: self.live]]
        # There are fewer steps if all rollouts reach max_new_tokens sooner.
        steps = min(self.steps_per_block, self.max_new_tokens - drawn.min())
        uniforms = self.uniforms[np.arange(self.live), drawn + np.arange(steps)[:, None]]
        return self.token[: self.live], self.position[: self.live], uniforms

    def collect(self, tokens: ndarray, logprobs: ndarray) -> tuple[int, ndarray, ndarray]:
        """Record a block, [steps, live] each; return (number ended, free_rows, moved_rows).

        What was in row moved_rows[i] is now in row free_rows[i].
        """
        steps, live = tokens.shape
        rollout = self.rollout[:live]
        place = self.length[rollout] + np.arange(steps)[:, None]
        self.tokens[rollout, place] = tokens
        self.logprobs[rollout, place] = logprobs
        self.token[:live] = tokens[-1]
        self.position[:live] += steps
        # A rollout ends at its first end-of-sequence token, or at max_new_tokens.
        is_end = (tokens[:, :, None] == self.end_ids).any(axis=2)
        is_end |= place + 1 == self.max_new_tokens
        has_ended = is_end.any(axis=0)
        self.length[rollout] += np.where(has_ended, is_end.argmax(axis=0) + 1, steps)
        # The last rows in use move to the rows that became free before them.
        self.live -= int(np.count_nonzero(has_ended))
        free_rows = has_ended[: self.live].nonzero()[0]
        moved_rows = self.live + (~has_ended[self.live :]).nonzero()[0]
        self.state[:, free_rows] = self.state[:, moved_rows]
        self.uniforms[free_rows] = self.uniforms[moved_rows]
        return live - self.live, free_rows, moved_rows

    def rollouts(self) -> list[Rollout]:
        """All rollouts, once they have ended."""
        rollouts = []
        for tokens, logprobs, length in zip(self.tokens, self.logprobs, self.length, strict=True):
            truncated = tokens[length - 1] not in self.end_ids
            kept = tokens[:length].tolist()
            rollouts.append(Rollout(kept, logprobs[:length].tolist(), truncated))
        return rollouts


# --- the device's side: the cache and the arithmetic ----------------------------------------------

DECODERS = weakref.WeakKeyDictionary()  # model -> Decoder: its cache and graphs serve many calls


def decoder_for(
    model: PreTrainedModel, rows: int, width: int, cache_tokens: int | None, compiled: bool
) -> "Decoder":
    """The model's Decoder if it suits a call of `rows` rows of `width`, else a new one."""
    kind = model.device, model.dtype, compiled
    decoder, bound = DECODERS.get(model), cache_tokens
    if bound is None:  # half of the free memory; what the old cache holds counts as free
        held = decoder.rows * decoder.width if decoder else 0
        bound = max(width, (held + memory.free_cache_tokens(model)) // 2)
    new_rows = min(rows, bound // width)
    if decoder and decoder.kind == kind and decoder.width >= width:
        most_rows = bound // decoder.width
        # Free memory varies, and a few rows do not justify a new cache.
        enough_rows = (0.8 if cache_tokens is None else 1) * min(rows, most_rows)
        if new_rows == rows:
            # All rows fit. A resumed run has a new decoder, with all rows. An old one with fewer
            # would decode in another order and round differently, so it is not used again.
            enough_rows = rows
        if decoder.rows >= enough_rows and (cache_tokens is None or decoder.rows <= most_rows):
            return decoder
    DECODERS.pop(model, None)
    del decoder  # frees the old cache before the new one is allocated
    DECODERS[model] = Decoder(model, decode_config(model), new_rows, width, kind)
    return DECODERS[model]


class Decoder:
    """The cache, `rows` rows of `width` tokens, and the step that decodes them."""

    def __init__(self, model, config, rows, width, kind):
        self.config, self.rows, self.width, self.kind = config, rows, width, kind
        self.device, self.dtype, compiled = kind
        self.policy = None
        # The inputs of a step. They keep their memory, because a captured step reads them there.
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=self.device)
        self.position = torch.zeros_like(self.token)
        self.uniform = torch.zeros(rows, dtype=torch.float64, device=self.device)
        self.columns = torch.arange(width, device=self.device)
        # Where a pass writes and reads in the cache: set before each pass, for all layers.
        self.where = SimpleNamespace(prefill=None, rows=0, length=0, position=self.position)
        self.where.row = torch.arange(rows, device=self.device)
        self.cache = new_cache(model, self.where, rows, width)
        self.run = StepGraphs(self.device) if config.graphs else run_directly
        self.forward = torch.compile(forward) if compiled else forward

    @contextlib.contextmanager
    def sampling_from(self, model: PreTrainedModel) -> Iterator[None]:
        """Sample from the model's present weights, with our attention and without dropout."""
        self.policy = model
        if self.run is not run_directly:
            self.run.forget_other_weights(model)
        try:
            with decoding_mode(model):
                yield
        finally:
            self.policy = None  # a Decoder must not keep its model alive

    def prefill(self, prompts: list[list[int]], copies: list[int], first_row: int) -> None:
        """Cache all but the last token of prompts[i], in copies[i] rows; longest prompts first."""
        while prompts and len(prompts[0]) > 1:
            width = len(prompts[0]) - 1
            count = max(1, self.config.prefill_tokens // width)
            # Right padding needs no mask here: no prompt token attends to it, and steps mask it.
            ids = torch.zeros(len(prompts[:count]), width, dtype=torch.long)
            for i, prompt in enumerate(prompts[:count]):
                ids[i, : len(prompt) - 1] = torch.tensor(prompt[:-1])
            # For each row, which of these prompts it gets.
            source = torch.arange(len(ids)).repeat_interleave(torch.tensor(copies[:count]))
            rows = slice(first_row, first_row + len(source))
            self.where.prefill = (rows, slice(None), slice(width)), source.to(self.device)
            with contextlib.suppress(PrefillDone):
                forward(self.policy, self.cache, ids.to(self.device))
            prompts, copies, first_row = prompts[count:], copies[count:], rows.stop
        self.where.prefill = None

    def decode(
        self, token: ndarray, position: ndarray, uniforms: ndarray, temperature: float
    ) -> tuple[ndarray, ndarray]:
        """Draw [steps, live] tokens, going on from the last token and its position, both [live].

        Returns (tokens, log-probabilities), both [steps, live], on the host.
        """
        steps, live = uniforms.shape
        rows = live
        if self.run is not run_directly and not self.run.has_failed:
            # A power of two: few sizes to capture. What the extra rows draw is dropped.
            rows = min(2 ** (live - 1).bit_length(), self.rows)
        # The positions that the steps read; `compact` copies no more.
        self.length = memory.round_up(int(position.max()) + steps, self.config.length_multiple)
        self.position.zero_()
        self.position[:live, 0] = torch.from_numpy(position)
        self.token[:live, 0] = torch.from_numpy(token)
        drawn = []
        for uniform in torch.from_numpy(uniforms).to(self.device):
            self.uniform[:live] = uniform
            tokens, logprobs = self.run(self.step, rows, self.length, temperature)
            drawn.append((tokens[:live].clone(), logprobs[:live].clone()))
            self.token[:rows, 0] = tokens
            self.position[:rows] += 1
        tokens, logprobs = (torch.stack(parts).cpu().numpy() for parts in zip(*drawn, strict=True))
        if np.isnan(logprobs).any():
            del DECODERS[self.policy]  # its cache holds nan, which no mask hides: 0 * nan is nan
            raise ValueError("the policy's probabilities are not finite: it has diverged")
        return tokens, logprobs

    def step(self, rows: int, length: int, temperature: float) -> tuple[Tensor, Tensor]:
        """A token and its log-probability, both [rows], from the first `length` positions."""
        self.where.rows, self.where.length = rows, length
        position = self.position[:rows]
        mask = torch.zeros(rows, length, dtype=self.dtype, device=self.device)
        mask.masked_fill_(self.columns[:length] > position, -torch.inf)
        mask = mask[:, None, None]
        logits = self.forward(self.policy, self.cache, self.token[:rows], position, mask)
        return sample_token(logits, temperature, self.uniform[:rows])

    def compact(self, free_rows: ndarray, moved_rows: ndarray) -> None:
        """Copy the cache of row moved_rows[i] to row free_rows[i]."""
        if len(free_rows):
            target, source = torch.from_numpy(np.stack([free_rows, moved_rows])).to(self.device)
            for layer in self.cache.layers:
                used = layer.storage[:, :, :, : self.length]
                used[:, target] = used[:, source]


def forward(policy, cache, ids, position=None, mask=None):
    """Logits [rows, vocabulary] after ids [rows, columns]. mask of a step: [rows, 1, 1, length]."""
    return policy(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache,
                  use_cache=True, logits_to_keep=1).logits[:, -1]


def sample_token(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability, both [rows]; uniform [rows] in [0, 1).

    Drawing from the policy itself is what equation (2) asks for. The token is where the
    cumulative distribution passes `uniform`. The sum is in float64: in float32 a token of less than
    6e-8 could get no width, and in a large vocabulary many tokens are that unlikely.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probs = torch.softmax(logits / (temperature or 1), dim=-1)
    rows, vocabulary = probs.shape
    if temperature == 0:
        token = probs.argmax(dim=-1, keepdim=True)
    elif vocabulary <= 4096:
        token, _ = inverse_cdf(probs, uniform[:, None])
    else:
        # First a block of 512 tokens, then a token of it: few sums are in float64. What a block
        # holds keeps its share of the block, so its own sum may be rounded like a probability.
        blocks = torch.nn.functional.pad(probs, (0, -vocabulary % 512)).view(rows, -1, 512)
        block, rest = inverse_cdf(blocks.sum(dim=-1), uniform[:, None])
        inside = blocks.gather(1, block[:, :, None].expand(-1, -1, 512)).squeeze(1)
        token = (512 * block + inverse_cdf(inside, rest)[0]).clamp(max=vocabulary - 1)
    return token.squeeze(1), probs.gather(1, token).log().squeeze(1)


def inverse_cdf(probs: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The index [rows, 1] where the running sum of probs [rows, K] passes uniform * their total.

    Also returns how far into that index's own probability this lies, again uniform in [0, 1).
    """
    sums = probs.cumsum(dim=-1, dtype=torch.float64)
    goal = uniform * sums[:, -1:]
    index = torch.searchsorted(sums, goal, right=True).clamp(max=probs.shape[1] - 1)
    return index, 1 - (sums.gather(1, index) - goal) / probs.gather(1, index)


if __name__ == "__main__":
    import data

    parser = flags.FlagParser(description="Print a few completions of a model.")
    add = parser.add_argument
    add("--model", default="tiny-qwen2", help="a tiny model, a folder, a model of the hub")
    add("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, tiny-sums, gsm8k, math or a path")
    add("--queries", type=flags.at_least(1), default=3, help="how many queries")
    add("--rollouts", type=flags.at_least(1), default=3, help="completions per query")
    add("--temperature", type=flags.at_least(0.0), default=1.0, help="0 is greedy")
    add("--max-new-tokens", type=flags.at_least(1), default=64, help="truncate completions here")
    add("--cache-tokens", type=flags.at_least(1),
        help="bound on the memory: tokens in the cache at a time")
    add("--seed", type=flags.at_least(0), default=0,
        help="the same seed gives the same completions")
    args = parser.parse_args()
    try:
        queries = data.load(args.data, "test")[: args.queries]
        model, tokenizer = load(args.model, dtype=models.compute_dtype())
        models.set_threads(model)
        rollouts = sample(
            model, data.encode(tokenizer, queries), args.rollouts, seed=args.seed,
            max_new_tokens=args.max_new_tokens, temperature=args.temperature,
            end_ids=models.end_ids(model, tokenizer), cache_tokens=args.cache_tokens,
        )  # fmt: skip
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        sys.exit(f"rollout.py: {memory.in_words(error)}")
    for i, query in enumerate(queries):
        print(f"\n=== {query.prompt}\n    (reference answer: {query.gold})")
        for one in rollouts[i * args.rollouts : (i + 1) * args.rollouts]:
            how = "truncated" if one.truncated else "ended by itself"
            print(f"--- {len(one.tokens)} tokens, log-probability {sum(one.logprobs):.2f}, {how}")
            print(tokenizer.decode(one.tokens, skip_special_tokens=True))
