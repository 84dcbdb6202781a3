r"""The reward: does a completion's final answer equal the reference answer?

    is_correct(r"so it is \boxed{\frac12}", "0.5")      # True
    extract_answer("... so\n#### $1,000.")              # "$1,000."
    python reward.py "so it is \boxed{0.5}" "\frac12"   # shows the three layers at work

The policy learns from this verdict alone: a wrong one is a wrong lesson, and what can be gamed will be. Three layers:

1. Extraction. The one stretch of text that the completion offers as its answer: what the last box holds, or what
   stands after the last ####. No answer, no reward.
2. Normal form. What a teacher does not look at goes (spacing, \left, \dfrac, units, thousands separators); the rest
   is cut into tokens and parsed into a small tree: numbers, roots, tuples, intervals, relations ...
3. Equivalence. Trees of one kind are compared part by part: values exactly while they are rational, otherwise with
   100 digits, and at fixed pseudo-random points where they hold variables. `2^{10}` is right for `1024`.

Refused on purpose: hedges (`1 or 2`, `\pm 2`, `0=2`, every box but the last); rounding (`0.333` for 1/3) and the
hundredfold of a percentage (`0.5` for 50%); another kind (`(1,2]` for `(1,2)`, `1011_3` for `1011_2`, `1:2` for `1/2`);
equations still to be solved (`2x=10` for `x=5`: it may be the question); other units (`5 cm` for `5 m`), and words that
change a number (`5 million`). Nothing is ever run, and the work is bounded before it is done (length, depth, digits,
steps): what lies over the bounds, or outside the language of the parser, is compared as text.
"""

import re
import sys
from collections import namedtuple
from contextlib import suppress
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache, reduce
from itertools import product
from math import comb, factorial
from zlib import crc32

LONGEST_BOX = 4_000  # characters; a box still open after so many counts as unclosed
LOOK_BACK = 32  # empty boxes or marks that are passed over before giving up
MAX_CHARS = 600  # of an answer that is parsed; Python refuses int(str) from 4,300 digits on
MAX_DEPTH = 24  # of expressions in expressions
MAX_BITS = 8192  # of an exact number: 2^{4950} is in, 2^{10000} is out
MAX_WORK = 2000  # steps of one comparison, each about 5 microseconds
DIGITS = 100  # of what is not rational; sizes from 10^-25 to 10^25


class Unreadable(Exception):
    """Outside the language of the parser, or over the bounds: only the text can be compared."""


# --- Layer 1: extraction ----------------------------------------------------------------------------------------------

BARE = r"(?=[-+.(\[0-9\\])(?:\{[^{}]*\}|[^\s${}])+"  # \boxed 42, not "in \boxed as asked"
BOX = re.compile(rf"(?P<box>\\(?:boxed|fbox)(?![A-Za-z])\s*)(?:\{{|(?P<bare>{BARE})|)|\\.|[{{}}]", re.DOTALL)
MARK = re.compile(r"####\s*([^\n#]*)")
BLANK = "{}.?_-,;:\"'` "  # no answer consists of these alone (`\{\}` does not: it is the empty set)


def extract_answer(completion: str, form: str | None = None) -> str | None:
    r"""The text of the final answer, or None.

    `form` "boxed" looks for the last \boxed{} or \fbox{}, "####" for the last ####, None for the later of the two.
    """
    if form not in (None, "####", "boxed"):
        raise ValueError(f'form must be "####", "boxed" or None, not {form!r}')
    found = boxes(completion) if form != "####" else []
    if form != "boxed":
        window = max(0, completion.rfind("####") - LONGEST_BOX)
        found += [(m.start(), m[1].strip()) for m in MARK.finditer(completion, window)]
    found = sorted(found, key=lambda place: place[0])[-LOOK_BACK:]
    return next((answer for _, answer in reversed(found) if answer is None or not is_blank(answer)), None)


def boxes(text):
    """(position of its end, content) of the boxes; of an unclosed one (position of its start, None)."""
    found, stack = [], []
    last = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    for m in BOX.finditer(text, max(0, last - LONGEST_BOX), last + LONGEST_BOX) if last >= 0 else ():
        if m["bare"]:
            found.append((m.end(), m["bare"]))
        elif m[0] == "{" or (m["box"] and m[0][-1] == "{"):
            stack.append(m)
        elif m[0] == "}" and stack:
            # An outer box closes last: in \boxed{41 \boxed{42}} a reader sees "41 42", not one number.
            opening = stack.pop()
            if opening["box"]:
                found.append((m.end(), text[opening.end() : m.start()].strip()))
    return found + [(m.start(), None) for m in stack if m["box"]]


def is_blank(text):
    """Is there nothing that could be an answer?"""
    return len(text) < 100 and not re.search("[0-9]", text) and not normal(text).strip(BLANK)


# --- Layer 2: normal form, from text to text --------------------------------------------------------------------------

UNICODE = str.maketrans({
    "−": "-", "–": "-", "‐": "-", "×": "*", "⋅": "*", "·": "*", "÷": "/", "π": "\\pi ", "√": "\\sqrt ", "∞": "\\infty ",
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∪": "\\cup ", "∈": "\\in ", "±": "\\pm ", "∠": " ",
    "°": "\\degree ", "∅": "\\emptyset ", "²": "^{2}", "³": "^{3}", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", "θ": "\\theta ", "€": "\\euro ", "£": "\\sterling ", "’": "'", "“": '"', "”": '"',
    "\u00a0": " ", "~": " ",
})  # fmt: skip
RENAMED = {  # commands that a teacher reads alike
    old: new
    for new, olds in {
        "\\frac ": "dfrac tfrac cfrac", "\\binom ": "dbinom tbinom", "\\dollar ": "$", "\\ne ": "neq",
        "\\le ": "leq leqslant", "\\ge ": "geq geqslant", "<": "lt", ">": "gt", "*": "times cdot ast", "/": "div",
        "\\{": "lbrace", "\\}": "rbrace", "|": "lvert rvert vert mid", ":": "colon", "\\approx ": "sim simeq",
        "'": "prime", "\\emptyset ": "varnothing", "\\degree ": "degrees", "%": "%", "": "!",
        "\\text": "mbox hbox textbf textit textrm textnormal textsf texttt mathrm rm",
        " ": ", ; : > ( ) [ ] quad qquad displaystyle textstyle left right big Big bigg Bigg bigl bigr Bigl Bigr "
        "biggl biggr mathbf boldsymbol bm mathit underline boxed fbox vec hat angle triangle",
    }.items()
    for old in [*olds.split(), *(" \n\t" if new == " " else "")]
}  # fmt: skip
COMMAND = re.compile(r"\\\\(?:\[[0-9.]+[a-z]+\])?|\\(?:left|right)\s*\.|\\([A-Za-z]+|.)\s*", re.DOTALL)
REWRITES = [(re.compile(old), new) for old, new in [
    (r"(?<=[0-9])(?:\{,\}|,?\\[,!]\s*)(?=[0-9]{3}(?![0-9]))", ""),  # 1{,}000  1,\!000  1\,000
    (r"\^\s*(?:\\circ(?![a-z])|\{\s*\\circ\s*\})", r"\\degree "),
    (r"\\(?:phantom|color)\s*(?:\{[^{}]*\}|.)", " "),
    (r"\\operatorname\*?\s*\{([A-Za-z]+)\}", r"\\\1 "),
    (r"\\mathrm\s*\{([eid])\}", r"\1"),
    (r"\\overline\s*\{([A-Z]{2})\}", r"\1"),  # a line segment
    (r"\\begin\s*\{(?:array\}\s*\{[^{}]*\}|[pb]?matrix\})", r"\\matrix{[["),  # to \matrix{[[1;2];[3;4]]}
    (r"(?:\\\\\s*)?\\end\s*\{(?:array|[pb]?matrix)\}", "]]}"), ("&", ";"),
    (r"(:\s*[0-9]{2})\s*([apAP])\.?\s?[mM]\b\.?", r"\1\\text{\2m}"),  # 8:34 p.m.
    (r"(?<![0-9./])([0-9]+)\s+([0-9]+)/([0-9]+)(?![0-9./])", r"\1\\frac{\2}{\3}"),  # 1 1/2
    (r"(\\[dtc]?frac|\\[dt]?binom)\s*([0-9])", r"\1{\2}"),  # \frac12
    (r"(\\(?:[dtc]?frac|[dt]?binom)\s*\{[^{}]*\})\s*([0-9])", r"\1{\2}"),
    (r"\(([0-9A-Z]+)\)_|\\text\{([0-9A-Z]+)\}_", r"\1\2_"),  # (1011)_2
    (r"(?i)^\s*(\\text\s*\{\s*)?(?:the )?(?:final )?answer(?: is)?[: ]+(?(1)\}|)", ""),
    (":=", "="), ("<=", r"\\le "), (">=", r"\\ge "), ("!=", r"\\ne "),
]]  # fmt: skip
MIXED = re.compile(r"(?<![0-9.,^_])([0-9]{1,50}) ?\\frac ?\{ ?([0-9]{1,50}) ?\} ?\{ ?([0-9]{1,50}) ?\}")


def normal(answer: str) -> str:
    """The same answer without the differences that only typesetting makes. Still LaTeX, for a reader too."""
    text = answer.translate(UNICODE)
    if len(re.findall(r"(?<!\\)\$", text)) % 2:  # an odd one is a currency, the others delimit mathematics
        text = re.sub(r"(?<!\\)\$(?=\s*-?\s*\.?[0-9])", r"\\$", text, count=1)
    text = re.sub(r"(?<!\\)\$", " ", text)
    for pattern, new in REWRITES:
        text = pattern.sub(new, text)
    text = re.sub(r"\s+", " ", COMMAND.sub(rewrite, text)).replace("{}", "").strip(" ")
    text = re.sub(r'^(?:[ =:*`"]|\\approx )+', "", text).rstrip(' .,;:*`"')
    text = re.sub(r"\|([^|]{1,200})\|", r"\\abs{\1}", MIXED.sub(mixed, text))
    # A space matters between letters and digits alone ("\pi r", "1 2" is not 12), and in "1, 234".
    return re.sub(r"(?<![A-Za-z0-9,]) | (?![A-Za-z0-9])", "", text)


def mixed(match):
    r"""2\frac{1}{2} is two and a half; with an improper fraction nobody knows what is meant."""
    whole, top, bottom = match.groups()
    return rf"({whole}+\frac{{{top}}}{{{bottom}}})" if 0 < int(top) < int(bottom) else r"\improper "


def rewrite(match):
    """One LaTeX command in its normal form."""
    name = match[1]
    if name is None:  # the end of a matrix row, or \left.
        return "];[" if match[0].startswith("\\\\") else ""
    return RENAMED[name] if name in RENAMED else f"\\{name} " if name.isalpha() else f"\\{name}"


# --- Layer 2, continued: from text to tokens --------------------------------------------------------------------------

UNITS = {  # singular of a unit: what it is called here; of other nouns ("42 apples") nothing is kept
    alias: unit
    for unit, aliases in {
        "%": "percent", "$": "dollar usd buck", "cent": "", "euro": "", "sterling": "", "degree": "", "radian": "rad",
        "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
        "inch": "inche in", "foot": "feet ft", "yard": "yd", "mile": "mi", "second": "sec s", "minute": "min",
        "hour": "hr h", "day": "", "week": "", "month": "", "year": "yr", "gram": "g", "kg": "kilogram kilo",
        "pound": "lb", "ounce": "oz", "liter": "litre l", "gallon": "gal", "ml": "", "am": "", "pm": "", "mph": "",
        "kph": "", "2": "square sq", "3": "cubic cu",
    }.items()
    for alias in [unit, *aliases.split()]
}  # fmt: skip
# Short words that need no \text; longer ones only have to stand apart.
WORDS = {unit for unit in UNITS if len(unit) > 1 and unit.isalpha()} - {"in", "mi", "am", "sec", "min", "rad", "sq"}
WORDS |= {"per", "cup", "pie", "men", "way", "yes", "no", "odd", "one", "two", "six", "ten"}
# Words that change the number they follow, or hedge.
NOT_UNITS = """
    or and not no nor but if when unless except more less least most fewer greater is are was plus minus mod modulo
    factorial binary octal hex double triple half halves third quarter fourth fifth sixth seventh eighth ninth tenth
    twelfth hundredth thousandth twice zero one two three four five six seven eight nine ten eleven twelve thirteen
    fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred thousand million billion trillion dozen score gross lakh crore grand mil mille bn mn couple maybe
    perhaps possibly either wrong incorrect false infinity negative positive between about approximately roughly so
    than squared cubed ish short off inverse reciprocal root to through versus
"""
GREEK = """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi chi
    psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
"""
NOT_UNITS, GREEK = set(NOT_UNITS.split()), set(GREEK.split())
FUNCTIONS = {"sin", "cos", "tan", "sec", "csc", "cot", "ln", "log", "arcsin", "arccos", "arctan"}
TOKEN = (
    r"(?P<based>(?=[A-Z]*[0-9])[0-9A-Z]+_(?:\{[0-9]{1,2}\}|[0-9]{1,2}))"
    r"|(?P<num>(?<![0-9],)[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"|\\text\s*\{(?P<text>[^{}]*)\}"
    r"|(?P<cmd>\\(?:[A-Za-z]+|.))"
    r"|(?P<sub>_(?:\{[A-Za-z0-9]*\}|[A-Za-z0-9]))"
    r"|(?P<var>[fghpqrFGHPQRSTV]\([A-Za-z0-9]{1,2}\)(?==))"  # the name in f(x) = ...
    r"|(?P<letters>%s)|\s+|(?P<op>.)"
)
IN_MATH = re.compile(TOKEN % "[A-Za-z]+", re.DOTALL)
IN_TEXT = re.compile(TOKEN % r"[A-Za-z](?:[A-Za-z'-]|\.(?=[A-Za-z]))*\.?", re.DOTALL)  # two-digit, p.m.


def tokenize(text, in_text=False):
    """(kind, value) pairs: num, based, var, sub, word, cmd, op."""
    tokens, brackets = [], []
    in_text = in_text or bool(not re.search(r"[^A-Za-z' -]", text) and re.search("[a-z]{4}", text))
    for m in (IN_TEXT if in_text else IN_MATH).finditer(text):
        kind, value = m.lastgroup, m[m.lastgroup or 0]
        if kind == "text":
            tokens += tokenize(value, in_text=True)
        elif kind == "num" and "," in value and brackets[-1:] not in ([], ["{"]) and ",0" not in value:
            # (100,200) is a pair, 100,200 a number. No entry is written 000, so (1,000) is a number too.
            tokens += [token for part in value.split(",") for token in (("num", part), ("op", ","))][:-1]
        elif kind == "letters":
            beside_word = tokens[-1:] and tokens[-1][0] == "word"
            apart = not text[max(m.start() - 1, 0) : m.start()].isalnum()
            tokens += letters(value, in_text or beside_word, apart)
        elif kind:
            if value in ("(", "[", "{", "\\{"):
                brackets.append(value)
            elif value in (")", "]", "}", "\\}") and brackets:
                brackets.pop()
            tokens.append(("var" if value[1:] in GREEK else kind, value.replace(",", "") if kind == "num" else value))
    return tokens


def letters(run, in_text, apart):
    """Tokens of a run of letters: a word, a function, a name such as AB, or variables side by side."""
    low = run.lower().rstrip(".")
    if low in ("or", "and"):
        return [("op", low)]
    if run in FUNCTIONS or run in ("sqrt", "pi", "infty", "infinity"):
        return [("cmd", "\\" + run.replace("inity", "ty"))]
    if in_text or {low, low.removesuffix("s")} & WORDS or (apart and len(run) > 3 and not run.isupper()):
        return [("word", run.replace(".", ""))]
    return [("var", run)] if run.isupper() else [("var", c) for c in run]


# --- Layer 2, continued: from tokens to a tree ------------------------------------------------------------------------
#
# A tree is a tuple, its kind first, then its parts. Values consist of values alone:
#   num q, var name, const pi|e|i, + terms, * factors, / a b, ^ a b, root n x, fn name x
# Other kinds of answer consist of anything (an interval is a tuple with its brackets):

ANSWERS = {"tuple", "set", "list", "union", "ratio", "matrix", "relation", "words", "numeral"}
RELATIONS = ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\in")
LIST, RELATION, UNION, SUM, PRODUCT, POWER = range(1, 7)  # how tightly a sign binds what stands beside it
SIGNS = {  # the kind of tree that a sign makes, and its level; "" is the product of neighbours
    **dict.fromkeys((",", ";", "or", "and"), ("list", LIST)), **dict.fromkeys(RELATIONS, ("relation", RELATION)),
    "\\cup": ("union", UNION), ":": ("ratio", UNION), "+": ("+", SUM), "-": ("+", SUM), "*": ("*", PRODUCT),
    "": ("*", PRODUCT), "/": ("/", PRODUCT), "^": ("^", POWER), "!": ("fn", POWER), "\\degree": ("*", POWER),
}  # fmt: skip
ENDS = (SIGNS.keys() | FUNCTIONS) - {""}  # of a bare argument of a function
ONE, TWO, MINUS_ONE, INFINITY = ("num", Fraction(1)), ("num", Fraction(2)), ("num", Fraction(-1)), ("var", "\\infty")
SYMBOLS = {"\\pi": ("const", "pi"), "\\infty": INFINITY, "\\emptyset": ("set",)}
RECIPROCAL = {"sec": "cos", "csc": "sin", "cot": "tan"}


def unreadable(why):
    """Give up; a function, so that it can stand where a value would."""
    raise Unreadable(why)


class Parser:
    """Reads the tokens of one answer by the levels of their signs; Unreadable at the first thing unknown."""

    def __init__(self, tokens):
        self.tokens, self.at, self.depth = [*tokens, ("end", "the end")], 0, 0
        self.units, self.radians = set(), False  # radians: in the argument of a sine, where 30° is pi/6

    def peek(self):
        return self.tokens[self.at]

    def take(self, *values):
        """The next token if it is one of these signs."""
        kind, value = self.peek()
        found = kind in ("op", "cmd") and value in values
        self.at += found
        return value if found else None

    def expression(self, level):
        """What is held together by signs of this level and tighter ones."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            unreadable("too deep")
        tree = self.operand(level)
        while True:
            if level <= PRODUCT:
                self.unit()
            kind, value = self.peek()
            sign = value if kind in ("op", "cmd") and value in SIGNS else ""
            if (not sign and not self.starts_operand()) or SIGNS[sign][1] < level:
                self.depth -= 1
                return tree
            self.at += bool(sign)
            if sign == "!":
                tree = node("fn", "!", tree) if not self.take("!") else unreadable("a double factorial")
            elif sign == "\\degree":
                self.units.add("degree")
                tree = node("*", tree, ("/", SYMBOLS["\\pi"], ("num", Fraction(180)))) if self.radians else tree
            elif sign == "^":
                tree = node("^", tree, self.expression(POWER))  # from the right: 2^3^2 is 2^9
            elif sign != "/" or self.peek()[0] != "word":  # but miles/hour is a unit
                sign = (SIGNS[sign][1] == LIST and self.take("or", "and")) or sign  # 1, 2, and 3
                right = self.expression(SIGNS[sign][1] + 1)
                # "1 2", "x 5" and "\frac12 3" are no products: side by side, a numeral only comes first.
                if sign == "" and right[0] in ("num", "numeral") and value != "(":
                    unreadable("a numeral to the right of something")
                tree = joined(tree, sign, right)

    def starts_operand(self):
        kind, value = self.peek()
        return kind in ("num", "var", "based") or value in ("(", "[", "{") or (kind == "cmd" and value != "\\}")

    def operand(self, level):
        """A sign and what it binds, words, a numeral, a variable, brackets, a command with its arguments."""
        if sign := self.take("+", "-"):
            tree = self.expression(max(level, PRODUCT))
            return joined(MINUS_ONE, "*", tree) if sign == "-" else tree
        kind, value = self.peek()
        if kind == "word":
            return self.words()
        self.at += 1
        if kind == "num":
            return ("num", Fraction(value))
        if kind == "based":
            digits, base = value.strip("}").replace("{", "").split("_")
            if not 2 <= int(base) <= 36 or any(int(d, 36) >= int(base) for d in digits):
                unreadable("digits of no such base")
            return ("num", Fraction(digits)) if base == "10" else ("numeral", int(digits, int(base)), base)
        if kind == "var":
            if self.peek()[0] == "sub":
                value += "_" + self.peek()[1].strip("_{}")
                self.at += 1
            while self.take("'"):
                value += "'"
            return ("const", value) if value in ("e", "i") else ("var", value)
        if kind == "cmd":
            return self.command(value)
        return self.brackets(value) if value in ("(", "[", "{") else unreadable(f"no meaning for {value}")

    def words(self):
        """Words up to a separator; a letter is a variable, words before = a name."""
        words = []
        while self.peek()[0] in ("word", "num", "var"):
            words.append(self.peek()[1])
            self.at += 1
        text, (kind, value) = " ".join(words).lower(), self.peek()
        if kind != "end" and value not in (")", "]", "}", "\\}") and SIGNS.get(value, (0, SUM))[1] >= UNION:
            unreadable("words and mathematics mixed")
        return ("var", words[0]) if len(text) == 1 else ("var" if value in RELATIONS else "words", text)

    def brackets(self, opening):
        """A group if round with one item, else a tuple, an interval or a set; bare braces change nothing."""
        tree = ("list",) if self.peek()[1] == "\\}" else self.expression(LIST)
        closing = self.take(*{"{": "}", "\\{": ["\\}"]}.get(opening, ")]")) or unreadable(f"no end of {opening}")
        items = listed(tree)
        if opening == "{" or (len(items) == 1 and (opening + closing == "()" or tree[0] == "matrix")):
            return tree
        if opening == "\\{":
            return ("set", *dict.fromkeys(items))
        return ("tuple", opening, closing, *items)

    def command(self, name):
        if name in SYMBOLS:
            return SYMBOLS[name]
        if name == "\\frac":
            return node("/", self.operand(POWER), self.operand(POWER))
        if name == "\\binom":
            return node("fn", "binom", self.operand(POWER), self.operand(POWER))
        if name == "\\sqrt":
            degree = self.brackets("[")[-1] if self.take("[") else TWO
            if degree[0] != "num" or degree[1] not in range(2, 61):
                unreadable("a root of that degree")
            return node("root", int(degree[1]), self.operand(POWER))
        if name == "\\{":
            return self.brackets(name)
        if name in ("\\abs", "\\matrix"):
            return node("fn", "abs", self.operand(POWER)) if name == "\\abs" else ("matrix", self.operand(POWER))
        if name[1:] in FUNCTIONS:
            return self.function(name[1:])
        if name in ("\\dollar", "\\euro", "\\sterling"):
            self.units.add(UNITS[name[1:]])
            return self.operand(POWER)
        return unreadable(f"no meaning for {name}")

    def function(self, name):
        r"""\sin^2 x, \log_2 8, \sin 5x \cos x: a bare argument runs to the next sign or function."""
        base, power = ("num", Fraction(10)), None
        if self.peek()[0] == "sub":
            base = Parser(tokenize(self.peek()[1].strip("_{}"))).expression(PRODUCT)
            self.at += 1
        if self.take("^"):
            power = self.expression(POWER)
        name, power = ("arc" + name, None) if power == MINUS_ONE else (name, power)
        outside, self.radians = self.radians, name in ("sin", "cos", "tan", *RECIPROCAL)
        if self.peek()[1] in ("(", "{"):
            argument = self.operand(POWER)
        else:
            argument = self.expression(POWER)
            while self.starts_operand() and not {self.peek()[1], self.peek()[1][1:]} & ENDS:
                argument = joined(argument, "", self.expression(POWER))
        self.radians = outside
        tree = node("fn", RECIPROCAL.get(name, "ln" if name == "log" else name), argument)
        if name == "log":
            tree = node("/", tree, node("fn", "ln", base))
        tree = node("^", tree, power) if power else tree
        return node("/", ONE, tree) if name in RECIPROCAL else tree

    def unit(self):
        """Take the words, percent signs and exponents of a unit; words that change a value are no unit."""
        found = []
        while True:
            kind, value = self.peek()
            if kind == "word":
                word = value.lower() if len(value) < 3 else value.lower().removesuffix("s")
                if {word, value.lower()} & NOT_UNITS or (len(word) == 1 and word not in UNITS):
                    unreadable(f"{value} is no unit")
                found.append(UNITS.get(word))
                self.at += 1
            elif found and self.take("^"):
                found.append(str(self.operand(POWER)[1]))
            elif self.take("%"):
                found.append("%")
            else:
                break
        self.units.update(filter(None, found))


def node(kind, *parts):
    """A value made of values: there is no arithmetic on intervals, lists or words."""
    if any(isinstance(part, tuple) and part[0] in ANSWERS for part in parts):
        unreadable("arithmetic on something that is no value")
    return (kind, *parts)


def joined(a, sign, b):
    """Two trees and the sign between them in one; `a + b` and `c` make one sum, and so on."""
    kind, level = SIGNS[sign]
    parts = a[1:] if a[0] == kind != "/" else (a,)
    if level == LIST:
        if sign == "and" and b[0] == "relation" and b[2] != "=":
            unreadable("two conditions at once")  # x<1 or x>2 is a list, x<1 and x>2 is not
        return ("list", *listed(a), b)
    if level in (RELATION, UNION):
        return (kind, *parts, sign, b) if level == RELATION else (kind, *parts, b)
    if a == MINUS_ONE and kind == "*" and b[0] in ("num", "numeral"):
        return (b[0], -b[1], *b[2:])
    return node(kind, *parts, joined(MINUS_ONE, "*", b) if sign == "-" else b)


def nodes(*trees):
    """Every tuple in the trees."""
    stack = list(trees)
    while stack:
        yield (tree := stack.pop())
        stack.extend(part for part in tree if isinstance(part, tuple))


def variables(*trees):
    return {part[1] for part in nodes(*trees) if part[0] == "var"}


def listed(tree):
    return list(tree[1:]) if tree[0] == "list" else [tree]


def unname(tree):
    r"""What x = 5, 5 = x, x = 15/3 = 5 or x \in S give a value to (None: nothing), and the values."""
    if tree[0] != "relation":
        return None, [tree]
    sides, signs = tree[1::2], tree[2::2]
    for name, values in ((sides[0], sides[1:]), (sides[-1], sides[:-1]))[: 2 if signs == ("=",) else 1]:
        is_name = name[0] == "var" and name != INFINITY
        is_name |= name[0] == "tuple" and all(part[0] == "var" for part in name[3:])  # (x, y) = (1, 2)
        if is_name and (signs == ("\\in",) or (signs[0] in ("=", "\\approx") and set(signs[1:]) <= {"="})):
            return name, list(values)
    return None, list(sides) if set(signs) == {"="} else []


Reading = namedtuple("Reading", "tree kind units problem")


@lru_cache(maxsize=4096)  # a reference is read once, not once per rollout
def read(text: str) -> Reading:
    r"""The tree and the units of an answer in normal form; or no tree, and the problem."""
    try:
        first, *rest = re.split(r"\\pm ?", text)  # 1\pm 2 is read as a list, once with each sign
        if len(text) > MAX_CHARS // 2 ** len(rest) or len(rest) > 3:
            unreadable("too long")
        items, units = [], set()
        for signs in product("+-", repeat=len(rest)):
            parser = Parser(tokenize(first + "".join(map(str.__add__, signs, rest))))
            items += listed(parser.expression(LIST))
            units |= parser.units
            if parser.peek()[0] != "end":
                unreadable(f"no place for {parser.peek()[1]}")
        # x=2, x=3 and x_1=2, x_2=3 and x=2, 3 are lists of values; a=2, b=3 stays a list of equations.
        names, values = zip(*map(unname, items), strict=True)
        names = [name and str(name[1]).partition("_")[0] for name in names]
        if names[0] and set(names[1:]) in ({names[0]}, {None}) and all(len(value) == 1 for value in values):
            items = [value[0] for value in values]
        tree = ("list", *(dict.fromkeys(items) if rest else items)) if rest or len(items) > 1 else items[0]
        kind = tree[0] if tree[0] in ANSWERS else "expression" if variables(tree) else "number"
        return Reading(tree, kind + (" " + tree[1] + tree[2] if kind == "tuple" else ""), units, None)
    except (Unreadable, RecursionError) as error:
        return Reading(None, "text only", None, str(error))


# --- Layer 3: equivalence ---------------------------------------------------------------------------------------------

Verdict = namedtuple("Verdict", "correct why extracted answer gold", defaults=(None, None))  # the last two normal


def is_correct(completion: str, gold: str, form: str | None = None) -> bool:
    r"""Is the completion's final answer the reference answer?

    `gold` is bare (what stands after `#### ` or inside \boxed{}); `form`, "####" or "boxed", is what the prompt asked
    for, the only format paid; None accepts either, the later one winning.
    """
    return judge(completion, gold, form).correct


def judge(completion: str, gold: str, form: str | None = None) -> Verdict:
    """The verdict with its reason and the steps to it."""
    extracted = extract_answer(completion, form)
    if extracted is None:
        return Verdict(False, "the completion offers no answer", None)
    if max(len(extracted), len(gold)) > LONGEST_BOX:
        return Verdict(extracted == gold.strip(), "too long: compared as it stands", extracted)
    answer, reference = normal(extracted), normal(gold)
    if not reference.strip(BLANK):
        correct, why = False, "the reference is empty"
    elif answer == reference:
        correct, why = True, "the normal forms are the same text"
    elif problem := read(answer).problem or read(reference).problem:
        correct, why = False, f"the texts differ, and one cannot be read: {problem}"
    else:
        a, b = read(answer), read(reference)
        try:
            with localcontext(Context(prec=DIGITS)):
                correct = not (a.units and b.units and a.units != b.units) and Comparison().same(a.tree, b.tree)
            why = "equal" if correct else "not equal" if a.kind == b.kind else f"{a.kind} is not {b.kind}"
        except (Unreadable, RecursionError, ArithmeticError) as error:
            correct, why = False, f"the texts differ, and there is no comparing the values: {error}"
    return Verdict(correct, why, extracted, answer, reference)


class Comparison:
    """Compares two trees, and evaluates them at points, within a bounded number of steps."""

    def __init__(self):
        self.steps, self.point, self.real = MAX_WORK, {}, True

    def spend(self, steps):
        """Count work before it is done."""
        self.steps -= steps
        if self.steps < 0:
            unreadable("too much work")

    def same(self, a, b):
        """Are two trees the same answer? Their kinds must agree, but for the name in `x = 5`."""
        self.spend(1)
        if a == b or not isinstance(a, tuple) or not isinstance(b, tuple):
            return a == b
        kinds = {a[0], b[0]}
        if kinds == {"relation"}:
            return self.same_relation(a, b)
        if "relation" in kinds:
            relation, value = (a, b) if a[0] == "relation" else (b, a)
            # Every side but the name must be the value: x = 15/3 = 5 is 5, and 0 = 2 is not 2.
            values = unname(relation)[1]
            return bool(values) and all(self.same(side, value) for side in values)
        if kinds == {"words", "var"}:  # \text{NO} and NO
            return a[1].lower() == b[1].lower()
        if kinds <= {"set", "list"} or kinds == {"union"}:  # in any order
            rest = list(b[1:])
            for x in a[1:]:
                match = next((k for k, y in enumerate(rest) if self.same(x, y)), None)
                if match is None:
                    return False
                del rest[match]
            return not rest
        if not kinds & ANSWERS:
            return self.same_value(a, b)
        return len(kinds) == 1 and len(a) == len(b) and all(map(self.same, a, b))

    def same_relation(self, a, b):
        """The same sides, but for the name; or equations in several variables that are multiples of one another."""
        (name, values), (other, others) = unname(a), unname(b)
        if name and other and self.same(name, other) and a[2] == b[2]:
            return all(self.same(x, y) for x in values for y in others)
        mirrored = ("relation", *(MIRROR.get(x, x) for x in b[:0:-1]))
        if any(a[2::2] == twin[2::2] and all(map(self.same, a[1::2], twin[1::2])) for twin in (b, mirrored)):
            return True
        if not a[2::2] == b[2::2] == ("=",) or len(variables(a, b)) < 2:
            return False  # in one variable, `2x = 10` is not taken for `x = 5`: it may be the question
        pairs = [*self.values(*(joined(sides[1], "-", sides[3]) for sides in (a, b)))]
        (x, y), *others = pairs if len(pairs) > 1 else [(0, 0)]
        return x != 0 and y != 0 and all(x * v + -1 * y * u == 0 for u, v in others)

    def same_value(self, a, b):
        """Two values: equal at every point where both are defined, which has to be somewhere."""
        verdicts = (x + -1 * y == 0 for x, y in self.values(a, b))
        return next(verdicts, False) and all(verdicts)

    def values(self, a, b):
        """The values of two trees at pseudo-random points, those where they have none left out."""
        if INFINITY in nodes(a, b):  # equal to itself, and not to be reckoned with
            return
        # Over the reals \sqrt{x^2} is |x|, and \sqrt{x} undefined for x < 0; over the complex numbers if an i is there.
        self.real, names = ("const", "i") not in nodes(a, b), sorted(variables(a, b))
        for k, (scale, bit) in enumerate(SCALES if names else SCALES[:1]):
            for rank, name in enumerate(names):
                noise = crc32(f"{name} at {k}".encode("utf-8", "replace")) % 899
                self.point[name] = Fraction(150 + noise, 211) * scale * (-1 if rank >> bit & 1 else 1)
            with suppress(ArithmeticError):  # undefined, or out of the range of DIGITS
                yield self.value(a), self.value(b)

    # Arithmetic. A value is a Fraction while it is rational, then a Near.

    def fit(self, x):
        """x, its size checked and its work counted."""
        bits = 1000 if isinstance(x, Near) else max(x.numerator.bit_length(), x.denominator.bit_length())
        self.spend(1 + bits // 256)
        return x if bits <= MAX_BITS else unreadable("a number too large")

    def value(self, tree):
        """A Fraction or a Near; ArithmeticError where undefined."""
        kind, first = tree[:2]
        if kind == "num":
            return self.fit(first)
        if kind == "var":
            return self.point[first]
        if kind == "const":
            return CONSTANTS[first]
        if kind in "+*":
            return reduce(lambda x, y: self.fit(x + y if kind == "+" else x * y), map(self.value, tree[1:]))
        if kind == "/":
            return self.fit(self.value(first) * (1 / self.value(tree[2])))
        if kind == "^":
            return self.power(self.value(first), self.value(tree[2]))
        if kind == "root":
            return self.root(self.value(tree[2]), first)
        return self.function(first, *map(self.value, tree[2:])) if kind == "fn" else unreadable(f"no value of {kind}")

    def power(self, base, exponent):
        """Whole exponents by squaring, others by exp and log."""
        if isinstance(exponent, Near) or exponent.denominator > 1 or abs(exponent) > 50_000:
            y = near(self.function("ln", base) * exponent)
            self.spend(20)
            if abs(y.re) > DIGITS:
                raise OverflowError
            return settle(y.re.exp()) * (sine(y.im + PI / 2) + sine(y.im) * CONSTANTS["i"] if y.im else 1)
        if exponent <= 0:
            base = 1 / base  # 0^0 is undefined
        result = Fraction(1)
        for bit in f"{abs(exponent.numerator):b}":
            result = self.fit(result * result)
            result = self.fit(result * base) if bit == "1" else result
        return result

    def root(self, x, n):
        """The n-th root: of a negative number real if n is odd, imaginary if n is 2."""
        self.spend(5 if n == 2 else 40)
        x = near(x)
        if x.im or (x.re < 0 and n % 2 == 0 and (self.real or n > 2)):
            raise ArithmeticError("a root of that")
        root = settle(abs(x.re).sqrt() if n == 2 else abs(x.re) ** (1 / Decimal(n)))
        return root if x.re >= 0 else root * (CONSTANTS["i"] if n == 2 else -1)

    def function(self, name, x, *more):
        """A named function of real arguments."""
        if name in ("!", "binom"):
            self.spend(100)
            if any(isinstance(y, Near) or y.denominator > 1 or not 0 <= y <= 600 for y in (x, *more)):
                unreadable("no factorial of that")
            return Fraction((factorial if name == "!" else comb)(*map(int, (x, *more))))
        self.spend(20)
        x = near(x)
        if x.im:
            raise ArithmeticError("not for complex numbers")
        if name == "abs":
            return settle(abs(x.re))
        if name == "ln":
            return settle(x.re.ln()) if x.re else 1 / Fraction(0)  # of a negative number it raises by itself
        if name not in ("sin", "cos", "tan"):
            unreadable(f"no value of {name}")
        self.spend(20)
        sin, cos = sine(x.re), sine(x.re + PI / 2)
        return sin if name == "sin" else cos if name == "cos" else 1 / cos * sin


MIRROR = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
# The size of the coordinates at each point, and the bit of a variable's number that turns its sign: any two of eight
# variables differ in sign somewhere, and at the points with bit 9 none is turned.
SCALES = ((1, 9), (Fraction(1, 5), 9), (100, 9), (-1, 9), (Fraction(1, 5), 0), (3, 1), (2, 2))


class Near(namedtuple("Near", "re im")):
    """re + im·i in Decimals of the precision in force. Made by settle()."""

    def __add__(self, other):
        other = near(other)
        return settle(self.re + other.re, self.im + other.im)

    def __mul__(self, other):
        other = near(other)
        return settle(self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re)

    def __rtruediv__(self, one):
        square = self.re * self.re + self.im * self.im
        return settle(self.re / square, -self.im / square)

    __radd__, __rmul__ = __add__, __mul__


def settle(re, im=Decimal(0)):
    """A Near, or the exact 0, to which a part that cancels to less than 10^-66 is set.

    Two different values between 10^-25 and 10^25, the range of all others, do not come so close.
    """
    re, im = (part if part and part.adjusted() > -2 * DIGITS // 3 else Decimal(0) for part in (re, im))
    if any(part and abs(part.adjusted()) > DIGITS // 4 for part in (re, im)):
        raise OverflowError
    return Near(re, im) if re or im else Fraction(0)


def near(x):
    """A Fraction as a Near, if it has few enough digits for the precision."""
    if not isinstance(x, Near) and max(abs(x.numerator), x.denominator) > 10 ** (DIGITS // 4):
        raise OverflowError
    return x if isinstance(x, Near) else Near(Decimal(x.numerator) / x.denominator, Decimal(0))


def sine(angle):
    """By its series, turned back to within half a turn."""
    angle = angle.remainder_near(2 * PI)
    term, total, n = angle, angle, 1
    while abs(term) > Decimal(1).scaleb(-DIGITS):
        n += 2
        term *= -angle * angle / (n * (n - 1))
        total += term
    return settle(total)


PI = Decimal("3.141592653589793238462643383279502884197169399375105820974944592307816406286208998628034825342117067982")
CONSTANTS = {"pi": settle(PI), "e": settle(Context(prec=DIGITS).exp(1)), "i": Near(Decimal(0), Decimal(1))}


def main(arguments):
    """Show the three layers at work on one completion."""
    if len(arguments) not in (2, 3) or arguments[2:] not in ([], ["####"], ["boxed"]):
        sys.exit('usage: python reward.py "completion" "gold" [form], the form being "####" or "boxed"')
    verdict = judge(*arguments)
    print("1. extracted  ", "nothing" if verdict.extracted is None else verdict.extracted)
    if verdict.answer is not None:
        for label, text in (("2. answer     ", verdict.answer), ("   reference  ", verdict.gold)):
            print(label, text, f"  ({read(text).problem or read(text).kind})")
    print("3. verdict    ", "right:" if verdict.correct else "wrong:", verdict.why)


if __name__ == "__main__":
    main(sys.argv[1:])
