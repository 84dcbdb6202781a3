"""Runs become figures and words.

    python report.py runs/default        # draw curve.png again and print the account of the run
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no screen is needed
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

# Okabe and Ito's colours: told apart by the colour-blind, and in print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"


def read_lines(path):
    """The objects of a .jsonl file; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def smooth(values, width=20):
    """Running mean over the last `width` values."""
    sums = np.concatenate([[0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def curve(folder):
    """curve.png of one run: what it learnt on the left, what the log says about how on the right."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    metrics, evals = read_lines(folder / "metrics.jsonl"), read_lines(folder / "evals.jsonl")
    rounds = [line["round"] for line in metrics]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), sharex=True, layout="constrained")
    accuracy = [line["accuracy"] for line in metrics]
    left.plot(rounds, accuracy, color=GREY, alpha=0.35, linewidth=0.8, label="rollouts judged right, each round")
    left.plot(rounds, smooth(accuracy), color=GREY, linewidth=2, label="the same, mean of 20 rounds")
    for split, color, marker in (("train", BLUE, "o"), ("test", ORANGE, "s")):
        lines = [line for line in evals if line["split"] == split]
        left.errorbar([line["round"] for line in lines], [line["pass@1"] for line in lines],
                      [1.96 * (line["se"] or 0) for line in lines], color=color, marker=marker, capsize=3,
                      label=f"pass@1 on the whole {split} set ± 95 %")
    left.set(xlabel="round", ylabel="share right", ylim=(0, 1))
    left.legend(loc="lower right", fontsize=8)
    in_format = [line["in_format"] for line in metrics]
    among = [line["accuracy_in_format"] or 0 for line in metrics]
    cut = [line["cut"] for line in metrics]
    right.plot(rounds, smooth(in_format), color=GREEN, linewidth=2, label="answers in the asked format")
    right.plot(rounds, smooth(among), color=BLUE, linewidth=2, linestyle="--", label="right among those")
    right.plot(rounds, smooth(cut), color=ORANGE, linewidth=2, linestyle=":", label="cut by length")
    right.plot(rounds, smooth([line["entropy"] for line in metrics]), color="black", linewidth=1, linestyle="-.",
               label="entropy per token (nats)")
    right.set(xlabel="round", ylabel="share, or nats", title="mean of 20 rounds")
    right.set_ylim(bottom=0)
    right.legend(loc="center right", fontsize=8)
    left.set_title(f"{config['model']} on {config['data']}: {config['batch_size']} queries x {config['rollouts']} "
                   f"rollouts, advantage {config['advantage']}, seed {config['seed']}", fontsize=9)
    figure.savefig(folder / "curve.png", dpi=130)
    plt.close(figure)


def plus_minus(error):
    return " ± ?" if error is None else f" ± {error:.3f}"  # one query has no standard error


def account(folder):
    """A few sentences: from what to what, how much of the gain is format, and where the files are."""
    folder = Path(folder)
    summary = json.loads((folder / "summary.json").read_text())
    samples = read_lines(folder / "samples.jsonl")
    text = []
    for sample in samples[::2][:4]:
        verdict = "right" if sample["right"] else "wrong"
        question = sample["prompt"].split(" Let's think")[0]
        if sample["policy"] == "before":
            text += ["", f"  {question}   (answer: {sample['gold']})"]
        text.append(f"    {sample['policy']:>6}, {verdict}: {sample['completion']!r}")
    text.append("")
    evals = read_lines(folder / "evals.jsonl")
    for split in ("train", "test"):
        p0, p1 = summary[f"{split}_pass@1_before"], summary[f"{split}_pass@1_after"]
        e0, e1 = summary[f"{split}_pass@1_before_se"], summary[f"{split}_pass@1_after_se"]
        verdicts = [line["right"] for line in evals if line["split"] == split]
        gains = np.array(verdicts[-1]) - np.array(verdicts[0])  # paired: what makes a query hard cancels
        error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else None
        text.append(f"{split:>5} pass@1: {p0:.3f}{plus_minus(e0)} -> {p1:.3f}{plus_minus(e1)}, a gain of {p1 - p0:+.3f}"
                    f"{plus_minus(error)} (standard errors)")
    f0, f1 = summary["test_in_format_before"], summary["test_in_format_after"]
    a0, a1 = p0 / f0 if f0 else 0, p1 / f1 if f1 else 0
    text.append(f"On the test set {f0:.0%} of the answers came in the asked format, now {f1:.0%}; of those {a0:.0%} "
                f"were right, now {a1:.0%}: format makes {(f1 - f0) * (a0 + a1) / 2:+.3f} of the gain, correctness "
                f"{(a1 - a0) * (f0 + f1) / 2:+.3f} (a description, not a cause).")
    for key in summary:
        if key.startswith("test_pass@") and key.endswith("_before") and key != "test_pass@1_before":
            k = key.removeprefix("test_pass@").removesuffix("_before")
            text.append(f" test pass@{k}: {summary[key]:.3f}{plus_minus(summary[key + '_se'])} -> "
                        f"{summary[f'test_pass@{k}_after']:.3f}{plus_minus(summary[f'test_pass@{k}_after_se'])}. What "
                        f"the base solves in {k} tries can be sharpened into one; a rise here comes from queries that "
                        "it solved rarely or never")
    text.append(f"{summary['rounds']} rounds, {summary['rollouts']:,} rollouts ({summary['regret']:,} of them wrong), "
                f"{summary['seconds']:.0f} s. Curve, metrics, samples and the model: {folder}/")
    return "\n".join(text)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "summary.json").exists():
        sys.exit("report.py: give the folder of a finished run (one with a summary.json)")
    curve(sys.argv[1])
    print(account(sys.argv[1]))
