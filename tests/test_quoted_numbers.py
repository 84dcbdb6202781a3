"""Figures that the documents quote stand in a committed table, or are computed from one here."""

import csv
import itertools
import re

import pytest
from helpers import ROOT

from infra.intervals import Interval, holm, t_interval, t_p_value, t_quantile

RESULTS = ROOT / "results"
QUOTING = [ROOT / "README.md", RESULTS / "README.md", ROOT / "course" / "lecture.md"]
WITH_ERROR = re.compile(r"([+-]?\d+\.\d+) ± (\d+\.\d+)")


def read(path) -> str:
    return path.read_text().replace("−", "-")


def own_rate_runs() -> dict[str, dict[tuple[str, str], dict[str, dict[str, float]]]]:
    """pair -> setting and rate -> seed -> what it reached, for the seeds that are reported."""
    found: dict = {}
    for row in csv.DictReader((RESULTS / "own-rate" / "runs.csv").open()):
        if int(row["seed"]) < 100:
            seeds = found.setdefault(row["pair"], {}).setdefault((row["setting"], row["lr"]), {})
            seeds[row["seed"]] = {k: float(v) for k, v in row.items() if k.endswith("after")}
    return found


def own_rate_differences() -> list[Interval]:
    """Of every two settings of a pair, in pass@1 and in greedy accuracy."""
    return [
        t_interval([runs[one][seed][name] - runs[other][seed][name] for seed in runs[one]])
        for runs in own_rate_runs().values()
        for one, other in itertools.permutations(runs, 2)
        for name in ("train pass@1 after", "test pass@1 after", "test greedy after")
    ]


def over_pairs() -> list[Interval]:
    """Of every two settings in results/paper that the same pairs of model and set have: t over the
    pairs' differences in mean test pass@1, and in greedy accuracy."""
    reached: dict[str, dict[str, tuple[float, float]]] = {}
    for row in csv.DictReader((RESULTS / "paper" / "table.csv").open()):
        greedy = row["test greedy"].split(" → ")[1]
        ends = float(row["test pass@1"]), float(greedy)
        reached.setdefault(row["setting"], {})[row["pair"]] = ends
    return [
        t_interval([reached[one][pair][i] - reached[other][pair][i] for pair in reached[one]])
        for one, other in itertools.permutations(reached, 2)
        if reached[one].keys() == reached[other].keys()
        for i in (0, 1)
    ]


def nsr_minus_raw() -> list[Interval]:
    """In pass@k on each level, for every k of results/predictions/pass_at_k.csv."""
    rows = list(csv.DictReader((RESULTS / "predictions" / "pass_at_k.csv").open()))
    found = {(row["setting"], row["level"], int(row["seed"])): row for row in rows}
    return [
        t_interval([
            float(found["nsr", level, seed][k]) - float(found["32x8-raw", level, seed][k])
            for seed in range(3)
        ])
        for level, k in itertools.product("12345", [name for name in rows[0] if "pass@" in name])
    ]


def measured_intervals() -> list[Interval]:
    """All that stands in the reports and tables, as (value, error)."""
    pages = [page for page in RESULTS.rglob("*.md") if page != RESULTS / "README.md"]
    text = "\n".join(read(page) for page in [*pages, *RESULTS.rglob("table.csv")])
    written = [Interval(float(value), float(error)) for value, error in WITH_ERROR.findall(text)]
    return written + own_rate_differences() + over_pairs() + nsr_minus_raw()


def is_rounded(quoted: str, value: float) -> bool:
    digits = len(quoted.partition(".")[2])
    # A half may be rounded up or down, the more so where the table is rounded already.
    return abs(float(quoted) - value) <= 0.5001 * 10**-digits


@pytest.mark.parametrize("page", QUOTING, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_interval_that_is_quoted_was_measured(page):
    measured = measured_intervals()
    quoted = WITH_ERROR.findall(read(page))
    assert quoted
    for value, error in quoted:
        assert any(
            is_rounded(value, one.mean) and is_rounded(error, one.half) for one in measured
        ), f"{value} ± {error} stands in no table"


def test_every_pass_at_1_that_is_quoted_was_measured():
    """Numbers with three digits behind the point and no error are means over the seeds."""
    tables = [*RESULTS.rglob("table.csv"), *RESULTS.glob("probe/*.md")]
    text = "\n".join(read(path) for path in tables)
    known = set(re.findall(r"\d\.\d{3}\b", text))
    for runs in [seeds for pair in own_rate_runs().values() for seeds in pair.values()]:
        values = [row["test pass@1 after"] for row in runs.values()]
        known.add(f"{sum(values) / len(values):.3f}")
    for page in QUOTING[:2]:
        bare = WITH_ERROR.sub("", read(page))
        quoted = set(re.findall(r"(?<![\d.])0\.\d{3}\b", bare))
        assert quoted and quoted <= known, f"{page.name}: {quoted - known} stand in no table"


def test_no_direction_of_the_probe_is_biased():
    """Each cosine is the one that noise alone leaves, within three standard errors.

    An unbiased mean of n estimates of ratio S has sqrt(S / (S + 1/n)) of the reference's ceiling.
    """
    page = read(RESULTS / "probe" / "probe.md")
    rounds = int(re.search(r"--rounds (\d+)", page)[1])
    for policy in ("base", "round 30"):
        ceiling = float(re.search(rf"{policy} \| the cosine's ceiling \| ([\d.]+)", page)[1])
        rows = re.findall(rf"^\| {policy} \| \d+x.*", page, re.MULTILINE)
        assert len(rows) >= 8
        for row in rows:
            (cosine, error), _, (ratio, _), *_ = WITH_ERROR.findall(row)
            expected = ceiling * (float(ratio) / (float(ratio) + 1 / rounds)) ** 0.5
            assert abs(float(cosine) - expected) < 3 * float(error), row


def test_the_gains_of_the_constants_are_in_the_order_of_the_variance():
    """V(b) / V(0) is 1 for b = 0, which is the baseline, 32x1."""
    page = read(RESULTS / "probe" / "probe.md")
    line = re.search(r"^At base: .*V\(b\) / V\(0\) at b = (.*)", page, re.MULTILINE)[1]
    variance = {f"32x1-b{b}": float(v) for b, v in re.findall(r"(-?[\d.]+): ([\d.]+) ±", line)}
    variance["32x1"] = 1.0
    table = csv.DictReader((RESULTS / "constant" / "table.csv").open())
    reached = {row["setting"]: float(row["train pass@1"]) for row in table}
    settings = sorted(reached.keys() & variance.keys(), key=variance.get)
    assert len(settings) == 6
    # 0 and 0.2 have the same variance and the same gain, to the digits of the tables. The best of
    # the table is 32x1-long, which has eight times the rounds and is no rival.
    assert [reached[name] for name in settings] == sorted(reached.values(), reverse=True)[1:]


def adjusted(intervals: dict[str, tuple[str, str]], seeds: int) -> dict[str, float]:
    """Holm's adjusted p-values, from the intervals as they are written."""
    freedom = seeds - 1
    p_values = [
        t_p_value(float(value) / float(error) * t_quantile(freedom), freedom)
        for value, error in intervals.values()
    ]
    return dict(zip(intervals, holm(p_values), strict=True))


def test_what_survives_the_correction():
    """The two sentences of results/README.md on Holm's correction."""
    report = read(RESULTS / "teaching" / "report.md")
    line = re.compile(r"^- (\S+ - \S+) on the test set: ([+-][\d.]+) ± ([\d.]+)", re.MULTILINE)
    direct = {name: figures for name, *figures in line.findall(report)}
    assert len(direct) == 5
    survive = {name for name, p in adjusted(direct, seeds=5).items() if p < 0.05}
    assert survive == {"256x1-mean - 256x1", "32x8-raw - 256x1", "32x8 - 32x8-raw"}

    gains = {}
    for row in csv.DictReader((RESULTS / "teaching" / "table.csv").open()):
        found = WITH_ERROR.fullmatch(row["gain, test, equal rounds"].replace("−", "-"))
        if found and row["setting"] != "one-query":  # 60 rollouts, no rival
            gains[row["setting"]] = found.groups()
    assert len(gains) == 9
    fail = {name for name, p in adjusted(gains, seeds=5).items() if p >= 0.05}
    assert fail == {"4x64"}


def test_the_real_models_differences():
    """Of results/smollm2: the batch's mean minus the raw reward, paired by seed."""

    def mean_minus_raw(table, raw, first, last, numerator, denominator="") -> Interval:
        share = {}
        rows = list(csv.DictReader((RESULTS / "smollm2" / table).open()))
        for setting, seed in itertools.product((raw, f"{raw}-mean"), "012"):
            kept = [
                row for row in rows
                if (row["setting"], row["lr"], row["seed"]) == (setting, "2e-05", seed)
                and first <= int(row["round"]) <= last
            ]  # fmt: skip
            assert len(kept) == last - first + 1
            total = sum(float(row[denominator]) if denominator else 1 for row in kept)
            share[setting, seed] = sum(float(row[numerator]) for row in kept) / total
        return t_interval([share[f"{raw}-mean", seed] - share[raw, seed] for seed in "012"])

    page = read(RESULTS / "smollm2" / "README.md")
    row = re.compile(r"^\| (?:right|in the format).* \| ([+-][\d.]+) ± ([\d.]+) \|$", re.MULTILINE)
    measured = [
        mean_minus_raw("h200-rounds.csv", "64x1", 1, 12, "right"),
        mean_minus_raw("h200-rounds.csv", "64x1", 13, 23, "right"),
        mean_minus_raw("h200-rounds.csv", "64x1", 1, 23, "right"),
        mean_minus_raw("h200-rounds.csv", "64x1", 13, 23, "right", "in format"),
        mean_minus_raw("on-rounds.csv", "32x1", 1, 12, "right"),
        mean_minus_raw("on-rounds.csv", "32x1", 7, 12, "right"),
        mean_minus_raw("on-rounds.csv", "32x1", 1, 12, "in format"),
        mean_minus_raw("on-rounds.csv", "32x1", 1, 12, "right", "in format"),
    ]
    for (mean, half), expected in zip(row.findall(page), measured, strict=True):
        assert is_rounded(mean, expected.mean) and is_rounded(half, expected.half)
