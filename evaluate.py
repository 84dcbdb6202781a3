"""How good is a policy: pass@1, pass@k and greedy accuracy on a problem set, with standard errors.

    python evaluate.py --model tiny-qwen2 --data tiny-gsm --split test --samples 16
    python evaluate.py --model runs/default/model --against tiny-qwen2 --data tiny-gsm     # the paired difference

pass@k is the chance that at least one of k completions is right; from n >= k samples a query, c of them right, its
unbiased estimate is 1 - C(n-c, k) / C(n, k) (arXiv:2107.03374), not "any of the first k".

Standard errors are over queries: what another set of queries like these would change. With `--samples 1`, as the
paper evaluates, the noise of sampling is in them too. A difference between two policies on the same queries is taken
query by query (paired), so what makes a query hard cancels.
"""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
import distributed
import reward
import rollout


def judge(tokenizer, queries, rollouts):
    """(right, in_format, texts) of rollouts, len(rollouts) / len(queries) of each query side by side.

    right: whether the answer, in the format asked for, equals the gold one; in_format: whether there was one. Of a
    completion cut by its length the last number may be half a number, so it is not read as an answer.
    """
    n = len(rollouts) // len(queries)
    texts = tokenizer.batch_decode([r.tokens for r in rollouts], skip_special_tokens=True)
    right, in_format = np.zeros(len(rollouts), dtype=bool), np.zeros(len(rollouts), dtype=bool)
    for i, (one, text) in enumerate(zip(rollouts, texts, strict=True)):
        query = queries[i // n]
        if one.cut:
            text = re.sub(r"####[^\n]*\Z", "", text)
        verdict = reward.judge(text, query.gold, query.form)
        in_format[i], right[i] = verdict.extracted is not None, verdict.correct
    return right, in_format, texts


def pass_at_k(samples, right, k):
    """Equation (10): 1 - C(n-c, k) / C(n, k), unbiased from n samples, c of them right (arXiv:2107.03374); k <= n."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def mean_and_se(values):
    """(mean, its standard error) of one value a query: of verdicts, the estimate of equation (1) of the README.

    The error is nan for a single query.
    """
    values = np.asarray(values, dtype=float)
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def spread(right):
    """Standard deviation of the success rate between queries, right [queries, samples], sampling noise taken out."""
    p = right.mean(axis=1)
    return max(0.0, p.var(ddof=1) - (p * (1 - p) / (right.shape[1] - 1)).mean()) ** 0.5


def success(model, tokenizer, queries, samples, *, temperature=1.0, seed=0, progress=None, **sampling):
    """(right, in_format) [queries, samples] of bool, and the rollouts; sampled at `temperature`, 0 is greedy.

    progress: the words beside a bar, shown on a terminal only; sampling: what else rollout.sample takes. Where there
    are several processes each samples a part, and all get the whole.
    """
    with tqdm(total=len(queries) * samples, desc=progress, leave=False,
              disable=None if progress and distributed.is_first() else True) as bar:
        rollouts = distributed.sample(model, data.encode(tokenizer, queries), samples, temperature=temperature,
                                      seed=seed, end_ids=rollout.end_ids(model, tokenizer), progress=bar.update,
                                      **sampling)
    right, in_format, _ = judge(tokenizer, queries, rollouts)
    shape = (len(queries), samples)
    return right.reshape(shape), in_format.reshape(shape), rollouts


def main():
    parser = data.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny-qwen2", help="tiny-qwen2, tiny-llama, tiny-olmo2, a path, a hub name")
    parser.add_argument("--against", help="a second model: the paired difference of the first to it")
    parser.add_argument("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, gsm8k, math or a path")
    parser.add_argument("--split", default="test", choices=["train", "test"])
    parser.add_argument("--queries", type=int, help="only the first K queries (default: all)")
    parser.add_argument("--samples", type=int, default=16, help="completions a query; pass@k for k = 1, 2, 4, ... ")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--cache-tokens", type=int, help="bound on the memory: the tokens kept in the cache at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a file for one JSON line per query (default: none)")
    args = parser.parse_args()
    try:
        compare(args)
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")


def compare(args):
    """Print what the flags ask for; raises ValueError, in one sentence, for a bad one."""
    if args.samples < 1 or (args.queries is not None and args.queries < 1):
        raise ValueError("--samples and --queries must be at least 1")
    if args.temperature <= 0:
        raise ValueError(f"--temperature {args.temperature:g} must be above 0 (greedy is always shown beside it)")
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {args.max_new_tokens} must be at least 1")
    queries = data.load(args.data, args.split)[:args.queries]
    loaded = [(name, *rollout.load(name, dtype=rollout.compute_dtype()))
              for name in filter(None, (args.model, args.against))]
    rollout.use_threads(loaded[0][1])
    if args.out:
        Path(args.out).write_text("")  # said now if it cannot be written, not after the sampling

    shares = []
    for name, model, tokenizer in loaded:
        sampling = dict(max_new_tokens=args.max_new_tokens, cache_tokens=args.cache_tokens)
        right, in_format, _ = success(model, tokenizer, queries, args.samples, temperature=args.temperature,
                                      seed=args.seed, progress=f"{name}, sampled", **sampling)
        greedy, _, _ = success(model, tokenizer, queries, 1, temperature=0, progress=f"{name}, greedy", **sampling)
        shares.append(right.mean(axis=1))
        print(f"\n{name} on {args.data}, {args.split}: {len(queries)} queries x {args.samples} samples at "
              f"temperature {args.temperature:g}; value ± standard error")
        powers = [2**i for i in range(20) if 2**i <= args.samples]
        for k in powers:
            value, se = mean_and_se([pass_at_k(args.samples, int(c), k) for c in right.sum(axis=1)])
            print(f"  pass@{k:<3} {value:.3f} ± {se:.3f}")
        value, se = mean_and_se(greedy[:, 0])
        print(f"  greedy   {value:.3f} ± {se:.3f}")
        print(f"  answers in the asked format: {in_format.mean():.3f}")
        levels = np.array([query.level or 0 for query in queries])
        for level in sorted(set(levels) - {0}):
            here = levels == level
            value, se = mean_and_se(right[here].mean(axis=1))
            print(f"  level {level}: pass@1 {value:.3f} ± {se:.3f}, greedy {greedy[here, 0].mean():.3f} "
                  f"({here.sum()} queries)")
        if args.out:
            with open(args.out, "a") as file:
                for i, query in enumerate(queries):
                    file.write(json.dumps({"model": name, "query": i, "level": query.level, "gold": query.gold, "right":
                                           right[i].astype(int).tolist(), "greedy": int(greedy[i, 0])}) + "\n")
    if args.out:
        print(f"\na JSON line per query: {Path(args.out)}")
    if args.against:
        value, se = mean_and_se(shares[0] - shares[1])
        print(f"\n{args.model} - {args.against}: pass@1 {value:+.3f}, 95 % interval "
              f"[{value - 1.96 * se:+.3f}, {value + 1.96 * se:+.3f}], paired over {len(queries)} queries")


if __name__ == "__main__":
    main()
