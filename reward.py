"""The verifier: a completion and a reference answer become a verdict, right or wrong. The reward is made of nothing
else, so whatever is paid here by mistake is what the policy learns.

    python reward.py 'so x is \\boxed{\\frac{6}{8}}' '\\frac{3}{4}'     # what is found, and the verdict

Three steps: *extract* the final answer, *normalize* its spelling, *compare* the values. Numbers are compared exactly
(as fractions); what holds a root, a power or a variable is evaluated at fixed points.

Refused on purpose: an answer in another format than the prompt asked for, an unclosed box, a list of guesses, an
answer equal only after rounding. Standard library only; nothing that a completion holds is ever executed.
"""

import math
import re
import sys
from fractions import Fraction

FORMS = (None, "####", "boxed")


def is_correct(completion: str, gold: str, form: str | None = None) -> bool:
    """Whether the final answer of `completion` equals `gold`.

    form: the format that the prompt asked for, "####" or "boxed": only that one is paid; None takes either.
    """
    answer = extract_answer(completion, form)
    return bool(answer and gold.strip()) and equal(answer, gold)


# --- 1. extraction: the last answer counts, for a list of guesses is no answer ----------------------------------


def extract_answer(completion: str, form: str | None = None) -> str | None:
    """The final answer as written after the last "####" or inside the last \\boxed{}, None where there is none.

    With form None the later of the two wins.
    """
    if form not in FORMS:
        raise ValueError(f"form must be '####', 'boxed' or None, not {form!r}")
    mark = completion.rfind("####") if form != "boxed" else -1
    box = max(completion.rfind("\\boxed{"), completion.rfind("\\fbox{")) if form != "####" else -1
    if max(mark, box) < 0:
        return None
    if box > mark:
        return inside_braces(completion, completion.index("{", box))
    lines = completion[mark + 4:].lstrip(" ").splitlines()
    return (lines[0].strip() if lines else "") or None


def inside_braces(text, start):
    """What stands between the brace at `start` and its partner; None when that is missing or nothing is inside."""
    depth = 0
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[start + 1:end].strip() or None
    return None


# --- 2. normal form: what a teacher would not look at -----------------------------------------------------------

DROPPED = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[,;:! ]|\\\$|[$\s]|\\%|%|\^\{?\\circ\}?")


def normalize(answer):
    """The answer without spacing, currency, percent and degree signs, units, thousands separators and `x=`."""
    text = answer.strip().rstrip(".")
    text = re.sub(r"\\(?:text|mbox|mathrm)\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"(?<=\d)(?:\\!)?(?:,|\{,\})(?:\\!)?(?=\d{3}(?!\d))", "", text) if "(" not in text else text
    text = re.sub(r"^(\$? ?-?[\d.]+)\s+[A-Za-z][A-Za-z ]*$", r"\1", text)  # "42 apples"
    text = DROPPED.sub("", re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text))
    text = re.sub(r"\\frac(\d)(\d)(?!\d)", r"\\frac{\1}{\2}", text)  # \frac12
    text = re.sub(r"^(?:[a-z]|\([a-z](?:,[a-z])*\))=(?=.)", "", text)
    return text


# --- 3. comparison ----------------------------------------------------------------------------------------------


def equal(answer, gold):
    one, two = normalize(answer), normalize(gold)
    if one == two:
        return True
    try:
        parts, others = split_tuple(one), split_tuple(two)
        if (parts is None) != (others is None) or parts and (len(parts) != len(others) or one[0] + one[-1] !=
                                                             two[0] + two[-1]):
            return False
        pairs = zip(parts, others, strict=True) if parts else [(one, two)]
        return all(same(evaluate(a, point), evaluate(b, point)) for a, b in pairs for point in POINTS)
    except (ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return False  # one of the two is not an expression of the kind below: then only equal spelling is equal


POINTS = (Fraction(7, 5), Fraction(-23, 11), Fraction(131, 37))


def same(a, b):
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return math.isclose(a, b, rel_tol=1e-11, abs_tol=1e-13)


def split_tuple(text):
    """The entries of "(a,b)" or "[a,b)", None where the text is no tuple."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]":
        return None
    entries, depth, start = [], 0, 1
    for i, c in enumerate(text[1:-1], 1):
        depth += (c in "([{") - (c in ")]}")
        if depth < 0:
            return None  # (x+1)(x+2) is no tuple
        if c == "," and depth == 0:
            entries.append(text[start:i])
            start = i + 1
    return entries + [text[start:-1]] if entries else None


TOKEN = re.compile(r"\\[a-z]+|\d+\.\d+|\.\d+|\d+|[a-z]|[-+*/^(){}]")


def evaluate(text, point):
    """The value of an expression in LaTeX, its variables set from `point`: a Fraction where that is exact."""
    if len(text) > 300:
        raise ValueError("too long to be an answer")
    tokens = TOKEN.findall(text)
    if "".join(tokens) != text:
        raise ValueError("not an expression")
    value, rest = total(tokens, point)
    if rest:
        raise ValueError("something is left over")
    return value


def total(tokens, point):  # terms joined by + and -
    value, sign = Fraction(0), 1
    if tokens[:1] in (["-"], ["+"]):
        sign, tokens = (-1 if tokens[0] == "-" else 1), tokens[1:]
    while True:
        term, tokens = product(tokens, point)
        value += sign * term
        if tokens[:1] not in (["-"], ["+"]):
            return value, tokens
        sign, tokens = (-1 if tokens[0] == "-" else 1), tokens[1:]


def product(tokens, point):  # factors joined by a sign or written side by side
    value, tokens = power(tokens, point)
    while tokens and tokens[0] not in ("+", "-", ")", "}"):
        divide = tokens[0] in ("/", "\\div")
        if divide or tokens[0] in ("*", "\\cdot", "\\times"):
            tokens = tokens[1:]
        elif tokens[0][0].isdigit():
            raise ValueError("a number cannot follow side by side")
        factor, tokens = power(tokens, point)
        value = value / factor if divide else value * factor
    return value, tokens


def power(tokens, point):
    base, tokens = atom(tokens, point)
    if tokens[:1] == ["^"]:
        exponent, tokens = atom(tokens[1:], point)
        if abs(exponent) > 64:
            raise ValueError("a tower of exponents")
        base = base**exponent
        if isinstance(base, complex):
            raise ValueError("no real value")
    return base, tokens


def atom(tokens, point):
    if not tokens:
        raise ValueError("something is missing")
    head, rest = tokens[0], tokens[1:]
    if head[0].isdigit() or head[0] == ".":
        return Fraction(head), rest
    if head == "-":
        value, rest = atom(rest, point)
        return -value, rest
    if head in "({":
        value, rest = total(rest, point)
        if rest[:1] != [")" if head == "(" else "}"]:
            raise ValueError("a bracket is not closed")
        return value, rest[1:]
    if head == "\\frac":
        top, rest = atom(rest, point)
        bottom, rest = atom(rest, point)
        return top / bottom, rest
    if head == "\\sqrt":
        value, rest = atom(rest, point)
        return square_root(value), rest
    if head == "\\pi":
        return math.pi, rest
    if head.isalpha():
        return point + ord(head), rest  # every letter its own value
    raise ValueError(f"{head} is not known here")


def square_root(value):
    if isinstance(value, Fraction) and value >= 0:
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if top * top == value.numerator and bottom * bottom == value.denominator:
            return Fraction(top, bottom)
    return math.sqrt(value)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("reward.py: give a completion and a reference answer")
    print(f"extracted: {extract_answer(sys.argv[1])}")
    print(f"correct: {is_correct(sys.argv[1], sys.argv[2])}")
