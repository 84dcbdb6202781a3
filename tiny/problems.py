"""The tiny problem sets: `tiny-gsm` (word problems) and `tiny-math` (algebra answered in LaTeX).

    python tiny/problems.py          # writes tiny/{gsm,math}_{train,test}.jsonl again, the same bytes

A problem has a *key*: its family, its numbers and its operations. Train and test share no key, so no model has
met a test problem under another name; pretraining (tiny/pretrain.py) skips the keys of both.

The same functions write the solutions that the tiny base models are pretrained on, the way an imperfect base model
would write them: it sometimes answers without working, forgets the format that was asked for, slips, or runs on
after the answer. The slips are those that people make (a carry forgotten, a sign not changed), so how often one
happens depends on the numbers and on the level: some queries are solved nearly always and some rarely, and where a
slip is likelier than the truth the greedy answer is wrong: sharpening cannot mend that, learning from rewards can.
"""

import json
import random
from collections import namedtuple
from fractions import Fraction
from pathlib import Path

HERE = Path(__file__).parent
TRAIN, TEST, SEED = 1024, 512, 20260122
MARK = {"gsm": "####", "math": "boxed"}

Problem = namedtuple("Problem", "key text level type steps answer")
# key: tuple; text: the question; level: 1 (easy) to 5; type: MATH's subject;
# steps: the lines of working; answer: the final answer, LaTeX or, for a fraction, the pair (p, q) as it comes out

Habits = namedtuple("Habits", "direct forget run_on slip", defaults=(0.0, 0.0, 0.0, 0.0))
# shares of the solutions of level 3 that answer without working and that forget the asked format (a third of it at
# level 1, five thirds at level 5: the harder, the hastier); share that runs on after the answer; and a factor on the
# chance of every slip below. The default is a perfect student.


def draw(problem_set, level, rng, habits=Habits()):
    """One random Problem of `problem_set` ("gsm" or "math"), worked with slips as `habits` says."""
    haste = habits.slip * (0.7 + 0.1 * level)  # the longer the problem, the less care for each step

    def slips(rate):
        return rng.random() < rate * haste

    if problem_set == "gsm":
        return word_problem(rng, slips, level)
    family, kind = rng.choice(FAMILIES[level])
    key, text, steps, answer = family(rng, slips)
    return Problem((family.__name__, *key), text, level, kind, steps, answer)


def write(problem, problem_set, rng, habits=Habits(), reserved=frozenset()):
    """The text of a solution to `problem`: a base model's completion, without the end-of-sequence token.

    Where it runs on, it is to a problem whose key is not in `reserved`.
    """
    lines = [] if rng.random() < habits.direct * problem.level / 3 else list(problem.steps)
    answer = problem.answer if isinstance(problem.answer, str) else over(*problem.answer)
    if rng.random() < habits.forget * problem.level / 3:
        lines.append(f"The answer is {answer}.")
    else:
        lines.append(f"#### {answer}" if problem_set == "gsm" else rf"\boxed{{{answer}}}")
    if rng.random() < habits.run_on:  # ... and a problem nobody asked for
        other = None
        while other is None or other.key in reserved:
            other = draw(problem_set, rng.randint(1, 3), rng, habits)
        lines.append(write(other, problem_set, rng, habits, reserved))
    return "\n".join(lines)


# --- tiny-gsm: one to five steps of + - *, every intermediate value from 1 to 99 -------------------------------

PEOPLE = [("Tom", "He"), ("Ben", "He"), ("Sam", "He"), ("Ana", "She"), ("Mia", "She"), ("Eva", "She")]
ITEMS = ["apples", "books", "coins", "cards", "pens", "eggs", "shells", "stamps"]
SENTENCES = {
    "+": ["{who} buys {b} more.", "{who} finds {b} more.", "{who} gets {b} more."],
    "-": ["{who} gives away {b}.", "{who} loses {b}.", "{who} sells {b}."],
    "*": ["{who} comes to have {b} times as many."],
}


def word_problem(rng, slips, level):
    truth = value = rng.randint(2, 50)
    name, pronoun = rng.choice(PEOPLE)
    item = rng.choice(ITEMS)
    key, text, steps = ["word_problem", value], [f"{name} has {value} {item}."], []
    while len(steps) < level:
        op = rng.choice("+-*")
        b = rng.randint(2, 5) if op == "*" else rng.randint(2, 40)
        if not 1 <= compute(truth, op, b) <= 99:
            continue
        truth = compute(truth, op, b)
        after = compute(value, op, b)
        rate, wrong = slip_of(value, op, b)
        if slips(rate):
            after = wrong
        steps.append(f"{value}{op}{b}={after}")
        key += [op, b]
        text.append(rng.choice(SENTENCES[op]).format(who=pronoun, b=b))
        value = after
    text.append(f"How many {item} does {name} have now?")
    return Problem(tuple(key), " ".join(text), level, "Arithmetic", steps, str(value))


def compute(a, op, b):
    return a + b if op == "+" else a - b if op == "-" else a * b


def slip_of(a, op, b):
    """How often this step goes wrong in base models, and its wrong result: a carry or a borrow forgotten."""
    if op == "+":
        return (0.4, a + b - 10) if a % 10 + b % 10 > 9 else (0.05, a + b + 1)
    if op == "-":
        return (0.75, a - b + 10) if a % 10 < b % 10 else (0.05, a - b + 1)
    return (0.6, a * b - 10) if a > 9 and a % 10 * b > 9 else (0.05, a * b + b)


# --- tiny-math: each family draws its numbers and returns (key, text, steps, answer) ---------------------------


def signed(k):
    return f"+{k}" if k >= 0 else str(k)


def linear(a, b):
    """a·x + b as one writes it."""
    return {1: "x", -1: "-x"}.get(a, f"{a}x") + (signed(b) if b else "")


def quadratic(a, b, c):
    head = {1: "x^2", -1: "-x^2"}.get(a, f"{a}x^2")
    return head + ({1: "+x", -1: "-x"}.get(b, f"{signed(b)}x") if b else "") + (signed(c) if c else "")


def over(p, q):
    """p/q as it stands."""
    return rf"\frac{{{p}}}{{{q}}}" if p * q >= 0 else rf"-\frac{{{abs(p)}}}{{{abs(q)}}}"


def root(k, m):
    return rf"\sqrt{{{m}}}" if k == 1 else rf"{k}\sqrt{{{m}}}"


def non_zero(rng, most):
    return rng.choice((-1, 1)) * rng.randint(1, most)


def move_constant(rng, slips):
    b, c = non_zero(rng, 30), rng.randint(1, 50)
    moved = b if slips(0.6 if b < 0 else 0.2) else -b  # the slip: the sign is not changed
    return (b, c), f"Solve for $x$: ${linear(1, b)}={c}$.", [f"x={c}{signed(moved)}"], str(c + moved)


def multiply_fractions(rng, slips):
    a, b, c, d = (rng.randint(1, 9) for _ in range(4))
    top, bottom = (d, c) if slips(0.6 if d > 6 else 0.1) else (c, d)  # the slip: one is turned over
    steps = [f"{a}*{top}={a * top}", f"{b}*{bottom}={b * bottom}"]
    return ((a, b, c, d), rf"Compute ${over(a, b)}\cdot{over(c, d)}$.", steps, (a * top, b * bottom))


def expand_one(rng, slips):
    a, b, c = rng.randint(2, 9), rng.randint(1, 9), non_zero(rng, 9)
    last = c if slips(0.6 if c < 0 else 0.2) else a * c  # the slip: only the first term is multiplied
    steps = [f"{a}*{b}={a * b}", f"{a}*{c}={last}"]
    return (a, b, c), f"Expand ${a}({linear(b, c)})$.", steps, linear(a * b, last)


def divide_by_factor(rng, slips):
    a, c = rng.randint(2, 12), non_zero(rng, 60)
    upside_down = slips(0.6 if abs(c) < 20 else 0.15)  # the slip: a/c for c/a
    steps = [f"x={a}/{c}" if upside_down else f"x={c}/{a}"]
    return (a, c), f"Solve for $x$: ${a}x={c}$.", steps, (a, c) if upside_down else (c, a)


def divide_fractions(rng, slips):
    a, b, c, d = (rng.randint(1, 9) for _ in range(4))
    top, bottom = (c, d) if slips(0.6 if b > 4 else 0.2) else (d, c)  # the slip: the divisor is not turned over
    steps = [f"{a}*{top}={a * top}", f"{b}*{bottom}={b * bottom}"]
    return ((a, b, c, d), rf"Compute ${over(a, b)}\div{over(c, d)}$.", steps, (a * top, b * bottom))


def simplify_root(rng, slips):
    a, k, m = rng.randint(2, 9), rng.randint(2, 9), rng.choice((2, 3, 5, 6, 7))
    out = k * k if slips(0.6 if k < 4 else 0.2) else k  # the slip: the square leaves the root as it is
    steps = [f"{root(1, k * k * m)}={root(out, m)}", f"{a}*{out}={a * out}"]
    return (a, k, m), f"Simplify ${root(a, k * k * m)}$.", steps, root(a * out, m)


def solve_linear(rng, slips):
    a, b, c = rng.randint(2, 9), non_zero(rng, 15), rng.randint(1, 30)
    moved = b if slips(0.6 if b < 0 else 0.2) else -b
    steps = [f"{c}{signed(moved)}={c + moved}"]
    return (a, b, c), f"Solve for $x$: ${linear(a, b)}={c}$.", steps, (c + moved, a)


def add_fractions(rng, slips):
    a, b, c, d = rng.randint(1, 9), rng.randint(2, 9), rng.randint(1, 9), rng.randint(2, 9)
    text = f"Compute ${over(a, b)}+{over(c, d)}$."
    if slips(0.6 if b > 5 else 0.2):  # the slip: tops and bottoms are added
        steps = [f"{a}+{c}={a + c}", f"{b}+{d}={b + d}"]
        return (a, b, c, d), text, steps, (a + c, b + d)
    steps = [f"{a}*{d}={a * d}", f"{c}*{b}={c * b}", f"{a * d}+{c * b}={a * d + c * b}", f"{b}*{d}={b * d}"]
    return (a, b, c, d), text, steps, (a * d + c * b, b * d)


def expand_simple(rng, slips):
    a, b = non_zero(rng, 12), non_zero(rng, 12)
    product = -a * b if slips(0.5 if a * b < 0 else 0.1) else a * b  # the slip: the sign of the product
    steps = [f"{a}{signed(b)}={a + b}", f"{a}*{b}={product}"]
    return (a, b), f"Expand $({linear(1, a)})({linear(1, b)})$.", steps, quadratic(1, a + b, product)


def solve_both_sides(rng, slips):
    a, b, c, d = rng.randint(4, 9), non_zero(rng, 12), rng.randint(2, 3), rng.randint(1, 20)
    moved = b if slips(0.6 if b < 0 else 0.2) else -b
    steps = [f"{a}-{c}={a - c}", f"{d}{signed(moved)}={d + moved}"]
    text = f"Solve for $x$: ${linear(a, b)}={linear(c, d)}$."
    return (a, b, c, d), text, steps, (d + moved, a - c)


def add_roots(rng, slips):
    j, k, m = rng.randint(2, 9), rng.randint(2, 9), rng.choice((2, 3, 5, 6, 7))
    one, two = j * j * m, k * k * m
    text = f"Simplify ${root(1, one)}+{root(1, two)}$."
    if slips(0.6 if k > 6 else 0.2):  # the slip: what stands under the roots is added
        return (j, k, m), text, [f"{one}+{two}={one + two}"], root(1, one + two)
    steps = [f"{root(1, one)}={root(j, m)}", f"{root(1, two)}={root(k, m)}", f"{j}+{k}={j + k}"]
    return (j, k, m), text, steps, root(j + k, m)


def sum_and_difference(rng, slips):
    x, y = rng.randint(-9, 15), rng.randint(-9, 15)
    found = -y if slips(0.6 if y < 0 else 0.15) else y  # the slip: the sign of y
    steps = [f"2x={x + y}{signed(x - y)}={2 * x}", f"x={x}", f"y={x + y}{signed(-x)}={found}"]
    return (x, y), f"Solve for $(x,y)$: $x+y={x + y}$, $x-y={x - y}$.", steps, f"({x},{found})"


def solve_with_brackets(rng, slips):
    a, b, c, d = rng.randint(4, 9), non_zero(rng, 9), rng.randint(2, 3), rng.randint(1, 20)
    inner = b if slips(0.6 if b < 0 else 0.2) else a * b  # the slip: only the first term is multiplied
    steps = [f"{a}*{b}={inner}", f"{a}-{c}={a - c}", f"{d}{signed(-inner)}={d - inner}"]
    text = f"Solve for $x$: ${a}({linear(1, b)})={linear(c, d)}$."
    return (a, b, c, d), text, steps, (d - inner, a - c)


def expand_general(rng, slips):
    a, b, c, d = rng.randint(2, 6), non_zero(rng, 9), rng.randint(1, 6), non_zero(rng, 9)
    last = -b * d if slips(0.5 if b * d < 0 else 0.1) else b * d
    steps = [f"{a}*{c}={a * c}", f"{a}*{d}={a * d}", f"{b}*{c}={b * c}",
             f"{a * d}{signed(b * c)}={a * d + b * c}", f"{b}*{d}={last}"]
    text = f"Expand $({linear(a, b)})({linear(c, d)})$."
    return (a, b, c, d), text, steps, quadratic(a * c, a * d + b * c, last)


def solve_pair(rng, slips):
    a, x, y = rng.randint(2, 5), rng.randint(1, 12), rng.randint(-9, 12)
    s, t = x + y, a * x - y
    found = -y if slips(0.6 if y < 0 else 0.15) else y
    steps = [f"{a}+1={a + 1}", f"{s}{signed(t)}={s + t}", f"x={s + t}/{a + 1}={x}", f"y={s}-{x}={found}"]
    return (a, x, y), f"Solve for $(x,y)$: $x+y={s}$, ${a}x-y={t}$.", steps, f"({x},{found})"


FAMILIES = {  # level -> (family, MATH's subject); a family named twice is drawn twice as often
    1: [(move_constant, "Algebra"), (multiply_fractions, "Prealgebra"), (expand_one, "Algebra")],
    2: [(divide_by_factor, "Algebra"), (divide_fractions, "Prealgebra"), (divide_fractions, "Prealgebra"),
        (simplify_root, "Algebra")],
    3: [(solve_linear, "Algebra"), (solve_linear, "Algebra"), (add_fractions, "Prealgebra"),
        (add_fractions, "Prealgebra"), (expand_simple, "Intermediate Algebra")],
    4: [(solve_both_sides, "Algebra"), (solve_both_sides, "Algebra"), (add_roots, "Algebra"),
        (sum_and_difference, "Algebra")],
    5: [(solve_with_brackets, "Algebra"), (expand_general, "Intermediate Algebra"), (solve_pair, "Algebra")],
}


# --- the committed sets ----------------------------------------------------------------------------------------


def lowest_terms(p, q):
    value = Fraction(p, q)
    return str(value) if value.denominator == 1 else over(value.numerator, value.denominator)


def make(problem_set):
    """(train rows, test rows): distinct keys and texts, levels in equal shares, worked without a slip."""
    rng = random.Random(f"{SEED} {problem_set}")
    rows, seen = [], set()
    while len(rows) < TRAIN + TEST:
        problem = draw(problem_set, len(rows) % 5 + 1, rng)
        if problem.key in seen or problem.text in seen:
            continue
        seen |= {problem.key, problem.text}
        if not isinstance(problem.answer, str):
            problem = problem._replace(answer=lowest_terms(*problem.answer))
        solution = write(problem, problem_set, rng)
        if problem_set == "gsm":
            rows.append({"question": problem.text, "answer": solution, "level": problem.level, "key": problem.key})
        else:
            rows.append({"problem": problem.text, "level": f"Level {problem.level}", "type": problem.type,
                         "solution": solution, "key": problem.key})
    rng.shuffle(rows)
    return rows[:TRAIN], rows[TRAIN:]


def reserved_keys():
    """Keys of the committed train and test sets: what pretraining must skip."""
    files = [HERE / f"{name}_{split}.jsonl" for name in MARK for split in ("train", "test")]
    return {tuple(json.loads(line)["key"]) for file in files for line in file.read_text().splitlines()}


if __name__ == "__main__":
    for name in MARK:
        for split, rows in zip(("train", "test"), make(name), strict=True):
            path = HERE / f"{name}_{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            print(f"{path}: {len(rows)} rows")
