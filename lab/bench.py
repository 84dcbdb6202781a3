"""How fast this code is, as ratios against what one would use instead, measured side by side in one run.

    python bench.py                       # the table; under two minutes on two cores (--json FILE keeps the figures)
    python bench.py tricks                # each trick of rollout.py switched off: what it brings
    python bench.py verifier              # time and accuracy of reward.py, beside Math-Verify where it is installed
    python bench.py gpu                   # a GPU: the sampler against generate and the memory's bandwidth; a round
    python bench.py needs                 # calculated: the GPU memory and the time of a round of the paper's models

Absolute times of a shared machine mean little, so each repeat times the two in turn and takes their ratio; the table
shows the median and the range over the repeats. The peers get the same model, prompts, stopping rule, distribution
(temperature 1, nothing cut off), cap on the length and number of threads, and the batch size that suits them best.
TRL and Math-Verify are not needed; their lines appear where they are installed: pip install trl math-verify
"""

import contextlib
import gzip
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import bandit
import data
import evaluate
import optimizer
import reward
import rollout
import run

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("RFT_DATA") or HERE / ".." / "shared" / "data")
CAP = 64  # new tokens of the tiny models
SIZES = {"32x1": (32, 1, 4), "32x8": (32, 8, 2), "set": (1024, 1, 1)}  # queries, rollouts of each, calls a repeat


# --- the table --------------------------------------------------------------------------------------------------


def table(flags):
    figures = {}
    print(f"{'':14}{'ours':>12}{'theirs':>12}   {'ratio':>6}  (range)")
    for name, part in (("generate", against_generate), ("trl_round", against_trl), ("verifier", against_math_verify)):
        try:
            for line, unit, ours, theirs in part(flags):
                figures[line] = figure([b / a for a, b in zip(ours, theirs, strict=True)])
                print(f"{line:14}{unit / median(ours):12,.1f}{unit / median(theirs):12,.1f}   {ratio(figures[line])}")
        except ImportError as error:
            print(f"{name:14}left out: {error.name} is not installed (pip install trl math-verify)")
    print(f"\ngenerate: tokens a second against model.generate, {flags.model} on {flags.data}, at most {CAP} tokens; "
          f"set: {SIZES['set'][0]:,}\nqueries; trl_round: rounds of 32 x 8 a second against GRPOTrainer; verifier: "
          "verdicts a second against\nMath-Verify. A ratio above 1 is in our favour; its range is over the repeats. "
          f"{torch.get_num_threads()} thread(s), torch {torch.__version__}.")
    if torch.cuda.is_available():
        gpu(flags)
    else:
        print("No GPU here: `python bench.py gpu` is left out.")
    if flags.json:
        Path(flags.json).write_text(json.dumps(figures, indent=1) + "\n")


def figure(ratios):
    return {"median": median(ratios), "low": min(ratios), "high": max(ratios)}


def ratio(figure):
    return f"{figure['median']:6.2f}  ({figure['low']:.2f} to {figure['high']:.2f})"


def in_turn(ours, theirs, repeats, name):
    """Seconds of each, [repeats] both, after a run of each that is not counted."""
    times = [], []
    for turn in tqdm(range(repeats + 1), desc=name, leave=False, disable=None):
        for function, taken in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                taken.append(time.perf_counter() - start)
    return times


def tiny(flags):
    model, tokenizer = rollout.load(flags.model, "cpu")
    rollout.use_threads(model, flags.threads)
    queries = data.load(flags.data, "train")
    return model, tokenizer, queries, data.encode(tokenizer, queries), rollout.end_ids(model, tokenizer)


def against_generate(flags):
    """Yield (line, 1, our seconds a token, theirs)."""
    model, _, _, prompts, ends = tiny(flags)
    for name, (count, n, calls) in SIZES.items():
        batches = [prompts[i * count:(i + 1) * count] for i in range(calls)]
        seeds = iter(range(10**6))

        def ours(batches=batches, n=n, seeds=seeds):
            return sum(len(r.tokens) for some in batches for r in
                       rollout.sample(model, some, n, max_new_tokens=CAP, end_ids=ends, seed=next(seeds)))

        def theirs(size, batches=batches, n=n):
            return sum(generated(model, some, n, ends, size) for some in batches)

        sizes = [size for size in (32, 64, 128, 256) if size <= count * n]
        best = min(sizes, key=lambda size, theirs=theirs: seconds(theirs, size)) if len(sizes) > 1 else sizes[0]
        drawn = [], []  # tokens of each call: the two draw other completions, so each time is divided by its own
        times = in_turn(lambda ours=ours, drawn=drawn: drawn[0].append(ours()),
                        lambda theirs=theirs, best=best, drawn=drawn: drawn[1].append(theirs(best)),
                        flags.repeats, f"generate_{name}")
        yield f"generate_{name}", 1, *(np.array(taken) / tokens[1:] for taken, tokens in
                                       zip(times, drawn, strict=True))


def seconds(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


@torch.no_grad()
def generated(model, prompts, n, ends, batch, cap=CAP):
    """Tokens that model.generate draws for n completions of each prompt, prompts of like length side by side."""
    ids = sorted(ends) or [model.config.vocab_size]  # no end: an id that is never drawn (None would mean the model's)
    settings = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
                                max_new_tokens=cap, num_return_sequences=n, eos_token_id=ids, pad_token_id=0)
    prompts, tokens, each = sorted(prompts, key=len), 0, max(1, batch // n)
    for start in range(0, len(prompts), each):
        some = prompts[start:start + each]
        width = max(map(len, some))
        padded = torch.tensor([[0] * (width - len(p)) + list(p) for p in some], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some], device=model.device)
        drawn = model.generate(input_ids=padded, attention_mask=mask, generation_config=settings)[:, width:]
        is_end = torch.isin(drawn, torch.tensor(ids, device=drawn.device))
        ended = is_end.any(dim=1)
        tokens += torch.where(ended, is_end.int().argmax(dim=1) + 1, drawn.shape[1]).sum().item()
    return tokens


def against_trl(flags):
    """One round of 32 x 8 with the group's advantage; a learning rate of 1e-9, so that the policy stays what it is."""
    import datasets
    import trl
    from transformers import TrainerCallback

    model, tokenizer, queries, prompts, ends = tiny(flags)
    optimizer, rounds = torch.optim.AdamW(model.parameters(), lr=1e-9), iter(range(10**6))

    def ours():
        start = 32 * next(rounds) % 1024
        some, texts = queries[start:start + 32], prompts[start:start + 32]
        rollouts = rollout.sample(model, texts, 8, max_new_tokens=CAP, end_ids=ends, seed=start)
        right, _, _ = evaluate.judge(tokenizer, some, rollouts)
        pulls = bandit.Pulls(torch.tensor(right, dtype=torch.float32).view(32, 8))
        bandit.update(model, optimizer, [text for text in texts for _ in range(8)], [r.tokens for r in rollouts],
                      bandit.advantages("group", pulls, 8).reshape(-1))

    times = [], []

    class Watch(TrainerCallback):
        """Their round is timed inside their loop, and one of ours after each."""

        def on_step_begin(self, *args, **kwargs):
            self.start = self.start if getattr(self, "start", None) else time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            times[1].append(time.perf_counter() - self.start)
            times[0].append(seconds(ours))
            self.start = time.perf_counter()

    def pay(prompts, completions, gold, **kwargs):
        return [float(reward.is_correct(c[0]["content"], g, queries[0].form)) for c, g in
                zip(completions, gold, strict=True)]

    rows = [{"prompt": [{"role": "user", "content": query.prompt}], "gold": query.gold} for query in queries]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr), quiet():
        settings = trl.GRPOConfig(
            output_dir=folder, per_device_train_batch_size=64, gradient_accumulation_steps=4,  # of 32 to 256 the best
            num_generations=8, max_completion_length=CAP, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
            beta=0.0, learning_rate=1e-9, lr_scheduler_type="constant", max_steps=flags.repeats + 1, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False,
            gradient_checkpointing=False)
        trl.GRPOTrainer(model=rollout.load(flags.model, "cpu")[0], args=settings, processing_class=tokenizer,
                        train_dataset=datasets.Dataset.from_list(rows), reward_funcs=pay, callbacks=[Watch()]).train()
    yield "trl_round", 1, times[0][1:], times[1][1:]  # the first is a warm-up


@contextlib.contextmanager
def quiet():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def against_math_verify(flags):
    verdict = math_verify_verdict()
    pairs = [(boxed(query.gold), query.gold) for query in data.load("tiny-math", "test")[:200]]
    times = in_turn(lambda: sum(timed(reward.is_correct, pairs)), lambda: sum(timed(verdict, pairs)), flags.repeats,
                    "verifier")
    yield "verifier", len(pairs), *times


# --- rollout.py, one trick after another switched off -------------------------------------------------------------


def tricks(flags):
    """The time without each trick over the time with all of them."""
    with_all, _, _, prompts, ends = tiny(flags)
    print(f"{'without':58}" + "".join(f"{f'({count}, {n})':>22}" for count, n, _ in SIZES.values()))
    for name, (prepare, call) in {
        "a row leaves as soon as it ends: a look every 64 steps": (pace(every=64), rollout.sample),
        "others come in meanwhile: one wave of 512 rows at a time": (None, waves),
        "512 rows at a time: 64": (lambda: swapped(vars(rollout), "ROWS", 64), rollout.sample),
        "steps read no further than the longest row": (pace(grain=144), rollout.sample),
        "the cache is written in place: copied at every step": (slots(CopyingSlots), rollout.sample),
        "query heads share keys: repeated for every head": (repeated_keys, rollout.sample),
        "one prefill for the n rollouts of a prompt": (None, apart),
        "a prefill ends at the last layer's cache": (slots(UnendingSlots), rollout.sample),
        "prefills of 2,048 tokens, that fit a core's cache: 16,384": (pace(prefill=16384), rollout.sample),
        "torch.inference_mode: torch.no_grad": (None, torch.no_grad()(rollout.sample.__wrapped__)),
        "one thread: two": (lambda: threads(2), rollout.sample),
    }.items():
        line = f"{name:58}"
        for count, n, _ in SIZES.values():
            without, _ = rollout.load(flags.model, "cpu")  # a model, so an engine, of its own

            def run(model, sample, some=prompts[:count], n=n):
                sample(model, some, n, max_new_tokens=CAP, end_ids=ends)

            def changed(without=without, prepare=prepare, call=call, run=run):
                with prepare() if prepare else contextlib.nullcontext():
                    run(without, call)

            times = in_turn(lambda run=run: run(with_all, rollout.sample), changed, flags.repeats, name)
            shown = figure([b / a for a, b in zip(*times, strict=True)])
            line += f"{'-' if call is apart and n == 1 else ratio(shown):>22}"
        print(line)


def pace(**settings):
    return lambda: swapped(rollout.PACES, "cpu", rollout.PACES["cpu"]._replace(**settings))


@contextlib.contextmanager
def swapped(names, name, value):
    """names[name] is `value` for a while."""
    names[name], before = value, names[name]
    try:
        yield
    finally:
        names[name] = before


class CopyingSlots(rollout.Slots):
    def update(self, *args, **kwargs):
        return [tensor.clone() for tensor in super().update(*args, **kwargs)]


class UnendingSlots(rollout.Slots):
    def __init__(self, at, both, last):
        super().__init__(at, both, last=False)


def slots(kind):
    return lambda: swapped(vars(rollout), "Slots", kind)


def repeated_keys():
    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1),
            attn_mask=attention_mask, scale=scaling, is_causal=query.shape[2] > 1)
        return output.transpose(1, 2), None

    return swapped(rollout.AttentionInterface._global_mapping, "grouped", attention)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def waves(model, prompts, n, **kwargs):
    prompts = sorted(prompts, key=len)
    for start in range(0, len(prompts), rollout.ROWS // n):
        rollout.sample(model, prompts[start:start + rollout.ROWS // n], n, **kwargs)


def apart(model, prompts, n, **kwargs):
    rollout.sample(model, [prompt for prompt in prompts for _ in range(n)], 1, **kwargs)


# --- a GPU ------------------------------------------------------------------------------------------------------

QWEN = dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True)  # Qwen2.5-0.5B's shape


def gpu(flags, device="cuda", shape=QWEN, queries=32, n=8, prompt=128, new=512, compiled=True):
    """256 rollouts of 512 tokens by a model of Qwen2.5-0.5B's shape with random weights, in bfloat16."""
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench.py: gpu needs a GPU, and torch finds none")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1000, (queries, prompt), generator=generator).tolist()
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(Qwen2Config(**shape), dtype=torch.bfloat16).eval()

    bandwidth = copied_bytes_a_second(device)
    layers, heads, size = rollout.cache_shape(model)
    weights = 2 * sum(p.numel() for p in model.parameters())
    cache = queries * n * (prompt + new / 2) * 2 * layers * heads * size * 2
    roof = queries * n / ((weights + cache) / bandwidth)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"\n{name}: a step must read {weights / 1e9:.2f} GB of weights and {cache / 1e9:.2f} GB of cache; copies "
          f"run at {bandwidth / 1e9:,.0f} GB/s\n{'':30}{'first, s':>10}{'then, s':>10}{'tokens/s':>12}"
          f"{'of the roof':>13}{'x generate':>12}{'peak, GB':>10}")
    base, ours = None, dict(n=n, max_new_tokens=new, end_ids=set())
    contestants = {"generate": lambda: generated(model, prompts, n, set(), queries * n, cap=new),
                   "rollout.py": lambda: rollout.sample(model, prompts, **ours),
                   "rollout.py, compiled step": lambda: rollout.sample(model, prompts, compiled=True, **ours)}
    for label, function in list(contestants.items())[:3 if compiled else 2]:
        rollout.ENGINES.pop(model, None)  # the memory of the one before
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        first, *times = synchronized(function, flags.repeats + 1, device)
        rate = queries * n * new / median(times)
        base = base or rate
        peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
        print(f"{label:30}{first:10.1f}{median(times):10.2f}{rate:12,.0f}{rate / roof:13.1%}{rate / base:12.1f}"
              f"{peak:10.1f}")
    a_round(model, prompts, n, new, flags.repeats, device)


def a_round(model, prompts, n, new, repeats, device):
    """The parts of a round of the group's advantage, random verdicts in the verifier's place; then what they take."""
    rollout.ENGINES.pop(model, None)
    model.float()  # the masters
    steps = optimizer.adamw(optimizer.Masters(model, torch.bfloat16), 1e-6)
    tokens = len(prompts) * n * (len(prompts[0]) + new)
    linear = sum(p.numel() for p in model.parameters())  # with tied weights, the embedding counts once: as the head
    attention = model.config.num_hidden_layers * model.config.hidden_size * (len(prompts[0]) + new)  # half a square
    flops = 6 * (linear + attention) * tokens
    parts = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for seed in range(repeats + 1):
        clock = [time.perf_counter()]
        rollouts = rollout.sample(model, prompts, n, max_new_tokens=new, end_ids=set(), seed=seed)
        synchronized(lambda: None, 1, device)
        clock.append(time.perf_counter())
        rewards = (torch.rand(len(prompts), n, generator=torch.Generator().manual_seed(seed)) < 0.5).float()
        advantage = bandit.advantages("group", bandit.Pulls(rewards), n).reshape(-1)
        bandit.update(model, steps, [p for p in prompts for _ in range(n)], [r.tokens for r in rollouts], advantage,
                      micro_tokens=8192, sampled=[r.logprobs for r in rollouts])
        synchronized(lambda: None, 1, device)
        clock.append(time.perf_counter())
        parts.append((clock[1] - clock[0], clock[2] - clock[1]))
    sampling, updating = (median(part) for part in zip(*parts[1:], strict=True))
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    print(f"a round of {len(prompts)} x {n}: sampling {sampling:.2f} s, update {updating:.2f} s, which is "
          f"{flops / updating / 1e12:,.2f} TFLOP/s (6 per weight and token, and attention's); peak {peak:.1f} GB")


PEAK, BANDWIDTH, CARD = 989e12, 3.35e12, 80e9  # an H100's bfloat16 FLOP/s, bytes/s and bytes, from its data sheet
HUB = {
    "Qwen2.5-0.5B-Instruct": (Qwen2ForCausalLM, Qwen2Config(**QWEN)),
    "Llama-3.2-1B-Instruct": (LlamaForCausalLM, LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True)),
    "OLMo-2-0425-1B-Instruct": (Olmo2ForCausalLM, Olmo2Config(
        vocab_size=100352, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=16, tie_word_embeddings=False)),
}


def needs(flags, prompt=512, new=1024, micro=8192):
    """Nothing is run but one layer, to count what autograd keeps: everything here is calculated."""
    print(f"prompts of {prompt}, completions of {new} tokens, all of full length; a micro-batch of {micro} tokens; GB")
    heads = ("model", "weights, optimizer, reference", "kept for a micro-batch", "with --gradient-checkpointing",
             "B x n", "cache", "peak", "seconds a round")
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, (kind, config) in HUB.items():
        with torch.device("meta"):
            model = kind(config)
        weights = sum(p.numel() for p in model.parameters())
        fixed = weights * (2 + 4 + 4 + 8 + 2)  # bfloat16, master, gradient, Adam's two, and the reference
        kept = micro * config.num_hidden_layers * kept_by_a_layer(model, config)
        saving = micro * (config.num_hidden_layers * 2 * config.hidden_size) + kept / config.num_hidden_layers
        head = 4 * 2**28  # some copies of the piece of logits
        layers, heads, size = rollout.cache_shape(model)
        for queries, n in ((32, 1), (32, 8), (32, 64)):
            token = 2 * layers * heads * size * 2
            rows = min(queries * n, rollout.ROWS, int(run.CACHE * (CARD - fixed) / token / (prompt + new)))
            cache = rows * (prompt + new) * token
            peak = fixed + cache + max(kept + head, 4 * weights)  # forward and back, or the step with its copy
            read = 2 * weights + cache * (prompt + new / 2) / (prompt + new)
            waves = max(1, queries * n / rows)
            step = max(read / BANDWIDTH / 0.5, 2e-3 / 24 * layers)
            flops = 8 * weights * queries * n * (prompt + new)  # 6 for the update, 2 for the reference
            seconds = waves * new * step + flops / PEAK / 0.4
            print(f"| {name} ({weights / 1e9:.2f} billion) | {fixed / 1e9:.1f} | {kept / 1e9:.1f} | {saving / 1e9:.1f} "
                  f"| {queries} x {n} | {cache / 1e9:.1f} | {peak / 1e9:.0f} | {seconds:.0f} |")
    print(f"\n{FORMULA}")


FORMULA = """Peak: 20 bytes a weight (2 bfloat16, 4 master, 4 gradient, 8 Adam, 2 reference) + cache + what a
micro-batch keeps (counted on one layer) + 1 GB of logits. Cache: rows x length x layers x key-value heads x head size x
4 bytes; rows: B x n, at most 512, and what fits into 0.4 of what the weights leave of 80 GB; an evaluation takes those
of 32 x 64. A round: new tokens x the larger of bytes read / half of an H100's bandwidth and 2 ms a step of 24 layers,
+ 8 x weights x tokens at 40 % of its peak FLOP/s. The two shares are assumed, not measured."""


def kept_by_a_layer(model, config, tokens=64):
    """Bytes a token that autograd keeps of one layer in bfloat16, its weights apart."""
    layer = type(model.model.layers[0])(config, 0).bfloat16()
    config._attn_implementation = "sdpa"
    hidden = torch.zeros(1, tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    size = rollout.cache_shape(model)[2]
    angles = torch.zeros(1, tokens, size, dtype=torch.bfloat16), torch.zeros(1, tokens, size, dtype=torch.bfloat16)
    own = {p.untyped_storage().data_ptr() for p in [*layer.parameters(), *angles]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(hidden, position_embeddings=angles)
    del output
    return sum(kept.values()) / tokens


def synchronized(function, repeats, device):
    """Seconds of each run, what the GPU has still to do included."""
    wait, times = torch.cuda.synchronize if device == "cuda" else lambda: None, []
    for _ in range(repeats):
        wait()
        times.append(seconds(lambda: (function(), wait())))
    return times


def copied_bytes_a_second(device):
    """Bytes read and written by a large copy, a second: what memory gives."""
    block = torch.zeros(2**30 if device == "cuda" else 2**24, dtype=torch.uint8, device=device)
    other = torch.empty_like(block)
    times = synchronized(lambda: [other.copy_(block) for _ in range(10)], 6, device)
    return 10 * 2 * block.numel() / min(times)


# --- the verifier -----------------------------------------------------------------------------------------------


def verifier(flags):
    """Each MATH gold as the answer to itself and to another row, and the labelled cases."""
    path = DATA / "math_train_answers.jsonl.gz"
    if not path.exists():
        sys.exit(f"bench.py: {path} is absent; set RFT_DATA to the folder that holds it")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        golds = [row["answer"] for row in map(json.loads, lines) if row["answer"].strip()]
    labelled = []
    for case in map(json.loads, (HERE / "tests" / "verifier_cases.jsonl").read_text("utf-8").splitlines()):
        completion = case["completion"] if "completion" in case else boxed(case["answer"])
        labelled.append((completion, case["gold"], case.get("form"), case["right"]))

    verdicts = {"reward.py": (reward.is_correct, golds)}
    try:
        verdicts["Math-Verify"] = (math_verify_verdict(), golds[:: max(1, len(golds) // flags.rows)])
    except ImportError:
        print("math-verify is not installed: reward.py alone\n")
    right = sum(case[3] for case in labelled)
    print(f"{len(labelled)} labelled cases, {right} right and {len(labelled) - right} wrong\n")
    heads = f"{'median µs':>10} {'p99 µs':>10} {'worst µs':>10}   false accepts / rejects"
    print(f"{'':12} {'MATH golds':16} {'pairs':>6} {heads}")
    for name, (verdict, some) in verdicts.items():
        for label, pairs in (
            ("as they stand", [(boxed(gold), gold) for gold in some]),
            ("rewritten", [(boxed(rewritten(gold)), gold) for gold in some]),
            ("of another row", [(boxed(some[k - 1]), gold) for k, gold in enumerate(some)]),
        ):
            micros = sorted(timed(verdict, pairs))
            numbers = [median(micros), micros[len(micros) * 99 // 100], micros[-1]]
            accuracy = ""
            if label == "as they stand":
                wrong = [case for case in labelled if verdict(*case[:3]) != case[3]]
                accepts = sum(not case[3] for case in wrong)
                accuracy = f"{accepts} / {len(wrong) - accepts}"
            print(f"{name:12} {label:16} {len(pairs):6}", *(f"{n:10.0f}" for n in numbers), " ", accuracy)
    print("\nreward.py on hostile completions, ms (the best of three):")
    for name, text in hostile().items():
        print(f"{min(timed(reward.is_correct, [(text, 'x+1')] * 3)) / 1000:8.1f}  {name}")


def boxed(answer):
    return "so the answer is $\\boxed{" + answer + "}$."


def rewritten(gold):
    """The same answer in another hand, so that equality of texts is not enough."""
    return gold if "=" in gold else "{" + gold.replace("\\frac", "\\dfrac").replace("+", " + ") + "}"


def timed(verdict, pairs):
    """Microseconds of each verdict, nothing remembered from the one before."""
    times = []
    for completion, gold in pairs:
        reward.read.cache_clear()
        start = time.perf_counter()
        verdict(completion, gold, None)
        times.append((time.perf_counter() - start) * 1e6)
    return times


def math_verify_verdict():
    """Math-Verify with its defaults; the gold as mathematics, as its documentation has it."""
    import logging

    import math_verify

    logging.disable(logging.CRITICAL)  # it reports each of its timeouts

    def verdict(completion, gold, form):
        return bool(math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(completion)))

    return verdict


def hostile():
    """Completions that are slow for a careless verifier."""
    big = 200_000
    return {
        "200 KB of text": "x" * big,
        "200 KB of {": "{" * big,
        "200 KB of \\boxed{": "\\boxed{" * (big // 7),
        "200 KB of ####": "#### " * (big // 5),
        "200 KB of digits in a box": boxed("7" * big),
        "3,900 characters of commands": boxed("\\," * 1950),
        "a tower of exponents": boxed("9^{9^{9^{9^{9}}}}"),
        "5,000 brackets deep": boxed("(" * 5000 + "1" + ")" * 5000),
        "55 powers x^{49999}": boxed("+".join(["x^{49999}"] * 55)),
        "80 sines": boxed("+".join(["\\sin x"] * 80)),
        "33 roots": boxed("+".join(["\\sqrt[59]{x+\\pi}"] * 33)),
    }


SECTIONS = {"table": table, "tricks": tricks, "verifier": verifier, "gpu": gpu, "needs": needs}


def main():
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("section", nargs="?", default="table", choices=SECTIONS, help="default: table")
    parser.add_argument("--model", default="tiny-qwen2", help="of the table and the tricks (default: %(default)s)")
    parser.add_argument("--data", default="tiny-gsm", help="of the table and the tricks (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads, of both sides (default: what suits the model)")
    parser.add_argument("--json", help="a file for the ratios of the table")
    parser.add_argument("--rows", type=int, default=500, help="MATH golds for Math-Verify in the section verifier")
    flags = parser.parse_args()
    try:
        if flags.repeats < 1 or flags.rows < 1 or (flags.threads or 1) < 1:
            raise ValueError("--repeats, --rows and --threads must be at least 1")
        SECTIONS[flags.section](flags)
    except (ValueError, OSError) as error:
        sys.exit(f"bench.py: {error}")


if __name__ == "__main__":
    main()
