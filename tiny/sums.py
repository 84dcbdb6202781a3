"""tiny-sums: word problems of one or two sums and differences, for a small real model.

A model of a hundred million parameters can add. What it lacks is the asked format, and the habit to
stop after the answer. So it is right sometimes, and a few hundred rewards teach it the rest
(results/smollm2).

Level 1 is one sum of one-digit numbers, level 5 two steps with two-digit numbers. There are only 45
pairs of one-digit numbers, so several problems of a level share their numbers, with other names and
things. No test problem has the numbers of a train problem, in whatever order.
"""

import random

PEOPLE = [
    ("Tom", "He"), ("Ben", "He"), ("Sam", "He"), ("Leo", "He"),
    ("Ana", "She"), ("Mia", "She"), ("Eva", "She"), ("Zoe", "She"),
]  # fmt: skip
ITEMS = ["apples", "books", "cards", "eggs", "pens", "stamps"]
SENTENCES = {"+": ["{who} buys {b} more."], "-": ["{who} gives away {b}.", "{who} sells {b}."]}
LEVELS = {  # level -> (range of the first number, range of the others, operations to choose from)
    1: ((1, 9), (1, 9), ["+"]),
    2: ((10, 19), (1, 9), ["+", "-"]),
    3: ((1, 9), (1, 9), ["++", "+-", "-+"]),
    4: ((10, 89), (10, 89), ["+", "-"]),
    5: ((10, 89), (10, 89), ["++", "+-", "-+"]),
}


def word_problem(rng: random.Random, level: int) -> tuple[tuple[int, ...], str, str]:
    """(the sorted numbers, the question, its solution) of a random problem.

    Every value on the way is from 1 to 99.
    """
    first, others, choices = LEVELS[level]
    operations = rng.choice(choices)
    values: list[int] = []
    while not values or min(values) < 1 or max(values) > 99:
        numbers = [rng.randint(*first)] + [rng.randint(*others) for _ in operations]
        values = numbers[:1]
        for operation, b in zip(operations, numbers[1:], strict=True):
            values.append(values[-1] + b if operation == "+" else values[-1] - b)
    name, pronoun = rng.choice(PEOPLE)
    item = rng.choice(ITEMS)
    text = [f"{name} has {numbers[0]} {item}."]
    solution = []
    for i, operation in enumerate(operations):
        b = numbers[i + 1]
        text.append(rng.choice(SENTENCES[operation]).format(who=pronoun, b=b))
        solution.append(f"{values[i]}{operation}{b}={values[i + 1]}")
    text.append(f"How many {item} does {name} have now? Write the number.")
    solution.append(f"#### {values[-1]}")
    return tuple(sorted(numbers)), " ".join(text), "\n".join(solution)


def is_test(numbers: tuple[int, ...]) -> bool:
    """Which set a problem with these numbers, sorted, belongs to: chance decides, one in three."""
    return random.Random(f"tiny-sums {numbers}").random() < 1 / 3


def make(train: int, test: int, seed: int) -> tuple[list[dict], list[dict]]:
    """(train rows, test rows), with equal shares of the levels; no two questions are the same."""
    rng = random.Random(f"{seed} sums")
    sets: dict[bool, list[dict]] = {False: [], True: []}
    sizes = {False: train, True: test}
    seen = set()
    for of_test, rows in sets.items():
        while len(rows) < sizes[of_test]:
            level = len(rows) % 5 + 1
            numbers, question, solution = word_problem(rng, level)
            if is_test(numbers) != of_test or question in seen:
                continue
            seen.add(question)
            row = {"question": question, "answer": solution, "level": level}
            rows.append(row | {"key": ["sums", *numbers]})
        rng.shuffle(rows)
    return sets[False], sets[True]
