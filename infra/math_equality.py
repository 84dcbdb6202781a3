r"""Are two mathematical answers equal? Nothing in an answer is ever executed.

    gold = normalize(r"\frac12")                  # "\frac{1}{2}"
    compare(normalize("0.50"), gold)              # Result(correct=True, why="equal")
    compare(normalize("1 or 2"), gold)            # Result(correct=False, why="list is not number")

Five sections, each working on what the one before returns:

    normal form   LaTeX to LaTeX: `normalize` removes what only typesetting makes different
    tokens        LaTeX to (kind, value) pairs
    tree          tokens to a tree of nested tuples: `read`
    comparison    of two trees, part by part: `compare`
    numbers       the value of a tree: an exact fraction if it is rational, else 100 digits

Every step is bounded before it is taken: length, depth, digits, number of steps. An answer over a
bound, or one that the parser does not understand, equals only the same text.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import comb, factorial
from typing import NamedTuple
from zlib import crc32

MAX_CHARS = 600  # characters of an answer that is parsed; int(str) fails above 4,300 digits
MAX_PLUS_MINUS = 3  # \pm signs in an answer: each one doubles the list of values
MAX_DEPTH = 24  # expressions nested in expressions
MAX_BITS = 8192  # bits of an exact number: 2^{4950} is allowed, 2^{10000} is not
MAX_WORK = 2000  # steps of one comparison, each about 5 microseconds
MAX_EXPONENT = 50_000  # of a power that is computed by squaring
MAX_ROOT_DEGREE = 60
MAX_FACTORIAL = 600  # n in n! and in a binomial coefficient
DIGITS = 100  # precision of a number that is not rational
MAX_MAGNITUDE = 25  # such a number is between 10^-25 and 10^25
ZERO_MAGNITUDE = -66  # a difference smaller than 10^-66 is 0


class Unreadable(Exception):
    """The parser does not know this, or a bound is exceeded: only the text can be compared."""


def by_alias(groups: dict[str, str]) -> dict[str, str]:
    """{"mm": "millimeter millimetre"} becomes {"millimeter": "mm", "millimetre": "mm"}."""
    names = {}
    for name, aliases in groups.items():
        for alias in aliases.split():
            names[alias] = name
    return names


# --- Normal form: from LaTeX to LaTeX -------------------------------------------------------------

UNICODE = str.maketrans({
    "−": "-", "–": "-", "‐": "-", "×": "*", "⋅": "*", "·": "*", "÷": "/", "±": "\\pm ",
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∪": "\\cup ", "∈": "\\in ",
    "π": "\\pi ", "θ": "\\theta ", "√": "\\sqrt ", "∞": "\\infty ", "∅": "\\emptyset ", "∠": " ",
    "°": "\\degree ", "€": "\\euro ", "£": "\\sterling ", "²": "^{2}", "³": "^{3}",
    "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
    "’": "'", "“": '"', "”": '"', "\u00a0": " ", "~": " ",
})  # fmt: skip

# What a command is called in the normal form, and the commands that mean the same, without their
# backslash: \dfrac is \frac, \leqslant is \le, and spacing and fonts become a space.
RENAMED = by_alias({
    "\\frac ": "dfrac tfrac cfrac",
    "\\binom ": "dbinom tbinom",
    "\\text": "mbox hbox textbf textit textrm textnormal textsf texttt mathrm rm",
    "\\le ": "leq leqslant",
    "\\ge ": "geq geqslant",
    "\\ne ": "neq",
    "\\approx ": "sim simeq",
    "\\emptyset ": "varnothing",
    "\\degree ": "degrees",
    "\\dollar ": "$",
    "%": "%",
    "<": "lt",
    ">": "gt",
    "*": "times cdot ast",
    "/": "div",
    "\\{": "lbrace",
    "\\}": "rbrace",
    "|": "lvert rvert vert mid",
    ":": "colon",
    "'": "prime",
    "": "!",
    " ": """
        , ; : > ( ) [ ] quad qquad displaystyle textstyle left right big Big bigg Bigg bigl bigr
        Bigl Bigr biggl biggr mathbf boldsymbol bm mathit underline boxed fbox vec hat angle
        triangle
    """,
})  # fmt: skip
RENAMED.update({" ": " ", "\n": " ", "\t": " "})  # a backslash before white space

# The end of a matrix row (\\ or \\[2pt]), a bracket that is not drawn (\left.), or any command.
COMMAND = re.compile(
    r"\\\\(?:\[[0-9.]+[a-z]+\])?|\\(?:left|right)\s*\.|\\([A-Za-z]+|.)\s*", re.DOTALL
)

# Applied in this order, each to the result of the one before.
REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in (
    # Thousands separators: 1{,}000 and 1,\!000 and 1\,000.
    (r"(?<=[0-9])(?:\{,\}|,?\\[,!]\s*)(?=[0-9]{3}(?![0-9]))", ""),
    # 90^\circ and 90^{\circ}.
    (r"\^\s*(?:\\circ(?![a-z])|\{\s*\\circ\s*\})", r"\\degree "),
    # Invisible or coloured: \phantom{x}, \color{red}.
    (r"\\(?:phantom|color)\s*(?:\{[^{}]*\}|.)", " "),
    # \operatorname{lcm} is \lcm, and an upright e, i or d is the letter.
    (r"\\operatorname\*?\s*\{([A-Za-z]+)\}", r"\\\1 "),
    (r"\\mathrm\s*\{([eid])\}", r"\1"),
    # A line segment: \overline{AB}.
    (r"\\overline\s*\{([A-Z]{2})\}", r"\1"),
    # A matrix becomes \matrix{[[1;2];[3;4]]}; the end of a row is left to rename_command.
    (r"\\begin\s*\{(?:array\}\s*\{[^{}]*\}|[pb]?matrix\})", r"\\matrix{[["),
    (r"(?:\\\\\s*)?\\end\s*\{(?:array|[pb]?matrix)\}", "]]}"),
    ("&", ";"),
    # A time of day: 8:34 p.m. becomes 8:34\text{pm}.
    (r"(:\s*[0-9]{2})\s*([apAP])\.?\s?[mM]\b\.?", r"\1\\text{\2m}"),
    # A mixed number: 1 1/2 becomes 1\frac{1}{2}.
    (r"(?<![0-9./])([0-9]+)\s+([0-9]+)/([0-9]+)(?![0-9./])", r"\1\\frac{\2}{\3}"),
    # Arguments without braces: \frac12 becomes \frac{1}2, and then \frac{1}{2}.
    (r"(\\[dtc]?frac|\\[dt]?binom)\s*([0-9])", r"\1{\2}"),
    (r"(\\(?:[dtc]?frac|[dt]?binom)\s*\{[^{}]*\})\s*([0-9])", r"\1{\2}"),
    # A numeral in another base: (1011)_2 and \text{1011}_2 become 1011_2.
    (r"\(([0-9A-Z]+)\)_|\\text\{([0-9A-Z]+)\}_", r"\1\2_"),
    # "The final answer is: 5", also inside \text{}.
    (r"(?i)^\s*(\\text\s*\{\s*)?(?:the )?(?:final )?answer(?: is)?[: ]+(?(1)\}|)", ""),
    # Signs as they are typed in a program.
    (":=", "="),
    ("<=", r"\\le "),
    (">=", r"\\ge "),
    ("!=", r"\\ne "),
)]  # fmt: skip

DOLLAR = re.compile(r"(?<!\\)\$")
DOLLAR_BEFORE_NUMBER = re.compile(r"(?<!\\)\$(?=\s*-?\s*\.?[0-9])")
WHITE_SPACE = re.compile(r"\s+")
LEADING_NOISE = re.compile(r'^(?:[ =:*`"]|\\approx )+')
TRAILING_NOISE = ' .,;:*`"'
MIXED_NUMBER = re.compile(
    r"(?<![0-9.,^_])([0-9]{1,50}) ?\\frac ?\{ ?([0-9]{1,50}) ?\} ?\{ ?([0-9]{1,50}) ?\}"
)
ABSOLUTE_VALUE = re.compile(r"\|([^|]{1,200})\|")
# A space counts only between letters and digits ("\pi r", and "1 2" is not 12) and in "1, 234".
NEEDLESS_SPACE = re.compile(r"(?<![A-Za-z0-9,]) | (?![A-Za-z0-9])")
NO_ANSWER = "{}.?_-,;:\"'` "  # a text of these characters alone; `\{\}` is more, the empty set


def normalize(answer: str) -> str:
    r"""The same answer without the differences that only typesetting makes. It is still LaTeX.

    `\dfrac12 \,` becomes `\frac{1}{2}`, `$1{,}000.` becomes `\dollar 1000`. The time can grow with
    the square of the length: the caller bounds it.
    """
    text = answer.translate(UNICODE)

    # Dollar signs come in pairs around mathematics. An odd number of them includes a currency.
    if len(DOLLAR.findall(text)) % 2 == 1:
        text = DOLLAR_BEFORE_NUMBER.sub(r"\\$", text, count=1)
    text = DOLLAR.sub(" ", text)

    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = COMMAND.sub(rename_command, text)
    text = WHITE_SPACE.sub(" ", text).replace("{}", "").strip(" ")

    text = LEADING_NOISE.sub("", text).rstrip(TRAILING_NOISE)
    text = MIXED_NUMBER.sub(mixed_number, text)
    text = ABSOLUTE_VALUE.sub(r"\\abs{\1}", text)
    return NEEDLESS_SPACE.sub("", text)


def is_empty(normal_form: str) -> bool:
    """Does a normal form consist of punctuation alone?"""
    return not normal_form.strip(NO_ANSWER)


def rename_command(match: re.Match) -> str:
    """One LaTeX command, a match of COMMAND, as the normal form writes it."""
    name = match[1]
    if name is None:
        is_row_end = match[0].startswith("\\\\")
        return "];[" if is_row_end else ""
    if name in RENAMED:
        return RENAMED[name]
    return f"\\{name} " if name.isalpha() else f"\\{name}"


def mixed_number(match: re.Match) -> str:
    r"""2\frac{1}{2} is two and a half.

    What is meant with an improper fraction is unknown, so the parser has no \improper.
    """
    whole, numerator, denominator = match.groups()
    if 0 < int(numerator) < int(denominator):
        return rf"({whole}+\frac{{{numerator}}}{{{denominator}}})"
    return r"\improper "


# --- Tokens: from LaTeX to (kind, value) pairs ----------------------------------------------------

# The kinds: num 1.5, based 1011_2, var x, sub _1, word cm, cmd \frac, op +.
Token = tuple[str, str]

# Each unit and its other names, in the singular. "square" and "cubic" are the exponents 2 and 3. A
# noun that is not listed, as in "42 apples", is accepted and ignored.
UNIT_NAMES = {
    "%": "percent", "$": "dollar usd buck", "cent": "", "euro": "", "sterling": "",
    "degree": "", "radian": "rad",
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre",
    "km": "kilometer kilometre", "inch": "inche in", "foot": "feet ft", "yard": "yd", "mile": "mi",
    "second": "sec s", "minute": "min", "hour": "hr h", "day": "", "week": "", "month": "",
    "year": "yr", "am": "", "pm": "",
    "gram": "g", "kg": "kilogram kilo", "pound": "lb", "ounce": "oz",
    "liter": "litre l", "gallon": "gal", "ml": "",
    "mph": "", "kph": "",
    "2": "square sq", "3": "cubic cu",
}  # fmt: skip
UNITS = by_alias(UNIT_NAMES)
UNITS.update({name: name for name in UNIT_NAMES})

# Letters side by side are variables (xy is x times y), except these short words, any run of more
# than three letters that stands apart, and plain words without mathematics (is_plain_word).
SHORT_WORDS = {unit for unit in UNITS if len(unit) > 1 and unit.isalpha()}
SHORT_WORDS -= {"in", "mi", "am", "sec", "min", "rad", "sq"}
SHORT_WORDS |= {"per", "cup", "pie", "men", "way", "yes", "no", "odd", "one", "two", "six", "ten"}

# Words that change the number they follow, or that hedge: they are never a unit.
NOT_UNIT_WORDS = """
    or and not no nor but if when unless except more less least most fewer greater is are was plus
    minus mod modulo factorial binary octal hex double triple half halves third quarter fourth fifth
    sixth seventh eighth ninth tenth twelfth hundredth thousandth twice zero one two three four five
    six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion
    trillion dozen score gross lakh crore grand mil mille bn mn couple maybe perhaps possibly either
    wrong incorrect false infinity negative positive between about approximately roughly so than
    squared cubed ish short off inverse reciprocal root to through versus
"""
NOT_UNITS = set(NOT_UNIT_WORDS.split())

GREEK_LETTERS = """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho
    sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
"""
GREEK = set(GREEK_LETTERS.split())

FUNCTIONS = {
    "sin", "cos", "tan", "sec", "csc", "cot", "ln", "log", "arcsin", "arccos", "arctan",
}  # fmt: skip
# Commands that are understood without their backslash.
COMMANDS_WITHOUT_BACKSLASH = {
    **{name: f"\\{name}" for name in FUNCTIONS},
    "sqrt": "\\sqrt", "pi": "\\pi", "infty": "\\infty", "infinity": "\\infty",
}  # fmt: skip


def token_pattern(letters: str) -> re.Pattern:
    """The pattern of one token. `letters` is the pattern of letters that belong together."""
    pattern = r"""
        (?P<based> (?=[A-Z]*[0-9]) [0-9A-Z]+ _ (?: \{[0-9]{1,2}\} | [0-9]{1,2} ) )  # 1011_2
        | (?P<num>
            (?<![0-9],) [0-9]{1,3} (?:,[0-9]{3})+ (?![0-9]|,[0-9]) (?:\.[0-9]+)?    # 1,000.5
            | [0-9]+ (?:\.[0-9]+)?                                                  # 12  1.5
            | \.[0-9]+ )                                                            # .5
        | \\text\s*\{ (?P<text> [^{}]* ) \}
        | (?P<cmd> \\ (?: [A-Za-z]+ | . ) )
        | (?P<sub> _ (?: \{[A-Za-z0-9]*\} | [A-Za-z0-9] ) )
        | (?P<var> [fghpqrFGHPQRSTV] \( [A-Za-z0-9]{1,2} \) (?==) )                 # f(x) = ...
        | (?P<letters> LETTERS )
        | \s+
        | (?P<op> . )
    """
    return re.compile(pattern.replace("LETTERS", letters), re.DOTALL | re.VERBOSE)


IN_MATH = token_pattern("[A-Za-z]+")
IN_TEXT = token_pattern(r"[A-Za-z] (?: [A-Za-z'-] | \.(?=[A-Za-z]) )* \.?")  # two-digit, p.m.
ONLY_LETTERS = re.compile("[A-Za-z' -]*")
LOWER_CASE_WORD = re.compile("[a-z]{4}")
PLAIN_WORDS = re.compile(r"\{*[A-Za-z, ]*\}*")
LETTERS_IN_TEXT = re.compile(r"\A\\text\{([A-Za-z ]+)\}\Z")  # \text{go}, which go is equal to

OPENING = ("(", "[", "{", "\\{")
CLOSING = (")", "]", "}", "\\}")


def tokenize(text: str, in_text: bool = False) -> list[Token]:
    r"""The tokens of an answer. `in_text`: it is the content of a \text{}."""
    if ONLY_LETTERS.fullmatch(text) and LOWER_CASE_WORD.search(text):
        in_text = True
    if PLAIN_WORDS.fullmatch(text) and any(map(is_plain_word, re.findall("[A-Za-z]+", text))):
        in_text = True
    pattern = IN_TEXT if in_text else IN_MATH
    tokens = []
    open_brackets = []

    for match in pattern.finditer(text):
        kind = match.lastgroup
        if kind is None:  # white space
            continue
        value = match[kind]

        if kind == "text":
            tokens += tokenize(value, in_text=True)
        elif kind == "num":
            tokens += number_tokens(value, open_brackets)
        elif kind == "letters":
            after_word = bool(tokens) and tokens[-1][0] == "word"
            start = match.start()
            stands_apart = start == 0 or not text[start - 1].isalnum()
            tokens += letter_tokens(value, in_text or after_word, stands_apart)
        else:
            if value in OPENING:
                open_brackets.append(value)
            elif value in CLOSING and open_brackets:
                open_brackets.pop()
            if kind == "cmd" and value[1:] in GREEK:
                kind = "var"
            tokens.append((kind, value))
    return tokens


def is_plain_word(letters: str) -> bool:
    """Is it dog, rather than the product abc, the name ABC or the function sin?

    Three letters with a vowel are a word, unless they are neighbours in the alphabet.
    """
    if len(letters) < 3 or letters.isupper() or letters in COMMANDS_WITHOUT_BACKSLASH:
        return False
    lower = letters.lower()
    places = sorted(map(ord, lower))
    are_neighbours = len(letters) == 3 and places == list(range(places[0], places[0] + 3))
    has_vowel = bool(set(lower) & set("aeiouy"))
    return has_vowel and not are_neighbours and lower not in SHORT_WORDS and lower != "and"


def number_tokens(value: str, open_brackets: list[str]) -> list[Token]:
    """100,200 is one number, but (100,200) is a pair.

    No one writes the entry of a pair as 000, so (1,000) is one number too.
    """
    in_brackets = bool(open_brackets) and open_brackets[-1] != "{"
    if "," not in value or not in_brackets or ",0" in value:
        return [("num", value.replace(",", ""))]
    tokens = []
    for part in value.split(","):
        tokens += [("num", part), ("op", ",")]
    return tokens[:-1]


def letter_tokens(letters: str, in_text: bool, stands_apart: bool) -> list[Token]:
    """A word, a function, a name such as AB, or variables side by side."""
    lower = letters.lower().rstrip(".")
    if lower in ("or", "and"):
        return [("op", lower)]
    if letters in COMMANDS_WITHOUT_BACKSLASH:
        return [("cmd", COMMANDS_WITHOUT_BACKSLASH[letters])]

    is_short_word = lower in SHORT_WORDS or lower.removesuffix("s") in SHORT_WORDS
    is_long_word = stands_apart and len(letters) > 3 and not letters.isupper()
    if in_text or is_short_word or is_long_word:
        return [("word", letters.replace(".", ""))]
    if letters.isupper():
        return [("var", letters)]
    return [("var", letter) for letter in letters]


# --- Tree: from tokens to nested tuples -----------------------------------------------------------
#
# The first item of a tree is its kind. A value consists of values:
#     ("num", Fraction)     ("var", name)      ("const", "pi" | "e" | "i")
#     ("+", *terms)         ("*", *factors)    ("/", a, b)    ("^", base, exponent)
#     ("root", degree, x)   ("fn", name, *arguments)
# The other kinds of answer consist of anything; an interval is a tuple that keeps its brackets:
#     ("tuple", "(", "]", *items)    ("set", *items)    ("list", *items)    ("union", *items)
#     ("relation", side, sign, side, ...)     ("ratio", *items)    ("matrix", rows)
#     ("words", text)                ("numeral", value, base)

Tree = tuple
ANSWERS = {"tuple", "set", "list", "union", "ratio", "matrix", "relation", "words", "numeral"}
RELATIONS = ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\in")

# The precedence of operators: a higher one binds more tightly.
LIST, RELATION, UNION, SUM, PRODUCT, POWER = range(1, 7)


class Operator(NamedTuple):
    kind: str  # of the tree that it makes
    precedence: int


OPERATORS = {
    ",": Operator("list", LIST),
    ";": Operator("list", LIST),
    "or": Operator("list", LIST),
    "and": Operator("list", LIST),
    "\\cup": Operator("union", UNION),
    ":": Operator("ratio", UNION),
    "+": Operator("+", SUM),
    "-": Operator("+", SUM),
    "*": Operator("*", PRODUCT),
    "": Operator("*", PRODUCT),  # side by side, as in 2x
    "/": Operator("/", PRODUCT),
    "^": Operator("^", POWER),
    "!": Operator("fn", POWER),
    "\\degree": Operator("*", POWER),
}
OPERATORS.update({sign: Operator("relation", RELATION) for sign in RELATIONS})

ONE = ("num", Fraction(1))
TWO = ("num", Fraction(2))
TEN = ("num", Fraction(10))
MINUS_ONE = ("num", Fraction(-1))
INFINITY = ("var", "\\infty")
EMPTY_SET = ("set",)
PI_OVER_180 = ("/", ("const", "pi"), ("num", Fraction(180)))
SYMBOLS = {"\\pi": ("const", "pi"), "\\infty": INFINITY, "\\emptyset": EMPTY_SET}
RECIPROCAL = {"sec": "cos", "csc": "sin", "cot": "tan"}
ANGLE_FUNCTIONS = {"sin", "cos", "tan", "sec", "csc", "cot"}  # in their argument 30° is pi/6
ENDS_ARGUMENT = (OPERATORS.keys() | FUNCTIONS) - {""}  # of a function without brackets
CLOSED_BY = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), "\\{": ("\\}",)}


class Parser:
    """Recursive descent over the tokens of one answer, by the precedence of the operators.

    Each method takes the tokens that it reads. The first one that is not understood raises
    Unreadable.
    """

    def __init__(self, tokens: list[Token]):
        self.tokens = [*tokens, ("end", "the end")]
        self.at = 0  # the index of the next token
        self.depth = 0
        self.units = set()
        self.in_angle = False  # inside the argument of a sine

    def peek(self) -> Token:
        return self.tokens[self.at]

    def take(self, *symbols: str) -> str | None:
        """Take the next token if it is one of these operators or brackets."""
        kind, value = self.tokens[self.at]
        if kind in ("op", "cmd") and value in symbols:
            self.at += 1
            return value
        return None

    def expression(self, precedence: int) -> Tree:
        """An operand, and all that operators of this precedence or a higher one bind to it."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        tree = self.operand(precedence)
        while True:
            if precedence <= PRODUCT:  # in "2x cm" the unit belongs to the product, not to x
                self.take_units()
            kind, value = self.peek()
            operator = value if kind in ("op", "cmd") and value in OPERATORS else ""
            nothing_follows = operator == "" and not self.starts_operand()
            if nothing_follows or OPERATORS[operator].precedence < precedence:
                self.depth -= 1
                return tree
            if operator:
                self.at += 1
            tree = self.extend(tree, operator)

    def extend(self, tree: Tree, operator: str) -> Tree:
        """The tree with what follows the operator, which has been taken."""
        if operator == "!":
            if self.take("!"):
                raise Unreadable("a double factorial")
            return make_value("fn", "!", tree)
        if operator == "\\degree":
            self.units.add("degree")
            return make_value("*", tree, PI_OVER_180) if self.in_angle else tree
        if operator == "^":  # from the right: 2^3^2 is 2^9
            return make_value("^", tree, self.expression(POWER))

        kind, value = self.peek()
        if operator == "/" and kind == "word":  # miles/hour is a unit
            return tree
        precedence = OPERATORS[operator].precedence
        if precedence == LIST:  # "1, 2, and 3": the word replaces the comma
            operator = self.take("or", "and") or operator
        right = self.expression(precedence + 1)

        # "1 2", "x 5" and "\frac12 3" are no products. Side by side, only the first factor may be
        # a numeral; others need brackets.
        if operator == "" and right[0] in ("num", "numeral") and value != "(":
            raise Unreadable("a numeral to the right of something")
        return combine(tree, operator, right)

    def starts_operand(self) -> bool:
        kind, value = self.tokens[self.at]
        if kind == "cmd":
            return value != "\\}"
        return kind in ("num", "var", "based") or value in ("(", "[", "{")

    def operand(self, precedence: int) -> Tree:
        """A sign and what it binds, words, a numeral, a variable, brackets, or a command."""
        sign = self.take("+", "-")
        if sign:
            tree = self.expression(max(precedence, PRODUCT))
            return combine(MINUS_ONE, "*", tree) if sign == "-" else tree

        kind, value = self.peek()
        if kind == "word":
            return self.words()
        self.at += 1
        if kind == "num":
            return ("num", Fraction(value))
        if kind == "based":
            return numeral(value)
        if kind == "var":
            return self.variable(value)
        if kind == "cmd":
            return self.command(value)
        if value in ("(", "[", "{"):
            return self.brackets(value)
        raise Unreadable(f"no meaning for {value}")

    def variable(self, name: str) -> Tree:
        """A variable with its index and its primes."""
        kind, value = self.peek()
        if kind == "sub":
            name += "_" + value.strip("_{}")
            self.at += 1
        while self.take("'"):
            name += "'"
        return ("const", name) if name in ("e", "i") else ("var", name)

    def words(self) -> Tree:
        """Words up to a separator. One letter is a variable, and words before = are a name."""
        words = []
        while self.peek()[0] in ("word", "num", "var"):
            words.append(self.peek()[1])
            self.at += 1
        text = " ".join(words).lower()

        kind, value = self.peek()
        separates = value in OPERATORS and OPERATORS[value].precedence <= RELATION
        if kind != "end" and value not in CLOSING and not separates:
            raise Unreadable("words and mathematics mixed")
        if len(text) == 1:
            return ("var", words[0])
        return ("var" if value in RELATIONS else "words", text)

    def brackets(self, opening: str) -> Tree:
        """What brackets hold, up to their end; the opening one has been taken.

        Braces change nothing, and round brackets around one item group it. The rest is a set, a
        tuple or an interval.
        """
        is_empty_set = self.peek()[1] == "\\}"
        tree = ("list",) if is_empty_set else self.expression(LIST)
        closing = self.take(*CLOSED_BY[opening])
        if closing is None:
            raise Unreadable(f"no end of {opening}")

        items = list_items(tree)
        may_group = opening + closing == "()" or tree[0] == "matrix"
        if opening == "{" or (len(items) == 1 and may_group):
            return tree
        if opening == "\\{":
            return ("set", *dict.fromkeys(items))  # without repetitions
        return ("tuple", opening, closing, *items)

    def command(self, name: str) -> Tree:
        """A command with its arguments; the command has been taken."""
        if name in SYMBOLS:
            return SYMBOLS[name]
        if name == "\\frac":
            return make_value("/", self.operand(POWER), self.operand(POWER))
        if name == "\\binom":
            return make_value("fn", "binom", self.operand(POWER), self.operand(POWER))
        if name == "\\sqrt":
            degree = self.root_degree()
            return make_value("root", degree, self.operand(POWER))
        if name == "\\{":
            return self.brackets(name)
        if name == "\\abs":
            return make_value("fn", "abs", self.operand(POWER))
        if name == "\\matrix":
            return ("matrix", self.operand(POWER))
        if name[1:] in FUNCTIONS:
            return self.function(name[1:])
        if name in ("\\dollar", "\\euro", "\\sterling"):
            self.units.add(UNITS[name[1:]])
            return self.operand(POWER)
        raise Unreadable(f"no meaning for {name}")

    def root_degree(self) -> int:
        r"""The 3 of \sqrt[3]{x}."""
        degree = TWO
        if self.take("["):
            degree = self.brackets("[")[-1]
        is_whole = degree[0] == "num" and degree[1].denominator == 1
        if not is_whole or not 2 <= degree[1] <= MAX_ROOT_DEGREE:
            raise Unreadable("a root of that degree")
        return int(degree[1])

    def function(self, name: str) -> Tree:
        r"""A function with its base, power and argument: \sin^2 x, \log_2 8, \sin 5x \cos x."""
        base = TEN
        kind, value = self.peek()
        if kind == "sub":
            base = Parser(tokenize(value.strip("_{}"))).expression(PRODUCT)
            self.at += 1
        power = self.expression(POWER) if self.take("^") else None
        if power == MINUS_ONE:  # \sin^{-1} is \arcsin
            name = "arc" + name
            power = None

        outside = self.in_angle
        self.in_angle = name in ANGLE_FUNCTIONS
        argument = self.argument()
        self.in_angle = outside

        if name == "log":
            tree = make_value("/", make_value("fn", "ln", argument), make_value("fn", "ln", base))
        else:
            tree = make_value("fn", RECIPROCAL.get(name, name), argument)
        if power:
            tree = make_value("^", tree, power)
        return make_value("/", ONE, tree) if name in RECIPROCAL else tree

    def argument(self) -> Tree:
        """The argument of a function: brackets, or factors up to an operator or a function."""
        if self.peek()[1] in ("(", "{"):
            return self.operand(POWER)
        argument = self.expression(POWER)
        while self.starts_operand():
            value = self.peek()[1]
            if value in ENDS_ARGUMENT or value[1:] in ENDS_ARGUMENT:
                break
            argument = combine(argument, "", self.expression(POWER))
        return argument

    def take_units(self) -> None:
        """Take the words, percent signs and exponents of a unit.

        A word that changes the number before it is no unit.
        """
        found = []  # the unit of each word, None for other nouns
        while True:
            kind, value = self.peek()
            if kind == "word":
                found.append(unit_of(value))
                self.at += 1
            elif found and self.take("^"):
                exponent = self.operand(POWER)
                if exponent == EMPTY_SET:
                    raise Unreadable("a set as the exponent of a unit")
                found.append(str(exponent[1]))
            elif self.take("%"):
                found.append("%")
            else:
                break
        self.units.update(unit for unit in found if unit)


def unit_of(word: str) -> str | None:
    """The unit's name, or None for any other noun."""
    lower = word.lower()
    singular = lower if len(word) < 3 else lower.removesuffix("s")
    changes_number = singular in NOT_UNITS or lower in NOT_UNITS
    if changes_number or (len(singular) == 1 and singular not in UNITS):
        raise Unreadable(f"{word} is no unit")
    return UNITS.get(singular)


def numeral(text: str) -> Tree:
    """1011_2 or 1011_{2}: a numeral and its base, which stays part of the answer."""
    digits, base = text.strip("}").replace("{", "").split("_")
    if not 2 <= int(base) <= 36 or any(int(digit, 36) >= int(base) for digit in digits):
        raise Unreadable("digits of no such base")
    if base == "10":
        return ("num", Fraction(digits))
    return ("numeral", int(digits, int(base)), base)


def make_value(kind: str, *parts) -> Tree:
    """A value made of values: there is no arithmetic on intervals, lists or words."""
    for part in parts:
        if isinstance(part, tuple) and part[0] in ANSWERS:
            raise Unreadable("arithmetic on something that is no value")
    return (kind, *parts)


def combine(left: Tree, operator: str, right: Tree) -> Tree:
    """One tree of two and the operator between them; `a + b` and `c` make one sum of three."""
    kind, precedence = OPERATORS[operator]
    if precedence == LIST:
        # x<1 or x>2 is a list. x<1 and x>2 is one condition, which is not understood.
        if operator == "and" and right[0] == "relation" and right[2] != "=":
            raise Unreadable("two conditions at once")
        return ("list", *list_items(left), right)

    is_continued = left[0] == kind and kind != "/"
    parts = left[1:] if is_continued else (left,)
    if precedence == RELATION:
        return ("relation", *parts, operator, right)
    if precedence == UNION:
        return (kind, *parts, right)

    if operator == "-":
        right = combine(MINUS_ONE, "*", right)
    elif kind == "*" and left == MINUS_ONE and right[0] in ("num", "numeral"):
        return (right[0], -right[1], *right[2:])
    return make_value(kind, *parts, right)


def subtrees(*trees: Tree) -> Iterator[Tree]:
    """Every tuple in the trees, themselves included."""
    stack = list(trees)
    while stack:
        tree = stack.pop()
        yield tree
        stack.extend(part for part in tree if isinstance(part, tuple))


def variables(*trees: Tree) -> set[str]:
    return {part[1] for part in subtrees(*trees) if part[0] == "var"}


def list_items(tree: Tree) -> list[Tree]:
    """The items of a list; of any other tree, itself."""
    return list(tree[1:]) if tree[0] == "list" else [tree]


def name_and_values(tree: Tree) -> tuple[Tree | None, list[Tree]]:
    r"""What an answer gives a value to, and the values.

    x = 5, 5 = x, x = 15/3 = 5 and x \in S give one to x. An answer without a name is its own
    value; 3 = 3 has two values and no name; x < 5 has neither.
    """
    if tree[0] != "relation":
        return None, [tree]
    sides, signs = tree[1::2], tree[2::2]  # of a = b = c: (a, b, c) and ("=", "=")
    others_are_equal = all(sign == "=" for sign in signs[1:])
    if signs == ("\\in",) or (signs[0] in ("=", "\\approx") and others_are_equal):
        if is_name(sides[0]):
            return sides[0], list(sides[1:])
        if signs == ("=",) and is_name(sides[1]):
            return sides[1], [sides[0]]
    return None, list(sides) if signs[0] == "=" and others_are_equal else []


def spelled_out(tree: Tree) -> Tree:
    """A word of three letters as the product of its letters; any other tree as it is."""
    if tree[0] != "words" or len(tree[1]) != 3 or not tree[1].isalpha():
        return tree
    return ("*", *(("const" if letter in "ei" else "var", letter) for letter in tree[1]))


def is_name(tree: Tree) -> bool:
    """x, or (x, y) as in (x, y) = (1, 2)."""
    if tree[0] == "tuple":
        return all(item[0] == "var" for item in tree[3:])
    return tree[0] == "var" and tree != INFINITY


class Reading(NamedTuple):
    """What `read` makes of an answer: a tree, or the problem with it."""

    tree: Tree | None
    kind: str  # "number", "expression", "list", "tuple (]" ... or "text only"
    units: frozenset[str] | None
    problem: str | None  # why there is no tree


@lru_cache(maxsize=4096)  # a reference is read once, not once for every completion
def read(text: str) -> Reading:
    """Read an answer in normal form."""
    try:
        return read_tree(text)
    except (Unreadable, RecursionError) as error:
        return Reading(None, "text only", None, str(error))


def read_tree(text: str) -> Reading:
    has_plus_minus = "\\pm" in text
    items, units = read_items(text)
    items = without_names(items)
    if has_plus_minus:
        tree = ("list", *dict.fromkeys(items))  # without repetitions
    elif len(items) > 1:
        tree = ("list", *items)
    else:
        tree = items[0]

    kind = tree[0]
    if kind not in ANSWERS:
        kind = "expression" if variables(tree) else "number"
    elif kind == "tuple":
        kind = f"tuple {tree[1]}{tree[2]}"
    return Reading(tree, kind, units, None)


def read_items(text: str) -> tuple[list[Tree], frozenset[str]]:
    r"""The items of a list, or the one item of any other answer, and all units.

    1\pm 2 is read as a list, once with + and once with -.
    """
    first, *rest = re.split(r"\\pm ?", text)
    if len(text) > MAX_CHARS // 2 ** len(rest) or len(rest) > MAX_PLUS_MINUS:
        raise Unreadable("too long")
    items = []
    units = set()
    for signs in product("+-", repeat=len(rest)):
        variant = first
        for sign, part in zip(signs, rest, strict=True):
            variant += sign + part
        parser = Parser(tokenize(variant))
        items += list_items(parser.expression(LIST))
        units |= parser.units
        kind, value = parser.peek()
        if kind != "end":
            raise Unreadable(f"no place for {value}")
    return items, frozenset(units)


def without_names(items: list[Tree]) -> list[Tree]:
    """The values in lists such as x=2, x=3 and x_1=2, x_2=3 and x=2, 3.

    Different names are kept: a=2, b=3 stays a list of equations.
    """
    if len(items) == 1:
        return items
    names = []
    values = []
    for item in items:
        name, values_of_item = name_and_values(item)
        if len(values_of_item) != 1:
            return items
        names.append(name and str(name[1]).partition("_")[0])
        values.append(values_of_item[0])
    later_names = set(names[1:])
    if names[0] and later_names in ({names[0]}, {None}):
        return values
    return items


# --- Comparison: of two trees, part by part -------------------------------------------------------

MIRRORED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}

# The points at which expressions with variables are compared: the size of the coordinates, and a
# bit. The variables are numbered by name, and those whose number has a 1 in this bit are negative.
# So any two of eight variables differ in sign at some point. No number has a 1 in bit 9.
POINTS = (
    (Fraction(1), 9),
    (Fraction(1, 5), 9),
    (Fraction(100), 9),
    (Fraction(-1), 9),
    (Fraction(1, 5), 0),
    (Fraction(3), 1),
    (Fraction(2), 2),
)


class Result(NamedTuple):
    correct: bool
    why: str


def compare(answer: str, gold: str) -> Result:
    """Compare two answers in normal form."""
    if is_empty(gold):
        return Result(False, "the reference is empty")
    if answer == gold or LETTERS_IN_TEXT.sub(r"\1", answer) == LETTERS_IN_TEXT.sub(r"\1", gold):
        return Result(True, "the normal forms are the same text")
    problem = read(answer).problem or read(gold).problem
    if problem:
        return Result(False, f"the texts differ, and one cannot be read: {problem}")

    a, b = read(answer), read(gold)
    # A unit that one side leaves out is no difference.
    units_differ = a.units and b.units and a.units != b.units
    try:
        with localcontext(Context(prec=DIGITS)):
            correct = not units_differ and Comparison().same(a.tree, b.tree)
    except (Unreadable, RecursionError, ArithmeticError) as error:
        why = f"the texts differ, and there is no comparing the values: {error}"
        return Result(False, why)
    if correct:
        return Result(True, "equal")
    return Result(False, "not equal" if a.kind == b.kind else f"{a.kind} is not {b.kind}")


class Comparison:
    """Compares two trees within a bounded number of steps."""

    def __init__(self):
        self.calculator = Calculator()

    def same(self, a, b) -> bool:
        """Are two trees, or two parts of trees, the same answer?

        They must be of one kind, except for the name in `x = 5`.
        """
        self.calculator.spend(1)
        if a == b or not isinstance(a, tuple) or not isinstance(b, tuple):
            return a == b
        kinds = {a[0], b[0]}
        if kinds == {"relation"}:
            return self.same_relation(a, b)
        if a[0] == "relation":
            return self.states_value(a, b)
        if b[0] == "relation":
            return self.states_value(b, a)
        if kinds == {"words", "var"}:  # \text{NO} and NO
            return a[1].lower() == b[1].lower()
        if "words" in kinds and not kinds <= ANSWERS:  # abx, a word by itself, and b*a*x
            a, b = spelled_out(a), spelled_out(b)
            kinds = {a[0], b[0]}
        if kinds <= {"set", "list"} or kinds == {"union"}:
            return self.same_in_any_order(a[1:], b[1:])
        if not kinds & ANSWERS:
            return self.same_value(a, b)
        return len(kinds) == 1 and self.same_in_order(a, b)

    def same_in_order(self, a: tuple, b: tuple) -> bool:
        if len(a) != len(b):
            return False
        return all(self.same(x, y) for x, y in zip(a, b, strict=True))

    def same_in_any_order(self, a: tuple, b: tuple) -> bool:
        """Does each item of one have its own equal among the items of the other?"""
        rest = list(b)
        for x in a:
            for k, y in enumerate(rest):
                if self.same(x, y):
                    del rest[k]
                    break
            else:
                return False
        return not rest

    def states_value(self, relation: Tree, value: Tree) -> bool:
        """Does x = 15/3 = 5 state the value 5? Each side but the name must: 0 = 2 is not 2."""
        _, values = name_and_values(relation)
        return bool(values) and all(self.same(side, value) for side in values)

    def same_relation(self, a: Tree, b: Tree) -> bool:
        """Two relations: the same values of a name, the same sides, or the same equation."""
        name_a, values_a = name_and_values(a)
        name_b, values_b = name_and_values(b)
        if name_a and name_b and self.same(name_a, name_b) and a[2] == b[2]:
            return all(self.same(x, y) for x in values_a for y in values_b)

        # b as it stands, and from right to left: 5 > x is x < 5.
        mirrored_b = ("relation", *(MIRRORED.get(part, part) for part in b[:0:-1]))
        for other in (b, mirrored_b):
            signs_agree = a[2::2] == other[2::2]
            if signs_agree and self.same_in_order(a[1::2], other[1::2]):
                return True

        # In one variable `2x = 10` is not accepted for `x = 5`: it may be the question.
        are_equations = a[2::2] == b[2::2] == ("=",)
        return are_equations and len(variables(a, b)) >= 2 and self.same_equation(a, b)

    def same_equation(self, a: Tree, b: Tree) -> bool:
        """Is one equation a multiple of the other, as 2x + 2y = 4 of x + y = 2?

        Then the ratio of the two, as left side minus right side, is the same at all points.
        """
        difference_a = combine(a[1], "-", a[3])
        difference_b = combine(b[1], "-", b[3])
        pairs = list(self.values(difference_a, difference_b))
        if len(pairs) < 2:
            return False
        first_a, first_b = pairs[0]
        if first_a == 0 or first_b == 0:
            return False
        return all(are_equal(first_a * next_b, first_b * next_a) for next_a, next_b in pairs[1:])

    def same_value(self, a: Tree, b: Tree) -> bool:
        """Are two values equal at every point where both are defined, and is there such a point?"""
        is_defined = False
        for x, y in self.values(a, b):
            if not are_equal(x, y):
                return False
            is_defined = True
        return is_defined

    def values(self, a: Tree, b: Tree) -> Iterator[tuple]:
        """The values of two trees at pseudo-random points, without those where one has none."""
        if INFINITY in subtrees(a, b):  # it equals itself, and no arithmetic is done with it
            return
        # Over the real numbers \sqrt{x^2} is |x|, and \sqrt{x} is undefined for x < 0. With an i
        # in one of the trees both are over the complex numbers.
        calculator = self.calculator
        calculator.real = ("const", "i") not in subtrees(a, b)

        names = sorted(variables(a, b))
        points = POINTS if names else POINTS[:1]
        for k, (size, sign_bit) in enumerate(points):
            for number, name in enumerate(names):
                noise = crc32(f"{name} at {k}".encode("utf-8", "replace")) % 899
                coordinate = Fraction(150 + noise, 211) * size
                is_negative = number >> sign_bit & 1
                calculator.point[name] = -coordinate if is_negative else coordinate
            with suppress(ArithmeticError):  # undefined here, or out of range
                yield calculator.value(a), calculator.value(b)


# --- Numbers: the value of a tree -----------------------------------------------------------------
#
# A value is a Fraction if it is rational, else a ComplexDecimal.


class ComplexDecimal(NamedTuple):
    """re + im·i with DIGITS digits. A result is never 0: `rounded` returns a Fraction then."""

    re: Decimal
    im: Decimal

    def __add__(self, other):
        other = to_decimal(other)
        return rounded(self.re + other.re, self.im + other.im)

    def __mul__(self, other):
        other = to_decimal(other)
        re = self.re * other.re - self.im * other.im
        im = self.re * other.im + self.im * other.re
        return rounded(re, im)

    def __rtruediv__(self, one):
        square = self.re * self.re + self.im * self.im
        return rounded(self.re / square, -self.im / square)

    __radd__ = __add__
    __rmul__ = __mul__


Number = Fraction | ComplexDecimal
ZERO = Decimal(0)


def rounded(re: Decimal, im: Decimal = ZERO) -> Number:
    """A ComplexDecimal, or the exact 0 if both parts cancel to less than 10^-66.

    All other values are between 10^-25 and 10^25, else OverflowError. Two different ones never
    come that close by accident.
    """
    if not re or re.adjusted() < ZERO_MAGNITUDE:
        re = ZERO
    if not im or im.adjusted() < ZERO_MAGNITUDE:
        im = ZERO
    for part in (re, im):
        if part and abs(part.adjusted()) > MAX_MAGNITUDE:
            raise OverflowError("a value out of range")
    return ComplexDecimal(re, im) if re or im else Fraction(0)


def to_decimal(x: Number | int) -> ComplexDecimal:
    """A number as a ComplexDecimal, if the precision holds all digits of a fraction."""
    if isinstance(x, ComplexDecimal):
        return x
    if max(abs(x.numerator), x.denominator) > 10**MAX_MAGNITUDE:
        raise OverflowError("a value out of range")
    return ComplexDecimal(Decimal(x.numerator) / x.denominator, ZERO)


def are_equal(x: Number, y: Number) -> bool:
    """Is x - y zero? A ComplexDecimal only has + and *."""
    return x + -1 * y == 0


PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510"
    "5820974944592307816406286208998628034825342117067982"
)
I_UNIT = ComplexDecimal(ZERO, Decimal(1))
CONSTANTS = {"pi": rounded(PI), "e": rounded(Context(prec=DIGITS).exp(1)), "i": I_UNIT}


def sine(angle: Decimal) -> Number:
    """By its series, after the angle is reduced to at most half a turn."""
    angle = angle.remainder_near(2 * PI)
    term = angle
    total = angle
    n = 1
    while abs(term) > Decimal(1).scaleb(-DIGITS):
        n += 2
        term *= -angle * angle / (n * (n - 1))
        total += term
    return rounded(total)


class Calculator:
    """Evaluates trees at a point, within a bounded number of steps.

    Undefined values raise ArithmeticError. Unreadable ends the whole comparison.
    """

    def __init__(self):
        self.steps_left = MAX_WORK
        self.point = {}  # the value of each variable
        self.real = True  # roots of negative numbers are undefined

    def spend(self, steps: int) -> None:
        """Count work before it is done."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise Unreadable("too much work")

    def bounded(self, x: Number) -> Number:
        """Return x after its work is counted and its size is checked."""
        if isinstance(x, ComplexDecimal):
            bits = 1000
        else:
            bits = max(x.numerator.bit_length(), x.denominator.bit_length())
        self.spend(1 + bits // 256)
        if bits > MAX_BITS:
            raise Unreadable("a number too large")
        return x

    def value(self, tree: Tree) -> Number:
        kind, first = tree[:2]
        if kind == "num":
            return self.bounded(first)
        if kind == "var":
            return self.point[first]
        if kind == "const":
            return CONSTANTS[first]
        if kind == "+":
            total = self.value(first)
            for term in tree[2:]:
                total = self.bounded(total + self.value(term))
            return total
        if kind == "*":
            total = self.value(first)
            for factor in tree[2:]:
                total = self.bounded(total * self.value(factor))
            return total
        if kind == "/":
            return self.bounded(self.value(first) * (1 / self.value(tree[2])))
        if kind == "^":
            return self.power(self.value(first), self.value(tree[2]))
        if kind == "root":
            return self.root(self.value(tree[2]), first)
        if kind == "fn":
            arguments = [self.value(argument) for argument in tree[2:]]
            return self.function(first, arguments)
        raise Unreadable(f"no value of {kind}")

    def power(self, base: Number, exponent: Number) -> Number:
        """Whole exponents by squaring, others by exp and log."""
        is_whole = isinstance(exponent, Fraction) and exponent.denominator == 1
        if not is_whole or abs(exponent) > MAX_EXPONENT:
            return self.exp(self.function("ln", [base]) * exponent)
        if exponent <= 0:
            base = 1 / base  # 0^0 is undefined
        result = Fraction(1)
        for bit in f"{abs(exponent.numerator):b}":
            result = self.bounded(result * result)
            if bit == "1":
                result = self.bounded(result * base)
        return result

    def exp(self, x: Number) -> Number:
        """e^(a + bi) is e^a (cos b + i sin b)."""
        x = to_decimal(x)
        self.spend(20)
        if abs(x.re) > DIGITS:
            raise OverflowError("a value out of range")
        modulus = rounded(x.re.exp())
        if not x.im:
            return modulus
        return modulus * (sine(x.im + PI / 2) + sine(x.im) * I_UNIT)

    def root(self, x: Number, n: int) -> Number:
        """The n-th root: of a negative number real if n is odd, imaginary if n is 2."""
        self.spend(5 if n == 2 else 40)
        x = to_decimal(x)
        if x.im or (x.re < 0 and n % 2 == 0 and (self.real or n > 2)):
            raise ArithmeticError("a root of that")
        modulus = rounded(abs(x.re).sqrt() if n == 2 else abs(x.re) ** (1 / Decimal(n)))
        if x.re >= 0:
            return modulus
        return modulus * (I_UNIT if n == 2 else -1)

    def function(self, name: str, arguments: list[Number]) -> Number:
        """A named function of real arguments."""
        if name in ("!", "binom"):
            return self.combinatorial(name, arguments)
        self.spend(20)
        x = to_decimal(arguments[0])
        if x.im:
            raise ArithmeticError("not for complex numbers")
        if name == "abs":
            return rounded(abs(x.re))
        if name == "ln":
            if x.re == 0:
                raise ZeroDivisionError
            return rounded(x.re.ln())  # of a negative number Decimal raises ArithmeticError
        if name not in ("sin", "cos", "tan"):
            raise Unreadable(f"no value of {name}")

        self.spend(20)
        sin = sine(x.re)
        cos = sine(x.re + PI / 2)
        if name == "sin":
            return sin
        return cos if name == "cos" else 1 / cos * sin

    def combinatorial(self, name: str, arguments: list[Number]) -> Fraction:
        """A factorial or a binomial coefficient of small whole numbers."""
        self.spend(100)
        numbers = []
        for x in arguments:
            is_whole = isinstance(x, Fraction) and x.denominator == 1
            if not is_whole or not 0 <= x <= MAX_FACTORIAL:
                raise Unreadable("no factorial of that")
            numbers.append(int(x))
        return Fraction(factorial(*numbers) if name == "!" else comb(*numbers))
