"""Reinforcement fine-tuning of a language model as a batched contextual bandit: the loop and its flags.

    python train.py                                         # the tiny default: about a minute on a laptop
    python train.py --advantage group --rollouts 8          # one design choice changed
    python train.py --model Qwen/Qwen2.5-0.5B-Instruct --data gsm8k --lr 1e-6 --kl 0.001 --max-new-tokens 1024

Each round: take a batch of queries, sample completions (rollout.py), let the verifier judge them (reward.py), turn
rewards into advantages and take one REINFORCE step (bandit.py). The defaults are the minimalist baseline of
arXiv:2601.22532 - 32 queries, one rollout each, the raw 0/1 reward - with a learning rate for the tiny models.

Departures from the paper's scripts: the loss is the token mean of the whole batch (theirs averages the token means of
micro-batches of four); the KL term of 0.001 is off (--kl 0.001 turns it on); runs have a seed; an answer may be
spelled in any way that equals the reference (theirs compares strings). Left out, with reason: an entropy bonus and a
KL in the reward (the paper has neither), warm-up and learning-rate schedules (the paper's rate is constant).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

import bandit
import data
import evaluate
import report
import rollout

ROOT = Path(__file__).parent


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def parse(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument_group("what is trained on what").add_argument
    flag("--model", default="tiny-qwen2", help="tiny-qwen2, tiny-llama, tiny-olmo2, a folder or a model of the hub")
    flag("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, gsm8k, math, or a path (see data.py)")
    flag("--queries", type=int, help="train on the first K queries only, after the seeded shuffle (default: all)")
    flag("--levels", type=int, nargs="+", help="train on the queries of these levels only, 1 to 5 (default: all)")

    flag = parser.add_argument_group("the round").add_argument
    flag("--rounds", type=int, default=150, help="rounds, one optimizer step each (default: %(default)s)")
    flag("--batch-size", type=int, default=32, help="B: queries a round (default: %(default)s)")
    flag("--rollouts", type=int, default=1, help="n: completions a query (default: %(default)s)")
    flag("--baseline-rollouts", type=int, default=0, help="more completions a query, for the group statistics of the "
         "advantage only: they get no gradient (default: %(default)s; the paper's 32 x 1 + 7 has 7)")
    flag("--temperature", type=float, default=1.0, help="of sampling, and of the log-probabilities in the loss")
    flag("--max-new-tokens", type=int, default=64, help="completions are cut here (default: %(default)s)")

    flag = parser.add_argument_group("rewards and advantages").add_argument
    flag("--right-reward", type=float, default=1.0, help="reward of a right answer (default: %(default)s)")
    flag("--wrong-reward", type=float, default=0.0, help="reward of any other completion (default: %(default)s)")
    flag("--advantage", default="reward", choices=bandit.ADVANTAGES, metavar="NAME", help="; ".join(
         f"{name}: {row.formula}" for name, row in bandit.ADVANTAGES.items()).replace("%", "%%"))
    flag("--window", type=int, default=0, help="for --advantage window: rewards remembered a query (the paper's: 8)")

    flag = parser.add_argument_group("the update").add_argument
    flag("--lr", type=float, default=1e-4, help="learning rate of AdamW, constant (default: %(default)s; the paper's "
         "is 1e-6, for models a thousand times larger)")
    flag("--weight-decay", type=float, default=0.01, help="of AdamW (default: %(default)s)")
    flag("--max-grad-norm", type=float, default=1.0, help="the gradient is clipped to it (default: %(default)s)")
    flag("--loss-mean", default="token", choices=bandit.LOSS_MEANS, help="mean over all tokens; over sequences of the "
         "mean within each; sum over the constant --max-new-tokens (default: %(default)s)")
    flag("--epochs-per-round", type=int, default=1, help="steps on the same rollouts; the clip matters only above 1")
    flag("--clip-low", type=float, default=0.2, help="the ratio is clipped at 1 - this (default: %(default)s)")
    flag("--clip-high", type=float, default=0.2, help="and at 1 + this (default: %(default)s; DAPO: 0.28)")
    flag("--kl", type=float, default=0.0, help="factor of the KL to the base model, a term of the loss (default: "
         "%(default)s; the paper's scripts: 0.001)")
    flag("--kl-estimator", default="k3", choices=bandit.KL_ESTIMATORS, help="per token (default: %(default)s)")
    flag("--micro-tokens", type=int, default=16384, help="tokens of a forward pass: less memory, the same update")

    flag = parser.add_argument_group("evaluation and the run").add_argument
    flag("--eval-every", type=int, default=50, help="rounds between evaluations of pass@1 on the whole train and "
         "test sets, one sample a query at temperature 1; 0: only before and after (default: %(default)s)")
    flag("--eval-samples", type=int, default=16, help="k of the pass@k before and after (default: %(default)s)")
    flag("--eval-queries", type=int, default=64, help="test queries for the pass@k (default: %(default)s)")
    flag("--seed", type=int, default=0, help="of the order of the queries and of all sampling (default: %(default)s)")
    flag("--out", help="the run's folder (default: a new one in runs/, named after the flags that were changed)")
    flag("--resume", action="store_true", help="continue the run in --out (default: the newest of these flags)")
    flag("--save-every", type=int, default=50, help="rounds between checkpoints (default: %(default)s)")
    flag("--threads", type=int, default=1, help="CPU threads; tiny models are no faster with more (default: 1)")
    args = parser.parse_args(argv)

    for name in ("rounds", "batch_size", "rollouts", "max_new_tokens", "epochs_per_round", "micro_tokens",
                 "eval_samples", "eval_queries", "save_every", "threads", "queries"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    for name in ("baseline_rollouts", "window", "eval_every", "seed", "clip_low", "clip_high", "kl", "weight_decay"):
        if not getattr(args, name) >= 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} must not be negative")
    for name in ("temperature", "lr", "max_grad_norm"):
        if not 0 < getattr(args, name) < float("inf"):
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} must be above 0")
    try:
        bandit.check(args.advantage, args.batch_size, args.rollouts, args.baseline_rollouts, args.window,
                     args.right_reward, args.wrong_reward)
    except ValueError as error:
        parser.error(str(error))
    if args.out is None:
        changed = [f"{k.replace('_', '-')}={'+'.join(map(str, v)) if isinstance(v, list) else v}".replace("/", "_")
                   for k, v in vars(args).items()
                   if v != parser.get_default(k) and k not in ("out", "resume", "threads")]
        args.out = default_folder(ROOT / "runs" / (",".join(changed) or "default"), args.resume)
    args.out = Path(args.out)
    return args


def default_folder(path, resume):
    """The first of path, path-2, path-3, ... that is not taken; when resuming the last one that is."""
    taken = [path]
    while taken[-1].exists():
        taken.append(path.with_name(f"{path.name}-{len(taken) + 1}"))
    return taken[-2 if resume and len(taken) > 1 else -1]


# --- the loop ---------------------------------------------------------------------------------------------------


def train(args):
    run = Run(args)
    model, tokenizer, ends = run.model, run.tokenizer, run.ends
    train_set, prompts = run.train_set, data.encode(run.tokenizer, run.train_set)
    extra = args.baseline_rollouts
    sampling = dict(max_new_tokens=args.max_new_tokens, end_ids=ends)
    reference = rollout.load(args.model)[0] if args.kl else None
    if run.round == 0 and not run.evaluated(0):
        run.evaluate(0, final=True)
        run.save()
    handlers = {kind: signal.signal(kind, run.ask_to_stop) for kind in (signal.SIGINT, signal.SIGTERM)}
    bar = tqdm(total=args.rounds, initial=run.round, desc="rounds", disable=None, dynamic_ncols=True)
    smooth = None
    while run.round < args.rounds:
        # 1. queries: a fresh permutation each epoch, the last partial batch dropped
        clock = [time.perf_counter()]
        per_epoch = len(train_set) // args.batch_size
        epoch, place = divmod(run.round, per_epoch)
        order = np.random.default_rng([args.seed, 1, epoch]).permutation(len(train_set))
        batch = order[place * args.batch_size:(place + 1) * args.batch_size]

        # 2. rollouts: n that are trained and the extra ones of each query, [B, n + extra]
        queries, texts = [train_set[i] for i in batch], [prompts[i] for i in batch]
        n = args.rollouts + extra
        rollouts = rollout.sample(model, texts, n, temperature=args.temperature, seed=seed_of(args, 2, run.round),
                                  **sampling)
        greedy = []
        if bandit.ADVANTAGES[args.advantage].needs == "greedy":
            greedy = rollout.sample(model, texts, 1, temperature=0, **sampling)
        clock.append(time.perf_counter())

        # 3. rewards
        right, in_format, _ = evaluate.judge(tokenizer, queries, rollouts)
        right_greedy = evaluate.judge(tokenizer, queries, greedy)[0] if greedy else np.zeros(0, dtype=bool)

        def pay(verdicts):
            return torch.tensor(np.where(verdicts, args.right_reward, args.wrong_reward), dtype=torch.float32)

        rewards = pay(right).view(len(batch), n)
        clock.append(time.perf_counter())

        # 4. advantages
        windows = None
        if args.window:
            windows = bandit.remember(run.windows, [q.prompt for q in queries], rewards, args.window)
        pulls = bandit.Pulls(rewards, pay(right_greedy) if greedy else None, windows)
        advantage = bandit.advantages(args.advantage, pulls, args.rollouts).reshape(-1)

        # 5. one REINFORCE step on the trained rollouts
        trained = [i for i in range(len(rollouts)) if i % n < args.rollouts]
        step = bandit.update(
            model, run.optimizer, [texts[i // n] for i in trained], [rollouts[i].tokens for i in trained], advantage,
            loss_mean=args.loss_mean, longest=args.max_new_tokens, temperature=args.temperature,
            epochs=args.epochs_per_round, clip_low=args.clip_low, clip_high=args.clip_high, kl=args.kl,
            kl_estimator=args.kl_estimator, reference=reference, max_grad_norm=args.max_grad_norm,
            micro_tokens=args.micro_tokens)
        clock.append(time.perf_counter())

        tokens = sum(len(r.tokens) for r in rollouts + greedy)
        run.round += 1
        run.rollouts += len(rollouts) + len(greedy)
        run.tokens += tokens
        run.regret += int((~right).sum() + (~right_greedy).sum())
        run.log("metrics", {
            "round": run.round,
            "reward": rewards[:, :args.rollouts].mean().item(),
            "accuracy": float(right.mean()),
            "regret": run.regret,
            "in_format": float(in_format.mean()),
            "accuracy_in_format": float(right.sum() / in_format.sum()) if in_format.any() else None,
            "length": float(np.mean([len(r.tokens) for r in rollouts])),
            "cut": float(np.mean([r.cut for r in rollouts])),
            # minus the mean log-probability of the sampled tokens estimates the entropy per token without bias
            "entropy": -float(np.mean(np.concatenate([r.logprobs for r in rollouts]))),
            "zero_advantage": (advantage == 0).float().mean().item(),
            **step,
            "tokens_per_second": tokens / (clock[-1] - clock[0]),
            "seconds_sampling": clock[1] - clock[0],
            "seconds_reward": clock[2] - clock[1],
            "seconds_update": clock[3] - clock[2],
        })
        run.seconds += clock[-1] - clock[0]
        now = rewards.mean().item()
        smooth = now if smooth is None else 0.95 * smooth + 0.05 * now
        bar.set_postfix_str(f"reward {smooth:.2f}", refresh=False)
        bar.update()

        last = run.round == args.rounds
        if last or args.eval_every and run.round % args.eval_every == 0:
            run.evaluate(run.round, final=last)
        if last or run.stop or run.round % args.save_every == 0:
            run.save()
        if run.stop and not last:
            bar.close()
            sys.exit(f"train.py: stopped after round {run.round}; go on with the same flags and --resume "
                     f"--out {args.out}")
    bar.close()
    for kind, handler in handlers.items():
        signal.signal(kind, handler)
    run.finish()


def seed_of(args, purpose, number=0):
    """A seed for one purpose and round: nothing to store, nothing shared, whatever came before."""
    return int(np.random.SeedSequence([args.seed, purpose, number]).generate_state(1)[0])


# --- the run: its folder, its evaluations, its checkpoint ----------------------------------------------------------


class Run:
    """What a run holds beside the algorithm. Everything that changes is in checkpoint.pt; all random numbers derive
    from the seed and the round, so a resumed run equals one that was never stopped."""

    def __init__(self, args):
        self.args, self.out = args, args.out
        self.model, self.tokenizer = rollout.load(args.model)
        self.ends = rollout.end_ids(self.model, self.tokenizer)
        train_set = data.load(args.data, "train")
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
        self.train_set, self.test_set = train_set, data.load(args.data, "test")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr, betas=(0.9, 0.999),
                                           weight_decay=args.weight_decay)
        self.round = self.rollouts = self.tokens = self.regret = self.seconds = 0
        self.windows, self.stop = {}, False
        if args.resume:
            self.resume()
        elif (self.out / "config.json").exists():
            raise ValueError(f"--out {self.out} holds a run already: add --resume to go on with it, or name another")
        else:
            self.out.mkdir(parents=True, exist_ok=True)
        write(self.out / "config.json", {**flags(args), "torch": torch.__version__,
                                         "transformers": transformers.__version__, "commit": commit()})
        print(f"{args.model} on {args.data}: {len(self.train_set)} train and {len(self.test_set)} test queries, "
              f"{args.rounds} rounds of {args.batch_size} x {args.rollouts} rollouts; the run is in {self.out}")

    def ask_to_stop(self, *_):
        if self.stop:
            os._exit(1)  # asked twice: at once
        self.stop = True
        print("\nstopping after this round ...", file=sys.stderr)

    def log(self, name, line):
        with open(self.out / f"{name}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def evaluated(self, number):
        return any(line["round"] == number for line in report.read_lines(self.out / "evals.jsonl"))

    def evaluate(self, number, final):
        """Lines of evals.jsonl: pass@1 on train and test, one sample a query, temperature 1; pass@k if `final`."""
        start, args = time.perf_counter(), self.args
        length = args.max_new_tokens
        for which, (split, queries) in enumerate((("train", self.train_set), ("test", self.test_set))):
            right, in_format, rollouts = evaluate.success(
                self.model, self.tokenizer, queries, 1, max_new_tokens=length, seed=seed_of(args, 3 + which, number),
                progress=f"pass@1, {split}")
            value, se = evaluate.mean_and_se(right[:, 0])
            line = {"round": number, "split": split, "pass@1": value, "se": se, "in_format": in_format.mean(),
                    "length": np.mean([len(r.tokens) for r in rollouts]), "cut": np.mean([r.cut for r in rollouts])}
            if split == "test" and final and args.eval_samples > 1:
                k = args.eval_samples
                some = queries[:args.eval_queries]
                right_k, _, _ = evaluate.success(self.model, self.tokenizer, some, k, max_new_tokens=length,
                                                 seed=seed_of(args, 5, number), progress=f"pass@{k}, test")
                line[f"pass@{k}"], line[f"pass@{k}_se"] = evaluate.mean_and_se(
                    [evaluate.pass_at_k(k, int(c), k) for c in right_k.sum(axis=1)])
            if split == "test":
                line["kl"] = self.distance(queries[:64], rollouts[:64]) if number else 0.0
            line["right"] = right[:, 0].astype(int).tolist()
            self.log("evals", {key: None if value != value else value for key, value in line.items()})
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def distance(self, queries, rollouts):
        """Mean k3 of the KL per token to the base model, on some rollouts of the policy."""
        base, _ = rollout.load(self.args.model)  # not kept: a model of the hub is large
        texts = data.encode(self.tokenizer, queries), [r.tokens for r in rollouts]
        gap = bandit.completion_logprobs(self.model, *texts) - bandit.completion_logprobs(base, *texts)
        return bandit.KL_ESTIMATORS["k3"](gap).mean().item()

    def save(self):
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "windows": self.windows,
                 **{key: getattr(self, key) for key in ("round", "rollouts", "tokens", "regret", "seconds")}}
        torch.save(state, self.out / "checkpoint.tmp")
        os.replace(self.out / "checkpoint.tmp", self.out / "checkpoint.pt")

    def resume(self):
        try:
            before = json.loads((self.out / "config.json").read_text())
        except (OSError, json.JSONDecodeError):
            raise ValueError(f"--resume: there is no run in {self.out}") from None
        for key, value in flags(self.args).items():
            if key != "rounds" and before.get(key) != value:
                raise ValueError(f"--resume: the run in {self.out} has --{key.replace('_', '-')} {before.get(key)}, "
                                 f"not {value}")
        if (self.out / "checkpoint.pt").exists():
            state = torch.load(self.out / "checkpoint.pt", map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for key in ("windows", "round", "rollouts", "tokens", "regret", "seconds"):
                setattr(self, key, state[key])
        kept = self.round if (self.out / "checkpoint.pt").exists() else -1
        for name in ("metrics", "evals"):  # rounds after the checkpoint are run again, so their lines go
            lines = [line for line in report.read_lines(self.out / f"{name}.jsonl") if line["round"] <= kept]
            write(self.out / f"{name}.jsonl", lines, lines=True)
        if self.round and self.args.rounds < self.round:
            raise ValueError(f"--rounds {self.args.rounds}: the run in {self.out} is at round {self.round} already")

    def finish(self):
        """samples.jsonl, summary.json, curve.png, the final model; then a short account in words."""
        self.model.save_pretrained(self.out / "model")
        self.tokenizer.save_pretrained(self.out / "model")
        self.samples()
        evals = report.read_lines(self.out / "evals.jsonl")
        summary = {}
        for split in ("train", "test"):
            lines = [line for line in evals if line["split"] == split]
            for when, line in (("before", lines[0]), ("after", lines[-1])):
                summary[f"{split}_pass@1_{when}"], summary[f"{split}_pass@1_{when}_se"] = line["pass@1"], line["se"]
                summary[f"{split}_in_format_{when}"] = line["in_format"]
                for key in line:
                    if key.startswith("pass@") and key != "pass@1":
                        summary[f"{split}_{key.removesuffix('_se')}_{when}{'_se' * key.endswith('_se')}"] = line[key]
        summary |= {"rounds": self.round, "rollouts": self.rollouts, "tokens": self.tokens, "regret": self.regret,
                    "seconds": round(self.seconds, 1), "seed": self.args.seed, "commit": commit()}
        write(self.out / "summary.json", summary)
        report.curve(self.out)
        print(report.account(self.out))

    def samples(self, count=4, each=2):
        """A few test queries: completions before and after, and each under both policies."""
        base, _ = rollout.load(self.args.model)
        queries = self.test_set[:count]
        prompts = data.encode(self.tokenizer, queries)
        lines = []
        for when, model in (("before", base), ("after", self.model)):
            rollouts = rollout.sample(model, prompts, each, max_new_tokens=self.args.max_new_tokens,
                                      end_ids=self.ends, seed=seed_of(self.args, 6))
            right, _, texts = evaluate.judge(self.tokenizer, queries, rollouts)
            for i, one in enumerate(rollouts):
                line = {"query": i // each, "prompt": queries[i // each].prompt, "gold": queries[i // each].gold,
                        "policy": when, "completion": texts[i], "right": bool(right[i]),
                        "reward": self.args.right_reward if right[i] else self.args.wrong_reward, "cut": one.cut,
                        "tokens": [self.tokenizer.decode([token]) for token in one.tokens]}
                with torch.no_grad():
                    for name, policy in (("before", base), ("after", self.model)):
                        line[f"logprobs_{name}"] = [round(x, 4) for x in bandit.completion_logprobs(
                            policy, [prompts[i // each]], [one.tokens]).tolist()]
                lines.append(line)
        lines.sort(key=lambda line: line["query"])
        write(self.out / "samples.jsonl", lines, lines=True)


def flags(args):
    return {key: value for key, value in vars(args).items() if key not in ("out", "resume", "save_every", "threads")}


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


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        train(args)
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
