"""A reward of one's own: a Python file with a function `score` (docs/your_own.md).

The file is the user's own code and runs with the user's rights. It is the only thing that is run:
nothing in a completion or in a problem set ever is.
"""

import hashlib
import sys
import types
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)  # rewards become float32


class RewardFileError(ValueError):
    """What is wrong with the file or with what it returned, in one sentence with file and line."""


class RewardFile:
    """score of a file, as evaluate.grade calls it; hash says which text of the file it is.

    Raises RewardFileError if it cannot be read or run, or has no function `score`.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            source = Path(path).read_bytes()
        except OSError as error:
            raise RewardFileError(f"--reward {path}: {error.strerror}") from None
        self.hash = hashlib.sha256(source).hexdigest()
        # Registered, because dataclasses look their module up.
        module = sys.modules["reward_file"] = types.ModuleType("reward_file")
        module.__file__ = path
        try:
            exec(compile(source, path, "exec"), vars(module))
        except (Exception, SystemExit) as error:
            raise self.problem(f"raised {in_words(error)}", line_of(error, path)) from None
        self.score = getattr(module, "score", None)
        if not callable(self.score):
            raise RewardFileError(f"--reward {path}: it defines no function score")

    def __call__(self, completion: str, query: Any) -> tuple[float, bool, bool]:
        """(paid, right, in_format): a file of one's own judges the format too, so that is True."""
        try:
            value = self.score(completion, query)
        except (Exception, SystemExit) as error:
            line = line_of(error, self.path) or self.first_line()
            raise self.problem(f"score raised {in_words(error)}", line) from None
        paid, right = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        if not isinstance(paid, (Real, np.bool_)) or not isinstance(
            right, (bool, np.bool_, types.NoneType)
        ):
            raise self.problem(
                f"score returned {in_short(value)}, not a number or (number, True or False)",
                self.first_line(),
            )
        # Not abs(paid) > LARGEST, which nan would pass. A whole number may be too large for float.
        if not -LARGEST <= paid <= LARGEST:
            raise self.problem(
                f"score returned {in_short(value)}, and a reward must be finite (in float32)",
                self.first_line(),
            )
        paid = float(paid)
        return paid, paid > 0 if right is None else bool(right), True

    def problem(self, what: str, line: int | None) -> RewardFileError:
        place = f", line {line}" if line else ""
        return RewardFileError(f"--reward {self.path}{place}: {what}")

    def first_line(self) -> int | None:
        """The line of `def score`, if it stands in this file."""
        code = getattr(self.score, "__code__", None)
        return code.co_firstlineno if code and code.co_filename == self.path else None


def line_of(error: BaseException, path: str) -> int | None:
    """The last line of the file that an error went through."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno
    line, step = None, error.__traceback__
    while step:
        if step.tb_frame.f_code.co_filename == path:
            line = step.tb_lineno
        step = step.tb_next
    return line


def in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {in_short(error, str)}".removesuffix(": ")


def in_short(value: object, to_text: type = repr) -> str:
    """On one line, of at most 200 characters."""
    return " ".join(to_text(value).split())[:200]
