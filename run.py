"""A run: its folder, its evaluations, its checkpoint. What stands beside the algorithm of train.py.

    metrics.jsonl   a line a round, appended           evals.jsonl     a line an evaluation and split, appended
                    (its shares and means are over all rollouts of the round, the extra ones of --baseline-rollouts
                    included; rollouts, tokens and regret also count the greedy ones of --advantage remax)
    config.json     flags, versions, commit            checkpoints/    everything that changes, to resume from
    summary.json    before and after                   samples.jsonl   completions before and after
    curve.png       the figure (report.py)             model/          the final policy, in the hub's format

All random numbers derive from the seed and the round, so nothing random is stored, and a run that was killed and
resumed equals one that was never stopped: the lines of rounds after the checkpoint are dropped and made again.
Where there are several processes (distributed.py) all of them evaluate, and the first one writes.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers.modeling_layers import GradientCheckpointingLayer

import bandit
import checkpoint
import data
import distributed
import evaluate
import likelihood
import optimizer
import report
import rollout

ROOT = Path(__file__).parent
MAY_CHANGE = ("save_every", "cache_tokens", "micro_tokens", "gradient_checkpointing")  # when a run is resumed
CACHE = 0.4  # the sampler's share of what weights and optimizer leave of a GPU's memory; the rest is the update's
COUNTERS = ("round", "evaluated", "rollouts", "tokens", "regret", "seconds")


def seed_of(args, purpose, number=0):
    """A seed for one purpose and round: nothing to store, nothing shared, whatever came before."""
    return int(np.random.SeedSequence([args.seed, purpose, number]).generate_state(1)[0])


class Run:
    """The model, its optimizer, the data and the counters of one run; raises ValueError for what cannot be run."""

    def __init__(self, args):
        self.args, self.out = args, args.out
        self.load_model()
        self.load_queries()
        self.round = self.rollouts = self.tokens = self.regret = self.seconds = 0
        self.evaluated = self.saved = -1  # the last round that was; -1: not even before round 1
        self.since = time.perf_counter()  # `seconds` counts from here, what stopped runs took before included
        self.windows, self.asked_to_stop = {}, False
        self.doing = "sampling"  # "evaluating", "updating", or, from the first change of a weight on, "stepping"
        self.optimizer.register_step_pre_hook(lambda *_: setattr(self, "doing", "stepping"))
        if args.resume:
            self.resume()
        elif distributed.is_first() and ((self.out / "config.json").exists() or checkpoint.paths(self.out)):
            raise ValueError(f"--out {self.out} holds a run already: add --resume to go on with it, or name another")
        if distributed.is_first():
            self.out.mkdir(parents=True, exist_ok=True)
            write(self.out / "config.json", {**flags(args), "torch": torch.__version__, "transformers":
                                             transformers.__version__, "commit": commit(),
                                             "processes": distributed.world()})
        print(f"{args.model} on {args.data}: {len(self.train_set)} train and {len(self.test_set)} test queries, "
              f"{args.rounds} rounds of {args.batch_size} x {args.rollouts} rollouts; the run is in {self.out}")

    def load_model(self):
        """The policy, its masters and optimizer, the reference if there is a KL, and what sampling is told."""
        args = self.args
        self.model, self.tokenizer = rollout.load(args.model)
        rollout.use_threads(self.model, args.threads)
        likelihood.check_head(self.model)
        if args.gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
            for module in self.model.modules():  # it is for layers in training, which switches nothing else on here
                module.training = isinstance(module, GradientCheckpointingLayer)
        self.dtype = getattr(torch, args.dtype) if args.dtype else rollout.compute_dtype()
        self.masters = optimizer.Masters(self.model, self.dtype)
        self.optimizer = optimizer.adamw(self.masters, args.lr, args.weight_decay)
        self.reference = rollout.load(args.model, dtype=self.dtype)[0] if args.kl else None
        self.ends = rollout.end_ids(self.model, self.tokenizer)
        cache_tokens = args.cache_tokens
        if self.model.device.type == "cuda" and not cache_tokens:  # to come: gradients, two moments, a copy
            free = rollout.free_memory(self.model.device) - 16 * sum(w.numel() for w in self.masters.weights)
            if free <= 0:
                raise ValueError(f"--model {args.model} is too large for this GPU")
            cache_tokens = int(CACHE * free / rollout.token_bytes(self.model))
        self.sampling = dict(max_new_tokens=args.max_new_tokens, cache_tokens=cache_tokens, compiled=args.compile)

    def load_queries(self):
        """The train set, of the levels and the number asked for, and the test set."""
        args = self.args
        train_set, self.test_set = (
            data.within(self.tokenizer, data.load(args.data, split), args.max_prompt_tokens, f"{args.data}, {split}")
            for split in ("train", "test"))
        if args.levels:
            train_set = [query for query in train_set if query.level in args.levels]
            if not train_set:
                raise ValueError(f"--levels {' '.join(map(str, args.levels))}: no query of {args.data} is of these")
        if args.queries and args.queries > len(train_set):
            raise ValueError(f"--queries {args.queries} is more than the {len(train_set)} queries there are")
        if args.queries:
            chosen = np.random.default_rng([args.seed, 0]).permutation(len(train_set))[:args.queries]
            train_set = [train_set[i] for i in sorted(chosen)]
        if args.batch_size > len(train_set):
            raise ValueError(f"--batch-size {args.batch_size} is more than the {len(train_set)} queries of the train "
                             "set")
        self.train_set = train_set
        if args.data not in data.HUB and data.find_file(args.data, "test") == data.find_file(args.data, "train"):
            print(f"{args.data} has no test set beside it (a file of the same name with test for train): it is its own "
                  "test set, which says nothing about generalization", file=sys.stderr)

    def ask_to_stop(self, *_):
        if self.asked_to_stop and distributed.world() == 1:
            os._exit(1)  # asked twice: at once (torchrun asks twice by itself)
        self.asked_to_stop = True
        print("\nstopping after this round ...", file=sys.stderr)

    def log(self, name, line):
        if not distributed.is_first():
            return
        with open(self.out / f"{name}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def check_resumed(self):
        rounds = distributed.gather(self.round)
        if len(set(rounds)) > 1:
            raise ValueError(f"--resume: the processes found checkpoints of different rounds ({rounds}): the run's "
                             "folder must be on a disk that all of them see")

    def evaluate(self, with_pass_at_k):
        """Lines of evals.jsonl, unless they are there: pass@1 on train and test, one sample a query, temperature 1;
        pass@k if asked for."""
        if self.evaluated == self.round:
            return
        args, number, said = self.args, self.round, []
        self.doing = "evaluating"
        for which, (split, queries) in enumerate((("train", self.train_set), ("test", self.test_set))):
            right, in_format, rollouts = evaluate.success(
                self.model, self.tokenizer, queries, 1, seed=seed_of(args, 3 + which, number),
                progress=f"pass@1, {split}", **self.sampling)
            value, se = evaluate.mean_and_se(right[:, 0])
            line = {"round": number, "split": split, "pass@1": value, "se": se, "in_format": in_format.mean(),
                    "length": np.mean([len(r.tokens) for r in rollouts]), "cut": np.mean([r.cut for r in rollouts])}
            if with_pass_at_k:  # before and after: greedy accuracy tells sharpening from more
                greedy, _, _ = evaluate.success(self.model, self.tokenizer, queries, 1, temperature=0,
                                                progress=f"greedy, {split}", **self.sampling)
                line["greedy"], line["greedy_se"] = evaluate.mean_and_se(greedy[:, 0])
            if split == "test" and with_pass_at_k and args.eval_samples > 1:
                k = args.eval_samples
                some = queries[:args.eval_queries]
                right_k, _, _ = evaluate.success(self.model, self.tokenizer, some, k, seed=seed_of(args, 5, number),
                                                 progress=f"pass@{k}, test", **self.sampling)
                line[f"pass@{k}"], line[f"pass@{k}_se"] = evaluate.mean_and_se(
                    [evaluate.pass_at_k(k, int(c), k) for c in right_k.sum(axis=1)])
            if split == "test" and distributed.is_first():
                line["kl"] = self.distance(queries[:64], rollouts[:64]) if number else 0.0
            line["right"] = right[:, 0].astype(int).tolist()
            line = {key: None if value != value else value for key, value in line.items()}
            self.log("evals", line)
            said.append(f"{split} {value:.3f}{report.plus_minus(line['se'])}")
        self.evaluated, self.doing = number, "sampling"
        tqdm.write(f"round {number:>4}: pass@1 " + ", ".join(said))

    def base(self):
        """The base model: the reference if there is one, else loaded, and not kept: a model of the hub is large."""
        return self.reference or rollout.load(self.args.model, dtype=self.dtype)[0]

    @torch.no_grad()
    def distance(self, queries, rollouts):
        """Mean k3 of the KL per token to the base model, on some rollouts of the policy."""
        base = self.base()
        prompts, completions = data.encode(self.tokenizer, queries), [r.tokens for r in rollouts]
        gaps = []
        for rows in likelihood.parts([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)],
                                     self.args.micro_tokens):
            ours, theirs = (likelihood.completion_logprobs(policy, [prompts[i] for i in rows],
                                                           [completions[i] for i in rows])
                            for policy in (self.model, base))
            gaps.append(ours - theirs)
        return bandit.KL_ESTIMATORS["k3"](torch.cat(gaps)).mean().item()

    def out_of_memory(self):
        """A sentence on what to lower, and to what. The rounds so far are saved, unless a step was half taken."""
        args, held = self.args, rollout.ENGINES.pop(self.model, None)
        longest = -(-(args.max_prompt_tokens + args.max_new_tokens + 16) // 128) * 128  # as the sampler rounds it
        tokens = self.sampling["cache_tokens"] or (held.rows * held.width if held else 128 * longest)
        cache = f"--cache-tokens {max(longest, tokens // 2)}"
        if self.doing == "stepping":
            advice = f"the optimizer's step had no room: give {cache}, or take a smaller model"
        elif self.doing == "evaluating":
            advice = f"an evaluation had no room: give {cache}, or lower --micro-tokens to {args.micro_tokens // 2}"
        elif self.doing == "sampling":
            advice = f"sampling had no room: give {cache}"
        elif args.micro_tokens >= 2 * longest:
            advice = f"the update had no room: lower --micro-tokens from {args.micro_tokens} to " \
                     f"{args.micro_tokens // 2}"
        elif not args.gradient_checkpointing:
            advice = "the update had no room for the longest completion: add --gradient-checkpointing"
        else:
            advice = f"the update had no room: lower --max-new-tokens from {args.max_new_tokens} to " \
                     f"{args.max_new_tokens // 2}, or take a smaller model"
        for parameter in self.masters.weights:
            parameter.grad = None
        if distributed.world() == 1 and self.evaluated >= 0 and self.doing != "stepping":
            self.save()
        return f"out of memory: {advice}" + (f"; then --resume --out {self.out} goes on" if self.saved >= 0 else "")

    def save(self):
        if self.saved == self.round:
            return
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now
        state = {"model": self.masters.state_dict(), "optimizer": optimizer.state_of(self.optimizer),
                 "windows": self.windows, **{key: getattr(self, key) for key in COUNTERS}}
        if distributed.is_first():
            checkpoint.save(self.out, self.round, state)
        self.saved = self.round
        distributed.gather(None)  # nobody goes on, or ends, before it is written

    def resume(self):
        try:
            before = json.loads((self.out / "config.json").read_text())
        except (OSError, json.JSONDecodeError):
            raise ValueError(f"--resume: there is no run in {self.out}") from None
        for key, value in flags(self.args).items():
            if key not in ("rounds", *MAY_CHANGE) and before.get(key) != value:
                raise ValueError(f"--resume: the run in {self.out} has --{key.replace('_', '-')} {before.get(key)}, "
                                 f"not {value}")
        if state := checkpoint.newest(self.out):
            self.masters.load_state_dict(state["model"])
            optimizer.load_state(self.optimizer, state["optimizer"])
            self.windows = state["windows"]
            for key in COUNTERS:
                setattr(self, key, state[key])
            self.saved = self.round
        # rounds after the checkpoint are run again, so their lines go
        for name, kept in (("metrics", self.round), ("evals", self.evaluated)):
            lines = [line for line in report.read_lines(self.out / f"{name}.jsonl") if line["round"] <= kept]
            if distributed.is_first():
                write(self.out / f"{name}.jsonl", lines, lines=True)
        if self.round and self.args.rounds < self.round:
            raise ValueError(f"--rounds {self.args.rounds}: the run in {self.out} is at round {self.round} already")

    def finish(self):
        """samples.jsonl, summary.json, curve.png, the final model; then a short account in words."""
        if not distributed.is_first():
            return
        self.seconds += time.perf_counter() - self.since
        self.write_samples()
        self.masters.hand_over()
        self.model.save_pretrained(self.out / "model")
        self.tokenizer.save_pretrained(self.out / "model")
        evals = report.read_lines(self.out / "evals.jsonl")
        summary = {}
        for split in ("train", "test"):
            lines = [line for line in evals if line["split"] == split]
            for when, line in (("before", lines[0]), ("after", lines[-1])):
                summary[f"{split}_pass@1_{when}"], summary[f"{split}_pass@1_{when}_se"] = line["pass@1"], line["se"]
                summary[f"{split}_in_format_{when}"] = line["in_format"]
                for key in line:
                    if key.startswith(("pass@", "greedy")) and key != "pass@1":
                        summary[f"{split}_{key.removesuffix('_se')}_{when}{'_se' * key.endswith('_se')}"] = line[key]
        summary |= {"rounds": self.round, "rollouts": self.rollouts, "tokens": self.tokens, "regret": self.regret,
                    "seconds": round(self.seconds, 1), "seed": self.args.seed, "commit": commit()}
        write(self.out / "summary.json", summary)
        report.curve(self.out)
        print(report.account(self.out))

    def write_samples(self, count=4, each=2):
        """A few test queries: completions before and after, and each under both policies."""
        base = self.base()
        queries = self.test_set[:count]
        prompts = data.encode(self.tokenizer, queries)
        lines = []
        for when, model in (("before", base), ("after", self.model)):
            rollouts = rollout.sample(model, prompts, each, end_ids=self.ends, seed=seed_of(self.args, 6),
                                      **self.sampling)
            right, _, texts = evaluate.judge(self.tokenizer, queries, rollouts)
            for i, one in enumerate(rollouts):
                line = {"query": i // each, "prompt": queries[i // each].prompt, "gold": queries[i // each].gold,
                        "policy": when, "completion": texts[i], "right": bool(right[i]),
                        "reward": self.args.right_reward if right[i] else self.args.wrong_reward, "cut": one.cut,
                        "tokens": [self.tokenizer.decode([token]) for token in one.tokens]}
                with torch.no_grad():
                    for name, policy in (("before", base), ("after", self.model)):
                        line[f"logprobs_{name}"] = [round(x, 4) for x in likelihood.completion_logprobs(
                            policy, [prompts[i // each]], [one.tokens]).tolist()]
                lines.append(line)
        lines.sort(key=lambda line: line["query"])
        write(self.out / "samples.jsonl", lines, lines=True)


def default_folder(path, resume):
    """The first of path, path-2, path-3, ... that is not taken; when resuming the last one that is."""
    taken = [path]
    while taken[-1].exists():
        taken.append(path.with_name(f"{path.name}-{len(taken) + 1}"))
    return taken[-2 if resume and len(taken) > 1 else -1]


def in_a_sentence(error, run):
    """What to tell a user of an error in a run, whose own (None if it came before) says more; others are raised."""
    if isinstance(error, (ValueError, OSError)):
        return error
    if isinstance(error, torch.OutOfMemoryError) or any(
            words in str(error) for words in ("can't allocate memory", "STATUS_ALLOC_FAILED")):
        return run.out_of_memory() if run else "out of memory: the model is too large"
    if distributed.lost(error):
        return "another process has ended, so this one cannot go on"
    raise error


def flags(args):
    return {key: value for key, value in vars(args).items()
            if key not in ("out", "resume", "save_every", "cache_tokens")}


def write(path, value, lines=False):
    """JSON to a temporary name, then renamed: a reader never meets half a file."""
    text = "".join(json.dumps(line) + "\n" for line in value) if lines else json.dumps(value, indent=1) + "\n"
    path.with_suffix(".tmp").write_text(text)
    os.replace(path.with_suffix(".tmp"), path)


def commit():
    """The commit of the code, with a + if files have changed since; None outside of git."""
    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + "+" * bool(git("status", "--porcelain", "-uno").strip())
    except (OSError, subprocess.CalledProcessError):
        return None
