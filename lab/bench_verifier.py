"""Time and accuracy of reward.py, beside Math-Verify where it is installed."""

import gzip
import json
import logging
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import reward
from infra import math_equality

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("RFT_DATA") or ROOT.parent / "shared" / "data")
CASES = ROOT / "tests" / "verifier_cases.jsonl"

Judge = Callable[[str, str, str | None], bool]  # completion, gold, form -> right


def verifier(flags: Namespace) -> None:
    """Judge the answers of MATH, the labelled cases and hostile completions; print the figures.

    Each answer is judged as it stands, rewritten, and as the answer to another row.
    """
    golds = read_golds(DATA / "math_train_answers.jsonl.gz")
    cases = [json.loads(line) for line in CASES.read_text("utf-8").splitlines()]
    judges = {"reward.py": (reward.is_correct, golds)}
    try:
        some = golds[:: max(1, len(golds) // flags.rows)]
        judges["Math-Verify"] = (load_math_verify(), some)
    except ImportError:
        print("math-verify is not installed: reward.py alone\n")

    right = sum(case["right"] for case in cases)
    print(f"{len(cases)} labelled cases, {right} right and {len(cases) - right} wrong\n")
    print(
        f"{'':12} {'MATH golds':16} {'pairs':>6} {'median µs':>10} {'p99 µs':>10} "
        f"{'worst µs':>10}   false accepts / rejects"
    )
    for name, (judge, some) in judges.items():
        for label, pairs in pairs_to_judge(some).items():
            times = sorted(verdict_times(judge, pairs))
            figures = [median(times), times[len(times) * 99 // 100], times[-1]]
            errors = count_errors(judge, cases) if label == "as they stand" else ""
            columns = " ".join(f"{figure:10.0f}" for figure in figures)
            print(f"{name:12} {label:16} {len(pairs):6} {columns}   {errors}")

    print("\nreward.py on hostile completions, ms (the best of three):")
    for name, completion in hostile_completions().items():
        best = min(verdict_times(reward.is_correct, [(completion, "x+1")] * 3))
        print(f"{best / 1000:8.1f}  {name}")


def read_golds(path: Path) -> list[str]:
    """The answers of MATH's train set."""
    if not path.exists():
        sys.exit(f"bench.py: {path} is absent; set RFT_DATA to the folder that holds it")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        answers = [json.loads(line)["answer"] for line in file]
    return [answer for answer in answers if answer.strip()]


def pairs_to_judge(golds: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Pairs of a completion and a reference answer."""
    return {
        "as they stand": [(boxed(gold), gold) for gold in golds],
        "rewritten": [(boxed(rewritten(gold)), gold) for gold in golds],
        "of another row": [(boxed(golds[i - 1]), gold) for i, gold in enumerate(golds)],
    }


def boxed(answer: str) -> str:
    return "so the answer is $\\boxed{" + answer + "}$."


def rewritten(gold: str) -> str:
    """The same answer written differently, so that comparing texts is not enough."""
    if "=" in gold:
        return gold
    return "{" + gold.replace("\\frac", "\\dfrac").replace("+", " + ") + "}"


def verdict_times(judge: Judge, pairs: Iterable[tuple[str, str]]) -> list[float]:
    """Microseconds of each verdict; nothing is remembered from the one before."""
    times = []
    for completion, gold in pairs:
        math_equality.read.cache_clear()
        start = time.perf_counter()
        judge(completion, gold, None)
        times.append((time.perf_counter() - start) * 1e6)
    return times


def count_errors(judge: Judge, cases: list[dict]) -> str:
    """Of the labelled cases: "false accepts / false rejects"."""
    accepts = rejects = 0
    for case in cases:
        completion = case["completion"] if "completion" in case else boxed(case["answer"])
        is_right = judge(completion, case["gold"], case.get("form"))
        accepts += is_right and not case["right"]
        rejects += case["right"] and not is_right
    return f"{accepts} / {rejects}"


def load_math_verify() -> Judge:
    """Math-Verify with its defaults; the gold is given as mathematics, as it documents."""
    import math_verify

    logging.disable(logging.CRITICAL)  # it reports each of its timeouts

    def judge(completion: str, gold: str, form: str | None) -> bool:
        reference = math_verify.parse(f"${gold}$")
        return bool(math_verify.verify(reference, math_verify.parse(completion)))

    return judge


def hostile_completions() -> dict[str, str]:
    """Completions that would be slow in a careless verifier."""
    size = 200_000
    return {
        "200 KB of text": "x" * size,
        "200 KB of {": "{" * size,
        "200 KB of \\boxed{": "\\boxed{" * (size // 7),
        "200 KB of ####": "#### " * (size // 5),
        "200 KB of digits in a box": boxed("7" * size),
        "3,900 characters of commands": boxed("\\," * 1950),
        "a tower of exponents": boxed("9^{9^{9^{9^{9}}}}"),
        "5,000 brackets deep": boxed("(" * 5000 + "1" + ")" * 5000),
        "55 powers x^{49999}": boxed("+".join(["x^{49999}"] * 55)),
        "80 sines": boxed("+".join(["\\sin x"] * 80)),
        "33 roots": boxed("+".join(["\\sqrt[59]{x+\\pi}"] * 33)),
    }
