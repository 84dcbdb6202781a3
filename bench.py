"""Benchmarks: one sub-command a section.

    python bench.py verifier     # time and accuracy of reward.py, beside Math-Verify where that is installed
"""

import gzip
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import data
import reward

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("RFT_DATA") or HERE / ".." / "shared" / "data")


def verifier(flags):
    """Each MATH gold as the answer to itself and to another row, and the labelled cases."""
    path = DATA / "math_train_answers.jsonl.gz"
    if not path.exists():
        sys.exit(f"bench.py: {path} is absent; set RFT_DATA to the folder that holds it")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        golds = [row["answer"] for row in map(json.loads, lines) if row["answer"].strip()]
    labelled = []
    for case in map(json.loads, (HERE / "tests" / "verifier_cases.jsonl").read_text("utf-8").splitlines()):
        completion = case["completion"] if "completion" in case else boxed(case["answer"])
        labelled.append((completion, case["gold"], case.get("form"), case["right"]))

    verdicts = {"reward.py": (reward.is_correct, golds)}
    try:
        verdicts["Math-Verify"] = (math_verify_verdict(), golds[:: max(1, len(golds) // flags.rows)])
    except ImportError:
        print("math-verify is not installed: reward.py alone\n")
    right = sum(case[3] for case in labelled)
    print(f"{len(labelled)} labelled cases, {right} right and {len(labelled) - right} wrong\n")
    heads = f"{'median µs':>10} {'p99 µs':>10} {'worst µs':>10}   false accepts / rejects"
    print(f"{'':12} {'MATH golds':16} {'pairs':>6} {heads}")
    for name, (verdict, some) in verdicts.items():
        for label, pairs in (
            ("as they stand", [(boxed(gold), gold) for gold in some]),
            ("rewritten", [(boxed(rewritten(gold)), gold) for gold in some]),
            ("of another row", [(boxed(some[k - 1]), gold) for k, gold in enumerate(some)]),
        ):
            micros = sorted(timed(verdict, pairs))
            numbers = [median(micros), micros[len(micros) * 99 // 100], micros[-1]]
            accuracy = ""
            if label == "as they stand":
                wrong = [case for case in labelled if verdict(*case[:3]) != case[3]]
                accepts = sum(not case[3] for case in wrong)
                accuracy = f"{accepts} / {len(wrong) - accepts}"
            print(f"{name:12} {label:16} {len(pairs):6}", *(f"{n:10.0f}" for n in numbers), " ", accuracy)
    print("\nreward.py on hostile completions, ms (the best of three):")
    for name, text in hostile().items():
        print(f"{min(timed(reward.is_correct, [(text, 'x+1')] * 3)) / 1000:8.1f}  {name}")


def boxed(answer):
    return "so the answer is $\\boxed{" + answer + "}$."


def rewritten(gold):
    """The same answer in another hand, so that equality of texts is not enough."""
    return gold if "=" in gold else "{" + gold.replace("\\frac", "\\dfrac").replace("+", " + ") + "}"


def timed(verdict, pairs):
    """Microseconds of each verdict, nothing remembered from the one before."""
    times = []
    for completion, gold in pairs:
        reward.read.cache_clear()
        start = time.perf_counter()
        verdict(completion, gold, None)
        times.append((time.perf_counter() - start) * 1e6)
    return times


def math_verify_verdict():
    """Math-Verify with its defaults; the gold as mathematics, as its documentation has it."""
    import logging

    import math_verify

    logging.disable(logging.CRITICAL)  # it reports each of its timeouts

    def verdict(completion, gold, form):
        return bool(math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(completion)))

    return verdict


def hostile():
    """Completions that are slow for a careless verifier."""
    big = 200_000
    return {
        "200 KB of text": "x" * big,
        "200 KB of {": "{" * big,
        "200 KB of \\boxed{": "\\boxed{" * (big // 7),
        "200 KB of ####": "#### " * (big // 5),
        "200 KB of digits in a box": boxed("7" * big),
        "3,900 characters of commands": boxed("\\," * 1950),
        "a tower of exponents": boxed("9^{9^{9^{9^{9}}}}"),
        "5,000 brackets deep": boxed("(" * 5000 + "1" + ")" * 5000),
        "55 powers x^{49999}": boxed("+".join(["x^{49999}"] * 55)),
        "80 sines": boxed("+".join(["\\sin x"] * 80)),
        "33 roots": boxed("+".join(["\\sqrt[59]{x+\\pi}"] * 33)),
    }


SECTIONS = {"verifier": verifier}  # name of the section: its function, which takes the flags


def main():
    parser = data.Parser(description=__doc__.splitlines()[0])
    sections = parser.add_subparsers(dest="section", required=True, metavar="section")
    flags = sections.add_parser("verifier", help="time and accuracy of reward.py, beside Math-Verify")
    flags.add_argument("--rows", type=int, default=500, help="MATH golds for Math-Verify, which is slow")
    chosen = parser.parse_args()
    SECTIONS[chosen.section](chosen)


if __name__ == "__main__":
    main()
