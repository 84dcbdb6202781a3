"""One query through one round, every value on the way: what train.py does with 32 at a time, in silence.

    python explain.py                                   # four completions of a query, two right, two wrong
    python explain.py --advantage reward                # the baseline: what is wrong does nothing
    python explain.py --query 10 --seed 0 --kl 0.1      # a harder query, and the KL term

`walk` is the round: each value comes from the function that a run uses too. The rest prints it. The default query and
seed are picked: of its completions one is right, one guesses, one forgets the format, and one is right and runs on.

Left out, with reason: a batch of queries (the others only enter the means), temperatures other than 1 and several
steps on the same rollouts (the paper has neither).
"""

import argparse
import math
import sys
import textwrap
from types import SimpleNamespace

import torch

import bandit
import data
import evaluate
import likelihood
import optimizer
import reward
import rollout
import settings

WIDTH, SHOWN = 110, 18  # of the page; tokens of a completion whose lines are printed


def parse(argv=None):
    parser = data.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag, count, whole = parser.add_argument, data.at_least(1), data.at_least(0)
    flag("--model", default="tiny-qwen2", help="tiny-qwen2, tiny-llama, tiny-olmo2, a folder or a model of the hub")
    flag("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, gsm8k, math, or a path (see data.py)")
    flag("--query", type=whole, default=8, help="which one of the train set, from 0 (default: %(default)s)")
    flag("--rollouts", type=count, default=4, help="completions of it (default: %(default)s)")
    flag("--advantage", default="group", choices=bandit.ADVANTAGES, metavar="NAME",
         help=", ".join(bandit.ADVANTAGES) + " (default: %(default)s)")
    flag("--lr", type=data.above(0.0), default=1e-4, help="learning rate of AdamW (default: %(default)s)")
    flag("--loss-mean", default="token", choices=bandit.LOSS_MEANS, help="(default: %(default)s)")
    flag("--kl", type=data.at_least(0.0), default=0.0, help="factor of the KL to the base model (default: %(default)s)")
    flag("--seed", type=whole, default=5, help="of the sampling (default: %(default)s)")
    flag("--max-new-tokens", type=count, default=64, help="completions are cut here (default: %(default)s)")
    args = parser.parse_args(argv)
    # The two settings that train.py has flags for: rewards with signs, and a window, which is empty before round 1.
    needs = bandit.ADVANTAGES[args.advantage].needs
    args.wrong_reward = -1.0 if needs == "signs" else 0.0
    args.window = max(8, args.rollouts) if needs == "window" else 0
    try:
        settings.check(args.advantage, 1, args.rollouts, 0, args.window, 1.0, args.wrong_reward)
    except ValueError as error:
        parser.error(str(error))
    return args


# --- the round --------------------------------------------------------------------------------------------------


def walk(args):
    """All values of the round; raises ValueError, in one sentence, for what cannot be run."""
    queries = data.load(args.data, "train")
    if args.query >= len(queries):
        raise ValueError(f"--query {args.query}: the queries of {args.data} go from 0 to {len(queries) - 1}")
    query = queries[args.query]
    model, tokenizer = rollout.load(args.model)
    likelihood.check_head(model)
    rollout.use_threads(model)
    reference = rollout.load(args.model)[0] if args.kl else None
    adamw = optimizer.adamw(optimizer.Masters(model), args.lr)

    # the prompt, and completions of it (the greedy one serves --advantage remax only)
    prompt = data.encode(tokenizer, [query])[0]
    sampling = dict(max_new_tokens=args.max_new_tokens, end_ids=rollout.end_ids(model, tokenizer))
    rollouts = rollout.sample(model, [prompt], args.rollouts, seed=args.seed, **sampling)
    greedy = rollout.sample(model, [prompt], temperature=0, **sampling)
    completions = [one.tokens for one in rollouts]

    # verdicts, rewards, advantages
    right, _, texts = evaluate.judge(tokenizer, [query], rollouts + greedy)
    pay = torch.where(torch.from_numpy(right), 1.0, args.wrong_reward)
    rewards, greedy_reward = pay[None, :-1], pay[-1:]
    windows = bandit.remember({}, [query.prompt], rewards, args.window) if args.window else None
    pulls = bandit.Pulls(rewards, greedy_reward, windows)
    advantage = bandit.advantages(args.advantage, pulls, args.rollouts)[0]

    # the step, and the log-probabilities on both sides of it
    def logprobs(policy):
        with torch.no_grad():
            return [likelihood.completion_logprobs(policy, [prompt], [one]).cpu() for one in completions]

    before = logprobs(model)
    base = logprobs(reference) if args.kl else before
    step = bandit.update(model, adamw, [prompt] * args.rollouts, completions, advantage, loss_mean=args.loss_mean,
                         longest=args.max_new_tokens, kl=args.kl, reference=reference,
                         sampled=[one.logprobs for one in rollouts])
    after = logprobs(model)

    # Each completion's values; the lists have a number for each token. The loss is a sum over tokens, so the part of
    # one is the loss of it alone, at ratio 1: before the step the policy is the one that sampled.
    weight = bandit.LOSS_MEANS[args.loss_mean](torch.tensor([len(one) for one in completions]), args.max_new_tokens)
    attempts = []
    for i, one in enumerate(rollouts):
        loss = [bandit.loss(x, x, advantage[i], weight[i]).item() for x in before[i]]
        with_kl = [bandit.loss(x, x, advantage[i], weight[i], kl=args.kl, reference=r).item()
                   for x, r in zip(before[i], base[i], strict=True)]
        attempts.append(SimpleNamespace(
            pieces=[tokenizer.decode([token]) for token in one.tokens], cut=one.cut, right=bool(right[i]),
            verdict=reward.judge(texts[i], query.gold, query.form),  # reads what `right` does not: the end of a cut one
            reward=pay[i].item(), advantage=advantage[i].item(), weight=weight[i].item(), sampler=one.logprobs,
            before=before[i].tolist(), after=after[i].tolist(), change=(after[i] - before[i]).sum().item(),
            loss=loss, kl=[b - a for a, b in zip(loss, with_kl, strict=True)]))
    total = sum(sum(one.loss) + sum(one.kl) for one in attempts)
    if not math.isclose(total, step["loss"], rel_tol=1e-4, abs_tol=1e-6):
        raise ValueError(f"the parts of the loss add up to {total}, and bandit.update returns {step['loss']}")
    return SimpleNamespace(query=query, prompt=prompt, pieces=[tokenizer.decode([token]) for token in prompt],
                           greedy_reward=greedy_reward.item(), attempts=attempts, total=total, step=step,
                           weights=sum(p.numel() for p in model.parameters()))


# --- the page ---------------------------------------------------------------------------------------------------


def head(number, functions, words):
    print("\n" + f"--- {number}. {functions} ".ljust(WIDTH, "-"))
    say(words)


def say(text):
    print(textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False))


def plain(piece):
    return repr(piece)[1:-1].replace(" ", "␣")


def fold(items, shown, merge):
    """The items; of more than `shown` those in the middle become one."""
    first, last = shown // 2, len(items) - shown // 3
    return items if len(items) <= shown else [*items[:first], merge(items[first:last]), *items[last:]]


def in_line(pieces):
    return " ".join(fold(pieces, 80, lambda middle: f"... {len(middle)} more ..."))


def table(number, one, kl):
    """A line a token: where log-probability went, and what the loss had of it; sums where several share a line."""
    print(f"\n  {f'completion {number}':24}{'sampler':>10}{'trainer':>10}{'gap':>11}{'after':>10}{'change':>10}"
          f"{'part of loss':>14}" + ("   part of KL" if kl else ""))
    tokens = [(plain(piece), values) for piece, *values in
              zip(one.pieces, one.sampler, one.before, one.after, one.loss, one.kl, strict=True)]

    def together(label, some):
        return label, [sum(column) for column in zip(*(values for _, values in some), strict=True)]

    lines = fold(tokens, SHOWN, lambda middle: together(f"... {len(middle)} tokens, together", middle))
    for label, (sampler, before, after, loss, penalty) in [*lines, together("the whole completion", tokens)]:
        print(f"  {label:24.24}{sampler:10.4f}{before:10.4f}{before - sampler:+11.1e}{after:10.4f}"
              f"{after - before:+10.4f}{loss or 0:14.6f}" + (f"{penalty:13.6f}" if kl else ""))


def show(args, walked):
    query, attempts, step = walked.query, list(enumerate(walked.attempts, 1)), walked.step
    advantage = bandit.ADVANTAGES[args.advantage]

    head(1, "data.encode", "A query is a context. Its text goes through the chat template and becomes token ids.")
    say(f"query {args.query}: {query.prompt}   (reference answer: {query.gold})")
    say(f"{len(walked.prompt)} tokens, id:piece, ␣ is a space: " + in_line(
        [f"{token}:{plain(piece)}" for token, piece in zip(walked.prompt, walked.pieces, strict=True)]))

    head(2, "rollout.sample", f"{args.rollouts} completions, the arms, drawn token by token from {args.model} at "
         f"temperature 1, seed {args.seed}.")
    for i, one in attempts:
        say(f"completion {i}: {len(one.pieces)} tokens, {'cut by length' if one.cut else 'ended by itself'}: "
            + in_line([plain(piece) for piece in one.pieces]))

    head(3, "reward.judge", f"The verifier reads the last answer in the format asked for, {query.form}, and no other.")
    for i, one in attempts:
        why = one.verdict.why if one.right == one.verdict.correct else "cut, so its last number may be half of one"
        print(f"completion {i}: answer {one.verdict.extracted!r}, reference {query.gold!r}: "
              f"{'right' if one.right else 'wrong'} ({why}), reward R = {one.reward:g}")
    if advantage.needs == "greedy":
        print(f"the greedy completion has R = {walked.greedy_reward:g}")

    head(4, f"bandit.advantages, {args.advantage}", f"A = {advantage.formula}   ({advantage.source})")
    if args.rollouts > 1:
        rewards = torch.tensor([one.reward for one in walked.attempts])
        print(f"the rewards have the mean {rewards.mean():.4f} and the std {rewards.std():.4f} (divided by n - 1)")
    for i, one in attempts:
        print(f"completion {i}: R = {one.reward:g}, A = {one.advantage:+.4f}")

    head(5, "likelihood.completion_logprobs, bandit.loss", "Equations (3) and (7) of the README. The log-probability "
         "of each token: as the sampler had it, as one forward pass of the trainer has it (they round differently: the "
         "gap), after the step, the change. The part of the loss is -weight * A * ratio, where ratio = exp(log pi - "
         "log pi_old) = 1.")
    print(f"LOSS_MEANS, {args.loss_mean}: the weight of a token is "
          + ", ".join(f"{one.weight:.5f} in {i}" for i, one in attempts))
    for i, one in attempts:
        table(i, one, args.kl)
    print(f"\n  all parts add up to {walked.total:.6f}; bandit.update returns the loss {step['loss']:.6f}")

    head(6, "bandit.update, optimizer.adamw", f"The gradient has the norm {step['grad_norm']:.4f} (above 1 it is "
         f"clipped), the step {step['update_norm']:.4f}. However long the gradient is, if there is one, the first step "
         f"of AdamW moves each weight by about the learning rate, and {args.lr:g} * sqrt({walked.weights:,} weights) "
         f"= {args.lr * walked.weights**0.5:.4f}.")

    head(7, "in words", in_words(walked))


def in_words(walked):
    """What the step has done, and why its loss does not tell."""
    attempts = walked.attempts
    if not any(one.advantage for one in attempts):
        return "Every advantage is 0, so there is no gradient: the little that moved is weight decay's."
    words = [f"Completion {i} ({'right' if one.right else 'wrong'}) became "
             f"{'likelier' if one.change > 0 else 'less likely'}: its log-probability moved by {one.change:+.3f} in "
             f"total, a factor of {math.exp(one.change):.2f}."
             for i, one in enumerate(attempts, 1)]
    if against := [str(i) for i, one in enumerate(attempts, 1) if one.advantage * one.change < 0]:
        words.append(f"Against its advantage went {' and '.join(against)}: completions share tokens and weights, and "
                     "the step serves their sum.")
    words.append(f"The loss, {walked.step['loss']:.4f}, tells none of this: at ratio 1 it is minus the sum of weight * "
                 "A, and no log-probability is in it.")
    if abs(sum(one.advantage for one in attempts)) < 1e-3:
        words.append("These advantages add up to 0, and so does the loss where completions weigh alike (--loss-mean "
                     "sequence) or have one length; it teaches all the same.")
    words.append("What learns is its gradient, minus the sum of weight * A * grad log pi. There a right and a wrong "
                 "completion cancel only in what they share, a token after the same text; every other token pulls in "
                 "its own direction, up where A > 0 and down where A < 0.")
    if walked.step["kl"] is not None:
        words.append("The KL term is 0 and so is its gradient, for the policy is still the base model. From the second "
                     "round on it pulls back.")
    return " ".join(words)


def main(argv=None):
    args = parse(argv)
    try:
        show(args, walk(args))
    except (ValueError, OSError) as error:
        sys.exit(f"explain.py: {error}")


if __name__ == "__main__":
    main()
