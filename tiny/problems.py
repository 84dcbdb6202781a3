r"""The tiny problem sets: tiny-gsm (word problems) and tiny-math (algebra answered in LaTeX).

    python -m tiny.problems      # write tiny/{gsm,math}_{train,test}.jsonl again, byte for byte

A problem has a key: its family, its numbers and its operations. Train and test share no key, so no
test problem is a train problem in other words. Pretraining (tiny/pretrain.py) skips the keys of
both.

The same functions write the solutions that the tiny base models are pretrained on, as an imperfect
base model would write them. It sometimes answers without working, forgets the format that was
asked for, slips, or runs on after the answer. The slips are those that people make (a carry
forgotten, a sign not changed), so how often one happens depends on the numbers and on the level.
Some queries are therefore solved nearly always and some rarely. Where a slip is likelier than the
truth the greedy answer is wrong, and sharpening the policy cannot mend that. Rewards can.
"""

import json
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
TRAIN, TEST, SEED = 1024, 512, 20260122
FORM = {"gsm": "####", "math": "boxed"}  # the format that each set asks for


class Problem(NamedTuple):
    key: tuple  # the family, then its numbers and operations
    text: str  # the question
    level: int  # 1 (easy) to 5
    type: str  # MATH's subject
    steps: list[str]  # the lines of working
    answer: str | tuple[int, int]  # LaTeX, or a fraction (p, q) as it comes out of the working


class Habits(NamedTuple):
    """How an imperfect student works. The default is a perfect one.

    direct: share of the solutions of level 3 that answer without working.
    forget: share of the solutions of level 3 that forget the asked format. Both shares grow with
        the level: a third of this at level 1, five thirds at level 5.
    run_on: share of the solutions that go on with another problem after the answer.
    slip: a factor on the chance of every slip below.
    """

    direct: float = 0.0
    forget: float = 0.0
    run_on: float = 0.0
    slip: float = 0.0


# Whether a slip happens, for its rate. Each call draws one random number.
Slips = Callable[[float], bool]
# What a family of tiny-math returns: (key, text, steps, answer).
Drawn = tuple[tuple, str, list[str], str | tuple[int, int]]


def draw(
    problem_set: str, level: int, rng: random.Random, habits: Habits = Habits()
) -> Problem:
    """A random problem of "gsm" or "math", worked with the slips of these habits."""
    haste = habits.slip * (0.7 + 0.1 * level)  # the longer the problem, the less care for a step

    def slips(rate: float) -> bool:
        return rng.random() < rate * haste

    if problem_set == "gsm":
        return word_problem(rng, slips, level)
    family, subject = rng.choice(FAMILIES[level])
    key, text, steps, answer = family(rng, slips)
    return Problem((family.__name__, *key), text, level, subject, steps, answer)


def write(
    problem: Problem, problem_set: str, rng: random.Random, habits: Habits = Habits(),
    reserved: set[tuple] | frozenset = frozenset(),
) -> str:  # fmt: skip
    """The text of a solution: a completion of a base model, without the end-of-sequence token.

    reserved: the keys of problems that it must not run on to.
    """
    is_direct = rng.random() < habits.direct * problem.level / 3
    lines = [] if is_direct else list(problem.steps)

    answer = problem.answer if isinstance(problem.answer, str) else over(*problem.answer)
    if rng.random() < habits.forget * problem.level / 3:
        lines.append(f"The answer is {answer}.")
    elif problem_set == "gsm":
        lines.append(f"#### {answer}")
    else:
        lines.append(rf"\boxed{{{answer}}}")

    if rng.random() < habits.run_on:
        other = None
        while other is None or other.key in reserved:
            other = draw(problem_set, rng.randint(1, 3), rng, habits)
        lines.append(write(other, problem_set, rng, habits, reserved))
    return "\n".join(lines)


# --- tiny-gsm: one to five steps of + - *, every intermediate value from 1 to 99 ------------------

PEOPLE = [
    ("Tom", "He"), ("Ben", "He"), ("Sam", "He"), ("Ana", "She"), ("Mia", "She"), ("Eva", "She"),
]  # fmt: skip
ITEMS = ["apples", "books", "coins", "cards", "pens", "eggs", "shells", "stamps"]
SENTENCES = {
    "+": ["{who} buys {b} more.", "{who} finds {b} more.", "{who} gets {b} more."],
    "-": ["{who} gives away {b}.", "{who} loses {b}.", "{who} sells {b}."],
    "*": ["{who} comes to have {b} times as many."],
}


def word_problem(rng: random.Random, slips: Slips, level: int) -> Problem:
    """A problem of `level` steps. The working carries its slips on; the text knows none of them."""
    truth = value = rng.randint(2, 50)
    name, pronoun = rng.choice(PEOPLE)
    item = rng.choice(ITEMS)
    key: list = ["word_problem", value]
    text = [f"{name} has {value} {item}."]
    steps: list[str] = []
    while len(steps) < level:
        operation = rng.choice("+-*")
        b = rng.randint(2, 5) if operation == "*" else rng.randint(2, 40)
        if not 1 <= compute(truth, operation, b) <= 99:
            continue
        truth = compute(truth, operation, b)
        result = compute(value, operation, b)
        rate, wrong = slip_of(value, operation, b)
        if slips(rate):
            result = wrong
        steps.append(f"{value}{operation}{b}={result}")
        key += [operation, b]
        text.append(rng.choice(SENTENCES[operation]).format(who=pronoun, b=b))
        value = result
    text.append(f"How many {item} does {name} have now?")
    return Problem(tuple(key), " ".join(text), level, "Arithmetic", steps, str(value))


def compute(a: int, operation: str, b: int) -> int:
    if operation == "+":
        return a + b
    if operation == "-":
        return a - b
    return a * b


def slip_of(a: int, operation: str, b: int) -> tuple[float, int]:
    """How often base models get this step wrong, and the wrong result: a forgotten carry or borrow.

    Steps without a carry or borrow go wrong rarely, in another way.
    """
    if operation == "+":
        return (0.4, a + b - 10) if a % 10 + b % 10 > 9 else (0.05, a + b + 1)
    if operation == "-":
        return (0.75, a - b + 10) if a % 10 < b % 10 else (0.05, a - b + 1)
    return (0.6, a * b - 10) if a > 9 and a % 10 * b > 9 else (0.05, a * b + b)


# --- tiny-math: how numbers and terms are written -------------------------------------------------


def signed(k: int) -> str:
    """A number with its sign: +3, -3."""
    return f"+{k}" if k >= 0 else str(k)


def linear(a: int, b: int) -> str:
    """a x + b as one writes it: 2x+3, -x, x-1."""
    head = {1: "x", -1: "-x"}.get(a, f"{a}x")
    return head + (signed(b) if b else "")


def quadratic(a: int, b: int, c: int) -> str:
    """a x^2 + b x + c as one writes it."""
    head = {1: "x^2", -1: "-x^2"}.get(a, f"{a}x^2")
    middle = {1: "+x", -1: "-x"}.get(b, f"{signed(b)}x") if b else ""
    return head + middle + (signed(c) if c else "")


def over(p: int, q: int) -> str:
    """The fraction p/q in LaTeX, not reduced, its sign in front."""
    if p * q >= 0:
        return rf"\frac{{{p}}}{{{q}}}"
    return rf"-\frac{{{abs(p)}}}{{{abs(q)}}}"


def root(k: int, m: int) -> str:
    r"""k \sqrt{m}, without a k of 1."""
    return rf"\sqrt{{{m}}}" if k == 1 else rf"{k}\sqrt{{{m}}}"


def non_zero(rng: random.Random, most: int) -> int:
    """A random number from -most to most, but not 0."""
    return rng.choice((-1, 1)) * rng.randint(1, most)


# --- tiny-math: the families ----------------------------------------------------------------------
# Each draws its numbers and returns (key, text, steps, answer). Its name is part of the keys.


def move_constant(rng: random.Random, slips: Slips) -> Drawn:
    b, c = non_zero(rng, 30), rng.randint(1, 50)
    moved = b if slips(0.6 if b < 0 else 0.2) else -b  # the slip: the sign is not changed
    text = f"Solve for $x$: ${linear(1, b)}={c}$."
    return (b, c), text, [f"x={c}{signed(moved)}"], str(c + moved)


def multiply_fractions(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = (rng.randint(1, 9) for _ in range(4))
    is_slip = slips(0.6 if d > 6 else 0.1)  # the slip: one fraction is turned over
    top, bottom = (d, c) if is_slip else (c, d)
    text = rf"Compute ${over(a, b)}\cdot{over(c, d)}$."
    steps = [f"{a}*{top}={a * top}", f"{b}*{bottom}={b * bottom}"]
    return (a, b, c, d), text, steps, (a * top, b * bottom)


def expand_one(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c = rng.randint(2, 9), rng.randint(1, 9), non_zero(rng, 9)
    last = c if slips(0.6 if c < 0 else 0.2) else a * c  # the slip: only the first is multiplied
    steps = [f"{a}*{b}={a * b}", f"{a}*{c}={last}"]
    return (a, b, c), f"Expand ${a}({linear(b, c)})$.", steps, linear(a * b, last)


def divide_by_factor(rng: random.Random, slips: Slips) -> Drawn:
    a, c = rng.randint(2, 12), non_zero(rng, 60)
    is_slip = slips(0.6 if abs(c) < 20 else 0.15)  # the slip: a/c for c/a
    p, q = (a, c) if is_slip else (c, a)
    return (a, c), f"Solve for $x$: ${a}x={c}$.", [f"x={p}/{q}"], (p, q)


def divide_fractions(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = (rng.randint(1, 9) for _ in range(4))
    is_slip = slips(0.6 if b > 4 else 0.2)  # the slip: the divisor is not turned over
    top, bottom = (c, d) if is_slip else (d, c)
    text = rf"Compute ${over(a, b)}\div{over(c, d)}$."
    steps = [f"{a}*{top}={a * top}", f"{b}*{bottom}={b * bottom}"]
    return (a, b, c, d), text, steps, (a * top, b * bottom)


def simplify_root(rng: random.Random, slips: Slips) -> Drawn:
    a, k, m = rng.randint(2, 9), rng.randint(2, 9), rng.choice((2, 3, 5, 6, 7))
    out = k * k if slips(0.6 if k < 4 else 0.2) else k  # the slip: the square itself comes out
    steps = [f"{root(1, k * k * m)}={root(out, m)}", f"{a}*{out}={a * out}"]
    return (a, k, m), f"Simplify ${root(a, k * k * m)}$.", steps, root(a * out, m)


def solve_linear(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c = rng.randint(2, 9), non_zero(rng, 15), rng.randint(1, 30)
    moved = b if slips(0.6 if b < 0 else 0.2) else -b  # the slip: the sign is not changed
    text = f"Solve for $x$: ${linear(a, b)}={c}$."
    return (a, b, c), text, [f"{c}{signed(moved)}={c + moved}"], (c + moved, a)


def add_fractions(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = rng.randint(1, 9), rng.randint(2, 9), rng.randint(1, 9), rng.randint(2, 9)
    text = f"Compute ${over(a, b)}+{over(c, d)}$."
    if slips(0.6 if b > 5 else 0.2):  # the slip: tops and bottoms are added
        steps = [f"{a}+{c}={a + c}", f"{b}+{d}={b + d}"]
        return (a, b, c, d), text, steps, (a + c, b + d)
    top, bottom = a * d + c * b, b * d
    steps = [f"{a}*{d}={a * d}", f"{c}*{b}={c * b}", f"{a * d}+{c * b}={top}", f"{b}*{d}={bottom}"]
    return (a, b, c, d), text, steps, (top, bottom)


def expand_simple(rng: random.Random, slips: Slips) -> Drawn:
    a, b = non_zero(rng, 12), non_zero(rng, 12)
    is_slip = slips(0.5 if a * b < 0 else 0.1)  # the slip: the sign of the product
    product = -a * b if is_slip else a * b
    text = f"Expand $({linear(1, a)})({linear(1, b)})$."
    steps = [f"{a}{signed(b)}={a + b}", f"{a}*{b}={product}"]
    return (a, b), text, steps, quadratic(1, a + b, product)


def solve_both_sides(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = rng.randint(4, 9), non_zero(rng, 12), rng.randint(2, 3), rng.randint(1, 20)
    moved = b if slips(0.6 if b < 0 else 0.2) else -b  # the slip: the sign is not changed
    text = f"Solve for $x$: ${linear(a, b)}={linear(c, d)}$."
    steps = [f"{a}-{c}={a - c}", f"{d}{signed(moved)}={d + moved}"]
    return (a, b, c, d), text, steps, (d + moved, a - c)


def add_roots(rng: random.Random, slips: Slips) -> Drawn:
    j, k, m = rng.randint(2, 9), rng.randint(2, 9), rng.choice((2, 3, 5, 6, 7))
    one, two = j * j * m, k * k * m
    text = f"Simplify ${root(1, one)}+{root(1, two)}$."
    if slips(0.6 if k > 6 else 0.2):  # the slip: what stands under the roots is added
        return (j, k, m), text, [f"{one}+{two}={one + two}"], root(1, one + two)
    steps = [f"{root(1, one)}={root(j, m)}", f"{root(1, two)}={root(k, m)}", f"{j}+{k}={j + k}"]
    return (j, k, m), text, steps, root(j + k, m)


def sum_and_difference(rng: random.Random, slips: Slips) -> Drawn:
    x, y = rng.randint(-9, 15), rng.randint(-9, 15)
    found = -y if slips(0.6 if y < 0 else 0.15) else y  # the slip: the sign of y
    text = f"Solve for $(x,y)$: $x+y={x + y}$, $x-y={x - y}$."
    steps = [f"2x={x + y}{signed(x - y)}={2 * x}", f"x={x}", f"y={x + y}{signed(-x)}={found}"]
    return (x, y), text, steps, f"({x},{found})"


def solve_with_brackets(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = rng.randint(4, 9), non_zero(rng, 9), rng.randint(2, 3), rng.randint(1, 20)
    inner = b if slips(0.6 if b < 0 else 0.2) else a * b  # the slip: only the first is multiplied
    text = f"Solve for $x$: ${a}({linear(1, b)})={linear(c, d)}$."
    steps = [f"{a}*{b}={inner}", f"{a}-{c}={a - c}", f"{d}{signed(-inner)}={d - inner}"]
    return (a, b, c, d), text, steps, (d - inner, a - c)


def expand_general(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = rng.randint(2, 6), non_zero(rng, 9), rng.randint(1, 6), non_zero(rng, 9)
    is_slip = slips(0.5 if b * d < 0 else 0.1)  # the slip: the sign of the product
    last = -b * d if is_slip else b * d
    middle = a * d + b * c
    text = f"Expand $({linear(a, b)})({linear(c, d)})$."
    steps = [
        f"{a}*{c}={a * c}",
        f"{a}*{d}={a * d}",
        f"{b}*{c}={b * c}",
        f"{a * d}{signed(b * c)}={middle}",
        f"{b}*{d}={last}",
    ]
    return (a, b, c, d), text, steps, quadratic(a * c, middle, last)


def solve_pair(rng: random.Random, slips: Slips) -> Drawn:
    a, x, y = rng.randint(2, 5), rng.randint(1, 12), rng.randint(-9, 12)
    s, t = x + y, a * x - y
    found = -y if slips(0.6 if y < 0 else 0.15) else y  # the slip: the sign of y
    text = f"Solve for $(x,y)$: $x+y={s}$, ${a}x-y={t}$."
    steps = [
        f"{a}+1={a + 1}",
        f"{s}{signed(t)}={s + t}",
        f"x={s + t}/{a + 1}={x}",
        f"y={s}-{x}={found}",
    ]
    return (a, x, y), text, steps, f"({x},{found})"


# level -> (family, MATH's subject); a family that is named twice is drawn twice as often
FAMILIES = {
    1: [
        (move_constant, "Algebra"),
        (multiply_fractions, "Prealgebra"),
        (expand_one, "Algebra"),
    ],
    2: [
        (divide_by_factor, "Algebra"),
        (divide_fractions, "Prealgebra"),
        (divide_fractions, "Prealgebra"),
        (simplify_root, "Algebra"),
    ],
    3: [
        (solve_linear, "Algebra"),
        (solve_linear, "Algebra"),
        (add_fractions, "Prealgebra"),
        (add_fractions, "Prealgebra"),
        (expand_simple, "Intermediate Algebra"),
    ],
    4: [
        (solve_both_sides, "Algebra"),
        (solve_both_sides, "Algebra"),
        (add_roots, "Algebra"),
        (sum_and_difference, "Algebra"),
    ],
    5: [
        (solve_with_brackets, "Algebra"),
        (expand_general, "Intermediate Algebra"),
        (solve_pair, "Algebra"),
    ],
}


# --- the committed sets ---------------------------------------------------------------------------


def lowest_terms(p: int, q: int) -> str:
    """p/q reduced: a whole number, or a fraction in LaTeX."""
    value = Fraction(p, q)
    return str(value) if value.denominator == 1 else over(value.numerator, value.denominator)


def make(problem_set: str) -> tuple[list[dict], list[dict]]:
    """(train rows, test rows) of "gsm" or "math".

    Keys and texts are distinct, the levels have equal shares, and no solution has a slip.
    """
    rng = random.Random(f"{SEED} {problem_set}")
    rows: list[dict] = []
    seen: set = set()
    while len(rows) < TRAIN + TEST:
        problem = draw(problem_set, len(rows) % 5 + 1, rng)
        if problem.key in seen or problem.text in seen:
            continue
        seen |= {problem.key, problem.text}
        if not isinstance(problem.answer, str):
            problem = problem._replace(answer=lowest_terms(*problem.answer))
        rows.append(to_row(problem, problem_set, write(problem, problem_set, rng)))
    rng.shuffle(rows)
    return rows[:TRAIN], rows[TRAIN:]


def to_row(problem: Problem, problem_set: str, solution: str) -> dict:
    """The row of a problem, with the columns of GSM8K or MATH."""
    if problem_set == "gsm":
        return {
            "question": problem.text,
            "answer": solution,
            "level": problem.level,
            "key": problem.key,
        }
    return {
        "problem": problem.text,
        "level": f"Level {problem.level}",
        "type": problem.type,
        "solution": solution,
        "key": problem.key,
    }


def reserved_keys() -> set[tuple]:
    """The keys of the committed train and test sets, which pretraining must skip."""
    keys = set()
    for name in FORM:
        for split in ("train", "test"):
            text = (HERE / f"{name}_{split}.jsonl").read_text()
            keys |= {tuple(json.loads(line)["key"]) for line in text.splitlines()}
    return keys


def main() -> None:
    for name in FORM:
        for split, rows in zip(("train", "test"), make(name), strict=True):
            path = HERE / f"{name}_{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
