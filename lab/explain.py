"""One query through one round, every value shown; train.py does this for 32 queries at once.

    python -m lab.explain                                # four completions, two of them right
    python -m lab.explain --advantage reward             # the baseline: wrong ones pull nothing
    python -m lab.explain --query 10 --seed 0 --kl 0.1   # a harder query, and the KL term
    python -m lab.explain --step                         # wait for a key after each section
    python -m lab.explain --html                         # a page to look at, as lab/page.py says

`walk` computes the round with the functions that a run uses; the rest of this file prints it. The
default query and seed were chosen for their four completions: one is right, one guesses, one
forgets the format, and one is right but runs on after its answer.

Left out, and why: a batch of queries (the others only enter the means); temperatures other than 1
and several steps on the same rollouts (the paper uses neither).
"""

import argparse
import math
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import bandit
import data
import evaluate
import reward
import rollout
from infra import flags, models, optimizer
from lab import page

WIDTH = 110  # characters of the page
SHOWN = 18  # tokens of a completion that get a line of their own
SHOWN_IN_TEXT = 80  # tokens of a prompt or a completion that are written out


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, checked, with the settings that they imply."""
    parser = flags.FlagParser(description=__doc__)
    flag, count, whole = parser.add_argument, flags.at_least(1), flags.at_least(0)
    flag("--model", default="tiny-qwen2",
         help="tiny-qwen2, tiny-llama, tiny-olmo2, a folder or a model of the hub")
    flag("--data", default="tiny-gsm",
         help="tiny-gsm, tiny-math, tiny-sums, gsm8k, math, or a path: data.py")
    flag("--reward", metavar="FILE.py",
         help="says what is paid, as in train.py (default: the verifier)")
    flag("--query", type=whole, default=8, help="its number in the train set, from 0")
    flag("--rollouts", type=count, default=4, help="completions of it")
    flag("--advantage", default="group", type=bandit.row_name, choices=bandit.ADVANTAGES,
         metavar="NAME", help=", ".join(bandit.ADVANTAGES))
    flag("--lr", type=flags.above(0.0), default=1e-4, help="AdamW's learning rate")
    flag("--loss-mean", default="token", choices=bandit.LOSS_MEANS,
         help="how the loss averages over tokens")
    flag("--kl", type=flags.at_least(0.0), default=0.0, help="factor of the KL term in the loss")
    flag("--seed", type=whole, default=5, help="of the sampling")
    flag("--max-new-tokens", type=count, default=64, help="truncate completions here")
    show = parser.add_mutually_exclusive_group().add_argument
    show("--step", action="store_true", help="wait for the return key after each section")
    show("--html", nargs="?", type=Path, const=Path("runs/explain.html"), metavar="FILE",
         help="write a page into a file (runs/explain.html) instead of printing")
    args = parser.parse_args(argv)

    # train.py has flags for these two. Here they follow from the advantage: some need rewards of
    # both signs (a reward file pays what it pays), some a window, empty before the first round.
    needs = bandit.ADVANTAGES[args.advantage].needs
    args.wrong_reward = -1.0 if needs == "signs" else 0.0
    args.window = max(8, args.rollouts) if needs == "window" else 0
    try:
        flags.check_settings(
            args.advantage, needs, batch_size=1, rollouts=args.rollouts, window=args.window,
            wrong_reward=args.wrong_reward,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    return args


# --- the round ------------------------------------------------------------------------------------


class Attempt(NamedTuple):
    """One completion of the query. Each list has one value per token."""

    pieces: list[str]  # the text of each token
    truncated: bool
    right: bool  # as training grades it: the last answer of a truncated completion is not read
    verdict: reward.Verdict  # of the whole text, also where it is truncated
    reward: float
    advantage: float
    weight: float  # of each token in the loss
    sampler: list[float]  # log-probabilities as the sampler computed them
    before: list[float]  # the trainer's log-probabilities before the step
    after: list[float]  # and after it
    change: float  # of the completion's log-probability
    loss: list[float]  # each token's part of the loss, without the KL term
    kl: list[float]  # each token's part of the KL term


class Walk(NamedTuple):
    """All values of the round, as the page shows them."""

    query: data.Query
    prompt: list[int]  # token ids
    pieces: list[str]  # the text of each token of the prompt
    greedy_reward: float
    attempts: list[Attempt]
    total: float  # the sum of all parts of the loss
    step: dict[str, float | None]  # what bandit.update returned
    weights: int  # how many the model has


def walk(args: argparse.Namespace) -> Walk:
    """Run the round; raise ValueError, in one sentence, for flags that cannot be run."""
    score = evaluate.scorer(args.reward, wrong_reward=args.wrong_reward)
    queries = data.load(args.data, "train", needs_gold=not args.reward)
    if args.query >= len(queries):
        last = len(queries) - 1
        raise ValueError(f"--query {args.query}: the queries of {args.data} go from 0 to {last}")
    query = queries[args.query]
    model, tokenizer = rollout.load(args.model)
    models.set_threads(model)
    reference = models.load(args.model)[0] if args.kl else None
    adamw = optimizer.adamw(optimizer.MasterWeights(model), args.lr)

    # 1, 2. The prompt and its completions. Only --advantage remax uses the greedy one.
    prompt = data.encode(tokenizer, [query])[0]
    sampling = {"max_new_tokens": args.max_new_tokens, "end_ids": models.end_ids(model, tokenizer)}
    rollouts = rollout.sample(model, [prompt], args.rollouts, seed=args.seed, **sampling)
    greedy = rollout.sample(model, [prompt], temperature=0, **sampling)
    completions = [one.tokens for one in rollouts]

    # 3, 4. Verdicts, rewards, advantages.
    grades = evaluate.grade(tokenizer, [query], rollouts + greedy, score)
    all_rewards = torch.tensor(grades.paid).float()
    rewards, greedy_reward = all_rewards[None, :-1], all_rewards[-1:]
    windows = bandit.remember({}, [query.prompt], rewards, args.window)
    measured = bandit.lengths_and_logprobs(rollouts, args.rollouts)
    round_rewards = bandit.RoundRewards(rewards, greedy_reward, windows, *measured)
    advantages = bandit.advantages(args.advantage, round_rewards, args.rollouts)[0]

    # 5, 6. The step, and the log-probabilities on both sides of it.
    def logprobs_of(policy: torch.nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            alone = [bandit.completion_logprobs(policy, [prompt], [one]) for one in completions]
        return [logprobs.cpu() for logprobs in alone]

    before = logprobs_of(model)
    base = logprobs_of(reference) if args.kl else before
    sampled = [one.logprobs for one in rollouts]
    batch = bandit.UpdateBatch([prompt] * args.rollouts, completions, advantages, sampled)
    config = bandit.UpdateConfig(args.loss_mean, args.max_new_tokens, kl=args.kl)
    step = bandit.update(model, adamw, batch, config, reference)
    after = logprobs_of(model)

    lengths = torch.tensor([len(completion) for completion in completions])
    weights = bandit.LOSS_MEANS[args.loss_mean](lengths, args.max_new_tokens)
    attempts = []
    for i, one in enumerate(rollouts):
        loss, penalty = parts_of_loss(before[i], base[i], advantages[i], weights[i], args.kl)
        attempts.append(Attempt(
            pieces=[tokenizer.decode([token]) for token in one.tokens],
            truncated=one.truncated,
            right=bool(grades.right[i]),
            verdict=reward.judge(grades.texts[i], query.gold, query.form),
            reward=all_rewards[i].item(),
            advantage=advantages[i].item(),
            weight=weights[i].item(),
            sampler=one.logprobs,
            before=before[i].tolist(),
            after=after[i].tolist(),
            change=(after[i] - before[i]).sum().item(),
            loss=loss,
            kl=penalty,
        ))  # fmt: skip

    total = sum(sum(one.loss) + sum(one.kl) for one in attempts)
    return Walk(
        query=query,
        prompt=prompt,
        pieces=[tokenizer.decode([token]) for token in prompt],
        greedy_reward=greedy_reward.item(),
        attempts=attempts,
        total=total,
        step=step,
        weights=sum(p.numel() for p in model.parameters()),
    )


def parts_of_loss(
    before: torch.Tensor, base: torch.Tensor, advantage: torch.Tensor, weight: torch.Tensor,
    kl: float,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Each token's part of the loss without the KL term, and its part of that term.

    The loss is a sum over tokens, so the part of a token is the loss of that token alone. Before
    the step the policy is still the one that sampled, so the ratio is 1.
    """
    plain, penalties = [], []
    for logprob, base_logprob in zip(before, base, strict=True):
        without = bandit.loss(logprob, logprob, advantage, weight).item()
        complete = bandit.loss(
            logprob, logprob, advantage, weight, kl=kl, reference_logprobs=base_logprob
        ).item()
        plain.append(without)
        penalties.append(complete - without)
    return plain, penalties


# --- text -----------------------------------------------------------------------------------------


def print_heading(number: int, functions: str, text: str) -> None:
    print("\n" + f"--- {number}. {functions} ".ljust(WIDTH, "-"))
    print_filled(text)


def print_filled(text: str) -> None:
    print(textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False))


def printable(piece: str) -> str:
    """The text of a token in one word: line breaks are escaped, a space becomes ␣."""
    return repr(piece)[1:-1].replace(" ", "␣")


def fold(items: list, shown: int, merge: Callable) -> list:
    """The items; if there are more than `shown`, those in the middle are merged into one."""
    if len(items) <= shown:
        return items
    first, last = shown // 2, len(items) - shown // 3
    return [*items[:first], merge(items[first:last]), *items[last:]]


def join_pieces(pieces: list[str]) -> str:
    return " ".join(fold(pieces, SHOWN_IN_TEXT, lambda middle: f"... {len(middle)} more ..."))


# --- the page -------------------------------------------------------------------------------------


def print_page(args: argparse.Namespace, walked: Walk) -> None:
    """The round in seven steps, each under the names of the functions that do it."""
    sections = (
        print_prompt, print_completions, print_verdicts, print_advantages, print_loss, print_step,
    )  # fmt: skip
    for print_section in sections:
        print_section(args, walked)
        if args.step:
            input("\n[return goes on] ")
    print_heading(7, "in words", in_words(walked))


def content_of_page(args: argparse.Namespace, walked: Walk) -> dict:
    """The round for lab/page.py: each token before the step and after it."""
    attempts = [
        {
            "query": 0,
            "right": one.right,
            "note": f", reward {one.reward:g}, advantage {one.advantage:+.3f}, log-probability "
                    f"{sum(one.before):.2f} → {sum(one.after):.2f}",
            "tokens": page.tokens_of(one.pieces, one.before, one.after),
        }
        for one in walked.attempts
    ]  # fmt: skip
    return {
        "title": f"One round of one query: {args.model}, advantage {args.advantage}",
        "notes": [in_words(walked)],
        "legend": "A token is blue and underlined where the step made it likelier, orange and "
                  "dotted where it made it less likely.",
        "curve": None,
        "queries": [{"prompt": walked.query.prompt, "gold": walked.query.gold}],
        "steps": [{"round": 0, "label": "", "figures": "", "attempts": attempts}],
    }  # fmt: skip


def print_prompt(args: argparse.Namespace, walked: Walk) -> None:
    query = walked.query
    text = "A query is a context. Its text goes through the chat template and becomes token ids."
    print_heading(1, "data.encode", text)
    print_filled(f"query {args.query}: {query.prompt}   (reference answer: {query.gold})")
    pieces = [
        f"{token}:{printable(piece)}"
        for token, piece in zip(walked.prompt, walked.pieces, strict=True)
    ]
    print_filled(f"{len(pieces)} tokens, id:piece, ␣ is a space: {join_pieces(pieces)}")


def print_completions(args: argparse.Namespace, walked: Walk) -> None:
    print_heading(
        2, "rollout.sample",
        f"{args.rollouts} completions, the arms, drawn token by token from {args.model} at "
        f"temperature 1, seed {args.seed}.",
    )  # fmt: skip
    for i, one in enumerate(walked.attempts, 1):
        end = "truncated by length" if one.truncated else "ended by itself"
        pieces = join_pieces([printable(piece) for piece in one.pieces])
        print_filled(f"completion {i}: {len(one.pieces)} tokens, {end}: {pieces}")


def print_verdicts(args: argparse.Namespace, walked: Walk) -> None:
    gold, form = walked.query.gold, walked.query.form
    text = f"The verifier reads the last answer in the format asked for, {form}, and no other."
    if form is None:
        text = "The verifier reads the last answer, after #### or in a box."
    if args.reward:
        text = f"{args.reward} says what is paid, and what counts as right."
    print_heading(3, "score" if args.reward else "reward.judge", text)
    for i, one in enumerate(walked.attempts, 1):
        if args.reward:
            print(f"completion {i}: {'right' if one.right else 'wrong'}, reward R = {one.reward:g}")
            continue
        why = one.verdict.why
        if one.right != one.verdict.correct:
            why = "truncated, so its number may be incomplete"
        verdict = "right" if one.right else "wrong"
        print(
            f"completion {i}: answer {one.verdict.extracted!r}, reference {gold!r}: "
            f"{verdict} ({why}), reward R = {one.reward:g}"
        )
    if bandit.ADVANTAGES[args.advantage].needs == "greedy":
        print(f"the greedy completion has R = {walked.greedy_reward:g}")


def print_advantages(args: argparse.Namespace, walked: Walk) -> None:
    row = bandit.ADVANTAGES[args.advantage]
    functions, text = f"bandit.advantages, {args.advantage}", f"A = {row.formula}   ({row.source})"
    print_heading(4, functions, text)
    if args.rollouts > 1:
        rewards = torch.tensor([one.reward for one in walked.attempts])
        print(
            f"the rewards have the mean {rewards.mean():.4f} and the std {rewards.std():.4f} "
            "(divided by n - 1)"
        )
    for i, one in enumerate(walked.attempts, 1):
        print(f"completion {i}: R = {one.reward:g}, A = {one.advantage:+.4f}")


def print_loss(args: argparse.Namespace, walked: Walk) -> None:
    print_heading(
        5, "bandit.completion_logprobs, bandit.loss",
        "Equations (3) and (7) of the lecture. The log-probability of each token: as the sampler "
        "had it, as one forward pass of the trainer has it (they round differently: the "
        "mismatch), after the step, the change. The part of the loss is -weight * A * ratio, "
        "where ratio = exp(log pi - log pi_old) = 1.",
    )  # fmt: skip
    weights = ", ".join(f"{one.weight:.5f} in {i}" for i, one in enumerate(walked.attempts, 1))
    print(f"LOSS_MEANS, {args.loss_mean}: the weight of a token is {weights}")
    for i, one in enumerate(walked.attempts, 1):
        print_tokens(i, one, args.kl)
    print(
        f"\n  all parts add up to {walked.total:.6f}; "
        f"bandit.update returns the loss {walked.step['loss']:.6f}"
    )


def print_tokens(number: int, one: Attempt, kl: float) -> None:
    """One line per token: its log-probabilities, their change, its part of the loss.

    The middle of a long completion shares one line, which has the sums.
    """
    heading = (
        f"\n  {f'completion {number}':24}{'sampler':>10}{'trainer':>10}{'mismatch':>11}"
        f"{'after':>10}{'change':>10}{'part of loss':>14}"
    )
    print(heading + "   part of KL" if kl else heading)
    columns = zip(one.sampler, one.before, one.after, one.loss, one.kl, strict=True)
    labels = [printable(piece) for piece in one.pieces]
    tokens = list(zip(labels, columns, strict=True))
    lines = fold(tokens, SHOWN, lambda some: add_up(f"... {len(some)} tokens, together", some))
    lines = [*lines, add_up("the whole completion", tokens)]
    for label, (sampler, before, after, loss, penalty) in lines:
        loss = loss + 0.0  # -0.0 becomes 0.0
        line = (
            f"  {label:24.24}{sampler:10.4f}{before:10.4f}{before - sampler:+11.1e}"
            f"{after:10.4f}{after - before:+10.4f}{loss:14.6f}"
        )
        if kl:
            line += f"{penalty:13.6f}"
        print(line)


def add_up(label: str, tokens: list[tuple[str, tuple]]) -> tuple[str, tuple]:
    """One line for several tokens: the sums of their columns."""
    columns = zip(*(values for _, values in tokens), strict=True)
    return label, tuple(sum(column) for column in columns)


def print_step(args: argparse.Namespace, walked: Walk) -> None:
    step, weights = walked.step, walked.weights
    print_heading(
        6, "bandit.update, infra.optimizer.adamw",
        f"The gradient has the norm {step['grad_norm']:.4f} (above 1 it is clipped), the step "
        f"{step['update_norm']:.4f}. However long the gradient is, if there is one, the first "
        "step of AdamW moves each weight by about the learning rate, and "
        f"{args.lr:g} * sqrt({weights:,} weights) = {args.lr * weights**0.5:.4f}.",
    )  # fmt: skip


def in_words(walked: Walk) -> str:
    """What the step did, and why the value of the loss does not show it."""
    attempts = walked.attempts
    if not any(one.advantage for one in attempts):
        reason = "Every advantage is 0, so there is no gradient"
        return f"{reason}. The small change comes from weight decay."
    sentences = []
    for i, one in enumerate(attempts, 1):
        verdict = "right" if one.right else "wrong"
        direction = "likelier" if one.change > 0 else "less likely"
        sentences.append(
            f"Completion {i} ({verdict}) became {direction}: its log-probability moved by "
            f"{one.change:+.3f} in total, a factor of {math.exp(one.change):.2f}."
        )

    against = [str(i) for i, one in enumerate(attempts, 1) if one.advantage * one.change < 0]
    if against:
        sentences.append(
            f"Completion {' and '.join(against)} moved against its advantage, because completions "
            "share tokens and weights and the step serves their sum."
        )
    sentences.append(
        f"The loss, {walked.step['loss']:.4f}, shows none of this: at ratio 1 it is minus the sum "
        "of weight * A, and it contains no log-probability."
    )
    if abs(sum(one.advantage for one in attempts)) < 1e-3:
        sentences.append(
            "These advantages add up to 0, and so does the loss where completions weigh alike "
            "(--loss-mean sequence) or have one length. The step still teaches."
        )
    sentences.append(
        "What learns is its gradient, minus the sum of weight * A * grad log pi. There a right "
        "and a wrong completion cancel only in what they share, a token after the same text; "
        "every other token pulls in its own direction, up where A > 0 and down where A < 0."
    )
    if walked.step["kl"] is not None:
        sentences.append(
            "The KL term and its gradient are 0, because the policy is still the base model. "
            "From the second round on it pulls back."
        )
    return " ".join(sentences)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    try:
        walked = walk(args)
        if args.html:
            page.write_page(args.html, content_of_page(args, walked))
            print(f"open {args.html} in a browser")
        else:
            print_page(args, walked)
    except (EOFError, KeyboardInterrupt):
        sys.exit("explain.py: stopped")
    except (ValueError, OSError) as error:
        sys.exit(f"explain.py: {error}")


if __name__ == "__main__":
    main()
