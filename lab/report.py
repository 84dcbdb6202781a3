"""Runs become figures and words.

    python report.py runs/default                          # one run: draw curve.png again and print its account
    python report.py runs/ablate --out results/teaching    # many runs (ablate.sh): report.md, table.csv and figures

Of many runs, a gain is the mean over seeds of the paired difference to the baseline of the same seed, with a 95 %
interval by Student's t: three seeds are few, and a percentile bootstrap of three would cover 74 %. What an interval
cannot tell from the baseline is said to be so, and nothing is ranked.
"""

import csv
import json
import os
import platform
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no screen is needed
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402 (matplotlib brings it)

# Okabe and Ito's colours: told apart by the colour-blind, and in print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
COLORS = [BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442"]


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
    left.legend(loc="best", fontsize=8)
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
    right.legend(loc="best", fontsize=8)
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


# --- many runs --------------------------------------------------------------------------------------------------

T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
       2.110, 2.101, 2.093, 2.086]  # Student's t, two-sided 95 %, by degrees of freedom from 1; beyond, the normal's
BASE, LONG = "32x1", "32x1-long"  # the baseline, and the baseline with as many rollouts as 32x8
DIRECT = [  # two settings that differ in one thing, neither of them the baseline
    ("32x8", "32x8-raw", "the group's advantage against the raw reward, both 32 x 8"),
    ("256x1-mean", "256x1", "the batch's mean subtracted or not, both 256 x 1"),
    ("256x1-window", "256x1", "the window's advantage against the raw reward, both 256 x 1"),
    ("32x8-raw", "256x1", "8 rollouts of 32 queries against one of 256, both raw"),
    ("32x8", "256x1-mean", "the group's advantage on 32 x 8 against the batch's mean on 256 x 1"),
]


def t_interval(differences):
    """(mean, half the width of its 95 % interval), equation (11), of one difference a seed; nan for a single seed."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return values.mean() if len(values) else np.nan, np.nan
    t = T95[len(values) - 2] if len(values) - 2 < len(T95) else 1.96 + 2.4 / (len(values) - 1)
    return values.mean(), t * values.std(ddof=1) / len(values) ** 0.5


def read_run(folder):
    """What the report needs of one run; raises ValueError, with the reason, for one that is not whole."""
    try:
        summary, config = (json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "config"))
        metrics, evals = read_lines(folder / "metrics.jsonl"), read_lines(folder / "evals.jsonl")
        seconds = np.cumsum([m["seconds_sampling"] + m["seconds_reward"] + m["seconds_update"] for m in metrics])
        run = {"summary": summary, "config": config, "folder": folder}
        for split in ("train", "test"):
            lines = [line for line in evals if line["split"] == split]
            run[split] = np.array([line["pass@1"] for line in lines])
            run[f"{split}_right"] = np.array([line["right"] for line in lines])
            run["round"] = np.array([line["round"] for line in lines])
        run["rollouts"] = run["round"] * summary["rollouts"] / summary["rounds"]
        run["seconds"] = np.concatenate([[0], seconds])[run["round"]]
        if len(run["round"]) < 2 or run["round"][-1] != summary["rounds"] or len(metrics) != summary["rounds"]:
            raise ValueError("its log does not reach its last round")
        return run
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: {type(error).__name__}: {error}") from None


def read_pair(folder):
    """({setting: {seed: run}} of one model and set, [what was left out and why])."""
    runs, left_out = {}, []
    for path in sorted(folder.glob("*/seed-*")):
        try:
            runs.setdefault(path.parent.name, {})[int(path.name.removeprefix("seed-"))] = read_run(path)
        except ValueError as error:
            left_out.append(str(error))
    return runs, left_out


def at(run, split, axis, place):
    """pass@1 at a number of rounds, rollouts or seconds; between two evaluations, on the line between them."""
    return np.interp(place, run[axis], run[split])


def gain(runs, one, other, split, axis="round"):
    """t_interval of one - other over their common seeds, where the shorter of the two ends on the axis."""
    differences = []
    for seed in sorted(set(runs.get(one, {})) & set(runs.get(other, {}))):
        a, b = runs[one][seed], runs[other][seed]
        place = min(a[axis][-1], b[axis][-1])
        if place < max(a[axis][1], b[axis][1]):
            continue  # before the first evaluation on the way there is no curve to read
        differences.append(at(a, split, axis, place) - at(b, split, axis, place))
    return t_interval(differences)


def best_round(run):
    """(round, pass@1 there, collapsed): the round chosen on the even test queries, its pass@1 taken on the odd ones,
    so that luck in the choice is not counted; collapsed if the end is worse there by more than 3 standard errors."""
    right = run["test_right"]
    best = right[:, ::2].mean(axis=1).argmax()
    drop = right[best, 1::2] - right[-1, 1::2]
    error = drop.std(ddof=1) / len(drop) ** 0.5 if len(drop) > 1 else np.nan
    return run["round"][best], right[best, 1::2].mean(), bool(drop.mean() > 3 * error)


def interval(value):
    mean, half = value
    return "" if np.isnan(mean) else f"{mean:+.3f}" + (" (one seed)" if np.isnan(half) else f" ± {half:.3f}")


def verdict(value):
    mean, half = value
    return "unknown" if not abs(mean) <= 1 or np.isnan(half) else "more" if mean > half else "less" if mean < -half \
        else "same"


def row(runs, setting):
    """The line of one setting, {column: text}."""
    mine = list(runs[setting].values())
    long = LONG if LONG in runs else BASE
    base = setting in (BASE, LONG)
    best = [best_round(run) for run in mine]
    pass_k = next((key.removesuffix("_before") for key in mine[0]["summary"] if key.startswith("test_pass@")
                   and key.endswith("_before") and "@1_" not in key), None)

    def mean(key):
        return f"{np.mean([run['summary'][key] for run in mine]):.3f}"

    return {
        "setting": setting, "seeds": len(mine), "train pass@1": mean("train_pass@1_after"),
        "test pass@1": mean("test_pass@1_after"),
        "gain, train, equal rounds": "" if base else interval(gain(runs, setting, BASE, "train")),
        "gain, test, equal rounds": "" if base else interval(gain(runs, setting, BASE, "test")),
        "gain, test, equal rollouts": "" if base else interval(gain(runs, setting, long, "test", "rollouts")),
        f"test {pass_k.removeprefix('test_')}" if pass_k else "test pass@k":
            f"{mean(pass_k + '_before')} → {mean(pass_k + '_after')}" if pass_k else "",
        "best round": f"{np.median([b[0] for b in best]):.0f}: {np.mean([b[1] for b in best]):.3f}",
        "collapsed": f"{sum(b[2] for b in best)} of {len(best)}",
        "rollouts": f"{np.mean([run['summary']['rollouts'] for run in mine]):,.0f}",
        "seconds": f"{np.mean([run['summary']['seconds'] for run in mine]):.0f}",
    }


def in_words(runs, settings):
    """Which differences to the baseline on the test set are larger than the noise."""
    kinds = {}
    for setting in settings:
        if setting not in (BASE, LONG):
            kinds.setdefault(verdict(gain(runs, setting, BASE, "test")), []).append(setting)
    words = {"more": "above the baseline by more than the noise", "less": "below it by more than the noise",
             "same": "not told apart from it", "unknown": "with too few seeds to say"}
    return "On the test set, at equal rounds: " + "; ".join(
        f"{words[kind]}: {', '.join(kinds[kind])}" for kind in words if kind in kinds) + "." if kinds else ""


def undecided(runs):
    """Sentences on the learning rate: a finding whose sign depends on it is undecided."""
    said = []
    for setting in ("32x8", "256x1"):
        gains = {rate: gain(runs, setting + rate, "32x1" + rate, "test") for rate in ("@lower", "", "@higher")}
        known = {rate.removeprefix("@") or "as it is": value for rate, value in gains.items() if not np.isnan(value[0])}
        if len(known) > 1:
            signs = {verdict(value) for value in known.values()} - {"same", "unknown"}
            said.append(f"{setting} against 32x1 at the same rate: " + ", ".join(
                f"{rate} {interval(value)}" for rate, value in known.items())
                + (": undecided, the sign depends on the learning rate." if len(signs) > 1 else "."))
    return said


def figure(runs, settings, path, title):
    """Learning curves: train and test against rounds, rollouts and seconds; mean and range over the seeds. The long
    baseline stands behind, in grey: it is what the same rollouts or seconds bring without any change."""
    labels = {"round": "round", "rollouts": "rollouts", "seconds": "seconds of sampling, reward and update"}
    last = max(run["round"][-1] for setting in settings for run in runs[setting].values())
    drawn = [(LONG, GREY, "--", "")] if LONG in runs and LONG not in settings else []
    drawn += [(setting, COLORS[i % 8], ("-", ":")[i // 8 % 2], "os^Dv<>p"[i % 8]) for i, setting in enumerate(settings)]
    drawing, panels = plt.subplots(2, 3, figsize=(13, 7), sharey="row", layout="constrained")
    for line, split in enumerate(("train", "test")):
        for column, (axis, label) in enumerate(labels.items()):
            panel, first = panels[line, column], int(axis != "round")  # a logarithmic axis has no place for round 0
            for setting, color, style, marker in drawn if first else drawn[-len(settings):]:
                mine = list(runs[setting].values())
                place = np.mean([run[axis] for run in mine], axis=0)[first:]
                values = np.array([run[split] for run in mine])[:, first:]
                panel.plot(place, values.mean(axis=0), linestyle=style, marker=marker, markersize=4, color=color,
                           label=setting)
                panel.fill_between(place, values.min(axis=0), values.max(axis=0), alpha=0.12, color=color)
            panel.set(xlabel=label, ylabel=f"pass@1, whole {split} set" if not column else None)
            if first:
                panel.set_xscale("log")
            else:
                panel.set_xlim(-0.03 * last, 1.03 * last)
    panels[0, 1].legend(fontsize=8)
    seeds = {len(runs[setting]) for setting in settings}
    drawing.suptitle(f"{title}: mean and range of {'/'.join(map(str, sorted(seeds)))} seeds")
    drawing.savefig(path, dpi=100)
    plt.close(drawing)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)  # a quarter of the size


def samples(run, count=2):
    """Markdown: completions of one run before and after, and the tokens whose log-probability moved most."""
    text, lines = [], read_lines(run["folder"] / "samples.jsonl")
    for query in range(count):
        mine = [line for line in lines if line["query"] == query]
        if mine:
            text.append(f"**{mine[0]['prompt'].split(' Let')[0]}** (answer: {mine[0]['gold']})\n")
        for line in mine[::2]:
            moved = np.subtract(line["logprobs_after"], line["logprobs_before"])
            most = ", ".join(f"`{line['tokens'][i]!r}` {line['logprobs_before'][i]:.2f} → "
                             f"{line['logprobs_after'][i]:.2f}" for i in np.argsort(-abs(moved))[:3])
            text.append(f"- {line['policy']} (reward {line['reward']:g}): `{line['completion']!r}`; moved most: {most}")
        text.append("")
    return text


def across(pairs, plan):
    """Markdown: each setting's gain on the test set at equal rounds, a column for each pair of model and set."""
    settings = [name for name in dict.fromkeys(line[1] for line in plan) if name not in (BASE, LONG)
                and sum(name in runs and BASE in runs for runs in pairs.values()) > 1]
    if not settings:
        return []
    return ["## All pairs: gain over the baseline on the test set, at equal rounds", "",
            "| setting | " + " | ".join(pairs) + " |", "|---" * (len(pairs) + 1) + "|",
            *(f"| {name} | " + " | ".join(interval(gain(runs, name, BASE, "test")) for runs in pairs.values()) + " |"
              for name in settings), ""]


def report(folder, out):
    """Write report.md, table.csv and the figures of all runs in `folder` into `out`; returns the path of report.md."""
    folder, out = Path(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    plan = [line.split("\t") for line in (folder / "plan.tsv").read_text().splitlines()]
    text, table, pairs = [], [], {}
    for pair in sorted({path.parent.parent for path in folder.glob("*/*/seed-*")}):
        runs, left_out = read_pair(pair)
        done = [run for seeds in runs.values() for run in seeds.values()]
        text += [f"## {pair.name}", ""]
        if left_out:
            text += ["Left out: " + "; ".join(left_out) + ".", ""]
        if not done:
            continue
        pairs[pair.name] = runs
        commits = ", ".join(sorted({str(run["summary"]["commit"]) for run in done}))
        text += [f"{len(done)} runs, {sum(run['summary']['seconds'] for run in done) / 3600:.1f} core hours, commit "
                 f"{commits}, torch {done[0]['config']['torch']}, {os.cpu_count()} cores ({platform.machine()}).", "",
                 "Gains are mean paired differences to the baseline, 32x1, with 95 % intervals (Student's t, over "
                 "seeds); one interval in twenty misses by chance. Equal rollouts: against the baseline that went on "
                 "for eight times the rounds, where the shorter of the two ends, if both had been evaluated by then; "
                 "extra rollouts counted. Best round: "
                 "chosen on half of the test queries, pass@1 on the other half. train pass@1 is on the queries trained "
                 "on, which `--queries` and `--levels` choose.", ""]
        for rung in dict.fromkeys(line[0] for line in plan):
            settings = [line[1] for line in plan if line[0] == rung and line[1] in runs]
            shown = settings if BASE in settings or BASE not in runs else [BASE, *settings]
            if not settings:
                continue
            rows = [row(runs, setting) for setting in shown]
            table += [{"pair": pair.name, "rung": rung, **line} for line in rows]
            text += [f"### {rung}", "", "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|",
                     *("| " + " | ".join(map(str, line.values())) + " |" for line in rows), "",
                     *(f"`{name}`: `{flags or 'the defaults'}`  " for where, name, flags in plan
                       if where == rung and name in runs), "",
                     in_words(runs, shown), ""]
            name = f"{pair.name}-{rung}.png"
            figure(runs, shown, out / name, f"{pair.name}, {rung}")
            text += [f"![learning curves of the rung {rung}]({name})", ""]
            if rung == "controls":
                text += [f"- {one} - {other} on the test set: {interval(gain(runs, one, other, 'test'))} ({why})"
                         for one, other, why in DIRECT if one in runs and other in runs] + [""]
            if rung == "rate":
                text += undecided(runs) + [""]
        for setting in [name for name in ("32x1", "32x8") if name in runs]:
            seed = min(runs[setting])
            text += [f"### Samples of {setting}, seed {seed}", "", *samples(runs[setting][seed])]
    title = ["# Report of the experiment pipeline", ""]
    (out / "report.md").write_text("\n".join(title + across(pairs, plan) + text) + "\n")
    columns = list(dict.fromkeys(key for line in table for key in line))
    with open(out / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(table)
    return out / "report.md"


def main():
    words = sys.argv[1:]
    out = words.pop(words.index("--out") + 1) if "--out" in words[:-1] else None
    words = [word for word in words if word != "--out"]
    folder = Path(words[0]) if len(words) == 1 else None
    if folder and (folder / "plan.tsv").exists():
        print(report(folder, out or folder))
    elif folder and (folder / "summary.json").exists():
        curve(folder)
        print(account(folder))
    else:
        sys.exit("report.py: give the folder of a finished run (it has a summary.json) or of ablate.sh (a plan.tsv)")


if __name__ == "__main__":
    main()
