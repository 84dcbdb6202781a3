"""The verifier: a table of cases that reads as its specification, extraction, real data, hostile
input. What is about the equality of two answers alone is in test_math_equality.py."""

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.math_equality import compare, normalize, read
from reward import extract_answer, is_correct, judge

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = Path(os.environ.get("RFT_DATA") or ROOT / ".." / "shared" / "data")
TABLE = HERE / "verifier_cases.jsonl"
CASES = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
LIMIT = 0.050  # seconds for one verdict on any input


def boxed(answer):
    return "\\boxed{" + answer + "}"


def completion_of(case):
    r"""A case gives a whole completion, or an answer that belongs into a \boxed{}."""
    return case["completion"] if "completion" in case else boxed(case["answer"])


def rows(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent; RFT_DATA names the folder of the real data")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def math_golds():
    return [row["answer"] for row in rows("math_train_answers.jsonl.gz") if row["answer"].strip()]


def best_time(call, *arguments):
    """The quickest of three calls: the machine is shared, the bound is on our work."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call(*arguments)
        times.append(time.perf_counter() - start)
        read.cache_clear()
    return min(times)


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shows", dict.fromkeys(case["shows"] for case in CASES))
def test_cases(shows):
    wrong = []
    for case in CASES:
        if case["shows"] == shows:
            verdict = judge(completion_of(case), case["gold"], case.get("form"))
            if verdict.correct is not case["right"]:
                wrong.append((completion_of(case), case["gold"], verdict.why))
    assert wrong == []


def test_table_is_large_and_balanced():
    assert len(CASES) >= 400
    assert 0.4 <= sum(case["right"] for case in CASES) / len(CASES) <= 0.5
    different = {(completion_of(case), case["gold"], case.get("form")) for case in CASES}
    assert len(different) == len(CASES)


def test_verdicts_are_symmetric_on_answers_of_one_kind():
    for case in CASES:
        if "answer" in case and case["gold"].strip():
            there = judge(boxed(case["answer"]), case["gold"])
            back = judge(boxed(case["gold"]), case["answer"])
            if there.extracted and back.extracted:
                assert there.correct == back.correct, case


# --- the verdict ----------------------------------------------------------------------------------


def test_verdict_holds_the_steps():
    verdict = judge(r"so \boxed{ 0.50 }", r"\frac12")
    assert verdict == (True, "equal", "0.50", "0.50", r"\frac{1}{2}")
    assert judge("42", "42") == (False, "the completion offers no answer", None, None, None)
    digits = "7" * 4001
    too_long = "too long: compared as it stands"
    assert judge("#### 7", digits) == (False, too_long, "7", None, None)
    assert judge(f"#### {digits}", f" {digits} ") == (True, too_long, digits, None, None)


def test_verdict_is_the_comparison_of_the_normal_forms():
    for case in CASES:
        verdict = judge(completion_of(case), case["gold"], case.get("form"))
        if verdict.extracted is not None:
            answer, gold = normalize(verdict.extracted), normalize(case["gold"])
            assert verdict[:2] == compare(answer, gold), case
            assert verdict[3:] == (answer, gold), case


# --- extraction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("completion, form, answer", [
    (r"so \boxed{42}.", None, "42"),
    (r"so \boxed{ \frac{1}{2} }", "boxed", r"\frac{1}{2}"),
    (r"\boxed{41} \boxed{42}", None, "42"),
    (r"\boxed{42}, as asked in \boxed{}", None, "42"),
    (r"\boxed{\boxed{42}}", None, r"\boxed{42}"),
    (r"\boxed{42", None, None),
    ("#### 1,000", None, "1,000"),
    ("#### 42\nmore", "####", "42"),
    ("#### 42", "boxed", None),
    (r"\boxed{42}", "####", None),
    ("#### 1\n" + r"\boxed{2}", None, "2"),
    (r"\boxed{2}" + "\n#### 1", None, "1"),
    ("", None, None), ("####", None, None), ("42", None, None),
])  # fmt: skip
def test_extraction(completion, form, answer):
    assert extract_answer(completion, form) == answer


@pytest.mark.parametrize("form", ["box", "", "###", "BOXED", 0, "math"])
def test_unknown_form_is_refused(form):
    with pytest.raises(ValueError, match="form must be"):
        is_correct(r"\boxed{1}", "1", form)
    with pytest.raises(ValueError, match="form must be"):
        extract_answer(r"\boxed{1}", form)


# --- properties, by seed --------------------------------------------------------------------------


def test_number_changed_by_one_is_rejected():
    rng = random.Random(1)
    for _ in range(700):
        n = rng.randint(-(10 ** rng.randint(0, 30)), 10 ** rng.randint(0, 30))
        for other in (n + 1, n - 1, n + 10 ** rng.randint(0, 30)):
            assert not is_correct(boxed(str(other)), str(n)), (other, n)
            assert not is_correct(f"#### {other:,}", f"{n:,}", "####"), (other, n)
        assert is_correct(boxed(f"{n:,}"), str(n))
        assert is_correct(f"#### ${n}.00", str(n), "####")


def test_each_changed_number_inside_an_expression_is_rejected():
    rng = random.Random(2)
    shapes = [
        "{}x+{}", "\\frac{{{}}}{{{}}}", "({},{})", "[{},{})", "{}\\sqrt{{{}}}", "{}+{}i",
        "x^{{{}}}-{}", "{}:{}", "\\{{{},{}\\}}", "{} < x \\le {}", "y={}x+{}",
        "\\begin{{pmatrix}} {} \\\\ {} \\end{{pmatrix}}",
    ]  # fmt: skip
    primes = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
    for _ in range(300):
        shape, (a, b, c) = rng.choice(shapes), rng.sample(primes, 3)
        gold, swapped = shape.format(a, b), shape.format(b, a)
        is_set = "\\{" in gold
        assert is_correct(boxed(gold), gold)
        for other in (shape.format(c, b), shape.format(a, c), swapped):
            if not (is_set and other == swapped):
                assert not is_correct(boxed(other), gold), (other, gold)


def in_braces(text):
    """Braces change nothing, except around a list, an equation or words."""
    return text if "," in text or "\\text" in text or "=" in text else "{" + text + "}"


REWRITES = {
    "spaces": lambda s: s.replace("+", " + ").replace(",", ", ").replace("=", " = "),
    "thin spaces": lambda s: s.replace("+", "\\,+\\;").replace("=", "\\ =\\!"),
    "dfrac": lambda s: s.replace("\\frac", "\\dfrac"),
    "tfrac": lambda s: s.replace("\\frac", "\\tfrac"),
    "left right": lambda s: s.replace("(", "\\left(").replace(")", "\\right)"),
    "big brackets": lambda s: s.replace("[", "\\bigl[").replace("]", "\\bigr]"),
    "dollars around": lambda s: f"${s}$",
    "brackets around": lambda s: f"\\[ {s} \\]",
    "final period": lambda s: s + ".",
    "bold": lambda s: f"\\mathbf{{{s}}}",
    "bmatrix": lambda s: s.replace("pmatrix", "bmatrix"),
    "display style": lambda s: "\\displaystyle " + s,
    "braces around": in_braces,
}


@pytest.mark.parametrize("name", REWRITES)
def test_rewrites_that_a_teacher_ignores(name):
    golds = [case["gold"] for case in CASES if "answer" in case and case["right"]]
    for gold in dict.fromkeys(golds):
        is_readable = read(normalize(gold)).problem is None
        if is_readable and "$" not in gold and "\\sqrt[" not in gold:
            rewritten = REWRITES[name](gold)
            verdict = judge(boxed(rewritten), gold)
            assert verdict.correct, (rewritten, gold, verdict.why)


# --- hostile input --------------------------------------------------------------------------------


def hostile():
    """(name, completion) pairs that are slow or fatal for a careless verifier."""
    big = 200_000
    yield "text", "x" * big
    yield "digits", "7" * big
    yield "boxed digits", boxed("7" * big)
    units = [
        "{", "}", "\\boxed{", "\\boxed{}", "\\boxed ", "\\fbox", "#### ", "####", "#", "####\n",
        "$", "\\", "\\\\", "\n", " ", "(", "\\frac", "\\frac{", "^", "1,", ",", "\\text{",
        "\\left", "|", "\\,", "a b ", "=", "1A", "\\pm ", "\u0661", "\ud800", "1 ", "\\$",
        "\\begin{array}{",
    ]  # fmt: skip
    for unit in units:
        yield f"many {unit!r}", unit * (big // len(unit))
        yield f"box after many {unit!r}", unit * (big // len(unit)) + "\\boxed{1}"
        for size in (590, 3900):
            yield f"{size} of {unit!r} in a box", boxed(unit * (size // len(unit)))
            yield f"{size} of {unit!r} after a mark", "#### 1" + unit * (size // len(unit))

    towers = [
        "9^{9^{9^{9^{9}}}}", "9**9**9**9", "10^{10^{10}}", "2^{100000}", "(2^{5000})^{5000}",
        "100000!", "((9!)!)!", "\\binom{100000}{50000}", "2^{2^{2^{2^{2^{2}}}}}",
        "\\sqrt[60]{2}^{49999}", "e^{e^{e^{e^{e}}}}", "0^0", "\\pi^{\\pi^{\\pi^{\\pi}}}",
        "0.0000001^{-9999999}", "\\sin(10^{300})", "\\ln(10^{-300}\\pi)", "0^{-1}", "(x+1)^{50000}",
        "x^{x^{x^{x}}}", "1/(1/(1/(0)))", "i^{i^{i}}", "(-8)^{1/3}", "(-1)^{\\pi}", "1e999999999",
        "\\sqrt[\\begin{array}{c}2\\end{array}]{2}", "\\sqrt{-1}^{\\sqrt{-1}}",
        "\\sqrt{(x-y)^2x^902}", "\\sec \\text{words}", "10^{30}\\pi+2^{1/3}",
        "10^{30}\\pi+\\sqrt[3]{x}", "10^{30}+\\sqrt2+e^x",
    ]  # fmt: skip
    for tower in towers:
        yield tower, boxed(tower)
        yield f"sum of {tower}", boxed("+".join([tower] * 20)[:590])

    brackets = [
        ("(", ")"), ("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("{", "}"), ("[", "]"), ("\\{", "\\}"),
        ("2^{", "}"), ("\\sin(", ")"), ("-(", ")"), ("|", "|"),
    ]  # fmt: skip
    for opening, closing in brackets:
        for depth in (20, 30, 5000):
            yield f"{depth} deep {opening}", boxed(opening * depth + "x" + closing * depth)

    terms = [
        "\\sin~x+", "\\sqrt{x}+", "x^{49999}+", "e^x+", "\\ln~x+", "\\tan(x^2)+",
        "\\sqrt[59]{x+\\pi}+", "500!+", "2^{400}\\pi+",
    ]  # fmt: skip
    for term in terms:
        yield f"long sum of {term}", boxed(term * (590 // len(term)) + "1")
    yield "long list", boxed(",".join(f"x^{{{n}}}+\\sqrt{{{n}}}" for n in range(60)))
    matrix = "\\begin{pmatrix}" + "\\\\".join(["\\sqrt2&\\pi"] * 80) + "\\end{pmatrix}"
    yield "long matrix", boxed(matrix)
    yield "many signs", boxed("\\pm 1" * 4 + ",\\pm 1\\pm 2\\pm 3\\pm 4" * 40)

    rng = random.Random(3)
    pieces = [
        "\\frac", "\\sqrt", "{", "}", "(", ")", "[", "]", "^", "_", "1", "23", "x", "\\pi", "=",
        "<", ",", "\\pm", "|", "!", "\\text", "\\cup", "\\begin{pmatrix}", "\\end{pmatrix}", "&",
        "\\\\", "\\sin", "\\infty", ":", "%", "^\\circ", " or ", "cm", "\\boxed", "####", ".5", "e",
        "i",
    ]  # fmt: skip
    for n in range(600):
        yield f"random pieces {n}", boxed("".join(rng.choices(pieces, k=rng.randint(1, 40))))
    for n in range(300):
        yield f"random bytes {n}", boxed(rng.randbytes(rng.randint(1, 300)).decode("latin-1"))


def test_nothing_hostile_raises_prints_or_takes_long(capfd):
    gold_texts = ["42", "x^2+\\sqrt{x}", "\\sin x+\\pi", "1,2", "\\{1,2\\}", "y=2x+1"]
    slow = []
    for n, (name, text) in enumerate(hostile()):
        gold = gold_texts[n % len(gold_texts)]
        for completion, reference in ((text, gold), (boxed(gold), text), (text, text[7:-1] + " ")):
            start = time.perf_counter()
            assert is_correct(completion, reference) in (True, False)
            if time.perf_counter() - start > LIMIT / 2:
                slow.append((name, completion, reference))
    read.cache_clear()
    assert [name for name, text, gold in slow if best_time(is_correct, text, gold) > LIMIT] == []
    assert capfd.readouterr() == ("", "")


def test_two_hostile_answers_against_each_other_are_quick():
    texts = [text for _, text in hostile() if 200 < len(text) < 700][:400]
    for one, other in itertools.pairwise(texts):
        reference = extract_answer(other) or "1"
        start = time.perf_counter()
        is_correct(one, reference)
        if time.perf_counter() - start > LIMIT:
            assert best_time(is_correct, one, reference) < LIMIT, (one, reference)


def test_deep_in_the_stack():
    def at_depth(n):
        return at_depth(n - 1) if n else is_correct(boxed("((((((1+1))))))"), "2")

    for depth in (0, 500, 700, 800, 850, 880, 900, 910, 920, 930):
        assert at_depth(depth) in (True, False)


@pytest.mark.parametrize("code", [
    "__import__('pathlib').Path('hacked').touch()",
    "open('hacked','w')", "exec(\"open('hacked','w')\")",
    "().__class__.__base__.__subclasses__()", "x.__class__",
    "lambda: open('hacked','w')", "[open('hacked','w') for _ in (1,)]",
])  # fmt: skip
def test_python_in_a_completion_is_never_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for gold in ("1", code, "0"):
        is_correct(boxed(code), gold)
        is_correct(f"#### {code}", gold)
        is_correct(boxed("1"), code)
    assert list(tmp_path.iterdir()) == []


def test_eight_threads_agree_with_one():
    work = [(completion_of(case), case["gold"], case.get("form")) for case in CASES]
    alone = [is_correct(*arguments) for arguments in work]
    read.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda arguments: is_correct(*arguments), work)) == alone


def test_hash_seed_does_not_matter():
    program = """
import json, sys
import reward
for case in map(json.loads, open(sys.argv[1], encoding="utf-8")):
    completion = case["completion"] if "completion" in case else "\\\\boxed{" + case["answer"] + "}"
    print(reward.is_correct(completion, case["gold"], case.get("form")))
"""
    outputs = set()
    for seed in ("0", "1"):
        command = [sys.executable, "-c", program, str(TABLE)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        outputs.add(subprocess.check_output(command, cwd=ROOT, env=environment, text=True))
    assert outputs == {"".join(f"{case['right']}\n" for case in CASES)}


# --- the script -----------------------------------------------------------------------------------


def run_script(*arguments):
    command = [sys.executable, str(ROOT / "reward.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_script_shows_the_layers():
    result = run_script(r"so \boxed{0.5}", r"\frac12")
    assert result.returncode == 0 and not result.stderr
    assert "extracted" in result.stdout and "right" in result.stdout and "(number)" in result.stdout
    assert "wrong" in run_script(r"so \boxed{0.4}", r"\frac12").stdout
    assert "nothing" in run_script("no box", "-5").stdout


@pytest.mark.parametrize("arguments", [[], ["one"], ["a", "b", "c"], ["a", "b", "boxed", "d"]])
def test_script_on_bad_usage(arguments):
    result = run_script(*arguments)
    assert result.returncode != 0
    assert len(result.stderr.strip().splitlines()) == 1 and "Traceback" not in result.stderr


# --- real data ------------------------------------------------------------------------------------


def test_every_math_gold_equals_itself():
    golds = math_golds()
    assert len(golds) == 7498
    wrong = [gold for gold in golds if not is_correct(f"Thus ${boxed(gold)}$.", gold, "boxed")]
    assert wrong == []


def test_every_gsm8k_solution_is_right_against_its_gold_and_no_other_number():
    rng = random.Random(4)
    answers = []
    for split in ("train", "test"):
        answers += [row["answer"] for row in rows(f"gsm8k_{split}.jsonl.gz")]
    assert len(answers) == 8792
    golds = [answer.split("#### ")[1] for answer in answers]
    for answer, gold in zip(answers, golds, strict=True):
        assert is_correct(answer, gold, "####")
        value = int(gold.replace(",", ""))
        other = rng.choice((str(value + 1), str(value * 100 or 100), *rng.choices(golds, k=2)))
        if int(other.replace(",", "")) != value:
            assert not is_correct(answer, other, "####")


@pytest.mark.slow
def test_different_math_golds_differ():
    """All pairs would be 4 million: 40 random partners each."""
    rng = random.Random(5)
    golds = sorted(set(math_golds()))
    accepted = []
    for gold in golds:
        for other in rng.sample(golds, 40):
            if other != gold and is_correct(boxed(other), gold):
                accepted.append((other, gold))
    print(f"{len(accepted)} pairs of different texts are equal answers, such as {accepted[:5]}")
    assert len(accepted) < 60


@pytest.mark.slow
def test_report_of_the_cases_on_which_math_verify_differs(capsys):
    math_verify = pytest.importorskip("math_verify", reason="math-verify is not installed")
    differ = []
    for case in CASES:
        gold = math_verify.parse(f"${case['gold']}$")
        answer = math_verify.parse(completion_of(case))
        ours = is_correct(completion_of(case), case["gold"], case.get("form"))
        if bool(math_verify.verify(gold, answer)) != ours:
            differ.append((answer, case["gold"], ours))
    with capsys.disabled():
        print(f"\nMath-Verify differs on {len(differ)} of {len(CASES)} cases: {differ[::40]}")
