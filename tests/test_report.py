"""The statistics of the report against numbers worked by hand, and the pages it writes."""

import csv
import json
import shutil

import numpy as np
import pytest

from infra import intervals
from infra.intervals import Interval
from lab import report
from lab.report_runs import BestRound, PlanLine, Run, read_pair, read_run

# --- intervals ------------------------------------------------------------------------------------


def test_the_interval_of_a_known_sample():
    """0.02, 0.05, 0.05 have the mean 0.04 and the standard deviation 0.017321, so the error of the
    mean is 0.01; t of two degrees of freedom is 4.303."""
    mean, half = intervals.t_interval([0.02, 0.05, 0.05])
    assert mean == pytest.approx(0.04)
    assert half == pytest.approx(0.04303, rel=1e-3)
    assert report.direction(Interval(mean, half)) == "same"
    assert report.direction(Interval(0.05, half)) == "more"
    assert report.direction(Interval(-0.05, half)) == "less"


def test_a_single_seed_has_no_interval():
    alone = intervals.t_interval([0.1])
    assert report.direction(alone) == "unknown"
    assert report.interval_text(alone) == "+0.100 (one seed)"
    assert np.isnan(intervals.t_interval([]).mean)
    assert report.interval_text(intervals.t_interval([])) == ""


@pytest.mark.parametrize("seeds", [3, 5, 25])
def test_the_interval_covers_the_true_mean_in_95_of_100_samples(seeds):
    rng = np.random.default_rng(0)
    trials = 4000
    hits = 0
    for _ in range(trials):
        mean, half = intervals.t_interval(rng.normal(0.3, 2.0, seeds))
        hits += abs(mean - 0.3) <= half
    error = (0.95 * 0.05 / trials) ** 0.5
    assert abs(hits / trials - 0.95) < 4 * error


# --- comparing runs -------------------------------------------------------------------------------


def make_run(rounds=(0, 10), test=(0.2, 0.5), rollouts=(0, 320), right=None, greedy=0.7) -> Run:
    """A run as read_run returns it, with these evaluations of the test set."""
    axes = {"rounds": np.array(rounds), "rollouts": np.array(rollouts)}
    summary = {"test_greedy_after": greedy}
    return Run(None, {}, summary, axes, {"test": np.array(test)}, {"test": right}, None)


def make_seeds(value: float, slope: float = 0.0) -> dict[int, Run]:
    """Three seeds that end at value, value + slope and value + 2 slope."""
    return {seed: make_run(test=(0.2, value + slope * seed)) for seed in (0, 1, 2)}


def test_gains_are_paired_by_seed_and_taken_at_equal_cost():
    runs = {
        "32x1": {
            seed: make_run((0, 10, 80), (0.2, 0.3 + seed, 0.9 + seed), (0, 320, 2560))
            for seed in (0, 1, 2)
        },
        "32x8": {seed: make_run((0, 10), (0.2, 0.5 + seed), (0, 2560)) for seed in (0, 1, 3)},
        # It ends before the baseline's first evaluation.
        "short": {0: make_run((0, 10), (0.2, 0.3), (0, 10))},
    }
    # At round 10, over the seeds 0 and 1 that both have.
    mean, half = report.gain(runs, "32x8", "32x1", "test")
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(0)
    # At 2,560 rollouts, where the baseline is at round 80.
    assert report.gain(runs, "32x8", "32x1", "test", "rollouts").mean == pytest.approx(-0.4)
    assert np.isnan(report.gain(runs, "short", "32x1", "test", "rollouts").mean)


def test_there_is_no_gain_between_different_train_sets():
    """A run that trains on easy queries only is right on more of its train set. It learnt less."""
    run = make_run()
    run.pass_at_1["train"] = np.array([0.2, 0.5])
    easy = run._replace(config={"levels": [1, 2]}, pass_at_1={
        "train": np.array([0.4, 0.9]), "test": np.array([0.2, 0.3])})  # fmt: skip
    runs = {"32x1": {0: run, 1: run}, "easy": {0: easy, 1: easy}}
    assert report.differences(runs, "easy", "32x1", "test") == pytest.approx([-0.2, -0.2])
    assert report.differences(runs, "easy", "32x1", "train") == []


def test_greedy_accuracies_are_paired_by_seed_after_equally_many_rounds():
    runs = {
        "32x1": {seed: make_run(greedy=0.7 + seed / 10) for seed in (0, 1, 2)},
        "32x8": {seed: make_run(greedy=0.9 + seed / 10) for seed in (2, 1, 3)},
        "long": {0: make_run((0, 10, 80), (0.2, 0.3, 0.9), (0, 320, 2560), greedy=0.99)},
    }
    assert report.greedy_differences(runs, "32x8", "32x1") == pytest.approx([0.2, 0.2])
    assert report.greedy_differences(runs, "long", "32x1") == []


def test_the_best_round_is_not_scored_on_the_queries_that_chose_it():
    right = np.zeros((3, 40), dtype=int)
    right[1, ::2] = 1  # a lucky evaluation of the half that chooses
    right[2, 1::2] = 1
    run = make_run(rounds=(0, 5, 10), right=right)
    assert report.best_round(run) == BestRound(5, 0.0, False)
    # Good everywhere at round 5, and nothing right at the end.
    right[1, 1::2] = 1
    right[2] = 0
    assert report.best_round(run) == BestRound(5, 1.0, True)


# --- tables and sentences -------------------------------------------------------------------------


def test_the_table_of_all_pairs():
    plan = [
        PlanLine("rollouts", "32x1", ""),
        PlanLine("rollouts", "32x8", ""),
        PlanLine("batch", "32x8", ""),
        PlanLine("neighbours", "raft", ""),
    ]
    one = {"32x1": make_seeds(0.5), "32x8": make_seeds(0.6), "raft": make_seeds(0.7)}
    two = {"32x1": make_seeds(0.5), "32x8": make_seeds(0.45)}
    text = report.pairs_section({"one": one, "two": two}, plan)
    assert text[2:5] == [
        "| setting | one | two |",
        "|---|---|---|",
        "| 32x8 | +0.100 ± 0.000 | -0.050 ± 0.000 |",
    ]
    assert "greedy accuracy" in text[6]
    assert text[10] == "| 32x8 | +0.000 ± 0.000 | +0.000 ± 0.000 |"
    assert report.pairs_section({"one": one}, plan) == []


def test_the_sentence_names_each_setting_once():
    runs = {
        "32x1": make_seeds(0.5),
        "better": make_seeds(0.6),
        "worse": make_seeds(0.4),
        "equal": make_seeds(0.5),
        "alone": {0: make_run(test=(0.2, 0.9))},
    }
    assert report.differences_in_words(runs, list(runs)) == (
        "On the test set, at equal rounds, above the baseline by more than the noise: better; "
        "below the baseline by more than the noise: worse; "
        "indistinguishable from the baseline: equal; with too few seeds to say: alone. "
        "With Holm's correction for 3 comparisons these differ: better, worse."
    )
    assert report.differences_in_words(runs, ["32x1"]) == ""


def test_a_finding_need_not_survive_that_others_were_tested_beside_it():
    """t = 0.1 / 0.02 = 5 of two degrees of freedom: p = 0.038, and 0.075 for two comparisons."""
    spread = 0.02 * 3**0.5
    runs = {
        "32x1": make_seeds(0.5),
        "32x8": {seed: make_run(test=(0.2, 0.6 + spread * (seed - 1))) for seed in (0, 1, 2)},
        "equal": {seed: make_run(test=(0.2, 0.5 + 0.01 * (seed - 1))) for seed in (0, 1, 2)},
    }
    words = report.differences_in_words(runs, ["32x8", "equal"])
    assert "above the baseline by more than the noise: 32x8;" in words
    assert words.endswith("With Holm's correction for 2 comparisons these differ: none.")


def test_settings_are_compared_with_each_other_directly():
    runs = {
        "32x8": make_seeds(0.6, 0.01),
        "32x8-raw": make_seeds(0.65, 0.01),
        "256x1": make_seeds(0.65, 0.05),
    }
    lines = report.direct_in_words(runs, "controls")
    greedy = "in greedy accuracy +0.000 ± 0.000 ("
    assert lines[0].startswith(f"- 32x8 - 32x8-raw on the test set: -0.050 ± 0.000, {greedy}")
    assert lines[1].startswith(f"- 32x8-raw - 256x1 on the test set: -0.040 ± 0.099, {greedy}")
    assert lines[-1].endswith("for 2 comparisons these differ: 32x8 - 32x8-raw.")


def test_a_seed_that_collapsed_is_named():
    ends = [0.70, 0.71, 0.05, 0.72, 0.70]
    runs = {
        "32x1": {
            seed: make_run()._replace(summary={"test_pass@1_after": value})
            for seed, value in enumerate(ends)
        }
    }
    (sentence,) = report.odd_seeds_in_words(runs, ["32x1"])
    assert sentence.startswith("Seed 2 of 32x1 does not look like its others (0.050)")
    del runs["32x1"][2]
    assert report.odd_seeds_in_words(runs, ["32x1"]) == []


def test_a_finding_that_depends_on_the_rate_is_undecided():
    runs = {
        "32x1": make_seeds(0.5, 0.001),
        "32x8": make_seeds(0.6, 0.002),  # another slope gives the differences some spread
        "32x8@own": make_seeds(0.4, 0.002),
    }
    (sentence,) = report.rates_in_words(runs)
    assert sentence.endswith("depends on the learning rate.")
    runs["32x8@own"] = make_seeds(0.6, 0.003)
    assert "undecided" not in report.rates_in_words(runs)[0]


# --- pages ----------------------------------------------------------------------------------------


def test_a_run_is_read_as_it_was_logged(finished_run):
    run = read_run(finished_run)
    assert list(run.axes["rounds"]) == [0, 2, 4, 6]
    assert list(run.axes["rollouts"]) == [0, 16, 32, 48]
    assert run.axes["seconds"][0] == 0
    assert all(np.diff(run.axes["seconds"]) > 0)
    assert run.pass_at_1["test"] == pytest.approx(run.right["test"].mean(axis=1))


def test_the_report_of_a_few_runs(finished_run, tmp_path):
    """Two settings, two seeds of each; one run is damaged, so it is left out with a reason."""
    pair = tmp_path / "ablate" / "model-set"
    for setting in ("32x1", "32x8"):
        for seed in (0, 1):
            shutil.copytree(finished_run, pair / setting / f"seed-{seed}")
            command = f"python train.py --seed {seed} --lr 1e-4 --levels 1 2 --out /a/{setting}"
            (pair / setting / f"seed-{seed}" / "command").write_text(command)
    (tmp_path / "ablate" / "plan.tsv").write_text("baseline\t32x1\t\nrollouts\t32x8\t--x 8\n")
    (pair / "32x8" / "seed-1" / "evals.jsonl").write_text("{")

    page = report.write_report(tmp_path / "ablate", tmp_path / "out").read_text()
    reason = page.split("Left out: ")[1].split("\n")[0]
    assert "32x8/seed-1" in reason
    assert "its log does not reach its last round" in reason
    assert "3 runs, " in page
    assert "Flags of every run: `--lr 1e-4 --levels 1 2`." in page
    assert "| 32x1 | 2 |" in page
    assert "| 32x8 | 1 |" in page
    assert "`32x8`: `--x 8`" in page
    assert "with too few seeds to say: 32x8." in page
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rung"], row["setting"]) for row in rows] == [
        ("baseline", "32x1"), ("rollouts", "32x1"), ("rollouts", "32x8"),
    ]  # fmt: skip
    summary = json.loads((finished_run / "summary.json").read_text())
    assert rows[2]["test pass@1"] == f"{summary['test_pass@1_after']:.3f}"
    assert rows[2]["gain, test, equal rounds"] == "+0.000 (one seed)"
    with open(tmp_path / "out" / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["32x1", "32x1", "32x8"]
    for name in ("test pass@1 after", "test greedy after"):
        assert rows[0][name] == f"{summary[name.replace(' ', '_')]:.3f}"
    figures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert figures == ["model-set-baseline.png", "model-set-rollouts.png"]
    assert all(f"]({name})" in page for name in figures)


def edit(name, change):
    """A damage: change what stands in a .json file or in the first line of a .jsonl file."""

    def damage(folder):
        first, *rest = (folder / name).read_text().split("\n") if name.endswith("l") else [
            (folder / name).read_text()]  # fmt: skip
        value = json.loads(first)
        change(value)
        (folder / name).write_text("\n".join([json.dumps(value), *rest]))

    return damage


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


FILES = ("summary.json", "config.json", "metrics.jsonl", "evals.jsonl", "samples.jsonl")
DAMAGES = [
    *[(lambda folder, name=name: (folder / name).unlink(), "") for name in FILES],
    *[(put(name, b""), "") for name in FILES],
    *[(put(name, b'{"round": 0, "spl'), "") for name in FILES],
    *[(put(name, b"[1]\n"), "not a JSON object but a list") for name in FILES],
    *[(put(name, b'"\xff"\n'), "cannot be read: 'utf-8' codec") for name in FILES],
    *[(edit(name, dict.clear), "lacks") for name in FILES],
    (edit("summary.json", lambda value: value.pop("seconds")), "lacks 'seconds'"),
    (edit("summary.json", lambda value: value.update(rounds="6")), "last round"),
    (edit("summary.json", lambda value: value.update(seconds=None)), ""),
    (edit("config.json", lambda value: value.pop("torch")), "lacks 'torch'"),
    (edit("metrics.jsonl", lambda value: value.pop("seconds_reward")), "lacks 'seconds_reward'"),
    (edit("evals.jsonl", lambda value: value.update(round=1)), "not evaluated in the same rounds"),
    (edit("evals.jsonl", lambda value: value.update({"pass@1": "high"})), ""),
    (edit("evals.jsonl", lambda value: value["right"].pop()), ""),
    (edit("samples.jsonl", lambda value: value.pop("gold")), "lacks 'gold'"),
]


@pytest.mark.parametrize("damage, word", DAMAGES)
def test_a_damaged_run_is_left_out_with_its_reason(finished_run, tmp_path, damage, word):
    for seed in (0, 1):
        shutil.copytree(finished_run, tmp_path / "32x1" / f"seed-{seed}",
                        ignore=shutil.ignore_patterns("model", "checkpoints"))  # fmt: skip
    damage(tmp_path / "32x1" / "seed-1")
    runs, left_out = read_pair(tmp_path, report.describe)
    assert list(runs["32x1"]) == [0]
    (reason,) = left_out
    assert "32x1/seed-1" in reason and word in reason and len(reason.splitlines()) == 1


def test_a_run_that_was_evaluated_in_other_rounds_is_left_out(finished_run, tmp_path):
    for seed in (0, 1):
        shutil.copytree(finished_run, tmp_path / "32x1" / f"seed-{seed}",
                        ignore=shutil.ignore_patterns("model", "checkpoints"))  # fmt: skip
    path = tmp_path / "32x1" / "seed-1" / "evals.jsonl"
    lines = path.read_text().splitlines(True)
    path.write_text("".join(lines[:2] + lines[4:]))
    runs, left_out = read_pair(tmp_path, report.describe)
    assert list(runs["32x1"]) == [0] and "in other rounds than seed-0" in left_out[0]


@pytest.mark.parametrize("text, span", [
    ("7", "`7`"),
    ("a `b` c", "`` a `b` c ``"),
    ("``", "``` `` ```"),
    ("<b>x</b> | y\nz", "`<b>x</b> | y z`"),
])  # fmt: skip
def test_text_stays_text(text, span):
    assert report.code(text) == span


def test_one_run_is_drawn_again_and_described(finished_run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "curve.png").unlink()
    monkeypatch.setattr("sys.argv", ["report.py", str(folder)])
    report.main()
    assert (folder / "curve.png").exists()
    assert "pass@1" in capsys.readouterr().out
