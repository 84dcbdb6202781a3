"""Reinforcement fine-tuning of a language model as a batched contextual bandit.

    python train.py                                    # the tiny default: a minute on a laptop
    python train.py --advantage group --rollouts 8     # GRPO's advantage, 8 rollouts a query
    python train.py --model Qwen/Qwen2.5-0.5B-Instruct --data gsm8k           # on one GPU
    torchrun --nproc_per_node=8 train.py --model Qwen/Qwen2.5-0.5B-Instruct --data gsm8k

Each round takes a batch of queries, samples completions (rollout.py), lets the verifier judge them
(reward.py, or your file: --reward), turns rewards into advantages and takes one optimizer step
(bandit.py). The defaults are the minimalist baseline of arXiv:2601.22532: 32 queries, one rollout
each, the raw 0/1 reward. A model that is not tiny also gets the paper's hyper-parameters (DEFAULTS
below).

README.md lists what differs from the paper's scripts. Left out, because the paper has none of
them: an entropy bonus, a KL in the reward, learning-rate schedules.
"""

import infra  # noqa: F401 (first, because from here on Ctrl-C ends in a sentence)

# isort: split
import math
import os
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import bandit
import data
import evaluate
import rollout
from infra import distributed, flags, memory, models, run_folder
from infra.forecast import Forecast
from infra.reward_file import RewardFileError
from infra.seeding import Purpose, permutation, seed_for
from infra.train_state import TrainState

ROOT = Path(__file__).parent
DEFAULTS = {  # (a tiny model, any other); the others are the paper's, but rounds and micro_tokens
    "rounds": (120, 1000), "max_new_tokens": models.NEW_TOKENS, "lr": (1e-4, 1e-6),
    "kl": (0.0, 0.001), "eval_every": (40, 100), "micro_tokens": (2048, 8192),
}  # fmt: skip


def parse(argv: list[str] | None = None) -> Namespace:
    """The flags, checked. args.out is the run's folder."""
    parser = flags.FlagParser(description=__doc__)
    count, whole, amount = flags.at_least(1), flags.at_least(0), flags.at_least(0.0)
    positive, finite = flags.above(0.0), flags.above(-math.inf)
    warmth = flags.within(0.01, 100.0)  # below: as good as greedy; above: as good as uniform
    by_size = {
        name: f"(default: {tiny:g}, or {other:g} if the model is not tiny)"
        for name, (tiny, other) in DEFAULTS.items()
    }
    formulas = "R: reward; G: the query's group; B: the batch; W: the query's window; " + "; ".join(
        f"{name}: {row.formula}" for name, row in bandit.ADVANTAGES.items())  # fmt: skip

    flag = parser.add_argument_group("model and data").add_argument
    flag("--model", default="tiny-qwen2",
         help="tiny-qwen2, tiny-llama, tiny-olmo2, a folder, a .gguf file, a model of the hub")
    flag("--data", default="tiny-gsm",
         help="tiny-gsm, tiny-math, tiny-sums, gsm8k, math, or a path: data.py")
    flag("--queries", type=count,
         help="train on the first K queries only, after a seeded shuffle (default: all)")
    flag("--levels", type=flags.within(1, 5), nargs="+",
         help="train on the queries of these levels only, 1 to 5 (default: all)")

    flag = parser.add_argument_group("the round").add_argument
    flag("--rounds", type=count, help=f"rounds of sampling and updating {by_size['rounds']}")
    flag("--batch-size", type=count, default=32, help="B: queries a round")
    flag("--rollouts", type=count, default=1, help="n: completions of each query")
    flag("--baseline-rollouts", type=whole, default=0,
         help="m: extra completions of each query. Their rewards enter the mean and std of its "
              "group; they get no gradient (7 in the paper's 32 x 1 + 7)")
    flag("--temperature", type=warmth, default=1.0,
         help="of sampling, and of the log-probabilities in the loss")
    flag("--max-prompt-tokens", type=count, default=512,
         help="drop queries with longer prompts")
    flag("--max-new-tokens", type=count,
         help=f"truncate completions here {by_size['max_new_tokens']}")
    flag("--cache-tokens", type=count,
         help="bound on the sampler's memory, in cached tokens; changes results by rounding only "
              "(default: half of the free memory; on a GPU 0.4 of what training leaves)")
    flag("--compile", action="store_true",
         help="torch.compile the sampler's step, for long runs on a GPU (not measured)")

    flag = parser.add_argument_group("rewards and advantages").add_argument
    flag("--reward", metavar="FILE.py",
         help="a file of yours with score(completion, query), which says what is paid and what is "
              "right: docs/your_own.md. A truncated completion comes without a last answer that "
              "may be half a number. Advantages that need signs read those of what it pays "
              "(default: the verifier, with the two amounts below)")
    flag("--right-reward", type=finite, default=1.0, help="reward of a right answer")
    flag("--wrong-reward", type=finite, default=0.0, help="reward of any other completion")
    flag("--advantage", default="reward", type=bandit.row_name, choices=bandit.ADVANTAGES,
         metavar="NAME",
         help=formulas.replace("%", "%%"))
    flag("--window", type=whole, default=0,
         help="for --advantage window and window-mean: rewards remembered per query (paper: 8)")

    flag = parser.add_argument_group("the update").add_argument
    flag("--lr", type=flags.within(1e-10, 1.0),
         help=f"AdamW's learning rate, constant {by_size['lr']}")
    flag("--weight-decay", type=amount, default=0.01, help="AdamW's")
    flag("--max-grad-norm", type=positive, default=1.0, help="clip the gradient to this norm")
    flag("--loss-mean", default="token", choices=bandit.LOSS_MEANS,
         help="a mean over all tokens; a mean over completions of each one's mean; a sum divided "
              "by completions * --max-new-tokens")
    flag("--epochs-per-round", type=count, default=1,
         help="steps on the same rollouts; the clip matters only above 1")
    flag("--clip-low", type=amount, default=0.2,
         help="clip the ratio at 1 minus this; from 1 on there is no lower bound")
    flag("--clip-high", type=amount, default=0.2, help="clip the ratio at 1 plus this (DAPO: 0.28)")
    flag("--kl", type=amount, help=f"factor of the KL term in the loss {by_size['kl']}")
    flag("--kl-estimator", default="k3", choices=bandit.KL_ESTIMATORS, help="per token")
    flag("--correct-sampler", action="store_true",
         help="weight each token by its probability in the update over that in the sampler, at "
              "most 2: the two round differently (sampler_mismatch in the log)")
    flag("--dtype", choices=["float32", "bfloat16"],
         help="number format of the computation; master weights and optimizer are always float32 "
              "(default: bfloat16 on a GPU, else float32)")
    flag("--micro-tokens", type=count,
         help=f"tokens of a forward pass: memory and time only {by_size['micro_tokens']}")
    flag("--gradient-checkpointing", action="store_true",
         help="recompute each layer in the backward pass: less memory, a third more time")

    flag = parser.add_argument_group("evaluation and the run").add_argument
    flag("--eval-every", type=whole,
         help="rounds between evaluations of pass@1 on the train and test sets, one sample a "
              f"query; 0: only before and after {by_size['eval_every']}. An evaluation of all of "
              "gsm8k is 8,792 completions, as many as 275 rounds of 32: see --eval-limit")
    flag("--eval-limit", type=count,
         help="evaluate on the first K queries of each set only (default: all, as the paper does)")
    flag("--eval-temperature", type=warmth, default=1.0,
         help="of the samples of evaluations; greedy accuracy is measured too")
    flag("--eval-samples", type=count, default=16, help="k of the pass@k before and after")
    flag("--eval-queries", type=count, default=64, help="test queries for the pass@k")
    flag("--seed", type=whole, default=0,
         help="of the order and the choice of the queries, and of all sampling")
    flag("--out", type=flags.path,
         help="the run's folder (default: a new one in runs/, named after changed flags)")
    flag("--resume", action="store_true",
         help="continue the run in --out (default: the newest with these flags)")
    flag("--save-every", type=count, default=50, help="rounds between checkpoints")
    flag("--threads", type=flags.within(1, os.cpu_count()),
         help="CPU threads (default: one for a tiny model, else all)")
    # Parse once to learn the model's size, then with the defaults of that size.
    column = 0 if models.is_tiny(parser.parse_args(argv).model) else 1
    parser.set_defaults(**{name: values[column] for name, values in DEFAULTS.items()})
    args = parser.parse_args(argv)
    try:
        flags.check_unused(args, parser)
        flags.check_settings(
            args.advantage, bandit.ADVANTAGES[args.advantage].needs, args.batch_size,
            args.rollouts, args.baseline_rollouts, args.window,
            *amounts_to_check(args),
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    if args.out is None:
        unnamed = ("out", "resume", "threads", *run_folder.CHANGEABLE)
        folder = ROOT / "runs" / flags.changed_flags(args, parser, unnamed)
        args.out = run_folder.unused_folder(folder, args.resume)
    args.out = Path(args.out)
    return args


def amounts_to_check(args: Namespace) -> tuple[float, float]:
    """What a right and a wrong answer pay. A file may pay anything, so its amounts always pass."""
    if not args.reward:
        return args.right_reward, args.wrong_reward
    return 1.0, -1.0 if bandit.ADVANTAGES[args.advantage].needs == "signs" else 0.0


# --- the loop -------------------------------------------------------------------------------------


def train(args: Namespace, state: TrainState, sets: data.ProblemSets) -> None:
    """Rounds of queries, rollouts, rewards, advantages and one step."""
    n = args.rollouts + args.baseline_rollouts
    sample = partial(rollout.sample_sharded, state.model, **state.sampling)
    needs_greedy = bandit.ADVANTAGES[args.advantage].needs == "greedy"
    config = update_config(args)
    for number in rounds(args, state, sets):
        # 1. Queries: the contexts of this round.
        queries, prompts = next_batch(args, sets, number)

        # 2. Rollouts of each query: those to train on, then those for the statistics only.
        with state.timer("sampling"):
            seed = seed_for(args.seed, Purpose.ROLLOUTS, number)
            rollouts = sample(prompts, n, temperature=args.temperature, seed=seed)
            greedy = sample(prompts, 1, temperature=0) if needs_greedy else []

        # 3. Rewards: what each verdict pays, [B, n].
        with state.timer("reward"):
            grades = evaluate.grade_once(state.tokenizer, queries, rollouts, state.score)
            greedy_grades = evaluate.grade_once(state.tokenizer, queries, greedy, state.score)
            rewards = torch.tensor(grades.paid).float().view(len(queries), n)

        # 4. Advantages of the rollouts to train on, [B, args.rollouts].
        with state.timer("update"):
            windows = state.windows.copy()  # kept only if the update succeeds
            keys = [query.prompt for query in queries]
            histories = bandit.remember(windows, keys, rewards, args.window)
            greedy_rewards = torch.tensor(greedy_grades.paid).float()
            measured = bandit.lengths_and_logprobs(rollouts, n)
            round_rewards = bandit.RoundRewards(rewards, greedy_rewards, histories, *measured)
            advantages = bandit.advantages(args.advantage, round_rewards, args.rollouts)

            # 5. One optimizer step, or --epochs-per-round of them.
            batch = to_batch(args, prompts, rollouts, advantages)
            figures = bandit.update(state.model, state.optimizer, batch, config, state.reference)

        state.windows = windows
        log_round(state, rewards, advantages, figures, [rollouts, greedy], [grades, greedy_grades])


def rounds(args: Namespace, state: TrainState, sets: data.ProblemSets) -> Iterator[int]:
    """Yield the number of each round, from 0; evaluate, save and stop between rounds."""
    quiet = None if distributed.is_main_process() else True  # None: shown on a terminal only
    ahead = Forecast(args, len(sets.train), len(sets.test), state.round, state.evaluated)
    tqdm.write(ahead.in_words())
    smooth = None
    options = {"desc": "rounds", "disable": quiet, "dynamic_ncols": True}
    with tqdm(total=args.rounds, initial=state.round, **options) as bar:
        while True:
            is_last = state.round == args.rounds
            before_or_after = is_last or state.round == 0
            if ahead.evaluation_size(state.round) and state.evaluated < state.round:
                with ahead.evaluation(state.round):
                    evaluate.evaluate_run(args, state, sets, before_or_after)
                    if not before_or_after:  # the last one is drawn when the run is finished
                        state.draw_curve()
            stop = state.stop.is_set()
            if is_last or stop or state.round % args.save_every == 0:
                state.save()
            if is_last:
                return
            if stop:
                hint = run_folder.how_to_resume(args.out)
                raise distributed.AllRanksError(f"stopped after round {state.round}; {hint}")
            with ahead.round():
                yield state.round
            if words := ahead.time_in_words():
                tqdm.write(words)
            smooth = state.reward if smooth is None else 0.95 * smooth + 0.05 * state.reward
            bar.set_postfix_str(f"reward {smooth:.2f}", refresh=False)
            bar.update()


def next_batch(args: Namespace, sets: data.ProblemSets, number: int) -> tuple[list, list]:
    """The queries of a round, and the token ids of their prompts.

    Each epoch is a fresh permutation of the train set; its last partial batch is dropped.
    """
    epoch, place = divmod(number, len(sets.train) // args.batch_size)
    order = permutation(args.seed, Purpose.ORDER, epoch, size=len(sets.train))
    chosen = order[place * args.batch_size : (place + 1) * args.batch_size]
    return [sets.train[i] for i in chosen], [sets.train_prompts[i] for i in chosen]


def to_batch(
    args: Namespace, prompts: list[list[int]], rollouts: list[rollout.Rollout],
    advantages: torch.Tensor,
) -> bandit.UpdateBatch:  # fmt: skip
    """The rollouts to train on: the first args.rollouts of each query."""
    n = args.rollouts + args.baseline_rollouts
    trained = [i for i in range(len(rollouts)) if i % n < args.rollouts]
    return bandit.UpdateBatch(
        prompts=[prompts[i // n] for i in trained],
        completions=[rollouts[i].tokens for i in trained],
        advantages=advantages.reshape(-1),
        sampler_logprobs=[rollouts[i].logprobs for i in trained],
    )


def update_config(args: Namespace) -> bandit.UpdateConfig:
    """The flags that the update reads, as one value."""
    names = bandit.UpdateConfig._fields
    return bandit.UpdateConfig(**{name: getattr(args, name) for name in names})


def log_round(
    state: TrainState, rewards: torch.Tensor, advantages: torch.Tensor,
    figures: dict[str, float | None], sampled: list[list[rollout.Rollout]],
    graded: list[evaluate.Grades],
) -> None:  # fmt: skip
    """Advance the counters, state.round among them; write a line of metrics.jsonl (docs/log.md).

    sampled, graded: the rollouts and the greedy completions of the round, and their grades. The
    greedy ones are counted, and enter no mean.
    """
    rollouts, right, in_format = sampled[0], graded[0].right, graded[0].in_format
    groups = right.reshape(rewards.shape)
    is_unmixed = (groups == groups[:, :1]).all(axis=1)  # a group that is all right or all wrong
    tokens = sum(len(one.tokens) for some in sampled for one in some)
    seconds = state.timer.seconds
    state.round += 1
    state.reward = rewards.mean().item()
    state.rollouts += sum(len(some) for some in sampled)
    state.tokens += tokens
    state.regret += sum(int((~grades.right).sum()) for grades in graded)  # wrong ones so far
    state.folder.append("metrics", {
        "round": state.round,
        "reward": state.reward,
        "accuracy": float(right.mean()),
        "regret": state.regret,
        "in_format": float(in_format.mean()),
        "accuracy_in_format": float(right.sum() / in_format.sum()) if in_format.any() else None,
        "length": float(np.mean([len(one.tokens) for one in rollouts])),
        "truncated": float(np.mean([one.truncated for one in rollouts])),
        # Minus the mean log-probability of the sampled tokens estimates the entropy per token.
        "entropy": -float(np.mean(np.concatenate([one.logprobs for one in rollouts]))),
        "zero_advantage": (advantages == 0).float().mean().item(),
        "unmixed_groups": float(is_unmixed.mean()) if groups.shape[1] > 1 else None,
        **figures,
        "tokens_per_second": tokens / sum(seconds.values()),
        **{f"seconds_{part}": seconds[part] for part in ("sampling", "reward", "update")},
    })  # fmt: skip
    state.timer.enter("sampling")  # an error from here on belongs to the next round


# --- from the command line ------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    distributed.start()
    args = distributed.raise_on_all_ranks(parse, argv)
    state = None
    try:
        # All processes write to the main one's folder; each looked for an unused name by itself.
        args.out = distributed.all_gather(args.out)[0]
        amounts = args.right_reward, args.wrong_reward
        score = distributed.raise_on_all_ranks(evaluate.scorer, args.reward, *amounts)
        state = distributed.raise_on_all_ranks(TrainState, args, score)
        checked = args.model, state.model, bandit.completion_logprobs
        distributed.raise_on_all_ranks(rollout.check, *checked)
        sets = distributed.raise_on_all_ranks(data.load_sets, args, state.tokenizer)
        prompts = sets.train_prompts + data.encode(state.tokenizer, sets.test)
        room = args.max_new_tokens, state.sampling["cache_tokens"]
        distributed.raise_on_all_ranks(rollout.check_prompts, state.model, prompts, *room)
        state.folder.flags["data_hash"] = data.fingerprint(sets)  # a resume needs the same problems
        distributed.raise_on_all_ranks(state.start)
        distributed.raise_on_all_ranks(state.check_resumed)
        more = f" + {args.baseline_rollouts}" if args.baseline_rollouts else ""
        print(
            f"{args.model} on {args.data}: {len(sets.train)} train and {len(sets.test)} test "
            f"queries, {args.rounds} rounds of {args.batch_size} x {args.rollouts}{more} rollouts; "
            f"the run is in {args.out}"
        )
        with state.stop:
            train(args, state, sets)
            if distributed.is_main_process():
                state.finish(evaluate.sample_lines(args, state, sets))
        distributed.wait_and_exit()
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        distributed.exit_with_error("train.py", to_sentence(error, state))
    finally:
        if state:
            state.folder.release()


def to_sentence(error: Exception, state: TrainState | None) -> object:
    """The error as a sentence for the user; raised again if it is a bug, as far as one can tell."""
    if isinstance(error, RewardFileError) and state is not None:
        return state.reward_failed(error)
    if isinstance(error, OSError) and state and state.saved >= 0:
        return f"{error}; {run_folder.how_to_resume(state.args.out)} from round {state.saved}"
    if isinstance(error, (ValueError, OSError)) and not memory.is_bug(error):
        return error
    if memory.is_out_of_memory(error) and state is None:
        return "out of memory: the model is too large"
    if memory.is_out_of_memory(error):
        decoder = rollout.DECODERS.pop(state.model, None)
        return state.out_of_memory(decoder.rows * decoder.width if decoder else None)
    if distributed.is_peer_failure(error):
        return "another process has ended, so this one cannot go on"
    if type(error).__module__.startswith("torch._inductor"):
        return f"--compile: {str(error).strip().splitlines()[0]}"
    raise error


if __name__ == "__main__":
    main()
