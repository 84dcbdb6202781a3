"""One run as a figure and in words: curve.png, and the account that ends a run."""

import math
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw into files only, so no screen is needed
matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of a file is no formula
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from infra.intervals import standard_error, wilson  # noqa: E402
from infra.run_folder import read_json, read_lines  # noqa: E402

# Okabe and Ito's colours, which stay distinct for colour-blind readers and in print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
COLORS = [BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442"]
MARKERS = "os^Dv<>p"  # as many as COLORS
QUESTIONS_SHOWN = 2  # in the account, each with a completion before and one after


def smoothing_width(values: list[float]) -> int:
    """Over how many rounds a figure averages: 20, or a third of a shorter run."""
    return max(1, min(20, len(values) // 3))


def smooth(values: list[float], width: int) -> np.ndarray:
    """Running mean over the last `width` values."""
    sums = np.concatenate([[0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_curve(folder: Path | str) -> None:
    """Write curve.png of a run: what it learnt on the left, how it changed on the right.

    The run may still be going on.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    metrics = read_lines(folder / "metrics.jsonl")
    evals = read_lines(folder / "evals.jsonl")
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4), sharex=True, layout="constrained"
    )
    draw_accuracy(left, metrics, evals, config["eval_temperature"])
    draw_diagnostics(right, metrics)
    left.set_title(
        f"{Path(config['model']).name} on {config['data']}: {config['batch_size']} queries x "
        f"{config['rollouts']} rollouts, advantage {config['advantage']}, seed {config['seed']}",
        fontsize=9, loc="left",
    )
    temporary = folder / "curve.tmp"  # so that a viewer never meets half a picture
    figure.savefig(temporary, format="png", dpi=130)
    os.replace(temporary, folder / "curve.png")
    plt.close(figure)


def draw_accuracy(
    axes: plt.Axes, metrics: list[dict], evals: list[dict], temperature: float
) -> None:
    """The share of right rollouts in each round, and pass@1 with 95 % intervals over queries.

    temperature: of the evaluations.
    """
    at = "" if temperature == 1 else f" at temperature {temperature:g}"
    rounds = [line["round"] for line in metrics]
    accuracy = [line["accuracy"] for line in metrics]
    width = smoothing_width(accuracy)
    axes.plot(
        rounds, accuracy, color=GREY, alpha=0.35, linewidth=0.8,
        label="rollouts judged right, each round",
    )  # fmt: skip
    axes.plot(
        rounds, smooth(accuracy, width), color=GREY, linewidth=2,
        label=f"the same, mean of {width} rounds",
    )  # fmt: skip
    for split, color, marker in (("train", BLUE, "o"), ("test", ORANGE, "s")):
        lines = [line for line in evals if line["split"] == split]
        axes.errorbar(
            [line["round"] for line in lines],
            [line["pass@1"] for line in lines],
            [1.96 * (line["se"] or 0) for line in lines],
            color=color, marker=marker, capsize=3,
            label=f"pass@1{at}, {split} set ± 95 %",
        )  # fmt: skip
    axes.set(xlabel="round", ylabel="share right", ylim=(0, 1))
    axes.legend(loc="best", fontsize=8)


def draw_diagnostics(axes: plt.Axes, metrics: list[dict]) -> None:
    """Format, correctness, truncation and entropy, each as a running mean."""
    rounds = [line["round"] for line in metrics]
    width = smoothing_width(rounds)

    def draw(values: list[float], label: str, color: str, style: str, thick: float = 2) -> None:
        means = smooth(values, width)
        axes.plot(rounds, means, color=color, linestyle=style, linewidth=thick, label=label)

    draw([line["in_format"] for line in metrics], "answers in the asked format", GREEN, "-")
    among = [line["accuracy_in_format"] or 0 for line in metrics]
    draw(among, "right among those", BLUE, "--")
    draw([line["truncated"] for line in metrics], "truncated by length", ORANGE, ":")
    entropy = [line["entropy"] for line in metrics]
    draw(entropy, "entropy per token (nats)", "black", "-.", thick=1)
    axes.set(xlabel="round", ylabel="share, or nats", title=f"mean of {width} rounds")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", fontsize=8)


# --- before and after --------------------------------------------------------------------------


def before_and_after(evals: list[dict]) -> dict:
    """The figures of the first and of the last evaluation, as summary.json holds them."""
    summary = {}
    for split in ("train", "test"):
        lines = [line for line in evals if line["split"] == split]
        for when, line in (("before", lines[0]), ("after", lines[-1])):
            summary[f"{split}_pass@1_{when}"] = line["pass@1"]
            summary[f"{split}_pass@1_{when}_se"] = line["se"]
            summary[f"{split}_in_format_{when}"] = line["in_format"]
            for name in line:
                if f"{name}_se" in line:  # pass@k and greedy come with their standard errors
                    summary[f"{split}_{name}_{when}"] = line[name]
                    summary[f"{split}_{name}_{when}_se"] = line[f"{name}_se"]
    return summary


def first_and_last(values: list[float]) -> tuple[float, float]:
    """The means over the first and over the last tenth of the rounds."""
    tenth = max(1, len(values) // 10)
    return float(np.mean(values[:tenth])), float(np.mean(values[-tenth:]))


# --- the account in words -------------------------------------------------------------------------


def plus_minus(error: float | None) -> str:
    """" ± 0.014"; the standard error of a single query is unknown."""
    return " ± ?" if error is None or math.isnan(error) else f" ± {error:.3f}"


def account(folder: Path | str) -> str:
    """What a run learnt, in a few sentences: examples, gains, their split, where the files are."""
    folder = Path(folder)
    summary = read_json(folder / "summary.json")
    evals = read_lines(folder / "evals.jsonl")
    config = read_json(folder / "config.json")
    queries = min(config["eval_queries"], len(evals[-1]["right"]))  # of pass@k
    lines = [
        *examples_in_words(read_lines(folder / "samples.jsonl")),
        "",
        *(gain_in_words(split, summary, evals) for split in ("train", "test")),
        *([] if config["reward"] else [split_in_words(summary)]),  # a file knows no format
        *sharpening_in_words(summary, read_lines(folder / "metrics.jsonl")),
        *pass_at_k_in_words(summary, queries),
        f"{summary['rounds']} rounds, {summary['rollouts']:,} rollouts "
        f"({summary['regret']:,} of them wrong), {summary['seconds']:.0f} s. "
        f"Curve, metrics, samples and the model: {folder}/",
    ]
    return "\n".join(lines)


def examples_in_words(samples: list[dict]) -> list[str]:
    """The first completion of each policy for the first questions."""
    lines = []
    for sample in samples[::2][: 2 * QUESTIONS_SHOWN]:
        verdict = "right" if sample["right"] else "wrong"
        question = question_of(sample)
        if sample["policy"] == "before":
            lines += ["", f"  {question}   (answer: {sample['gold']})"]
        lines.append(f"    {sample['policy']:>6}, {verdict}: {sample['completion']!r}")
    return lines


def question_of(sample: dict) -> str:
    """The prompt of a line of samples.jsonl, without the instruction on the format."""
    return sample["prompt"].split(" Let's think")[0]


def gain_in_words(split: str, summary: dict, evals: list[dict]) -> str:
    """pass@1 before and after, and the gain with its paired standard error."""
    before, after = summary[f"{split}_pass@1_before"], summary[f"{split}_pass@1_after"]
    error_before = summary[f"{split}_pass@1_before_se"]
    error_after = summary[f"{split}_pass@1_after_se"]
    verdicts = [line["right"] for line in evals if line["split"] == split]
    # The difference is taken query by query, so what makes a query hard cancels.
    gains = np.array(verdicts[-1]) - np.array(verdicts[0])
    error = standard_error(gains)
    return (
        f"{split:>5} pass@1: {before:.3f}{plus_minus(error_before)} -> "
        f"{after:.3f}{plus_minus(error_after)}, a gain of {after - before:+.3f}"
        f"{plus_minus(error)} (standard errors)"
    )


def split_in_words(summary: dict) -> str:
    """The gain on the test set, split into format and correctness.

    pass@1 is the share of answers in the asked format times the share of those that are right. Each
    factor's change times the other factor's mean is its part of the gain.
    """
    format_before, format_after = summary["test_in_format_before"], summary["test_in_format_after"]
    pass_before, pass_after = summary["test_pass@1_before"], summary["test_pass@1_after"]
    right_before = pass_before / format_before if format_before else 0
    right_after = pass_after / format_after if format_after else 0
    format_part = (format_after - format_before) * (right_before + right_after) / 2
    correctness_part = (right_after - right_before) * (format_before + format_after) / 2
    return (
        f"On the test set {format_before:.0%} of the answers came in the asked format, now "
        f"{format_after:.0%}; of those {right_before:.0%} were right, now {right_after:.0%}: "
        f"format makes {format_part:+.3f} of the gain, correctness {correctness_part:+.3f} "
        "(a description, not a cause)."
    )


def sharpening_in_words(summary: dict, metrics: list[dict]) -> list[str]:
    """Whether the policy's likeliest completions became right, or it only says them more often."""
    names = [f"test_greedy_{when}{part}" for part in ("", "_se") for when in ("before", "after")]
    if any(summary.get(name) is None for name in names) or not metrics:
        return []
    before, after, error_before, error_after = (summary[name] for name in names)
    error = (error_before**2 + error_after**2) ** 0.5
    entropy_before, entropy_after = first_and_last([line["entropy"] for line in metrics])
    if after - before > 2 * error:
        verdict = "The likeliest completions became right, so this is more than sharpening"
    elif before - after > 2 * error:
        verdict = "The likeliest completions became wrong"
    elif summary["test_pass@1_after"] - summary["test_pass@1_before"] > 2 * error:
        verdict = "The likeliest completions are as good as before, so this is sharpening"
    else:
        verdict = "Neither changed by more than the noise"
    return [
        f"test greedy: {before:.3f}{plus_minus(error_before)} -> {after:.3f}"
        f"{plus_minus(error_after)}, entropy {entropy_before:.2f} -> {entropy_after:.2f} nats a "
        f"token. {verdict}."
    ]


def share_in_words(share: float, error: float | None, count: int) -> str:
    """A share of `count` queries with its error; of 0 and 1 the bound of Wilson's interval."""
    low, high = wilson(share, count)
    if share == 1:
        return f"{share:.3f} (95 %: at least {low:.3f})"
    if share == 0:
        return f"{share:.3f} (95 %: at most {high:.3f})"
    return f"{share:.3f}{plus_minus(error)}"


def pass_at_k_in_words(summary: dict, queries: int) -> list[str]:
    """pass@k of `queries` queries before and after, if the run measured it, and what it tells."""
    lines = []
    for key in summary:
        name = key.removeprefix("test_").removesuffix("_before")
        is_pass_at_k = name.startswith("pass@") and name != "pass@1"
        if key != f"test_{name}_before" or not is_pass_at_k:
            continue
        if f"test_{name}_after" not in summary:  # the last evaluation was one on the way
            continue
        keys = f"test_{name}_before", f"test_{name}_after"
        before, after = (
            share_in_words(summary[key], summary[f"{key}_se"], queries) for key in keys
        )
        tries = name.removeprefix("pass@")
        lines.append(
            f" test {name}: {before} -> {after}. What the base solves in {tries} tries can be "
            "sharpened into one; a rise here comes from queries that it solved rarely or never"
        )
    return lines
