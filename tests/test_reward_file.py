"""A reward of one's own: paid as it says, errors in a sentence, and nothing computed is lost."""

import json
import sys

import pytest
import torch
from helpers import ROOT, assert_equal_runs, read_log, small_run_flags
from transformers import AutoTokenizer

import bandit
import data
import evaluate
import rollout
import train
from infra.reward_file import RewardFile, RewardFileError
from lab import explain

QUERY = data.Query("Write dog.", "dog", None, 2, {"prompt": "Write dog.", "gold": "dog", "more": 7})


@pytest.fixture
def write(tmp_path):
    """A function: a reward file with this text; returns its path."""

    def write_file(text: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write_file


# --- what is paid ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.25", (0.25, True)),  # paid more than 0: right
        ("0", (0.0, False)),
        ("-1.5", (-1.5, False)),
        ("(-1, True)", (-1.0, True)),
        ("(2, False)", (2.0, False)),
        ("'dog' in completion", (1.0, True)),
        ("len(query.gold) + query.level + query.row['more']", (12.0, True)),
        ("query.form is None and query.prompt.startswith('Write')", (1.0, True)),
    ],
)
def test_what_a_file_may_return(write, value, expected):
    score = RewardFile(write(f"def score(completion, query):\n    return {value}\n"))
    assert score("a dog", QUERY)[:2] == expected


def test_the_built_in_verifier_has_the_same_interface(write):
    score = RewardFile(write("from reward import score\n"))
    for completion, right in (("#### dog", True), ("#### god", False), ("dog", False)):
        assert score(completion, QUERY)[:2] == (float(right), right)


def test_a_file_with_the_built_in_score_changes_nothing(tmp_path, write, problems, no_figure):
    """Bit for bit: every line of metrics.jsonl and evals.jsonl, but for the times."""
    flags = "--rounds", "2", "--max-new-tokens", "32"
    runs = {}
    for name, more in (("plain", ()), ("file", ("--reward", write("from reward import score\n")))):
        train.main(small_run_flags("tiny-qwen2", problems, tmp_path / name, *flags, *more))
        runs[name] = tmp_path / name
    for log in ("metrics", "evals"):
        plain, other = (read_log(runs[name], log) for name in ("plain", "file"))
        for line in (*plain, *other):  # a file knows no format
            line.pop("in_format")
            line.pop("accuracy_in_format", None)
        assert plain == other
    assert any(line["accuracy"] > 0 for line in read_log(runs["plain"]))


def test_a_truncated_completion_comes_without_its_last_answer():
    """It may be half a number, so no reward gets to see it."""
    seen = []

    def score(completion, query):
        seen.append(completion)
        return 1.0, True, True

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / "qwen2")
    tokens = tokenizer("1+1=2\n#### 12", add_special_tokens=False)["input_ids"]
    ended = [*tokens, tokenizer.eos_token_id]
    whole = rollout.Rollout(tokens=ended, logprobs=[0.0] * len(ended), truncated=False)
    cut = rollout.Rollout(tokens=tokens, logprobs=[0.0] * len(tokens), truncated=True)
    evaluate.grade(tokenizer, [QUERY], [whole, cut], score)
    assert seen == ["1+1=2\n#### 12", "1+1=2\n"]


def test_the_advantages_see_what_was_paid(write, small_run):
    """The logged reward is the mean of the file's amounts, and raft trains on the paid ones."""
    path = write("def score(completion, query):\n    return (-1) ** len(completion) / 2\n")
    out = small_run("signs", "--reward", path, "--advantage", "raft", "--rounds", "2")
    for line in read_log(out):
        right = line["accuracy"]
        assert line["reward"] == pytest.approx(right - 0.5)
        assert line["zero_advantage"] == pytest.approx(1 - right)
    rewards = torch.tensor([[0.5, -0.5]])
    raft = bandit.advantages("raft", bandit.RoundRewards(rewards), 2)
    assert raft.tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize("name", bandit.ADVANTAGES)
def test_a_file_goes_with_every_advantage(write, small_run, name):
    """It may pay anything, so no advantage is refused because of what the verifier pays. Only
    maxrl, which divides by the mean, takes no negative reward."""
    least = 0 if name == "maxrl" else -1
    path = write(f"def score(completion, query):\n    return len(completion) % 3 + {least}\n")
    window = ("--window", "4") if "window" in name else ()
    flags = "--advantage", name, "--rollouts", "2", *window, "--rounds", "1", "--eval-samples", "1"
    assert len(read_log(small_run(name, "--reward", path, *flags))) == 1


def test_an_evaluation_counts_what_the_file_calls_right(write, checkpoint, problems, capsys):
    """Always, and never, whatever the verifier would say; and no format, which a file knows not."""
    for right, figure in ((True, "1.000"), (False, "0.000")):
        path = write(f"def score(completion, query):\n    return 0.5, {right}\n")
        argv = f"evaluate.py --model {checkpoint('qwen2')} --data {problems} --samples 2 "
        argv += f"--max-new-tokens 4 --reward {path}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", argv.split())
            evaluate.main()
        text = capsys.readouterr().out
        assert f"pass@1   {figure}" in text and f"greedy   {figure}" in text
        assert "format" not in text


# --- what is refused ------------------------------------------------------------------------------

WRONG_FILES = {
    "syntax": ("def score(completion, query)\n    return 1\n", "line 1: raised SyntaxError"),
    "no score": ("def reward(completion, query):\n    return 1\n", "defines no function score"),
    "raises at once": ("import os\nos.nothing\n", "line 2: raised AttributeError"),
    "exits": ("raise SystemExit(3)\n", "line 1: raised SystemExit"),
}
WRONG_VALUES = {
    "raises": ("x = {}\n    return x['a']", "line 3: score raised KeyError: 'a'"),
    "nan": ("return float('nan')", "line 1: score returned nan, and a reward must be finite"),
    "infinite": ("return 10 ** 400", "a reward must be finite"),
    "text": ("return '1'", "score returned '1', not a number"),
    "nothing": ("pass", "score returned None, not a number"),
    "three": ("return 1, True, True", "not a number or (number, True or False)"),
    "right is a number": ("return 1.0, 1", "not a number or (number, True or False)"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_file_that_cannot_be_used(write, case):
    text, problem = WRONG_FILES[case]
    with pytest.raises(RewardFileError) as caught:
        RewardFile(write(text))
    assert problem in str(caught.value) and "mine.py" in str(caught.value)


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_a_score_that_cannot_be_paid(write, case):
    body, problem = WRONG_VALUES[case]
    score = RewardFile(write(f"def score(completion, query):\n    {body}\n"))
    with pytest.raises(RewardFileError) as caught:
        score("text", QUERY)
    assert problem in str(caught.value)


def test_flags_that_go_ill_with_a_file(small_run, capsys, write):
    path = write("def score(completion, query):\n    return 1\n")
    for flags, words in (
        (("--reward", path, "--wrong-reward", "-1"), "that file says what is paid"),
        (("--reward", path + ".txt"), "No such file"),
    ):
        with pytest.raises(SystemExit) as caught:
            small_run("refused", *flags)
        assert caught.value.code not in (0, None)
        assert words in capsys.readouterr().err + str(caught.value.code)


# --- runs -----------------------------------------------------------------------------------------

PARITY = "def score(completion, query):\n    return len(completion) % 2\n"
FAILING = """calls = 0
def score(completion, query):
    global calls
    calls += 1
    if calls > 150:
        raise RuntimeError("no more")
    return len(completion) % 2
"""


def test_a_run_goes_on_after_its_reward_file_was_mended(small_run, write, capsys):
    """It raises between two checkpoints. The mended run equals one that never failed."""
    path = write(FAILING)
    with pytest.raises(SystemExit) as caught:
        small_run("mended", "--reward", path)
    error = capsys.readouterr().err + str(caught.value.code)
    assert "line 6: score raised RuntimeError: no more; mend it, then the same command" in error
    assert "with --resume --out " in error
    write(PARITY)
    out = small_run("mended", "--reward", path, "--resume")
    config = json.loads((out / "config.json").read_text())
    (noted,) = config["reward_errors"]
    assert 1 <= noted["round"] < 6
    assert config["reward"] == path

    whole = small_run("whole", "--reward", path)
    assert_equal_runs(out, whole)


def test_a_resume_with_another_reward_is_refused(small_run, write, capsys):
    path = write(PARITY)
    out = small_run("run", "--reward", path, "--rounds", "2")
    config = json.loads((out / "config.json").read_text())
    assert config["reward"] == path and len(config["reward_hash"]) == 64
    write(PARITY.replace("% 2", "% 3"))
    with pytest.raises(SystemExit) as caught:
        small_run("run", "--reward", path, "--resume", "--rounds", "4")
    assert "is not the reward file of the run" in capsys.readouterr().err + str(caught.value)
    with pytest.raises(SystemExit):
        small_run("run", "--resume", "--rounds", "4")
    assert len(read_log(out)) == 2


def test_explain_walks_through_a_reward_of_ones_own(write, capsys):
    explain.main(["--reward", write(PARITY), "--rollouts", "2"])
    text = " ".join(capsys.readouterr().out.split())
    assert "says what is paid, and what counts as right" in text
    assert "reward R = " in text
