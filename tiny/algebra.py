r"""The families of tiny-math: each draws a problem, and works it with the slips that people make.

problems.py draws from them. A family's answer may be a fraction (p, q) as it comes out of the
working; problems.py writes it in LaTeX.
"""

import random
from collections.abc import Callable

# Whether a slip happens, for its rate. Each call draws one random number.
Slips = Callable[[float], bool]
# What a family of tiny-math returns: (key, text, steps, answer).
Drawn = tuple[tuple, str, list[str], str | tuple[int, int]]


# --- how numbers and terms are written ------------------------------------------------------------


def signed(k: int) -> str:
    """A number with its sign: +3, -3."""
    return f"+{k}" if k >= 0 else str(k)


def linear(a: int, b: int) -> str:
    """a x + b as one writes it: 2x+3, -x, x-1."""
    head = {1: "x", -1: "-x"}.get(a, f"{a}x")
    return head + (signed(b) if b else "")


def quadratic(a: int, b: int, c: int) -> str:
    """a x^2 + b x + c as one writes it."""
    head = {1: "x^2", -1: "-x^2"}.get(a, f"{a}x^2")
    middle = {1: "+x", -1: "-x"}.get(b, f"{signed(b)}x") if b else ""
    return head + middle + (signed(c) if c else "")


def over(p: int, q: int) -> str:
    """The fraction p/q in LaTeX, not reduced, its sign in front."""
    if p * q >= 0:
        return rf"\frac{{{p}}}{{{q}}}"
    return rf"-\frac{{{abs(p)}}}{{{abs(q)}}}"


def root(k: int, m: int) -> str:
    r"""k \sqrt{m}, without a k of 1."""
    return rf"\sqrt{{{m}}}" if k == 1 else rf"{k}\sqrt{{{m}}}"


def non_zero(rng: random.Random, most: int) -> int:
    """A random number from -most to most, but not 0."""
    return rng.choice((-1, 1)) * rng.randint(1, most)


# --- the families ---------------------------------------------------------------------------------
# Each draws its numbers and returns (key, text, steps, answer). Its name is part of the keys.


def move_constant(rng: random.Random, slips: Slips) -> Drawn:
    b, c = non_zero(rng, 30), rng.randint(1, 50)
    moved = b if slips(0.6 if b < 0 else 0.2) else -b  # the slip: the sign is not changed
    text = f"Solve for $x$: ${linear(1, b)}={c}$."
    return (b, c), text, [f"x={c}{signed(moved)}"], str(c + moved)


def multiply_fractions(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = (rng.randint(1, 9) for _ in range(4))
    is_slip = slips(0.6 if d > 6 else 0.1)  # the slip: one fraction is turned over
    top, bottom = (d, c) if is_slip else (c, d)
    text = rf"Compute ${over(a, b)}\cdot{over(c, d)}$."
    steps = [f"{a}*{top}={a * top}", f"{b}*{bottom}={b * bottom}"]
    return (a, b, c, d), text, steps, (a * top, b * bottom)


def expand_one(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c = rng.randint(2, 9), rng.randint(1, 9), non_zero(rng, 9)
    last = c if slips(0.6 if c < 0 else 0.2) else a * c  # the slip: only the first is multiplied
    steps = [f"{a}*{b}={a * b}", f"{a}*{c}={last}"]
    return (a, b, c), f"Expand ${a}({linear(b, c)})$.", steps, linear(a * b, last)


def divide_by_factor(rng: random.Random, slips: Slips) -> Drawn:
    a, c = rng.randint(2, 12), non_zero(rng, 60)
    is_slip = slips(0.6 if abs(c) < 20 else 0.15)  # the slip: a/c for c/a
    p, q = (a, c) if is_slip else (c, a)
    return (a, c), f"Solve for $x$: ${a}x={c}$.", [f"x={p}/{q}"], (p, q)


def divide_fractions(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = (rng.randint(1, 9) for _ in range(4))
    is_slip = slips(0.6 if b > 4 else 0.2)  # the slip: the divisor is not turned over
    top, bottom = (c, d) if is_slip else (d, c)
    text = rf"Compute ${over(a, b)}\div{over(c, d)}$."
    steps = [f"{a}*{top}={a * top}", f"{b}*{bottom}={b * bottom}"]
    return (a, b, c, d), text, steps, (a * top, b * bottom)


def simplify_root(rng: random.Random, slips: Slips) -> Drawn:
    a, k, m = rng.randint(2, 9), rng.randint(2, 9), rng.choice((2, 3, 5, 6, 7))
    out = k * k if slips(0.6 if k < 4 else 0.2) else k  # the slip: the square itself comes out
    steps = [f"{root(1, k * k * m)}={root(out, m)}", f"{a}*{out}={a * out}"]
    return (a, k, m), f"Simplify ${root(a, k * k * m)}$.", steps, root(a * out, m)


def solve_linear(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c = rng.randint(2, 9), non_zero(rng, 15), rng.randint(1, 30)
    moved = b if slips(0.6 if b < 0 else 0.2) else -b  # the slip: the sign is not changed
    text = f"Solve for $x$: ${linear(a, b)}={c}$."
    return (a, b, c), text, [f"{c}{signed(moved)}={c + moved}"], (c + moved, a)


def add_fractions(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = rng.randint(1, 9), rng.randint(2, 9), rng.randint(1, 9), rng.randint(2, 9)
    text = f"Compute ${over(a, b)}+{over(c, d)}$."
    if slips(0.6 if b > 5 else 0.2):  # the slip: tops and bottoms are added
        steps = [f"{a}+{c}={a + c}", f"{b}+{d}={b + d}"]
        return (a, b, c, d), text, steps, (a + c, b + d)
    top, bottom = a * d + c * b, b * d
    steps = [f"{a}*{d}={a * d}", f"{c}*{b}={c * b}", f"{a * d}+{c * b}={top}", f"{b}*{d}={bottom}"]
    return (a, b, c, d), text, steps, (top, bottom)


def expand_simple(rng: random.Random, slips: Slips) -> Drawn:
    a, b = non_zero(rng, 12), non_zero(rng, 12)
    is_slip = slips(0.5 if a * b < 0 else 0.1)  # the slip: the sign of the product
    product = -a * b if is_slip else a * b
    text = f"Expand $({linear(1, a)})({linear(1, b)})$."
    steps = [f"{a}{signed(b)}={a + b}", f"{a}*{b}={product}"]
    return (a, b), text, steps, quadratic(1, a + b, product)


def solve_both_sides(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = rng.randint(4, 9), non_zero(rng, 12), rng.randint(2, 3), rng.randint(1, 20)
    moved = b if slips(0.6 if b < 0 else 0.2) else -b  # the slip: the sign is not changed
    text = f"Solve for $x$: ${linear(a, b)}={linear(c, d)}$."
    steps = [f"{a}-{c}={a - c}", f"{d}{signed(moved)}={d + moved}"]
    return (a, b, c, d), text, steps, (d + moved, a - c)


def add_roots(rng: random.Random, slips: Slips) -> Drawn:
    j, k, m = rng.randint(2, 9), rng.randint(2, 9), rng.choice((2, 3, 5, 6, 7))
    one, two = j * j * m, k * k * m
    text = f"Simplify ${root(1, one)}+{root(1, two)}$."
    if slips(0.6 if k > 6 else 0.2):  # the slip: what stands under the roots is added
        return (j, k, m), text, [f"{one}+{two}={one + two}"], root(1, one + two)
    steps = [f"{root(1, one)}={root(j, m)}", f"{root(1, two)}={root(k, m)}", f"{j}+{k}={j + k}"]
    return (j, k, m), text, steps, root(j + k, m)


def sum_and_difference(rng: random.Random, slips: Slips) -> Drawn:
    x, y = rng.randint(-9, 15), rng.randint(-9, 15)
    found = -y if slips(0.6 if y < 0 else 0.15) else y  # the slip: the sign of y
    text = f"Solve for $(x,y)$: $x+y={x + y}$, $x-y={x - y}$."
    steps = [f"2x={x + y}{signed(x - y)}={2 * x}", f"x={x}", f"y={x + y}{signed(-x)}={found}"]
    return (x, y), text, steps, f"({x},{found})"


def solve_with_brackets(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = rng.randint(4, 9), non_zero(rng, 9), rng.randint(2, 3), rng.randint(1, 20)
    inner = b if slips(0.6 if b < 0 else 0.2) else a * b  # the slip: only the first is multiplied
    text = f"Solve for $x$: ${a}({linear(1, b)})={linear(c, d)}$."
    steps = [f"{a}*{b}={inner}", f"{a}-{c}={a - c}", f"{d}{signed(-inner)}={d - inner}"]
    return (a, b, c, d), text, steps, (d - inner, a - c)


def expand_general(rng: random.Random, slips: Slips) -> Drawn:
    a, b, c, d = rng.randint(2, 6), non_zero(rng, 9), rng.randint(1, 6), non_zero(rng, 9)
    is_slip = slips(0.5 if b * d < 0 else 0.1)  # the slip: the sign of the product
    last = -b * d if is_slip else b * d
    middle = a * d + b * c
    text = f"Expand $({linear(a, b)})({linear(c, d)})$."
    steps = [
        f"{a}*{c}={a * c}",
        f"{a}*{d}={a * d}",
        f"{b}*{c}={b * c}",
        f"{a * d}{signed(b * c)}={middle}",
        f"{b}*{d}={last}",
    ]
    return (a, b, c, d), text, steps, quadratic(a * c, middle, last)


def solve_pair(rng: random.Random, slips: Slips) -> Drawn:
    a, x, y = rng.randint(2, 5), rng.randint(1, 12), rng.randint(-9, 12)
    s, t = x + y, a * x - y
    found = -y if slips(0.6 if y < 0 else 0.15) else y  # the slip: the sign of y
    text = f"Solve for $(x,y)$: $x+y={s}$, ${a}x-y={t}$."
    steps = [
        f"{a}+1={a + 1}",
        f"{s}{signed(t)}={s + t}",
        f"x={s + t}/{a + 1}={x}",
        f"y={s}-{x}={found}",
    ]
    return (a, x, y), text, steps, f"({x},{found})"


# level -> (family, MATH's subject); a family that is named twice is drawn twice as often
FAMILIES = {
    1: [
        (move_constant, "Algebra"),
        (multiply_fractions, "Prealgebra"),
        (expand_one, "Algebra"),
    ],
    2: [
        (divide_by_factor, "Algebra"),
        (divide_fractions, "Prealgebra"),
        (divide_fractions, "Prealgebra"),
        (simplify_root, "Algebra"),
    ],
    3: [
        (solve_linear, "Algebra"),
        (solve_linear, "Algebra"),
        (add_fractions, "Prealgebra"),
        (add_fractions, "Prealgebra"),
        (expand_simple, "Intermediate Algebra"),
    ],
    4: [
        (solve_both_sides, "Algebra"),
        (solve_both_sides, "Algebra"),
        (add_roots, "Algebra"),
        (sum_and_difference, "Algebra"),
    ],
    5: [
        (solve_with_brackets, "Algebra"),
        (expand_general, "Intermediate Algebra"),
        (solve_pair, "Algebra"),
    ],
}
