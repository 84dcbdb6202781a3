"""Runs become figures and words.

    python -m lab.report runs/default       # one run: draw curve.png again and print its account
    python -m lab.report runs/ablate --out results/teaching
                        # the runs of ablate.sh: report.md, table.csv, runs.csv (all seeds), figures

A gain is the mean over seeds of the difference to the baseline of the same seed. Its 95 % interval
is Student's t: three seeds are few, and a percentile bootstrap of three would cover 74 %. Settings
whose interval includes zero are reported as indistinguishable from the baseline; there is no
ranking.
"""

import csv
import os
import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from infra import flags
from infra.curve import QUESTIONS_SHOWN, account, draw_curve, first_and_last, question_of
from infra.intervals import LEVEL, Interval, holm, odd_seed, p_value, t_interval
from infra.run_folder import read_lines, read_text
from lab.forest import draw_forest
from lab.report_runs import (
    BASELINE,
    LONG,
    PlanLine,
    Run,
    Runs,
    best_round,
    differences,
    draw_settings,
    gain,
    greedy_differences,
    read_pair,
    reason_of,
)

# Two settings that differ in one thing, of which neither is the baseline, and where they stand.
DIRECT = {"controls": [
    ("32x8", "32x8-raw", "the group's advantage against the raw reward, both 32 x 8"),
    ("256x1-mean", "256x1", "the batch's mean subtracted or not, both 256 x 1"),
    ("256x1-window", "256x1", "the window's advantage against the raw reward, both 256 x 1"),
    ("32x8-raw", "256x1", "8 rollouts of 32 queries against one of 256, both raw"),
    ("32x8", "256x1-mean", "the group's advantage on 32 x 8 against the batch's mean on 256 x 1"),
    ("64x8", "32x16", "more queries against more rollouts of each, 512 rollouts in all"),
    ("128x8", "32x32", "more queries against more rollouts of each, 1,024 rollouts in all"),
], "sister": [
    ("one-query+7", "one-query", "the group's advantage against the raw reward, on one query"),
    ("one-query-x8", "one-query", "eight rollouts and their advantage against one, on one query"),
    ("one-query-punish", "one-query", "-1 against 0 for wrong answers, on one query"),
    ("one-query-hard", "one-query-easy", "a query of level 5 against one of level 1"),
]}  # fmt: skip


# --- intervals in words ---------------------------------------------------------------------------


def interval_text(interval: Interval) -> str:
    """For example "+0.084 ± 0.034"; empty if there is no difference to show."""
    mean, half = interval
    if np.isnan(mean):
        return ""
    return f"{mean:+.3f} (one seed)" if np.isnan(half) else f"{mean:+.3f} ± {half:.3f}"


def direction(interval: Interval) -> str:
    """Where the interval lies: "more" or "less" than zero, the "same", or "unknown"."""
    mean, half = interval
    if np.isnan(mean) or np.isnan(half):
        return "unknown"
    if mean > half:
        return "more"
    return "less" if mean < -half else "same"


# --- tables and sentences -------------------------------------------------------------------------


def table_row(runs: Runs, setting: str) -> dict[str, object]:
    """The line of one setting, {column: value}."""
    seeds = list(runs[setting].values())
    long = LONG if LONG in runs else BASELINE
    best = [best_round(run) for run in seeds]

    def mean(key: str, digits: int = 3) -> str:
        return f"{np.mean([run.summary[key] for run in seeds]):,.{digits}f}"

    def gain_text(base: str, split: str, axis: str) -> str:
        if setting in (BASELINE, LONG):
            return ""
        return interval_text(gain(runs, setting, base, split, axis))

    greedy = t_interval(greedy_differences(runs, setting, BASELINE))
    entropies = np.mean([first_and_last(run.entropy) for run in seeds], axis=0)
    key = pass_at_k_key(seeds[0].summary)
    pass_at_k = f"{mean(key + '_before')} → {mean(key + '_after')}" if key else ""
    best_at = np.median([one.round for one in best])
    best_value = np.mean([one.pass_at_1 for one in best])
    return {
        "setting": setting,
        "seeds": len(seeds),
        "train pass@1": mean("train_pass@1_after"),
        "test pass@1": mean("test_pass@1_after"),
        "gain, train, equal rounds": gain_text(BASELINE, "train", "rounds"),
        "gain, train, equal rollouts": gain_text(long, "train", "rollouts"),
        "gain, test, equal rounds": gain_text(BASELINE, "test", "rounds"),
        "gain, test, equal rollouts": gain_text(long, "test", "rollouts"),
        "test greedy": f"{mean('test_greedy_before')} → {mean('test_greedy_after')}",
        "gain, test greedy, equal rounds": "" if setting == BASELINE else interval_text(greedy),
        "entropy": "{:.2f} → {:.2f}".format(*entropies),
        key.replace("_", " ") if key else "test pass@k": pass_at_k,
        "best round": f"{best_at:.0f}: {best_value:.3f}",
        "collapsed": f"{sum(one.collapsed for one in best)} of {len(best)}",
        "rollouts": mean("rollouts", digits=0),
        "seconds": f"{np.mean([run.summary['seconds'] for run in seeds]):.0f}",
    }


def run_row(pair: str, setting: str, run: Run) -> dict[str, object]:
    """The line of one run in runs.csv, from which any two settings can be compared."""
    measured = ("train_pass@1_after", "test_pass@1_after", "test_greedy_after")
    return {
        "pair": pair,
        "setting": setting,
        **{name: run.config[name] for name in ("lr", "seed")},
        **{name: run.summary[name] for name in ("rounds", "rollouts")},
        **{name.replace("_", " "): f"{run.summary[name]:.3f}" for name in measured},
    }


def pass_at_k_key(summary: dict) -> str | None:
    """For example "test_pass@16"; None if the run measured no pass@k but pass@1."""
    for key in summary:
        name = key.removesuffix("_before")
        if name != key and name.startswith("test_pass@") and name != "test_pass@1":
            return name
    return None


def markdown_table(rows: list[dict[str, object]]) -> list[str]:
    """Lines of Markdown; the columns are those of the first row."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(str(value) for value in row.values()) + " |")
    return lines


def differences_in_words(runs: Runs, settings: list[str]) -> str:
    """Which settings differ from the baseline on the test set by more than the noise."""
    words = {
        "more": "above the baseline by more than the noise",
        "less": "below the baseline by more than the noise",
        "same": "indistinguishable from the baseline",
        "unknown": "with too few seeds to say",
    }
    found = {kind: [] for kind in words}
    compared = {}
    for setting in settings:
        if setting not in (BASELINE, LONG):
            values = differences(runs, setting, BASELINE, "test")
            kind = direction(t_interval(values))
            found[kind].append(setting)
            if kind != "unknown":
                compared[setting] = p_value(values)
    parts = [f"{words[kind]}: {', '.join(names)}" for kind, names in found.items() if names]
    if not parts:
        return ""
    sentence = f"On the test set, at equal rounds, {'; '.join(parts)}."
    if len(compared) > 1:
        sentence += f" {holm_in_words(compared)}"
    return sentence


def holm_in_words(p_values: dict[str, float]) -> str:
    """Which findings of a rung remain when all its comparisons are made at once."""
    adjusted = holm(list(p_values.values()))
    kept = [name for name, value in zip(p_values, adjusted, strict=True) if value < LEVEL]
    return (
        f"With Holm's correction for {len(p_values)} comparisons these differ: "
        f"{', '.join(kept) or 'none'}."
    )


def odd_seeds_in_words(runs: Runs, settings: list[str]) -> list[str]:
    """Settings of which one seed does not look like the others, so that intervals mislead."""
    sentences = []
    for setting in settings:
        ends = {seed: run.summary["test_pass@1_after"] for seed, run in runs[setting].items()}
        index = odd_seed(list(ends.values()))
        if index is not None:
            seed = list(ends)[index]
            sentences.append(
                f"Seed {seed} of {setting} does not look like its others ({ends[seed]:.3f}): the "
                "intervals of this setting say less than 95 %."
            )
    return sentences


def direct_in_words(runs: Runs, rung: str) -> list[str]:
    """The paired differences between settings of which neither is the baseline."""
    found = {
        f"{one} - {other}": (differences(runs, one, other, "test"), why)
        for one, other, why in DIRECT[rung]
        if one in runs and other in runs
    }
    lines = []
    for pair, (values, why) in found.items():
        greedy = interval_text(t_interval(greedy_differences(runs, *pair.split(" - "))))
        lines.append(
            f"- {pair} on the test set: {interval_text(t_interval(values))}, in greedy accuracy "
            f"{greedy} ({why})"
        )
    p_values = {pair: p_value(values) for pair, (values, _) in found.items() if len(values) > 1}
    if len(p_values) > 1:
        lines += ["", holm_in_words(p_values)]
    return lines


def rates_in_words(runs: Runs) -> list[str]:
    """Gains at the common learning rate and at each setting's own; do they have the same sign?"""
    sentences = []
    for setting in runs:
        gains = {"common": setting, "own": f"{setting}@own"}
        gains = {name: gain(runs, one, BASELINE, "test") for name, one in gains.items()}
        if any(np.isnan(interval.mean) for interval in gains.values()):
            continue
        signs = {direction(interval) for interval in gains.values()} - {"same", "unknown"}
        end = ": undecided, the sign depends on the learning rate." if len(signs) > 1 else "."
        listed = ", ".join(f"{name} {interval_text(each)}" for name, each in gains.items())
        sentences.append(f"{setting} against {BASELINE}, by learning rate: {listed}{end}")
    return sentences


def samples_in_words(run: Run) -> list[str]:
    """Completions of one run before and after, and the tokens that moved most."""
    lines = read_lines(run.folder / "samples.jsonl")
    text = []
    for query in range(QUESTIONS_SHOWN):
        samples = [line for line in lines if line["query"] == query]
        if samples:
            question = code(question_of(samples[0]))
            text.append(f"{question} (answer: {code(samples[0]['gold'])})\n")
        for sample in samples[::2]:
            text.append(
                f"- {sample['policy']} (reward {sample['reward']:g}): "
                f"{code(repr(sample['completion']))}; "
                f"moved most: {moved_tokens(sample)}"
            )
        text.append("")
    return text


def code(text: str) -> str:
    """Text as Markdown that shows it as it is: one line, between more backquotes than it has."""
    text = " ".join(text.split())
    quotes = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if len(quotes) > 1 else ""
    return f"{quotes}{pad}{text}{pad}{quotes}"


def moved_tokens(sample: dict, count: int = 3) -> str:
    """The tokens of a completion whose log-probability changed most in training."""
    before, after = sample["logprobs_before"], sample["logprobs_after"]
    order = np.argsort(-abs(np.subtract(after, before)))
    return ", ".join(
        f"{code(repr(sample['tokens'][i]))} {before[i]:.2f} → {after[i]:.2f}" for i in order[:count]
    )


# --- the report -----------------------------------------------------------------------------------


def write_report(folder: Path, out: Path) -> Path:
    """Write report.md, table.csv, runs.csv and the figures of all runs in a folder into `out`.

    Returns the path of report.md.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan_lines = read_text(folder / "plan.tsv").splitlines()
    if any(line.count("\t") != 2 for line in plan_lines):
        raise ValueError("plan.tsv has lines that are not of ablate.sh")
    plan = [PlanLine(*line.split("\t")) for line in plan_lines]
    text, table, pairs = [], [], {}
    for pair in sorted({path.parent.parent for path in folder.glob("*/*/seed-*")}):
        runs, left_out = read_pair(pair, describe)
        text += [f"## {pair.name}", ""]
        if left_out:
            text += ["Left out: " + "; ".join(left_out) + ".", ""]
        if not runs:
            continue
        pairs[pair.name] = runs
        text += [facts(runs), "", HOW_TO_READ, ""]
        for rung in dict.fromkeys(line.rung for line in plan):
            rung_text, rows = rung_section(pair.name, rung, runs, plan, out)
            text += rung_text
            table += [{"pair": pair.name, "rung": rung, **row} for row in rows]
        for setting in (BASELINE, "32x8"):
            if setting in runs:
                seed = min(runs[setting])
                text += [f"### Samples of {setting}, seed {seed}", ""]
                text += samples_in_words(runs[setting][seed])
    title = ["# Report of the experiment pipeline", ""]
    (out / "report.md").write_text("\n".join(title + pairs_section(pairs, plan) + text) + "\n")
    write_table(out / "table.csv", table)
    write_table(out / "runs.csv", [
        run_row(pair, setting, run)
        for pair, runs in pairs.items() for setting, seeds in runs.items() for run in seeds.values()
    ])  # fmt: skip
    draw_forest([out / "table.csv"], out / "forest.png")
    return out / "report.md"


def describe(run: Run) -> None:
    """Write all that the report says of a run, to nobody: an error is a reason to leave it out."""
    alone = {BASELINE: {0: run}}
    facts(alone), table_row(alone, BASELINE), run_row("", BASELINE, run)
    for split in run.right:
        gain(alone, BASELINE, BASELINE, split, "seconds")
    if not any(samples_in_words(run)):
        raise ValueError("its samples.jsonl is empty or missing")


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def facts(runs: Runs) -> str:
    """How many runs there are, and where they come from."""
    every = [run for seeds in runs.values() for run in seeds.values()]
    hours = sum(run.summary["seconds"] for run in every) / 3600
    commits = ", ".join(sorted({str(run.summary["commit"]) for run in every}))
    versions = ", ".join(sorted({str(run.config["torch"]) for run in every}))
    text = (
        f"{len(every)} runs, {hours:.1f} hours, commit {commits}, torch {versions}. This page was "
        f"made on {os.cpu_count()} cores ({platform.machine()})."
    )
    paths = [run.folder / "command" for run in every]  # written by ablate.sh
    if all(path.exists() for path in paths):
        text += f" Flags of every run: {code(common_flags([read_text(path) for path in paths]))}."
    return text


def common_flags(commands: list[str]) -> str:
    """The flags, with their values, that all commands have. A later one of a command overrides."""
    found = [re.findall(r"--\S+(?: (?!--)\S+)*", command) for command in commands]
    return " ".join(each for each in found[0] if all(each in others for others in found))


HOW_TO_READ = (
    f"Gains are mean paired differences to the baseline, {BASELINE}, with 95 % intervals "
    "(Student's t, over seeds). One interval in twenty misses by chance. Equal rollouts: against "
    "the baseline that went on for eight times the rounds, where the shorter of the two ends, if "
    "both had been evaluated by then; extra rollouts are counted. Best round: chosen on half of "
    "the test queries, pass@1 on the other half. train pass@1 is on the queries trained on, which "
    "`--queries` and `--levels` choose: then there is no gain on the train set. Greedy accuracy is "
    "measured before and after a run only. Entropy: nats a token, of the rollouts of the first and "
    "of the last tenth of the rounds."
)


def rung_section(
    pair: str, rung: str, runs: Runs, plan: list[PlanLine], out: Path
) -> tuple[list[str], list[dict[str, object]]]:
    """The Markdown of one rung and the rows of its table; draws its figure into `out`."""
    lines = [line for line in plan if line.rung == rung and line.setting in runs]
    if not lines:
        return [], []
    settings = [line.setting for line in lines]
    if BASELINE in runs and BASELINE not in settings:
        settings.insert(0, BASELINE)
    rows = [table_row(runs, setting) for setting in settings]
    figure = f"{pair}-{rung}.png"
    draw_settings(runs, settings, out / figure, f"{pair}, {rung}")
    text = [f"### {rung}", "", *markdown_table(rows), ""]
    text += [f"`{line.setting}`: `{line.flags or 'the defaults'}`  " for line in lines]
    text += ["", differences_in_words(runs, settings), "", *odd_seeds_in_words(runs, settings), ""]
    text += [f"![learning curves of the rung {rung}]({figure})", ""]
    if rung in DIRECT:
        text += [*direct_in_words(runs, rung), ""]
    if rung == "rate":
        text += [*rates_in_words(runs), ""]
    return text, rows


def pairs_section(pairs: dict[str, Runs], plan: Iterable[PlanLine]) -> list[str]:
    """Each setting's gains on the test set at equal rounds, a column for each pair."""
    measures = {
        "pass@1": lambda runs, setting: differences(runs, setting, BASELINE, "test"),
        "greedy accuracy": lambda runs, setting: greedy_differences(runs, setting, BASELINE),
    }
    text = []
    for measure, measured in measures.items():
        rows = []
        for setting in dict.fromkeys(line.setting for line in plan):
            count = sum(setting in runs and BASELINE in runs for runs in pairs.values())
            if setting not in (BASELINE, LONG) and count > 1:
                gains = {
                    pair: interval_text(t_interval(measured(runs, setting)))
                    for pair, runs in pairs.items()
                }
                rows.append({"setting": setting, **gains})
        if rows:
            title = f"## All pairs: gain over the baseline in test {measure}, at equal rounds"
            text += [title, "", *markdown_table(rows), ""]
    return text


def main() -> None:
    parser = flags.FlagParser(description="Draw and describe one run, or all runs of ablate.sh.")
    parser.add_argument("folder", type=Path, help="of a finished run or of ablate.sh")
    parser.add_argument(
        "--out", type=flags.path, help="of the report of many runs (default: folder)"
    )
    args = parser.parse_args()
    try:
        report_on(args.folder, args.out)
    except OSError as error:
        sys.exit(f"report.py: {error}")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        sys.exit(f"report.py: {args.folder}: {reason_of(error)}")


def report_on(folder: Path, out: str | None) -> None:
    """Print what the flags ask for; raise ValueError, in one sentence, if there is none."""
    if (folder / "plan.tsv").exists():
        print(write_report(folder, Path(out or folder)))
    elif not (folder / "summary.json").exists():
        raise ValueError(
            "is neither the folder of a finished run (it would hold a summary.json) nor one of "
            "ablate.sh (a plan.tsv)"
        )
    elif out:
        raise ValueError(f"--out {out} is for the report of many runs, and this is one")
    else:
        draw_curve(folder)
        print(account(folder))


if __name__ == "__main__":
    main()
