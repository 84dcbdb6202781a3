r"""The verifier: is a completion's final answer the reference answer? If so it pays 1, else 0.

    is_correct(r"so it is \boxed{\frac12}", "0.5")      # True
    extract_answer("... so\n#### $1,000.")              # "$1,000."
    python reward.py "so it is \boxed{0.5}" "\frac12"   # shows each step

The policy learns from this verdict alone, so a wrong verdict is a wrong lesson, and a policy learns
to write whatever a weak verifier pays for. Three layers:

1. Extraction (this file). The one piece of text that the completion offers as its answer: the
   content of the last box, or what follows the last ####. No answer, no reward.
2. Normal form. Spacing, \left and the like are removed, and \dfrac becomes \frac. The rest is
   parsed into a small tree (1,000 is 1000 there): a number, a root, a tuple, an interval ...
3. Equality. Two trees are compared part by part: rational values exactly, others with 100 digits,
   expressions with variables at fixed pseudo-random points. `2^{10}` is right for `1024`.

The last two are in infra/math_equality.py, which knows nothing of completions. Not accepted:
several answers in one (`1 or 2`, `\pm 2`); an earlier box; a rounded value (`0.333` for 1/3); `0.5`
for 50%; another kind of answer (`(1,2]` for `(1,2)`, `1011_3` for `1011_2`, `1:2` for `1/2`); a
false equation (`0=2`); an equation still to be solved (`2x=10` for `x=5`: it may be the question);
another unit (`5 cm` for `5 m`); a word that changes the number (`5 million`).
"""

import re
import sys
from typing import NamedTuple, Protocol

from infra.math_equality import compare, is_empty, normalize, read

FORMS = (None, "####", "boxed")
LONGEST_BOX = 4_000  # characters; a box that is still open after so many counts as unclosed
LOOK_BACK = 32  # boxes and marks without content that are passed over before giving up

# \boxed 42 without braces counts, "in \boxed as asked" does not.
BARE = r"(?=[-+.(\[0-9\\])(?:\{[^{}]*\}|[^\s${}])+"
# The start of a box, or its bare content, or a brace. An escaped brace is matched by \\. instead.
BOX = re.compile(
    rf"(?P<box>\\(?:boxed|fbox)(?![A-Za-z])\s*)(?:\{{|(?P<bare>{BARE})|)|\\.|[{{}}]", re.DOTALL
)
MARK = re.compile(r"####\s*([^\n#]*)")
# An answer that ends where the text does, after #### or in a box without braces.
OPEN_ANSWER = re.compile(
    r"####\s*+[^\n]*\Z|"
    r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?=[-+.(\[0-9\\])(?:\{[^{}]*+\}?|[^\s${}])++\Z"
)


# --- Extraction -----------------------------------------------------------------------------------

# The position of an answer in the completion and its text, which is None in an unclosed box.
Candidate = tuple[int, str | None]


def extract_answer(completion: str, form: str | None = None) -> str | None:
    r"""The text of the final answer, or None.

    completion: the text that the policy wrote
    form:       "boxed" looks for the last \boxed{} or \fbox{}, "####" for the last ####, None for
                the later of the two
    """
    if form not in FORMS:
        raise ValueError(f'form must be "####", "boxed" or None, not {form!r}')
    candidates = []
    if form != "####":
        candidates += find_boxes(completion)
    if form != "boxed":
        candidates += find_marks(completion)
    candidates.sort(key=lambda candidate: candidate[0])

    # The last one counts. Only empty ones are passed over, as in "as asked, in \boxed{}".
    for _, answer in reversed(candidates[-LOOK_BACK:]):
        if answer is None or not is_blank(answer):
            return answer
    return None


def find_boxes(text: str) -> list[Candidate]:
    """(end, content) of each box near the last one; (start, None) of an unclosed box."""
    last = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if last < 0:
        return []
    found = []
    open_braces = []
    for match in BOX.finditer(text, max(0, last - LONGEST_BOX), last + LONGEST_BOX):
        opens_box = match["box"] and match[0].endswith("{")
        if match["bare"]:
            found.append((match.end(), match["bare"]))
        elif opens_box or match[0] == "{":
            open_braces.append(match)
        elif match[0] == "}" and open_braces:
            # An outer box ends after an inner one, so it is the last. In \boxed{41 \boxed{42}} a
            # reader sees "41 42", not one number.
            opening = open_braces.pop()
            if opening["box"]:
                content = text[opening.end() : match.start()]
                found.append((match.end(), content.strip()))

    unclosed = [(opening.start(), None) for opening in open_braces if opening["box"]]
    return found + unclosed


def find_marks(text: str) -> list[Candidate]:
    """The position of each #### near the last one, and the first line with text after it."""
    window = max(0, text.rfind("####") - LONGEST_BOX)
    return [(match.start(), match[1].strip()) for match in MARK.finditer(text, window)]


def is_blank(answer: str) -> bool:
    """Does it hold nothing that could be an answer?"""
    if len(answer) >= 100 or re.search("[0-9]", answer):
        return False
    return is_empty(normalize(answer))


def without_open_answer(truncated: str) -> str:
    """A completion that was truncated by its length, without an answer that may be half a number.

    That is one at its very end, after #### or in a box without braces.
    """
    return OPEN_ANSWER.sub("", truncated)


# --- The verdict ----------------------------------------------------------------------------------


class Verdict(NamedTuple):
    correct: bool
    why: str  # the reason, for a reader
    extracted: str | None  # the answer as it stands in the completion
    answer: str | None = None  # its normal form, if it came to a comparison
    gold: str | None = None  # the normal form of the reference


def is_correct(completion: str, gold: str, form: str | None = None) -> bool:
    r"""Is the completion's final answer the reference answer?

    completion: the text that the policy wrote
    gold:       the reference answer alone, without \boxed{} or ####
    form:       "####" or "boxed": only an answer in this format counts, the one that the prompt
                asked for. None: both formats count, and the later answer is judged
    """
    return judge(completion, gold, form).correct


def judge(completion: str, gold: str, form: str | None = None) -> Verdict:
    """The verdict with its reason and the steps to it; the parameters are those of is_correct."""
    extracted = extract_answer(completion, form)
    if extracted is None:
        return Verdict(False, "the completion offers no answer", None)
    if max(len(extracted), len(gold)) > LONGEST_BOX:
        return Verdict(extracted == gold.strip(), "too long: compared as it stands", extracted)
    answer = normalize(extracted)
    reference = normalize(gold)
    result = compare(answer, reference)
    return Verdict(result.correct, result.why, extracted, answer, reference)


class HasGold(Protocol):
    """What `score` reads of a query (data.Query)."""

    gold: str
    form: str | None


def score(completion: str, query: HasGold) -> tuple[float, bool]:
    """What is paid, and whether it is right: the interface of a file for --reward."""
    right = is_correct(completion, query.gold, query.form)
    return float(right), right


# --- The command line -----------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Print each step of one verdict."""
    if len(arguments) not in (2, 3) or arguments[2:] not in ([], ["####"], ["boxed"]):
        sys.exit('usage: python reward.py "completion" "gold" [form], form is "####" or "boxed"')
    verdict = judge(*arguments)
    print("1. extracted  ", "nothing" if verdict.extracted is None else verdict.extracted)
    if verdict.answer is not None:
        print("2. answer     ", verdict.answer, f"  ({kind_or_problem(verdict.answer)})")
        print("   reference  ", verdict.gold, f"  ({kind_or_problem(verdict.gold)})")
    print("3. verdict    ", "right:" if verdict.correct else "wrong:", verdict.why)


def kind_or_problem(normal_form: str) -> str:
    reading = read(normal_form)
    return reading.problem or reading.kind


if __name__ == "__main__":
    main(sys.argv[1:])
