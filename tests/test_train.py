"""The loop: what the update is given, what the log says of a round, that a run can be repeated, and
that a user's mistake is answered in one sentence."""

import json

import numpy as np
import pytest
from helpers import QUERIES, assert_equal_runs, is_paid, read_log, record_calls

import bandit
import rollout
import train
from infra import models
from infra.run_folder import read_lines

# --- one round ------------------------------------------------------------------------------------


def calls_of_rounds(sampler_calls, n):
    """(prompts, rollouts, options) of each call that sampled n rollouts of 8 queries."""
    found = []
    for (_, prompts, each), options, rollouts in sampler_calls:
        if len(prompts) == 8 and each == n:
            found.append((prompts, rollouts, options))
    return found


def test_what_the_update_is_given(small_run, coin_verifier, monkeypatch):
    """Each trained completion with its own prompt, its own sampler's log-probabilities and the
    advantage of its own reward, at the sampling temperature."""
    sampler_calls = record_calls(monkeypatch, rollout, "sample_sharded")
    update_calls = record_calls(monkeypatch, bandit, "update")
    small_run(
        "a", "--rounds", "2", "--advantage", "rloo", "--rollouts", "1", "--baseline-rollouts", "3",
        "--temperature", "0.7", "--loss-mean", "constant", "--eval-samples", "1",
        "--weight-decay", "0.5", "--max-grad-norm", "0.3", "--micro-tokens", "100",
    )  # fmt: skip
    sampled = calls_of_rounds(sampler_calls, 4)
    assert len(sampled) == len(update_calls) == 2
    for (prompts, rollouts, options), (args, _, _) in zip(sampled, update_calls, strict=True):
        _, optimizer, batch, config, reference = args
        assert config == bandit.UpdateConfig(
            loss_mean="constant", max_new_tokens=6, temperature=0.7, max_grad_norm=0.3,
            micro_tokens=100,
        )  # fmt: skip
        assert options["temperature"] == config.temperature
        assert options["max_new_tokens"] == config.max_new_tokens
        assert reference is None
        assert optimizer.param_groups[0]["weight_decay"] == 0.5
        assert optimizer.param_groups[0]["lr"] == 0.001

        assert batch.prompts == prompts
        assert batch.completions == [one.tokens for one in rollouts[::4]]
        assert batch.sampler_logprobs == [one.logprobs for one in rollouts[::4]]
        for row in range(8):
            group = rollouts[4 * row : 4 * row + 4]
            rewards = [float(is_paid(one.tokens)) for one in group]
            wanted = rewards[0] - sum(rewards[1:]) / 3
            assert batch.advantages[row].item() == pytest.approx(wanted)


def test_the_update_gets_every_flag_that_it_reads(small_run, coin_verifier, monkeypatch):
    update_calls = record_calls(monkeypatch, bandit, "update")
    small_run(
        "a", "--rounds", "1", "--epochs-per-round", "2", "--clip-low", "0.1", "--clip-high", "0.3",
        "--kl", "0.02", "--kl-estimator", "k2", "--correct-sampler", "--loss-mean", "sequence",
    )  # fmt: skip
    ((_, _, _, config, reference), _, _) = update_calls[0]
    assert config == bandit.UpdateConfig(
        loss_mean="sequence", max_new_tokens=6, epochs_per_round=2, clip_low=0.1, clip_high=0.3,
        kl=0.02, kl_estimator="k2", correct_sampler=True,
    )  # fmt: skip
    assert reference is not None


def test_the_log_of_a_round(small_run, coin_verifier, monkeypatch):
    """Greedy completions are counted, and enter no mean. Many ids end a completion here, so that
    lengths differ."""
    monkeypatch.setattr(models, "end_ids", lambda *args: set(range(100)))
    sampler_calls = record_calls(monkeypatch, rollout, "sample_sharded")
    out = small_run(
        "a", "--rounds", "3", "--advantage", "remax", "--rollouts", "2", "--eval-every", "0",
        "--eval-samples", "1", "--wrong-reward", "-1",
    )  # fmt: skip
    sampled = calls_of_rounds(sampler_calls, 2)
    greedy = [call for call in calls_of_rounds(sampler_calls, 1) if call[2]["temperature"] == 0]
    greedy = greedy[1:-1]  # the first and the last are of the evaluations
    lines = read_lines(out / "metrics.jsonl")
    assert len(lines) == len(sampled) == len(greedy) == 3
    assert all(0 < line["truncated"] < 1 for line in lines)
    regret = tokens = 0
    for number, line in enumerate(lines):
        prompts, rollouts, _ = sampled[number]
        greedy_prompts, greedy_rollouts, _ = greedy[number]
        assert greedy_prompts == prompts
        right = np.array([is_paid(one.tokens) for one in rollouts])
        greedy_right = np.array([is_paid(one.tokens) for one in greedy_rollouts])
        round_tokens = sum(len(one.tokens) for one in [*rollouts, *greedy_rollouts])
        tokens += round_tokens
        regret += (~right).sum() + (~greedy_right).sum()
        logprobs = [logprob for one in rollouts for logprob in one.logprobs]
        equal = right.reshape(8, 2) == greedy_right[:, None]
        assert line["round"] == number + 1
        assert line["accuracy"] == right.mean()
        assert line["reward"] == pytest.approx(2 * right.mean() - 1)
        assert line["regret"] == regret
        assert line["in_format"] == 1
        assert line["accuracy_in_format"] == line["accuracy"]
        assert line["length"] == np.mean([len(one.tokens) for one in rollouts])
        assert line["truncated"] == np.mean([one.truncated for one in rollouts])
        assert line["entropy"] == pytest.approx(-np.mean(logprobs))
        assert line["zero_advantage"] == equal.mean()
        assert line["unmixed_groups"] == np.mean(right[::2] == right[1::2])
        assert line["kl"] is None
        assert 0 <= line["sampler_mismatch"] <= line["largest_sampler_mismatch"] < 1e-3
        for part in ("sampling", "reward", "update"):
            assert line[f"seconds_{part}"] > 0
        parts = ("sampling", "reward", "update")
        rate = round_tokens / sum(line[f"seconds_{part}"] for part in parts)
        assert line["tokens_per_second"] == pytest.approx(rate)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rounds"], summary["rollouts"]) == (3, 3 * 8 * 3)
    assert (summary["tokens"], summary["regret"]) == (tokens, regret)


def test_regret_adds_up_the_wrong_rollouts(finished_run):
    lines = read_log(finished_run)
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["unmixed_groups"] is None for line in lines)  # one rollout a query
    wrong = [round(8 * (1 - line["accuracy"])) for line in lines]
    assert [line["regret"] for line in lines] == list(np.cumsum(wrong))


# --- a whole run ----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run(finished_run, small_run, coin_verifier):
    assert_equal_runs(finished_run, small_run("a"))
    assert read_log(small_run("b", "--seed", "1")) != read_log(finished_run)


def test_every_sampling_of_a_run_has_a_seed_of_its_own(small_run, coin_verifier, monkeypatch):
    """SeedSequence([seed, purpose, round]), in the order in which a run samples."""
    sampler_calls = record_calls(monkeypatch, rollout, "sample")
    small_run("a", "--rounds", "2", "--seed", "5")

    def seed(purpose, number):
        return int(np.random.SeedSequence([5, purpose, number]).generate_state(1)[0])

    def evaluation(number):
        train_set, test_set, pass_at_k = (seed(purpose, number) for purpose in (3, 4, 5))
        return [train_set, "greedy", test_set, "greedy", pass_at_k]

    found = []
    for _, options, _ in sampler_calls[1:]:  # the first is rollout.check's
        is_greedy = options.get("temperature") == 0
        found.append("greedy" if is_greedy else options["seed"])
    samples = [seed(6, 0)] * 2  # before and after
    assert found == [*evaluation(0), seed(2, 0), seed(2, 1), *evaluation(2), *samples]


def test_every_query_comes_once_an_epoch(small_run, coin_verifier, monkeypatch):
    sampler_calls = record_calls(monkeypatch, rollout, "sample_sharded")
    small_run("a", "--rollouts", "2", "--eval-every", "0", "--eval-samples", "1")
    rounds = [
        [tuple(prompt) for prompt in prompts]
        for prompts, _, _ in calls_of_rounds(sampler_calls, 2)
    ]
    assert len(rounds) == 6
    first, second = sum(rounds[:3], []), sum(rounds[3:], [])
    assert len(set(first)) == 24
    assert set(first) == set(second)
    assert first != second


def test_fewer_queries_and_levels(small_run, coin_verifier, problems):
    out = small_run("a", "--rounds", "2", "--queries", "1", "--batch-size", "1")
    assert len(read_log(out, "evals")[0]["right"]) == 1
    out = small_run("b", "--rounds", "2", "--levels", "1", "2", "--batch-size", "2")
    rows = read_lines(problems / "train.jsonl")
    assert len(rows) == QUERIES["train"]
    easy = sum(row["level"] <= 2 for row in rows)
    assert len(read_log(out, "evals")[0]["right"]) == easy


# --- the command line -----------------------------------------------------------------------------


def test_defaults_follow_the_models_size(checkpoint):
    tiny = train.parse([])
    assert (tiny.lr, tiny.kl, tiny.max_new_tokens) == (1e-4, 0, 64)
    assert train.parse(["--model", checkpoint("qwen2")]).lr == 1e-4

    paper = train.parse(["--model", "Qwen/Qwen2.5-0.5B-Instruct", "--data", "gsm8k"])
    assert (paper.lr, paper.kl, paper.max_new_tokens, paper.eval_every) == (1e-6, 0.001, 1024, 100)
    assert (paper.batch_size, paper.rollouts) == (32, 1)
    assert (paper.advantage, paper.max_prompt_tokens) == ("reward", 512)
    assert paper.out.name == "model=Qwen_Qwen2.5-0.5B-Instruct,data=gsm8k"


def test_a_reward_that_no_gradient_can_hold_is_named(small_run):
    with pytest.raises(SystemExit, match="--lr, --kl or a reward is too large"):
        small_run("a", "--wrong-reward=-1e29")
