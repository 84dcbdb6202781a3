"""What is right in each part of the assignment, and which mistake a wrong result looks like.

What is right is found by definition: full forward passes, enumeration, finite differences. A wrong
result is compared with what well-known mistakes give, so most messages name the mistake.
"""

import itertools
import math
import statistics
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

TOLERANCE = 1e-4


class Wrong(Exception):
    """What is wrong with a function, in a sentence for its author."""


def compare(name: str, got: Any, right: Tensor, mistakes: dict[str, Tensor]) -> None:
    """Raise Wrong unless got is right. mistakes: what each of them gives, by its message."""
    got = to_tensor(name, got)
    if is_close(got, right):
        return
    for message, value in mistakes.items():
        if is_close(got, value):
            raise Wrong(f"{name}: {message}")
    if got.shape != right.shape:
        raise Wrong(f"{name}: the shape is {list(got.shape)} and must be {list(right.shape)}")
    place = int((got - right).abs().nan_to_num(math.inf).flatten().argmax())
    value, wanted = got.flatten()[place].item(), right.flatten()[place].item()
    raise Wrong(f"{name}: number {place + 1} is {value:.4f} and should be {wanted:.4f}")


def to_tensor(name: str, got: Any) -> Tensor:
    if isinstance(got, float | int):
        got = torch.tensor(got)
    if not isinstance(got, Tensor):
        raise Wrong(f"{name}: it returns {type(got).__name__} where a tensor is expected")
    return got.detach().double()


def is_close(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.allclose(one, two.double(), atol=TOLERANCE)


# --- Part 1 ---------------------------------------------------------------------------------------

END = 0  # It ends a completion, and here it pads too, as in many models.
PROMPTS = [[5, 6, 7, 8, 9], [30, 31], [50, 51, 52], [60, 61, 62, 63]]
COMPLETIONS = [[70, END], [80, 81, 82, 83, END], [90, 91, 92], [100, END]]  # the third: truncated
WIDTH = max(len(p) + len(c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True))


def random_model() -> Qwen2ForCausalLM:
    """A model of a few thousand weights, in float64, so that errors are not rounding."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=128, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).double()


def one_pass(model, prompt, completion, *, temperature=1.0, shift=1, normalize=True) -> Tensor:
    """The log-probabilities of a completion by one pass over it alone, without padding."""
    logits = model(torch.tensor([prompt + completion])).logits[0] / temperature
    scores = torch.log_softmax(logits, -1) if normalize else logits
    start = len(prompt) - shift
    places = scores[start : start + len(completion)]
    return places.gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def check_logprobs(mine: ModuleType) -> None:
    model, temperature = random_model(), 0.7
    pairs = list(zip(PROMPTS, COMPLETIONS, strict=True))

    def passes(change=lambda p, c: (p, c), keep=lambda c, values: values, **options) -> Tensor:
        options = {"temperature": temperature, **options}
        return torch.cat([
            keep(c, one_pass(model, *change(p, c), **options)).reshape(-1) for p, c in pairs
        ])  # fmt: skip

    got = mine.completion_logprobs(model, PROMPTS, COMPLETIONS, temperature)
    right = passes()
    compare("completion_logprobs", got, right, {
        "shifted by one: the logits at a place are those of the next token, so the logits for a "
        "token stand one place before it": passes(shift=0),
        "the temperature is ignored: divide the logits by it": passes(temperature=1.0),
        "the logits are multiplied by the temperature: divide": passes(temperature=1 / 0.7),
        "these are probabilities: take their logarithm": right.exp(),
        "these are logits: a log-probability is normalized by log_softmax over the vocabulary":
            passes(normalize=False),
        "the last token is left out: the end-of-sequence token is a choice of the policy too, and "
        "without it the policy forgets how to stop (exercise 9)":
            passes(keep=lambda c, values: values[:-1]),
        "end-of-sequence tokens are masked by their id, which is also the id of the padding: mask "
        "by position": passes(keep=lambda c, values: values[torch.tensor(c) != END]),
        "the tokens of the prompt are among them: only the completion was chosen by the policy":
            passes(lambda p, c: (p[:1], p[1:] + c)),
        "there is one sum for each completion: return one number for each token":
            passes(keep=lambda c, values: values.sum()),
        "there is one mean for each completion: return one number for each token, not averaged":
            passes(keep=lambda c, values: values.mean()),
        "padding is counted as if it were part of the completion":
            passes(lambda p, c: (p, c + [END] * (WIDTH - len(p) - len(c)))),
        "padding on the left is seen by the tokens after it: pad on the right, or mask it":
            passes(lambda p, c: ([END] * (WIDTH - len(p) - len(c)) + p, c)),
    })  # fmt: skip
    if not got.requires_grad:
        raise Wrong(
            "completion_logprobs: the values are right and have no gradient: no detach, no "
            "torch.no_grad, no torch.tensor(values)"
        )
    check_gradient(model, got)


def check_gradient(model: Qwen2ForCausalLM, got: Tensor) -> None:
    """Compare the gradient of a sum of values with a finite difference along a random direction."""
    weights, step = list(model.parameters()), 1e-4
    generator = torch.Generator().manual_seed(0)
    directions = [
        torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for weight in weights
    ]
    gradients = torch.autograd.grad(got.sum(), weights, allow_unused=True)
    along = sum(
        (g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None
    )
    sums = []
    with torch.no_grad():
        for sign in (1, -2):  # from the weights to one side, then to the other
            for weight, direction in zip(weights, directions, strict=True):
                weight += sign * step * direction
            sums.append(sum(
                one_pass(model, p, c, temperature=0.7).sum()
                for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
            ))  # fmt: skip
    slope = (sums[0] - sums[1]) / (2 * step)
    if abs(along - slope) > 0.01 * abs(slope):
        raise Wrong(
            "completion_logprobs: the values are right and their gradient is not: a part of the "
            "computation is cut off from the graph"
        )


# --- Part 2 ---------------------------------------------------------------------------------------

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -3.0], [0.0, -2.0, 1.0, 3.0, 0.5]])
GRID = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000  # stands for all random numbers


def check_draw(mine: ModuleType) -> None:
    temperature = 1.5
    for row in LOGITS:
        rows = row.expand(len(GRID), -1)
        token, logprob = draw_pair(mine, rows, temperature, GRID)
        again, _ = draw_pair(mine, rows, temperature, GRID)
        if not torch.equal(token, again):
            raise Wrong("draw: the same `uniform` gives other tokens: use it, and no other source")
        last, _ = draw_pair(mine, rows[:1], temperature, GRID[-1:])
        if token[-1] != last[0]:
            raise Wrong("draw: every row has a number of its own in `uniform`")
        check_shares(token, row, temperature)

        def at(temperature, row=row, token=token) -> Tensor:
            return torch.log_softmax(row.double() / temperature, -1)[token]

        compare("draw, logprob", logprob, at(temperature), {
            "it is that of temperature 1, and the token was drawn at another temperature": at(1.0),
            "these are probabilities: take their logarithm": at(temperature).exp(),
            "these are logits: normalize them": (row / temperature)[token],
        })  # fmt: skip

    check_greedy(mine)
    check_edges(mine)


def draw_pair(mine: ModuleType, *arguments: Any) -> tuple[Tensor, Tensor]:
    result = mine.draw(*arguments)
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong("draw: it must return a pair, (token, logprob)")
    rows = len(arguments[0])
    token, logprob = (to_tensor("draw", part) for part in result)
    if token.shape != (rows,) or logprob.shape != (rows,):
        raise Wrong(f"draw: token and logprob must have the shape [rows], here [{rows}]")
    return token.long(), logprob


def check_shares(token: Tensor, row: Tensor, temperature: float) -> None:
    """The share of the grid that a token gets must be its probability."""
    vocabulary = len(row)
    if token.min() < 0 or token.max() >= vocabulary:
        raise Wrong(f"draw: token {int(token.max())} of a vocabulary of {vocabulary}: ids go from "
                    "0, and so does the place at which the running sum passes")
    shares = torch.bincount(token, minlength=vocabulary) / len(token)

    def at(temperature: float) -> Tensor:
        return torch.softmax(row.double() / temperature, -1)

    def looks_like(probs: Tensor) -> bool:
        return bool((shares - probs).abs().max() < 0.003)

    right = at(temperature)
    beside = torch.cat([torch.zeros(1), right[:-2], right[-2:].sum()[None]])
    mistakes = {
        "the temperature is ignored: divide the logits by it": at(1.0),
        "the logits are multiplied by the temperature: divide": at(1 / temperature),
        "it takes the likeliest token at every temperature: that is greedy decoding, and a policy "
        "that does not explore": (right == right.max()).double(),
        "all tokens are equally likely": torch.full_like(right, 1 / vocabulary),
        "each token is drawn with the probability of the one before it: the running sum at a token "
        "includes that token's own probability": beside,
    }  # fmt: skip
    if looks_like(right):
        return
    for message, probs in mistakes.items():
        if looks_like(probs):
            raise Wrong(f"draw: {message}")
    if (missing := (shares == 0).nonzero().flatten()).numel():
        raise Wrong(
            f"draw: a token of probability {right[missing[0]]:.3f} is never drawn: cut nothing "
            "off, or it is not the policy that is sampled"
        )
    raise Wrong(f"draw: tokens are drawn with the shares {shares.tolist()}, not {right.tolist()}")


def check_greedy(mine: ModuleType) -> None:
    try:
        token, logprob = draw_pair(mine, LOGITS, 0, torch.tensor([0.99, 0.01]).double())
    except ZeroDivisionError:
        raise Wrong("draw: temperature 0 divides by zero: it means the likeliest token") from None
    if not torch.equal(token, LOGITS.argmax(-1)):
        raise Wrong("draw: temperature 0 means the likeliest token")
    right = torch.log_softmax(LOGITS.double(), -1).amax(-1)
    compare("draw, logprob at temperature 0", logprob, right, {
        "give the log-probability at temperature 1: that of a certain event, 0, says nothing":
            torch.zeros(2),
    })  # fmt: skip


def check_edges(mine: ModuleType) -> None:
    """Numbers at both ends of [0, 1)."""
    first_is_impossible = torch.tensor([[-math.inf, 0.0, 0.0]])
    token, _ = draw_pair(mine, first_is_impossible, 1.0, torch.zeros(1).double())
    if token[0] == 0:
        raise Wrong(
            "draw: at uniform = 0 it draws a token of probability 0: take the first token whose "
            "running sum is above the number, not equal to it"
        )
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 2000, generator=generator)
    almost_one = torch.full((500,), 1 - 2**-53, dtype=torch.float64)
    try:
        token, _ = draw_pair(mine, logits, 1.0, almost_one)
    except (IndexError, RuntimeError):
        token = torch.tensor([2000])
    if token.max() >= 2000:
        raise Wrong(
            "draw: with a number just below 1 it runs off the end of the vocabulary, because "
            "rounding leaves the whole sum below 1: clamp the token"
        )


# --- Part 3 ---------------------------------------------------------------------------------------

GROUPS = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
RATES = (0.1, 0.5, 0.9)


def check_group(mine: ModuleType) -> None:
    rewards = torch.tensor(GROUPS)

    def each(formula: Callable[[float, list[float]], float]) -> Tensor:
        return torch.tensor([[formula(r, group) for r in group] for group in GROUPS]).double()

    def divided(deviation: Callable[[list[float]], float]) -> Tensor:
        return each(lambda r, group: (r - statistics.mean(group)) / (deviation(group) + 1e-6))

    got = to_tensor("group_advantages", mine.group_advantages(rewards))
    if got.isnan().any():
        raise Wrong(
            "group_advantages: a group whose rewards are all equal gives 0 / 0: add epsilon to "
            "the standard deviation"
        )
    right, everything = divided(statistics.stdev), sum(GROUPS, [])
    compare("group_advantages", got, right, {
        "the sign is wrong: a reward above the mean has a positive advantage": -right,
        "the standard deviation divides by n; here it divides by n - 1": divided(statistics.pstdev),
        "it divides by the variance: take the standard deviation": divided(statistics.variance),
        "it does not divide by the standard deviation: that is Dr. GRPO's":
            each(lambda r, group: r - statistics.mean(group)),
        "the mean is not subtracted": each(lambda r, group: r / (statistics.stdev(group) + 1e-6)),
        "mean and standard deviation are those of the whole batch: a group is a row":
            each(lambda r, group: (r - statistics.mean(everything))
                 / (statistics.stdev(everything) + 1e-6)),
        "the standard deviation is that of the whole batch: a group is a row":
            each(lambda r, group: (r - statistics.mean(group))
                 / (statistics.stdev(everything) + 1e-6)),
    })  # fmt: skip


def check_rloo(mine: ModuleType) -> None:
    def each(mean: Callable[[float, list[float]], float]) -> Tensor:
        return torch.tensor([[r - mean(r, group) for r in group] for group in GROUPS]).double()

    right = each(lambda r, group: (sum(group) - r) / (len(group) - 1))
    got = mine.rloo_advantages(torch.tensor(GROUPS))
    compare("rloo_advantages", got, right, {
        "the sign is wrong: a reward above the mean of the others has a positive advantage": -right,
        "the mean contains the completion itself: enumerated over all groups, the update is then "
        "(n - 1)/n of the gradient": each(lambda r, group: statistics.mean(group)),
        "the sum of the n - 1 others is divided by n":
            each(lambda r, group: (sum(group) - r) / len(group)),
    })  # fmt: skip
    for p in RATES:
        weight = expected_weight(mine.rloo_advantages, p, queries=1, n=4)
        if abs(weight - 1) > TOLERANCE:
            raise Wrong(f"rloo_advantages: enumerated at the success rate {p}, the update is "
                        f"{weight:.3f} times the gradient of p, and should be 1 times")


def expected_weight(advantages: Callable, p: float, queries: int, n: int) -> float:
    """w(p) = E[A | right] - E[A | wrong] of the first rollout of the first query, by enumeration.

    The first query has the success rate p, the others one half.
    """
    means = {0.0: 0.0, 1.0: 0.0}
    for outcome in itertools.product((0.0, 1.0), repeat=queries * n):
        first, others = outcome[1:n], outcome[n:]  # what the first rollout is compared with
        chance = p ** sum(first) * (1 - p) ** (len(first) - sum(first)) * 0.5 ** len(others)
        rewards = torch.tensor(outcome).view(queries, n)
        means[outcome[0]] += chance * float(advantages(rewards)[0, 0])
    return means[1.0] - means[0.0]


def check_own(mine: ModuleType) -> str:
    rewards = torch.tensor(GROUPS)
    got = to_tensor("own_advantages", mine.own_advantages(rewards))
    if got.shape != rewards.shape:
        raise Wrong(f"own_advantages: the shape is {list(got.shape)} and must be [B, n]")
    if not got.isfinite().all():
        raise Wrong("own_advantages: the advantages of some group are not finite")
    std, others = rewards.std(1, keepdim=True), rewards.sum(1, keepdim=True) - rewards
    for name, taken in {
        "the reward": rewards,
        "group_advantages": (rewards - rewards.mean(1, keepdim=True)) / (std + 1e-6),
        "rloo_advantages": rewards - others / 3,
    }.items():
        if is_close(got, taken):
            raise Wrong(f"own_advantages: that is {name}: choose another one")
    weights = [expected_weight(mine.own_advantages, p, queries=2, n=3) for p in RATES]
    for p, weight in zip(RATES, weights, strict=True):
        if not weight > TOLERANCE:
            raise Wrong(
                f"own_advantages: enumerated at the success rate {p}, E[A | right] - E[A | wrong] "
                f"is {weight:.3f}: it must be above 0, or right answers do not become likelier"
            )
    shown = ", ".join(f"w({p}) = {weight:.2f}" for p, weight in zip(RATES, weights, strict=True))
    return f"own_advantages, n = 3: {shown}"


# --- Part 4 ---------------------------------------------------------------------------------------


def check_loss(mine: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    old, noise, drift, advantages, weights = (
        torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(5)
    )
    old, weights = -old.abs() - 0.1, weights.abs() / 10
    logprobs = (old + 0.3 * noise).requires_grad_()
    reference = old + 0.3 * drift
    low, high = 0.1, 0.3
    plain = mine.loss(logprobs, old, advantages, weights, low, high)

    ratio = torch.exp(logprobs - old).detach()
    clipped = ratio.clamp(1 - low, 1 + high)
    policy = -torch.tensor([
        min(r * a, max(1 - low, min(1 + high, r)) * a)
        for r, a in zip(ratio.tolist(), advantages.tolist(), strict=True)
    ])  # fmt: skip

    def total(per_token: Tensor) -> Tensor:
        return (weights * per_token).sum()

    def clip_to(low: float, high: float, ratio: Tensor = ratio) -> Tensor:
        return total(-torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages))

    compare("loss", plain, total(policy), {
        "the sign is wrong: the optimizer descends, so a token of positive advantage must lower "
        "the loss when it becomes likelier": -total(policy),
        "the ratio is upside down: the probability now over the one when it was sampled":
            clip_to(1 - low, 1 + high, 1 / ratio),
        "the ratio is a difference of log-probabilities: take exp of it":
            clip_to(1 - low, 1 + high, ratio.log()),
        "nothing is clipped": total(-ratio * advantages),
        "only the clipped ratio counts: the minimum with the unclipped one is missing, so a token "
        "that went the wrong way is not called back": total(-clipped * advantages),
        "it takes the maximum where equation (7) has the minimum":
            total(-torch.maximum(ratio * advantages, clipped * advantages)),
        "clip_low bounds both sides, and clip_high is ignored": clip_to(1 - low, 1 + low),
        "clip_high bounds both sides, and clip_low is ignored": clip_to(1 - high, 1 + high),
        "the ratio is clipped around 0: the interval is 1 - clip_low to 1 + clip_high":
            clip_to(-low, high),
        "the weights are ignored, and it is a mean over tokens": policy.mean(),
        "the weights are ignored, and it is a sum over tokens": policy.sum(),
        "it averages the weighted tokens: the weights are already the mean, so sum":
            total(policy) / 40,
        "it returns one number for each token: sum them": weights * policy,
    })  # fmt: skip
    check_kl(mine, (logprobs, old, advantages, weights), reference, policy)
    check_gradient_of_loss(mine, old, advantages, weights)


def check_kl(mine: ModuleType, tensors: tuple, reference: Tensor, policy: Tensor) -> None:
    logprobs, _, _, weights = tensors
    beta, d = 0.5, (logprobs - reference).detach()

    def k3(d: Tensor) -> Tensor:
        return torch.exp(-d) + d - 1

    def total(penalty: Tensor) -> Tensor:
        return (weights * (policy + beta * penalty)).sum()

    got = mine.loss(*tensors, 0.1, 0.3, beta, reference)
    compare("loss with the KL term", got, total(k3(d)), {
        "the term is missing": total(0 * d),
        "the term has the wrong sign: being far from the base model must raise the loss":
            total(-k3(d)),
        "d is reversed: it is log pi - log pi_ref": total(k3(-d)),
        "this is k1, whose expected gradient is zero (section 6): take k3": total(d),
        "this is k2: take k3": total(d**2 / 2),
        "the term is not multiplied by kl": (weights * (policy + k3(d))).sum(),
        "the term is averaged over tokens: it has the weights too":
            total(0 * d) + beta * k3(d).mean(),
        "the term is summed over tokens: it has the weights too": total(0 * d) + beta * k3(d).sum(),
    })  # fmt: skip


def check_gradient_of_loss(
    mine: ModuleType, old: Tensor, advantages: Tensor, weights: Tensor
) -> None:
    """At ratio 1 the gradient is -w A; elsewhere it is what finite differences find."""
    logprobs = old.clone().requires_grad_()
    value = mine.loss(logprobs, logprobs, advantages, weights)
    if not value.requires_grad:
        raise Wrong("loss: the value is right and has no gradient: the ratio is detached")
    (gradient,) = torch.autograd.grad(value, logprobs)
    compare("loss, gradient", gradient, -weights * advantages, {
        "a gradient flows through the old log-probabilities and cancels all of it: detach them":
            torch.zeros(40),
    })  # fmt: skip

    logprobs = (old + 0.05).requires_grad_()
    (gradient,) = torch.autograd.grad(mine.loss(logprobs, old, advantages, weights), logprobs)
    differences = []
    for step in torch.eye(40, dtype=torch.float64) * 1e-6:
        up, down = (
            mine.loss(logprobs.detach() + sign * step, old, advantages, weights).item()
            for sign in (1, -1)
        )
        differences.append((up - down) / 2e-6)
    compare("loss, gradient away from ratio 1", gradient, torch.tensor(differences), {})


# --- Part 5 ---------------------------------------------------------------------------------------


def check_pass_at_k(mine: ModuleType) -> None:
    cases = [(5, c, k) for c in range(6) for k in range(1, 6)]

    def each(formula: Callable[[int, int, int], float]) -> Tensor:
        return torch.tensor([float(formula(*case)) for case in cases])

    def by_enumeration(n: int, c: int, k: int) -> float:
        drawn = list(itertools.combinations([1] * c + [0] * (n - c), k))
        return sum(any(some) for some in drawn) / len(drawn)

    right = each(by_enumeration)
    compare("pass_at_k", each(mine.pass_at_k), right, {
        "this is the chance that all k are wrong: take 1 minus it": 1 - right,
        "1 - (1 - c/n)^k draws the same completion twice, and is biased: draw without putting "
        "back": each(lambda n, c, k: 1 - (1 - c / n) ** k),
        "this is pass@1, whatever k is": each(lambda n, c, k: c / n),
        "this is k times pass@1, which counts a query twice where two are right":
            each(lambda n, c, k: min(1, k * c / n)),
        "this is the chance that all k are right":
            each(lambda n, c, k: math.comb(c, k) / math.comb(n, k)),
    })  # fmt: skip
    none_right = math.prod(Fraction(2000 - 3 - i, 2000 - i) for i in range(1000))
    try:
        many = mine.pass_at_k(2000, 3, 1000)
    except OverflowError:
        many = math.nan
    if not math.isclose(many, 1 - none_right, abs_tol=TOLERANCE):
        raise Wrong("pass_at_k: numbers overflow with thousands of samples: math.comb is exact, "
                    "and whole numbers do not overflow")
    try:
        mine.pass_at_k(4, 1, 5)
    except ValueError:
        return
    except ZeroDivisionError:
        pass
    raise Wrong("pass_at_k: k above the number of samples must raise ValueError: it is unknown")


# --- Part 6 ---------------------------------------------------------------------------------------

LR = 0.1


class Round:
    """A round with known completions and rewards, and the step that is right for it."""

    def __init__(self, mine: ModuleType, model: Qwen2ForCausalLM, rewards: list[float]):
        self.rewards = rewards
        self.sampled: list[list[list[int]]] = []
        self.graded: list[tuple] = []
        before = flat(model)
        optimizer = torch.optim.SGD(model.parameters(), LR)
        self.returned = mine.one_round(model, optimizer, PROMPTS, self.sample, self.grade)
        self.step = (before - flat(model)) / LR

    def sample(self, prompts: list[list[int]]) -> list[list[int]]:
        self.sampled.append(prompts)
        return [COMPLETIONS[PROMPTS.index(prompt)] for prompt in prompts]

    def grade(self, prompts: list[list[int]], completions: list[list[int]]) -> list[float]:
        self.graded.append((prompts, completions))
        return self.rewards


def flat(model: Qwen2ForCausalLM) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def gradient_of(model: Qwen2ForCausalLM, factors: list[list[float]], bound: float = 1.0) -> Tensor:
    """The gradient of -sum(factor * log pi) over tokens, with its norm cut to a bound."""
    value = 0.0
    for prompt, completion, factor in zip(PROMPTS, COMPLETIONS, factors, strict=True):
        value = value - (torch.tensor(factor) * one_pass(model, prompt, completion)).sum()
    parts = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    whole = torch.cat([
        (torch.zeros_like(weight) if part is None else part).flatten()
        for part, weight in zip(parts, model.parameters(), strict=True)
    ])  # fmt: skip
    return whole * min(1.0, bound / whole.norm().item())


def check_round(mine: ModuleType) -> None:
    tokens = sum(map(len, COMPLETIONS))
    start = random_model()

    def step_of(rewards, weight=lambda c: 1 / tokens, bound=1.0) -> Tensor:
        return gradient_of(start, [
            [r * weight(c)] * len(c) for r, c in zip(rewards, COMPLETIONS, strict=True)
        ], bound)  # fmt: skip

    # Rewards so small that the gradient is not clipped; then large ones.
    small, large = [0.06, 0.0, 0.03, 0.0], [500.0, 0.0, 250.0, 0.0]
    model = random_model()
    done = Round(mine, model, small)
    if len(done.sampled) != 1 or done.sampled[0] != PROMPTS:
        raise Wrong("one_round: call sample(prompts) once: a round has one completion of each")
    if done.graded != [(PROMPTS, COMPLETIONS)]:
        raise Wrong("one_round: call grade(prompts, completions) once, with what was sampled")
    right, middle = step_of(small), statistics.mean(small)
    centered = [r - middle for r in small]
    compare("one_round, step", done.step, right, {
        "the weights do not change: loss.backward(), then optimizer.step()": 0 * right,
        "the step goes the wrong way: rewarded completions become less likely": -right,
        "each completion is averaged over its own tokens: a weight is 1 / (all tokens)":
            step_of(small, lambda c: 1 / (len(COMPLETIONS) * len(c))),
        "the tokens are summed: a weight is 1 / (all tokens)": step_of(small, lambda c: 1),
        "the mean is over the tokens of rewarded completions: it is over all tokens":
            step_of(small, lambda c: 1 / 5),
        "the mean reward is subtracted: here the advantage is the reward itself":
            step_of(centered),
        "the rewards are standardized: here the advantage is the reward itself":
            step_of([c / (statistics.stdev(small) + 1e-6) for c in centered]),
    })  # fmt: skip
    compare("one_round, what it returns", done.returned, torch.tensor(small), {})

    clipped, unclipped = step_of(large), step_of(large, bound=math.inf)
    model.load_state_dict(start.state_dict())
    done = Round(mine, model, large)
    compare("one_round, step with large rewards", done.step, clipped, {
        "the gradient is not clipped to norm 1, or only after the step": unclipped,
    })  # fmt: skip

    model.load_state_dict(start.state_dict())
    done = Round(mine, model, small)
    left_over = clipped + right
    compare("one_round, step after an earlier round", done.step, right, {
        "the gradient of the earlier round is still there: optimizer.zero_grad()":
            left_over * min(1.0, 1 / left_over.norm().item()),
    })  # fmt: skip


# --- all parts ------------------------------------------------------------------------------------

# Part: (title, its functions in assignment.py with their checks).
PARTS: dict[int, tuple[str, dict[str, Callable]]] = {
    1: ("log-probabilities", {"completion_logprobs": check_logprobs}),
    2: ("drawing a token", {"draw": check_draw}),
    3: ("advantages", {"group_advantages": check_group, "rloo_advantages": check_rloo,
                       "own_advantages": check_own}),
    4: ("the loss", {"loss": check_loss}),
    5: ("pass@k", {"pass_at_k": check_pass_at_k}),
    6: ("one round", {"one_round": check_round}),
}  # fmt: skip
