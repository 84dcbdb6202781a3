"""Reinforcement fine-tuning of a language model as a batched contextual bandit: the loop and its flags.

    python train.py                                         # the tiny default: 40 seconds on a laptop
    python train.py --advantage group --rollouts 8          # one design choice changed
    python train.py --model Qwen/Qwen2.5-0.5B-Instruct --data gsm8k            # the paper's setting, on one GPU
    torchrun --nproc_per_node=8 train.py --model Qwen/Qwen2.5-0.5B-Instruct --data gsm8k                # on eight

Each round: take a batch of queries, sample completions (rollout.py), let the verifier judge them (reward.py), turn
rewards into advantages and take one REINFORCE step (bandit.py). The defaults are the minimalist baseline of
arXiv:2601.22532 - 32 queries, one rollout each, the raw 0/1 reward - and, for a model of the hub, its hyper-parameters
too; BY_SIZE below says what differs for the tiny models.

Departures from the paper's scripts: the loss is the token mean of the whole batch (theirs averages the token means of
micro-batches of four); runs have a seed; an answer may be spelled in any way that equals the reference (theirs
compares strings). Left out, with reason: an entropy bonus and a KL in the reward (the paper has neither), warm-up and
learning-rate schedules (the paper's rate is constant).
"""

import argparse
import math
import signal
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import bandit
import data
import distributed
import evaluate
import rollout
import settings
from run import MAY_CHANGE, Run, default_folder, in_a_sentence, seed_of

ROOT = Path(__file__).parent
BY_SIZE = {  # defaults for a tiny model, and for any other: there the paper's (how many rounds it took is not known)
    "rounds": (120, 1000), "max_new_tokens": (64, 1024), "lr": (1e-4, 1e-6), "kl": (0.0, 0.001),
    "eval_every": (40, 100), "micro_tokens": (2048, 8192),
}


def parse(argv=None):
    parser = data.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    by_size = {name: f"(default: {tiny:g}, or {other:g} if the model is not tiny)"
               for name, (tiny, other) in BY_SIZE.items()}
    count, whole = data.at_least(1), data.at_least(0)
    amount, positive, finite = data.at_least(0.0), data.above(0.0), data.above(-math.inf)
    flag = parser.add_argument_group("what is trained on what").add_argument
    flag("--model", default="tiny-qwen2", help="tiny-qwen2, tiny-llama, tiny-olmo2, a folder or a model of the hub")
    flag("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, gsm8k, math, or a path (see data.py)")
    flag("--queries", type=count, help="train on the first K queries only, after the seeded shuffle (default: all)")
    flag("--levels", type=int, nargs="+", help="train on the queries of these levels only, 1 to 5 (default: all)")

    flag = parser.add_argument_group("the round").add_argument
    flag("--rounds", type=count, help=f"rounds, one optimizer step each {by_size['rounds']}")
    flag("--batch-size", type=count, default=32, help="B: queries a round (default: %(default)s)")
    flag("--rollouts", type=count, default=1, help="n: completions a query (default: %(default)s)")
    flag("--baseline-rollouts", type=whole, default=0, help="more completions a query, for the group statistics of the "
         "advantage only: they get no gradient (default: %(default)s; the paper's 32 x 1 + 7 has 7)")
    flag("--temperature", type=positive, default=1.0, help="of sampling, and of the log-probabilities in the loss")
    flag("--max-prompt-tokens", type=count, default=512, help="queries with longer prompts are dropped, and counted "
         "(default: %(default)s, the paper's)")
    flag("--max-new-tokens", type=count, help=f"completions are cut here {by_size['max_new_tokens']}")
    flag("--cache-tokens", type=count, help="bound on the sampler's memory: tokens in its cache at a time; changes "
         "results by rounding only (default: half of what is free; on a GPU 0.4 of what weights and optimizer leave)")
    flag("--compile", action="store_true", help="torch.compile the sampler's step: pays on a GPU, in long runs")

    flag = parser.add_argument_group("rewards and advantages").add_argument
    flag("--right-reward", type=finite, default=1.0, help="reward of a right answer (default: %(default)s)")
    flag("--wrong-reward", type=finite, default=0.0, help="reward of any other completion (default: %(default)s)")
    flag("--advantage", default="reward", choices=bandit.ADVANTAGES, metavar="NAME", help="; ".join(
         f"{name}: {row.formula}" for name, row in bandit.ADVANTAGES.items()).replace("%", "%%"))
    flag("--window", type=whole, default=0, help="for --advantage window: rewards remembered a query (the paper's: 8)")

    flag = parser.add_argument_group("the update").add_argument
    flag("--lr", type=positive, help=f"learning rate of AdamW, constant {by_size['lr']}")
    flag("--weight-decay", type=amount, default=0.01, help="of AdamW (default: %(default)s)")
    flag("--max-grad-norm", type=positive, default=1.0, help="the gradient is clipped to it (default: %(default)s)")
    flag("--loss-mean", default="token", choices=bandit.LOSS_MEANS, help="mean over all tokens; over sequences of the "
         "mean within each; sum over the constant --max-new-tokens (default: %(default)s)")
    flag("--epochs-per-round", type=count, default=1, help="steps on the same rollouts; the clip matters only above 1")
    flag("--clip-low", type=amount, default=0.2, help="the ratio is clipped at 1 - this (default: %(default)s)")
    flag("--clip-high", type=amount, default=0.2, help="and at 1 + this (default: %(default)s; DAPO: 0.28)")
    flag("--kl", type=amount, help=f"factor of the KL to the base model, a term of the loss {by_size['kl']}")
    flag("--kl-estimator", default="k3", choices=bandit.KL_ESTIMATORS, help="per token (default: %(default)s)")
    flag("--correct-sampler", action="store_true", help="weigh each token by the ratio of its chance in the update to "
         "that in the sampler, at most 2: the two round differently (the log's gap)")
    flag("--dtype", choices=["float32", "bfloat16"], help="of the computation; the master weights and the optimizer "
         "are in float32 always (default: bfloat16 on a GPU, else float32)")
    flag("--micro-tokens", type=count, help="tokens of a forward pass: changes memory and time, not the update "
         f"{by_size['micro_tokens']}")
    flag("--gradient-checkpointing", action="store_true", help="compute each layer again on the way back instead of "
         "keeping what it needs: less memory, a third more time")

    flag = parser.add_argument_group("evaluation and the run").add_argument
    flag("--eval-every", type=whole, help="rounds between evaluations of pass@1 on the whole train and test sets, one "
         f"sample a query at temperature 1; 0: only before and after {by_size['eval_every']}")
    flag("--eval-samples", type=count, default=16, help="k of the pass@k before and after (default: %(default)s)")
    flag("--eval-queries", type=count, default=64, help="test queries for the pass@k (default: %(default)s)")
    flag("--seed", type=whole, default=0, help="of the order of the queries and of all sampling (default: %(default)s)")
    flag("--out", help="the run's folder (default: a new one in runs/, named after the flags that were changed)")
    flag("--resume", action="store_true", help="continue the run in --out (default: the newest of these flags)")
    flag("--save-every", type=count, default=50, help="rounds between checkpoints (default: %(default)s)")
    flag("--threads", type=count, help="CPU threads (default: one for a tiny model, else as many as there are cores)")
    other = not rollout.is_tiny(parser.parse_args(argv).model)
    parser.set_defaults(**{name: values[other] for name, values in BY_SIZE.items()})
    args = parser.parse_args(argv)

    if args.kl_estimator != parser.get_default("kl_estimator") and not args.kl:
        parser.error(f"--kl-estimator {args.kl_estimator} is of no use without --kl")
    if args.epochs_per_round == 1 and any(getattr(args, name) != parser.get_default(name)
                                          for name in ("clip_low", "clip_high")):
        parser.error("--clip-low and --clip-high do nothing at one step a round, where the ratio is 1: give "
                     "--epochs-per-round too")
    try:
        settings.check(args.advantage, args.batch_size, args.rollouts, args.baseline_rollouts, args.window,
                       args.right_reward, args.wrong_reward)
    except ValueError as error:
        parser.error(str(error))
    if args.out is None:
        changed = [f"{k.replace('_', '-')}={'+'.join(map(str, v)) if isinstance(v, list) else v}".replace("/", "_")
                   for k, v in vars(args).items()
                   if v != parser.get_default(k) and k not in ("out", "resume", "threads", *MAY_CHANGE)]
        args.out = default_folder(ROOT / "runs" / (",".join(changed) or "default"), args.resume)
    args.out = Path(args.out)
    return args


# --- the loop ---------------------------------------------------------------------------------------------------


def train(args, run):
    model, tokenizer = run.model, run.tokenizer
    train_set, prompts = run.train_set, data.encode(run.tokenizer, run.train_set)
    bar = tqdm(total=args.rounds, initial=run.round, desc="rounds", disable=None if distributed.is_first() else True,
               dynamic_ncols=True)
    smooth = None
    while True:
        last = run.round == args.rounds
        if run.round in (0, args.rounds) or args.eval_every and run.round % args.eval_every == 0:
            run.evaluate(with_pass_at_k=last or run.round == 0)
        stop = any(distributed.gather(run.asked_to_stop))  # the processes hear of it in different rounds
        if last or stop or run.round % args.save_every == 0:
            run.save()
        if last:
            break
        if stop:
            bar.close()
            raise distributed.Everywhere(f"stopped after round {run.round}; --resume --out {args.out} goes on")

        # 1. queries: a fresh permutation each epoch, the last partial batch dropped
        clock = [time.perf_counter()]
        per_epoch = len(train_set) // args.batch_size
        epoch, place = divmod(run.round, per_epoch)
        order = np.random.default_rng([args.seed, 1, epoch]).permutation(len(train_set))
        batch = order[place * args.batch_size:(place + 1) * args.batch_size]

        # 2. rollouts of each query: those that are trained, then those for the statistics only, [B, n]
        queries, texts = [train_set[i] for i in batch], [prompts[i] for i in batch]
        n = args.rollouts + args.baseline_rollouts
        rollouts = distributed.sample(model, texts, n, temperature=args.temperature, seed=seed_of(args, 2, run.round),
                                      end_ids=run.ends, **run.sampling)
        greedy = []
        if bandit.ADVANTAGES[args.advantage].needs == "greedy":
            greedy = distributed.sample(model, texts, 1, temperature=0, end_ids=run.ends, **run.sampling)
        clock.append(time.perf_counter())

        # 3. rewards
        right, in_format, _ = evaluate.judge(tokenizer, queries, rollouts)
        right_greedy = evaluate.judge(tokenizer, queries, greedy)[0] if greedy else np.zeros(0, dtype=bool)

        def pay(verdicts):
            return torch.tensor(np.where(verdicts, args.right_reward, args.wrong_reward), dtype=torch.float32)

        rewards = pay(right).view(len(batch), n)
        clock.append(time.perf_counter())

        # 4. advantages
        windows, remembered = None, dict(run.windows)
        if args.window:
            windows = bandit.remember(remembered, [q.prompt for q in queries], rewards, args.window)
        pulls = bandit.Pulls(rewards, pay(right_greedy) if greedy else None, windows)
        advantage = bandit.advantages(args.advantage, pulls, args.rollouts).reshape(-1)

        # 5. one REINFORCE step on the trained rollouts
        trained = [i for i in range(len(rollouts)) if i % n < args.rollouts]
        run.doing = "updating"
        step = bandit.update(
            model, run.optimizer, [texts[i // n] for i in trained], [rollouts[i].tokens for i in trained], advantage,
            loss_mean=args.loss_mean, longest=args.max_new_tokens, temperature=args.temperature,
            epochs=args.epochs_per_round, clip_low=args.clip_low, clip_high=args.clip_high, kl=args.kl,
            kl_estimator=args.kl_estimator, reference=run.reference, max_grad_norm=args.max_grad_norm,
            micro_tokens=args.micro_tokens, sampled=[rollouts[i].logprobs for i in trained],
            correct=args.correct_sampler, processes=distributed)
        run.doing, run.windows = "sampling", remembered
        clock.append(time.perf_counter())

        reward = rewards.mean().item()
        tokens = sum(len(r.tokens) for r in rollouts + greedy)
        run.round += 1
        run.rollouts += len(rollouts) + len(greedy)
        run.tokens += tokens
        run.regret += int((~right).sum() + (~right_greedy).sum())
        run.log("metrics", {
            "round": run.round,
            "reward": reward,
            "accuracy": float(right.mean()),
            "regret": run.regret,
            "in_format": float(in_format.mean()),
            "accuracy_in_format": float(right.sum() / in_format.sum()) if in_format.any() else None,
            "length": float(np.mean([len(r.tokens) for r in rollouts])),
            "cut": float(np.mean([r.cut for r in rollouts])),
            # minus the mean log-probability of the sampled tokens estimates the entropy per token
            "entropy": -float(np.mean(np.concatenate([r.logprobs for r in rollouts]))),
            "zero_advantage": (advantage == 0).float().mean().item(),
            **step,
            "tokens_per_second": tokens / (clock[-1] - clock[0]),
            "seconds_sampling": clock[1] - clock[0],
            "seconds_reward": clock[2] - clock[1],
            "seconds_update": clock[3] - clock[2],
        })
        smooth = reward if smooth is None else 0.95 * smooth + 0.05 * reward
        bar.set_postfix_str(f"reward {smooth:.2f}", refresh=False)
        bar.update()
    bar.close()
    run.finish()


def main(argv=None):
    distributed.start()
    args = distributed.agree(parse, argv)
    run, handlers = None, {}
    try:
        args.out = distributed.gather(args.out)[0]  # the first process may have made its folder already
        run = distributed.agree(Run, args)
        distributed.agree(run.check_resumed)
        handlers = {kind: signal.signal(kind, run.ask_to_stop) for kind in (signal.SIGINT, signal.SIGTERM)}
        train(args, run)
        distributed.finish()
    except (ValueError, OSError, RuntimeError) as error:
        distributed.end("train.py", in_a_sentence(error, run))
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


if __name__ == "__main__":
    main()
