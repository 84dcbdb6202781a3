"""Sampling: prompts go in, completions with the log-probability of every token come out.

    python rollout.py --model tiny-qwen2 --data tiny-gsm        # print a few completions

The loop is ours, over the transformers model (not `generate`), because an estimator of the policy gradient needs to
know exactly which distribution each token came from, and because most of the time of a run goes here:
- one token a row and step is drawn from softmax(logits / temperature), nothing cut off: no top-k, no top-p, no
  penalties, whatever generation_config.json asks for. What is sampled from is what is differentiated later (up to
  rounding, which train.py logs: a step and a forward pass over the whole do not round alike, above all in bfloat16);
- a row ends at any of the model's end-of-sequence ids (several are usual), that token included;
- continuous batching: a row that ends makes room at once, and others come in when enough is free, so one long
  completion holds up nobody; any number of prompts goes through, within a bound on the cache;
- a prompt goes through the model once ("prefill"), and its keys and values are copied to the rows of its n rollouts;
- each rollout has its own random numbers, one per position, so what it becomes depends neither on its neighbours nor
  on the bound (but for rounding: the last bits of a product depend on the size of the batch);
- on a GPU a block of steps runs without waiting for the host, each step the replay of a CUDA graph.

Read `sample` first: the loop. `Scheduler` keeps the books on the host, `Decoder` holds the cache and does the arithmetic.

Left out, with reason: beam search and top-p (another policy than the one trained); a paged cache (rows of one width
waste some memory, but any attention can read them); attention that reads the prompt's keys once for all its rollouts
(a kernel of its own); speculative decoding (a second model). Token ids only, never text.
"""

import contextlib
import sys
import weakref
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from infra import distributed, memory


class Rollout(NamedTuple):
    tokens: list[int]  # the completion; ends with the end-of-sequence token unless it was cut
    logprobs: list[float]  # of each token, under the distribution that it was sampled from
    truncated: bool  # True if max_new_tokens came before the end-of-sequence token


class DecodeConfig(NamedTuple):
    every: int  # steps from one look at which rows have ended to the next
    grain: int  # the cached positions that a step reads are a multiple of this
    prefill: int  # prompt tokens of one forward pass


# A look costs nothing on the CPU, and every position does; a GPU must not wait for the host, and needs few sizes.
DECODE_CONFIGS = {"cpu": DecodeConfig(every=1, grain=1, prefill=2048), "cuda": DecodeConfig(every=16, grain=128, prefill=16384)}
ROWS = 512  # decoded at a time, at most: a step has a cost of its own, which many rows share


@torch.inference_mode()
def sample(model, prompts, n=1, *, max_new_tokens, end_ids, temperature=1.0, seed=0, cache_tokens=None, compiled=False,
           progress=None, prompt_indices=None):
    """n rollouts of each prompt: a list of len(prompts) * n Rollouts, those of one prompt side by side.

    prompts: list of lists of token ids, of any lengths; end_ids: the ids that end a completion.
    temperature 0 is greedy decoding, whose log-probabilities are those at temperature 1.
    The same seed gives the same rollouts. cache_tokens bounds the memory, not the result: the number of tokens whose
    keys and values are kept at a time (default: what half of the free memory holds). compiled: the step goes through
    torch.compile. progress: is called with the number of rollouts that have just ended. prompt_indices: which prompts of a
    larger call these are, so that parts of it give the same rollouts as the whole (default: 0, 1, 2, ...).
    """
    if n < 1 or max_new_tokens < 1 or temperature < 0:
        raise ValueError(f"n and max_new_tokens must be at least 1 and temperature at least 0, "
                         f"not {n}, {max_new_tokens} and {temperature}")
    if any(not prompt for prompt in prompts):
        raise ValueError("a prompt has no tokens")
    if not prompts:
        return []
    prompt_indices = range(len(prompts)) if prompt_indices is None else prompt_indices
    pace = DECODE_CONFIGS.get(model.device.type, DECODE_CONFIGS["cpu"])
    width = max(map(len, prompts)) + max_new_tokens + pace.every  # the last block may run past the end
    decoder = decoder_for(model, pace, min(len(prompts) * n, ROWS), width, cache_tokens, compiled)
    table = Scheduler(decoder.rows, max_new_tokens, pace.every, end_ids, seed)

    # Taken from the end, the longest prompts first: like stands beside like, so little of a prefill is padding, and
    # the longest work does not begin last. A prompt of more rollouts than there are rows comes in parts.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    waiting = [range(i * n + part, min(i * n + part + decoder.rows, i * n + n))
               for i in order for part in range(0, n, decoder.rows)]
    rollouts = [None] * (len(prompts) * n)
    with decoder.sampling_from(model):
        while waiting or table.live:
            free = decoder.rows - table.live
            if waiting and (not table.live or free >= max(decoder.rows // 8, len(waiting[-1]))):
                groups = []
                while waiting and len(waiting[-1]) <= free:
                    groups.append(waiting.pop())
                    free -= len(groups[-1])
                decoder.prefill([prompts[group[0] // n] for group in groups], [len(group) for group in groups],
                               first=table.live)
                for group in groups:
                    table.admit(group, prompts[group[0] // n], prompt_indices[group[0] // n] * n + group[0] % n)
            tokens, logprobs = decoder.decode(*table.next_steps(), temperature)
            if np.isnan(logprobs).any():
                del DECODERS[model]  # its cache holds nan, which masks do not stop
                raise ValueError("the policy's probabilities are not finite: it has diverged")
            ended, free_rows, moved_rows = table.collect(tokens, logprobs)
            decoder.compact(free_rows, moved_rows)
            for number, rollout in ended:
                rollouts[number] = rollout
            if progress and ended:
                progress(len(ended))
    return rollouts


def sample_sharded(model, prompts, n=1, *, progress=None, **kwargs):
    """sample(), split by prompts over the processes; every process gets all rollouts, as from one process."""
    mine = distributed.shard(range(len(prompts)))
    world_size = distributed.world_size()
    report = progress and (lambda count: progress(count * world_size))
    ours = sample(model, [prompts[i] for i in mine], n, prompt_indices=mine, progress=report, **kwargs)
    rollouts = [None] * (len(prompts) * n)
    for rank, part in enumerate(distributed.all_gather(ours)):
        for k, i in enumerate(range(rank, len(prompts), world_size)):
            rollouts[i * n:(i + 1) * n] = part[k * n:(k + 1) * n]
    return rollouts


# --- the host's side: who sits in which row ---------------------------------------------------------------------


class Scheduler:
    """Which rollout each row holds, and what it has so far. Rows 0 to live - 1 are in use, without a gap."""

    def __init__(self, rows, max_new_tokens, every, end_ids, seed):
        self.live, self.max_new_tokens, self.every = 0, max_new_tokens, every
        self.ends = np.array(sorted(end_ids), dtype=np.int64)
        self.number = np.zeros(rows, dtype=np.int64)  # of the rollout, in the order of the result
        self.token = np.zeros(rows, dtype=np.int64)  # what goes into the model next,
        self.position = np.zeros(rows, dtype=np.int64)  # and at which position
        self.length = np.zeros(rows, dtype=np.int64)  # tokens drawn so far
        self.tokens = np.zeros((rows, max_new_tokens + every), dtype=np.int64)
        self.logprobs = np.zeros((rows, max_new_tokens + every), dtype=np.float32)
        self.noise = np.zeros((rows, max_new_tokens + every))  # in [0, 1): one number a position
        # Philox turns a key and a counter into random bits: each rollout counts in a block of its own.
        self.philox = np.random.Philox(key=seed)
        self.start, self.uniform = self.philox.state, np.random.Generator(self.philox).random
        self.columns = self.number, self.token, self.position, self.length, self.tokens, self.logprobs, self.noise

    def admit(self, numbers, prompt, stream):
        """The next free rows are for these rollouts of a prompt; its last token goes into the model first.

        stream: the first of their random streams, one each.
        """
        for row, number in enumerate(numbers, self.live):
            self.number[row], self.token[row], self.position[row] = number, prompt[-1], len(prompt) - 1
            self.length[row] = 0
            self.start["state"]["counter"][1] = stream + row - self.live
            self.philox.state = self.start
            self.noise[row] = self.uniform(self.noise.shape[1])
        self.live += len(numbers)

    def next_steps(self):
        """(token [live], position [live], noise [steps, live]); fewer steps where all rows are full before."""
        length = self.length[:self.live]
        steps = min(self.every, self.max_new_tokens - length.min())
        noise = self.noise[np.arange(self.live), length + np.arange(steps)[:, None]]
        return self.token[:self.live], self.position[:self.live], noise

    def collect(self, tokens, logprobs):
        """Write down what was drawn, [steps, live] each, and let go of what has ended.

        Returns the ended as pairs (number, Rollout), and how the rows close up: row moved_rows[i] is now row free_rows[i].
        """
        (steps, live), before = tokens.shape, self.length[:self.live]
        places = np.arange(live), before + np.arange(steps)[:, None]
        self.tokens[places], self.logprobs[places] = tokens, logprobs
        is_end = (tokens[:, :, None] == self.ends).any(axis=2)
        # the length up to the first end of this block; without one, more than there may be
        full = np.where(is_end.any(axis=0), before + is_end.argmax(axis=0) + 1, self.max_new_tokens + 1)
        self.length[:live] += steps
        self.position[:live] += steps
        self.token[:live] = tokens[-1]
        over = (full <= self.max_new_tokens) | (self.length[:live] >= self.max_new_tokens)
        ended = []
        for row in over.nonzero()[0]:
            kept = min(full[row], self.max_new_tokens)
            rollout = Rollout(self.tokens[row, :kept].tolist(), self.logprobs[row, :kept].tolist(),
                              truncated=bool(full[row] > self.max_new_tokens))
            ended.append((self.number[row], rollout))
        self.live -= len(ended)
        free_rows, moved_rows = over[:self.live].nonzero()[0], self.live + (~over[self.live:]).nonzero()[0]
        if len(free_rows):
            for column in self.columns:
                column[free_rows] = column[moved_rows]
        return ended, free_rows, moved_rows


# --- the device's side: the cache, and the step -----------------------------------------------------------------

DECODERS = weakref.WeakKeyDictionary()  # model -> its decoder: the cache and the captured steps serve many calls


def decoder_for(model, pace, rows, width, cache_tokens, compiled):
    """The model's decoder, made anew where the one it has does not serve: too small, or larger than the bound."""
    kind = model.device, model.dtype, compiled
    width = -(-width // pace.grain) * pace.grain
    decoder = DECODERS.get(model)
    bound = cache_tokens
    if bound is None:
        held = decoder.rows * decoder.width if decoder else 0
        bound = max(width, (held + int(memory.free_memory(model.device) / memory.cache_bytes_per_token(model))) // 2)
    if bound < width:
        raise ValueError(f"--cache-tokens {bound} cannot hold one rollout: the longest prompt and --max-new-tokens "
                         f"need {width}")
    fits = decoder and decoder.kind == kind and decoder.width >= width
    if fits and cache_tokens is None:  # free memory comes and goes: not for a few rows
        fits = decoder.rows >= 0.8 * min(rows, bound // decoder.width)
    elif fits:
        fits = bound // decoder.width >= decoder.rows >= min(rows, bound // decoder.width)
    if not fits:
        DECODERS.pop(model, None)
        decoder = None  # its memory goes before the new one's comes
        decoder = DECODERS[model] = Decoder(model, pace, max(1, min(rows, bound // width)), width, kind)
    return decoder


class Decoder:
    """The cache, `rows` rows of `width` tokens, and the step that decodes them. Knows nothing of rollouts."""

    def __init__(self, model, pace, rows, width, kind):
        self.pace, self.rows, self.width, self.kind = pace, rows, width, kind
        device, self.dtype, compiled = kind
        self.policy = self.weights = None
        # What a step reads stays in one place, as a captured step needs it.
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.noise = torch.zeros(rows, dtype=torch.float64, device=device)
        self.places = torch.arange(width, device=device)
        # Where the cache writes and reads: set before each pass, read by all layers.
        self.at = SimpleNamespace(filling=None, rows=0, length=0, row=torch.arange(rows, device=device),
                                  position=self.position)
        layers, heads, size = memory.cache_shape(model)
        room = [torch.zeros(2, rows, heads, width, size, dtype=self.dtype, device=device) for _ in range(layers)]
        self.cache = Cache(layers=[KVCacheLayer(self.at, both, last=both is room[-1]) for both in room])
        self.graphs = {} if device.type == "cuda" else None
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # the one that captures
        self.forward = torch.compile(forward) if compiled else forward

    @contextlib.contextmanager
    def sampling_from(self, model):
        """The weights of now, our attention, and no dropout, which would be another policy."""
        modes = [(module, module.training) for module in model.modules()]
        attention = model.config._attn_implementation
        self.policy = model
        weights = [parameter.data_ptr() for parameter in model.parameters()]
        if self.graphs and weights != self.weights:  # what was captured would read the old ones
            self.graphs = {}
        self.weights = weights
        model.eval()
        model.set_attn_implementation("grouped")
        on_device = torch.cuda.device(model.device) if self.stream else contextlib.nullcontext()
        try:
            with on_device, sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
                yield  # without cuDNN's attention, which makes a plan for every shape that it meets
        finally:
            for module, training in modes:
                module.training = training
            model.set_attn_implementation(attention)
            self.policy = None  # an decoder must not keep its model alive

    def prefill(self, prompts, copies, first):
        """Cache all but the last token of each prompt, longest first, in copies[i] rows each, from row `first` on.

        The last token is the first to be decoded: no logits are needed here, nor anything behind the keys and values
        of the last layer, whose cache ends the pass. Padding on the right needs no mask: no token looks at it, and
        positions count from 0; the cache keeps it until it is written over, unseen.
        """
        row = first
        while prompts and len(prompts[0]) > 1:
            width = len(prompts[0]) - 1
            count = max(1, self.pace.prefill // width)
            ids = torch.zeros(len(prompts[:count]), width, dtype=torch.long)
            for i, prompt in enumerate(prompts[:count]):
                ids[i, :len(prompt) - 1] = torch.tensor(prompt[:-1])
            source = torch.arange(len(ids)).repeat_interleave(torch.tensor(copies[:count]))
            self.at.filling = slice(row, row + len(source)), source.to(self.token.device)
            with contextlib.suppress(PrefillDone):
                self.policy(input_ids=ids.to(self.token.device), past_key_values=self.cache, use_cache=True,
                            logits_to_keep=1)
            row += len(source)
            prompts, copies = prompts[count:], copies[count:]
        self.at.filling = None

    def decode(self, token, position, noise, temperature):
        """Draw len(noise) tokens for each of the first rows: (tokens, log-probabilities), [steps, rows] on the host.

        token, position [rows]: what goes into the model first; noise [steps, rows].
        """
        steps, live = noise.shape
        rows, length = live, int(position.max()) + steps
        if self.graphs is not None:  # few sizes: a step is captured for each. The rows too many decode nonsense
            rows = min(2 ** (live - 1).bit_length(), self.rows)
        self.length = length = -(-length // self.pace.grain) * self.pace.grain  # kept for `compact`
        noise = torch.from_numpy(noise).to(self.noise.device)
        self.position.zero_()
        self.position[:live, 0] = torch.from_numpy(position)
        self.token[:live, 0] = torch.from_numpy(token)
        drawn = []
        for numbers in noise:
            self.noise[:live] = numbers
            tokens, logprobs = self.replay(rows, length, temperature)
            drawn.append((tokens[:live].clone(), logprobs[:live].clone()))
            self.token[:rows, 0] = tokens
            self.position[:rows] += 1
        return [torch.stack(parts).cpu().numpy() for parts in zip(*drawn, strict=True)]

    def step(self, rows, length, temperature):
        """A token and its log-probability for each of the first `rows` rows, looking at `length` positions."""
        self.at.rows, self.at.length = rows, length
        position = self.position[:rows]
        mask = torch.zeros(rows, length, dtype=self.dtype, device=position.device)
        mask.masked_fill_(self.places[:length] > position, -torch.inf)
        logits = self.forward(self.policy, self.cache, self.token[:rows], position, mask[:, None, None])
        return sample_token(logits, temperature, self.noise[:rows])

    def replay(self, *key):
        """The step; on a GPU captured once for each (rows, length, temperature) and replayed from then on."""
        if self.graphs is not None and key not in self.graphs:
            try:
                self.graphs[key] = self.capture(key)
            except RuntimeError as error:
                reason = str(error.__context__ or error).strip().split("\n")[0]  # the first error is the telling one
                print(f"rollout.py: sampling without CUDA graphs, which is slower ({reason})", file=sys.stderr)
                self.graphs = None
        if self.graphs is None:
            return self.step(*key)
        graph, outputs = self.graphs[key]
        graph.replay()
        return outputs

    def capture(self, key):
        """(graph, its outputs). To run a step changes nothing but the cache where it writes anyway."""
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # also where a failed capture must come back from
            for _ in range(2):  # what libraries set up at first use must not be captured
                self.step(*key)
            with torch.cuda.graph(graph, pool=pool, stream=self.stream):
                outputs = self.step(*key)
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph, outputs

    def compact(self, free_rows, moved_rows):
        """Rows `moved_rows` of the cache take the places of rows `free_rows`."""
        if len(free_rows):
            free_rows, moved_rows = (torch.from_numpy(rows).to(self.token.device) for rows in (free_rows, moved_rows))
            for layer in self.cache.layers:
                layer.both[:, free_rows, :, :self.length] = layer.both[:, moved_rows, :, :self.length]


def forward(policy, cache, token, position, mask):
    """Logits [rows, vocabulary] after one more token a row; all [rows, 1] but the mask, [rows, 1, 1, length]."""
    return policy(input_ids=token, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True,
                  logits_to_keep=1).logits[:, -1]


class PrefillDone(Exception):
    """The last layer has its keys and values: the rest of a prefill is not needed."""


class KVCacheLayer(CacheLayerMixin):
    """The keys and values of one layer, both [2, rows, heads, width, head size], each written at (row, position).

    transformers' own caches copy everything at every token, or have one length for all rows.
    """

    is_sliding = False

    def __init__(self, at, both, last):
        super().__init__()
        # `both` comes as zeros: what is masked is still multiplied, by 0, and 0 * nan is nan
        self.at, self.both, self.last, self.is_initialized = at, both, last, True
        self.keys, self.values = both

    def update(self, keys, values, *args, **kwargs):
        at = self.at
        if at.filling:
            rows, source = at.filling
            self.keys[rows, :, :keys.shape[2]] = keys[source]
            self.values[rows, :, :keys.shape[2]] = values[source]
            if self.last:
                raise PrefillDone
            return keys, values
        place = at.row[:at.rows], slice(None), at.position[:at.rows, 0]
        self.keys[place], self.values[place] = keys[:, :, 0], values[:, :, 0]
        return self.keys[:at.rows, :, :at.length], self.values[:at.rows, :, :at.length]

    def lazy_initialization(self, keys, values):
        pass

    def get_seq_length(self, *args):
        return 0  # before a prefill there is nothing; a step is told its mask and its positions

    def get_mask_sizes(self, query_length):
        return query_length, 0

    def get_max_length(self):
        return -1

    get_max_cache_shape = get_max_length  # its name in older releases of transformers


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """One query a row: query heads that share their keys become the queries of one head.

    So the cache is read where it stands; to repeat it for every head would copy it whole at every step. A prefill has
    many queries a row, and is transformers' business.
    query [rows, heads, 1, size]; key, value [rows, shared heads, length, size]; to transformers' AttentionInterface.
    """
    rows, heads, columns, size = query.shape
    if columns > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    output = torch.nn.functional.scaled_dot_product_attention(
        query.view(rows, key.shape[1], -1, size), key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, size), None


AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", sdpa_mask)


def sample_token(logits, temperature, u):
    """One token a row and its log-probability, both [rows]: the inverse of the cumulative distribution at u [rows].

    Cumulated in float64: in float32 a third of a vocabulary of 150,000 tokens would get no width at all.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chances = torch.softmax(logits / (temperature or 1), dim=-1)
    if temperature == 0:
        token = chances.argmax(dim=-1, keepdim=True)
    elif chances.shape[1] <= 4096:
        token = inverse_cdf(chances, u[:, None])[0]
    else:  # a large vocabulary: first the part of it, then the token there, so that less is written and read
        parts = torch.nn.functional.pad(chances, (0, -chances.shape[1] % 512)).view(len(chances), -1, 512)
        part, rest = inverse_cdf(parts.sum(dim=-1, dtype=torch.float64), u[:, None])
        inside = parts.gather(1, part[:, :, None].expand(-1, -1, 512)).squeeze(1)
        token = (512 * part + inverse_cdf(inside, rest)[0]).clamp(max=chances.shape[1] - 1)
    return token.squeeze(1), chances.gather(1, token).log().squeeze(1)


def inverse_cdf(chances, u):
    """Where the distribution `chances` [rows, K], not normalized, has cumulated to u [rows, 1], and how far inside.

    Returns the index [rows, 1] and the share of its own chance that lies below u: uniform again, if u was.
    """
    sums = chances.cumsum(dim=-1, dtype=torch.float64)
    goal = u * sums[:, -1:]
    index = torch.searchsorted(sums, goal, right=True).clamp(max=chances.shape[1] - 1)
    return index, 1 - (sums.gather(1, index) - goal) / chances.gather(1, index)


if __name__ == "__main__":
    import data
    from infra import flags, models

    parser = flags.FlagParser(description="Print a few completions of a model.")
    parser.add_argument("--model", default="tiny-qwen2", help="tiny-qwen2, tiny-llama, tiny-olmo2, a path, a hub name")
    parser.add_argument("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, gsm8k, math or a path")
    parser.add_argument("--queries", type=int, default=3, help="how many queries")
    parser.add_argument("--rollouts", type=int, default=3, help="completions per query")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--cache-tokens", type=int, help="bound on the memory: the tokens kept in the cache at a time")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        if args.queries < 1:
            raise ValueError(f"--queries {args.queries} must be at least 1")
        queries = data.load(args.data, "test")[:args.queries]
        model, tokenizer = models.load(args.model, dtype=models.compute_dtype())
        models.set_threads(model)
        rollouts = sample(model, data.encode(tokenizer, queries), args.rollouts, seed=args.seed,
                          max_new_tokens=args.max_new_tokens, end_ids=models.end_ids(model, tokenizer),
                          temperature=args.temperature, cache_tokens=args.cache_tokens)
    except (ValueError, OSError) as error:
        sys.exit(f"rollout.py: {error}")
    for i, query in enumerate(queries):
        print(f"\n=== {query.prompt}\n    (reference answer: {query.gold})")
        for rollout in rollouts[i * args.rollouts:(i + 1) * args.rollouts]:
            how = "cut by length" if rollout.truncated else "ended by itself"
            print(f"--- {len(rollout.tokens)} tokens, log-probability {sum(rollout.logprobs):.2f}, {how}")
            print(tokenizer.decode(rollout.tokens, skip_special_tokens=True))
