r"""The tiny problem sets: tiny-gsm (word problems) and tiny-math (algebra answered in LaTeX).

    python -m tiny.problems   # write tiny/{gsm,math,sums}_{train,test}.jsonl again, byte for byte

A third set, tiny-sums, is for a real model (sums.py).

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
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from tiny import sums
from tiny.algebra import FAMILIES, Slips, over

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
    sets = {name: make(name) for name in FORM} | {"sums": sums.make(TRAIN, TEST, SEED)}
    for name, both in sets.items():
        for split, rows in zip(("train", "test"), both, strict=True):
            path = HERE / f"{name}_{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
