"""The assignment's check: the reference passes, every stub and every typical mistake is told."""

import itertools
import json
import subprocess
import sys
from types import ModuleType

import pytest
from helpers import ROOT

from course.assignment import check, main_job, parts

FOLDER = ROOT / "course" / "assignment"
SOLUTION = (FOLDER / "solution.py").read_text()
STUBS = (FOLDER / "assignment.py").read_text()
PART_OF = {name: part for part, (_, functions) in parts.PARTS.items() for name in functions}

# Typical mistakes: (function, text of the solution, what replaces it, words of the message)
MISTAKES = [
    ("completion_logprobs", "model(ids).logits[:, :-1][is_completion[:, 1:]]",
     "model(ids).logits[is_completion]", "shifted by one"),
    ("completion_logprobs", "logits / temperature", "logits", "the temperature is ignored"),
    ("completion_logprobs", "logits / temperature", "logits * temperature",
     "the logits are multiplied by the temperature"),
    ("completion_logprobs", "torch.log_softmax(", "torch.softmax(", "these are probabilities"),
    ("completion_logprobs", "torch.log_softmax(logits / temperature, dim=-1)",
     "logits / temperature", "these are logits"),
    ("completion_logprobs", "    lengths = [len(p)",
     "    completions = [c[:-1] for c in completions]\n    lengths = [len(p)",
     "the last token is left out"),
    ("completion_logprobs", "    logits = model",
     "    is_completion &= ids != 0\n    logits = model", "masked by their id"),
    ("completion_logprobs", "is_completion[row, len(prompt) :", "is_completion[row, 1 :",
     "the tokens of the prompt are among them"),
    ("completion_logprobs", "len(prompt) : lengths[row]] = True", "len(prompt) :] = True",
     "padding is counted"),
    ("completion_logprobs", "return logprobs.gather(1, ids[is_completion][:, None]).squeeze(1)",
     "values = logprobs.gather(1, ids[is_completion][:, None]).squeeze(1)\n"
     "    return torch.stack([x.sum() for x in values.split([len(c) for c in completions])])",
     "there is one sum for each completion"),
    ("completion_logprobs", "return logprobs.gather(1, ids[is_completion][:, None]).squeeze(1)",
     "values = logprobs.gather(1, ids[is_completion][:, None]).squeeze(1)\n"
     "    return torch.stack([x.mean() for x in values.split([len(c) for c in completions])])",
     "there is one mean for each completion"),
    ("completion_logprobs",
     "ids[row, : lengths[row]] = torch.tensor(prompt + completion)\n"
     "        is_completion[row, len(prompt) : lengths[row]] = True",
     "ids[row, -lengths[row] :] = torch.tensor(prompt + completion)\n"
     "        is_completion[row, -len(completion) :] = True",
     "padding on the left is seen"),
    ("completion_logprobs", "    logits = model", "    with torch.no_grad():\n      logits = model",
     "have no gradient"),
    ("completion_logprobs", "return logprobs.gather",
     "logprobs = torch.cat([logprobs[:1], logprobs[1:].detach()])\n    return logprobs.gather",
     "their gradient is not"),

    ("draw", "/ (temperature or 1)", "/ (1 if temperature else 1)", "the temperature is ignored"),
    ("draw", "/ (temperature or 1)", "* (temperature or 1)",
     "the logits are multiplied by the temperature"),
    ("draw", "if temperature == 0:", "if True:", "it takes the likeliest token"),
    ("draw", "sums = logprobs.exp().cumsum(dim=-1)",
     "sums = torch.full_like(logprobs, 1 / logits.shape[1]).cumsum(dim=-1)",
     "all tokens are equally likely"),
    ("draw", "right=True)\n", "right=True) + 1\n", "the probability of the one before it"),
    ("draw", "sums = logprobs.exp().cumsum(dim=-1)",
     "sums = logprobs.exp().where(logprobs > -3, 0).cumsum(dim=-1)\n"
     "        sums = sums / sums[:, -1:]", "is never drawn"),
    ("draw", "torch.searchsorted(sums, uniform[:, None], right=True)",
     "torch.multinomial(logprobs.exp(), 1)", "the same `uniform` gives other tokens"),
    ("draw", "logprobs.gather(1, token)",
     "torch.log_softmax(logits.double(), dim=-1).gather(1, token)",
     "it is that of temperature 1"),
    ("draw", "logprobs.gather(1, token)", "logprobs.exp().gather(1, token)",
     "logprob: these are probabilities"),
    ("draw", "logprobs.gather(1, token)", "(logits / (temperature or 1)).gather(1, token)",
     "logprob: these are logits"),
    ("draw", "uniform[:, None]", "uniform[:1].repeat(len(logits))[:, None]",
     "every row has a number of its own"),
    ("draw", "(temperature or 1)", "temperature", "temperature 0 means the likeliest"),
    ("draw", "return token.squeeze(1), logprobs.gather(1, token).squeeze(1)",
     "logprob = logprobs.gather(1, token).squeeze(1)\n"
     "    return token.squeeze(1), logprob if temperature else 0 * logprob",
     "that of a certain event"),
    ("draw", ", right=True", "", "at uniform = 0"),
    ("draw", "        token = token.clamp(max=logits.shape[1] - 1)\n", "",
     "runs off the end of the vocabulary"),

    ("group_advantages", "return centered /", "return -centered /", "the sign is wrong"),
    ("group_advantages", "keepdim=True) + 1e-6", "keepdim=True, unbiased=False) + 1e-6",
     "divides by n; here it divides by n - 1"),
    ("group_advantages", "rewards.std(dim=1", "rewards.var(dim=1", "it divides by the variance"),
    ("group_advantages", "centered / (rewards.std(dim=1, keepdim=True) + 1e-6)", "centered",
     "it does not divide"),
    ("group_advantages", "centered = rewards - rewards.mean(dim=1, keepdim=True)",
     "centered = rewards", "the mean is not subtracted"),
    ("group_advantages", "rewards.mean(dim=1, keepdim=True)\n    return centered / "
     "(rewards.std(dim=1, keepdim=True)", "rewards.mean()\n    return centered / (rewards.std()",
     "mean and standard deviation are those of the whole batch"),
    ("group_advantages", "rewards.std(dim=1, keepdim=True)", "rewards.std()",
     "the standard deviation is that of the whole batch"),
    ("group_advantages", " + 1e-6", "", "0 / 0"),
    ("rloo_advantages", "rewards - mean_of_others", "mean_of_others - rewards",
     "the sign is wrong: a reward above the mean of the others"),
    ("rloo_advantages", "mean_of_others = (rewards.sum(dim=1, keepdim=True) - rewards) / others",
     "mean_of_others = rewards.mean(dim=1, keepdim=True)",
     "the mean contains the completion itself"),
    ("rloo_advantages", "rewards.shape[1] - 1", "rewards.shape[1]",
     "the sum of the n - 1 others is divided by n"),
    ("own_advantages", "(rewards - mean) / mean", "(mean - rewards) / mean", "must be above 0"),
    ("own_advantages", "torch.where(mean > 0, (rewards - mean) / mean, 0.0)",
     "(rewards - mean) / mean", "are not finite"),
    ("own_advantages", "torch.where(mean > 0, (rewards - mean) / mean, 0.0)", "rewards",
     "that is the reward"),

    ("loss", "-torch.minimum", "torch.minimum", "the sign is wrong: the optimizer descends"),
    ("loss", "torch.exp(logprobs - old_logprobs.detach())",
     "torch.exp(old_logprobs.detach() - logprobs)", "the ratio is upside down"),
    ("loss", "torch.exp(logprobs - old_logprobs.detach())", "logprobs - old_logprobs.detach()",
     "the ratio is a difference"),
    ("loss", "torch.minimum(ratio * advantages, clipped * advantages)", "(ratio * advantages)",
     "nothing is clipped"),
    ("loss", "torch.minimum(ratio * advantages, clipped * advantages)", "(clipped * advantages)",
     "only the clipped ratio counts"),
    ("loss", "torch.minimum", "torch.maximum", "it takes the maximum"),
    ("loss", "1 + clip_high)", "1 + clip_low)", "clip_high is ignored"),
    ("loss", "(1 - clip_low,", "(1 - clip_high,", "clip_low is ignored"),
    ("loss", "clamp(1 - clip_low, 1 + clip_high)", "clamp(-clip_low, clip_high)",
     "the ratio is clipped around 0"),
    ("loss", "(weights * per_token).sum()", "per_token.mean()", "a mean over tokens"),
    ("loss", "(weights * per_token).sum()", "per_token.sum()", "a sum over tokens"),
    ("loss", "(weights * per_token).sum()", "(weights * per_token).mean()",
     "it averages the weighted tokens"),
    ("loss", "(weights * per_token).sum()", "weights * per_token",
     "it returns one number for each token"),
    ("loss", "if kl:", "if False:", "KL term: the term is missing"),
    ("loss", "per_token + kl *", "per_token - kl *", "KL term: the term has the wrong sign"),
    ("loss", "d = logprobs - reference_logprobs", "d = reference_logprobs - logprobs",
     "d is reversed"),
    ("loss", "(torch.exp(-d) + d - 1)", "d", "this is k1"),
    ("loss", "(torch.exp(-d) + d - 1)", "d**2 / 2", "this is k2"),
    ("loss", "per_token + kl *", "per_token +", "not multiplied by kl"),
    ("loss", "        per_token = per_token + kl * (torch.exp(-d) + d - 1)\n",
     "        return (weights * per_token).sum() + kl * (torch.exp(-d) + d - 1).mean()\n",
     "averaged over tokens: it has the weights too"),
    ("loss", "        per_token = per_token + kl * (torch.exp(-d) + d - 1)\n",
     "        return (weights * per_token).sum() + kl * (torch.exp(-d) + d - 1).sum()\n",
     "summed over tokens: it has the weights too"),
    ("loss", ".detach())", ")", "a gradient flows through the old log-probabilities"),
    ("loss", "torch.exp(logprobs -", "torch.exp(logprobs.detach() -", "has no gradient: the ratio"),

    ("pass_at_k", "return 1 - ", "return ", "the chance that all k are wrong"),
    ("pass_at_k", "1 - math.comb(samples - right, k) / math.comb(samples, k)",
     "1 - (1 - right / samples) ** k", "draws the same completion twice"),
    ("pass_at_k", "1 - math.comb(samples - right, k) / math.comb(samples, k)", "right / samples",
     "this is pass@1"),
    ("pass_at_k", "1 - math.comb(samples - right, k) / math.comb(samples, k)",
     "min(1, k * right / samples)", "k times pass@1"),
    ("pass_at_k", "1 - math.comb(samples - right, k)", "math.comb(right, k)",
     "the chance that all k are right"),
    ("pass_at_k", "math.comb(samples, k)\n", "math.comb(samples, k) + 0 * float(samples) ** k\n",
     "numbers overflow"),
    ("pass_at_k", "if k > samples:", "if False:", "must raise ValueError"),

    ("one_round", "    optimizer.step()\n    return rewards\n\n\ndef better",
     "    return rewards\n\n\ndef better", "the weights do not change"),
    ("one_round", "loss(logprobs, logprobs, advantages, weights).backward()",
     "(-loss(logprobs, logprobs, advantages, weights)).backward()", "the step goes the wrong way"),
    ("one_round", "weights = torch.full_like(advantages, 1 / len(advantages))",
     "weights = (1 / (len(lengths) * lengths)).repeat_interleave(lengths)",
     "averaged over its own tokens"),
    ("one_round", "1 / len(advantages))", "1.0)", "the tokens are summed"),
    ("one_round", "1 / len(advantages))", "1 / len(advantages[advantages != 0]))",
     "over the tokens of rewarded completions"),
    ("one_round", "advantages = rewards.repeat_interleave(lengths)",
     "advantages = (rewards - rewards.mean()).repeat_interleave(lengths)",
     "the mean reward is subtracted"),
    ("one_round", "advantages = rewards.repeat_interleave(lengths)",
     "advantages = group_advantages(rewards[None])[0].repeat_interleave(lengths)",
     "the rewards are standardized"),
    ("one_round", "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n", "",
     "the gradient is not clipped"),
    ("one_round", "    optimizer.zero_grad()\n", "", "optimizer.zero_grad()"),
    ("one_round", "= sample(prompts)", "= [sample([prompt])[0] for prompt in prompts]",
     "call sample(prompts) once"),
]  # fmt: skip


def mutated(name: str, old: str, new: str) -> str:
    """The solution with a mistake in one function."""
    start = SOLUTION.index(f"def {name}(")
    end = SOLUTION.find("\ndef ", start + 1)
    body = SOLUTION[start:] if end < 0 else SOLUTION[start : end + len("\ndef better")]
    assert body.count(old) >= 1, (name, old)
    return SOLUTION[:start] + body.replace(old, new, 1) + SOLUTION[start + len(body) :]


def load(text: str, folder) -> ModuleType:
    path = folder / "hand_in.py"
    path.write_text(text)
    return check.load(path)


def verdict(mine: ModuleType, name: str) -> str:
    """The message about one function; empty if it is right."""
    functions = parts.PARTS[PART_OF[name]][1]
    try:
        check.check_function(mine, name, functions[name])
    except parts.Wrong as wrong:
        return str(wrong)
    return ""


def test_the_reference_passes(tmp_path):
    mine = load(SOLUTION, tmp_path)
    assert {name: verdict(mine, name) for name in PART_OF} == dict.fromkeys(PART_OF, "")


@pytest.mark.parametrize(
    "mistake", MISTAKES, ids=lambda mistake: f"{mistake[0]}: {mistake[3]}"
)
def test_every_mistake_is_named(mistake, tmp_path):
    name, old, new, words = mistake
    message = verdict(load(mutated(name, old, new), tmp_path), name)
    assert words in message
    assert message.startswith(name)
    others = [m for m in MISTAKES if m[0] == name and m[3] != words]
    assert not [m for m in others if m[3] in message], "a message that fits two mistakes"


def test_mistakes_have_messages_of_their_own():
    assert len(MISTAKES) >= 15
    assert len({(name, words) for name, _, _, words in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize("name", PART_OF)
def test_every_stub_alone_fails(name, tmp_path):
    start = SOLUTION.index(f"def {name}(")
    first_line = SOLUTION.index(":\n", SOLUTION.index(")", start)) + 2
    if name == "loss":
        first_line = SOLUTION.index("# fmt: skip\n", start) + len("# fmt: skip\n")
    text = SOLUTION[:first_line] + "    raise NotImplementedError\n" + SOLUTION[first_line:]
    assert verdict(load(text, tmp_path), name) == f"{name}: not written yet"


def test_the_file_to_write_has_all_stubs_and_no_part_is_right(capsys):
    mine = check.load(FOLDER / "assignment.py")
    for name in [*PART_OF, *main_job.KINDS]:
        assert getattr(mine, name).__doc__
    for part in parts.PARTS:
        assert not check.check_part(mine, part)
    assert capsys.readouterr().out.count("not written yet") == len(PART_OF)
    assert STUBS.count("raise NotImplementedError") == len(PART_OF) + 2  # one in the docstring


# --- what a student may do otherwise --------------------------------------------------------------

ONE_BY_ONE = """
def completion_logprobs(model, prompts, completions, temperature=1.0):
    parts = []
    for prompt, completion in zip(prompts, completions):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
        picked = torch.log_softmax(logits / temperature, -1)
        parts.append(picked[range(len(completion)), completion])
    return torch.cat(parts)
"""
BY_COMPARISON = """
def draw(logits, temperature, uniform):
    if temperature == 0:
        token = logits.argmax(-1)
        return token, torch.log_softmax(logits, -1)[range(len(token)), token]
    probs = torch.softmax(logits.double() / temperature, -1)
    token = (probs.cumsum(-1) <= uniform[:, None]).sum(-1).clamp(max=logits.shape[1] - 1)
    return token, probs[range(len(token)), token].log()
"""
WITH_A_LOOP = """
def pass_at_k(samples, right, k):
    if k > samples:
        raise ValueError
    none = 1.0
    for i in range(k):
        none *= max(0, samples - right - i) / (samples - i)
    return 1 - none
"""


@pytest.mark.parametrize("text", [ONE_BY_ONE, BY_COMPARISON, WITH_A_LOOP])
def test_another_way_to_write_it_is_right_too(text, tmp_path):
    mine = load(SOLUTION + text, tmp_path)
    name = text.split("def ")[1].split("(")[0]
    assert verdict(mine, name) == ""


def test_weights_by_enumeration():
    """expected_weight against the closed form of w(p) for MaxRL, and 1 for the raw reward."""
    mine = check.load(FOLDER / "solution.py")
    for p, n in itertools.product((0.1, 0.6), (2, 3)):
        weight = parts.expected_weight(mine.own_advantages, p, queries=2, n=n)
        assert weight == pytest.approx((1 - (1 - p) ** (n - 1)) / p)
        assert parts.expected_weight(lambda rewards: rewards, p, 2, n) == pytest.approx(1)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("def loss(:\n", "hand_in.py, line 1"),
        ("import nowhere\n", "cannot be imported: No module named 'nowhere'"),
        ("", "loss: there is no such function in hand_in.py"),
        ("def loss(*a):\n    return [][1]\n", "IndexError in line 2 of hand_in.py"),
        ("def loss(*a):\n    pass\n", "returns NoneType where a tensor is expected"),
    ],
)
def test_broken_files_get_one_sentence(text, words, tmp_path, capsys):
    path = tmp_path / "hand_in.py"
    path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        check.main(["4", "--file", str(path)])
    assert stopped.value.code
    assert words in f"{stopped.value.code}{capsys.readouterr().out}"


def test_the_main_job_needs_the_parts_that_it_runs_on(tmp_path, capsys):
    with pytest.raises(SystemExit, match="once parts 1, 2, 4 and 6 are right"):
        check.main([])
    with pytest.raises(SystemExit, match="there is no Python file"):
        check.main(["--file", str(tmp_path / "nowhere.py")])


# --- the main job ---------------------------------------------------------------------------------


def test_a_short_job_learns_on_the_students_functions(tmp_path, monkeypatch):
    monkeypatch.setattr(main_job.rollout, "sample_token", main_job.rollout.sample_token)
    monkeypatch.setattr(main_job.Job, "grade_test", lambda self, number, samples: FEW)
    run = main_job.train_one(FOLDER / "solution.py", "better_round", seed=0, rounds=2)
    assert len(run["rewards"]) == 2 and 0 < run["rewards"][0] < 1
    (tmp_path / "cheat.py").write_text(
        "from course.assignment.solution import draw\n"
        "def better_round(model, optimizer, prompts, sample, grade):\n"
        "    sample(prompts)\n"
        "    sample(prompts[:1])\n"
    )
    run = main_job.train_one(tmp_path / "cheat.py", "better_round", seed=0, rounds=1)
    assert "a round samples at most 32 completions, not 33" in run["problem"]
    run = main_job.train_one(FOLDER / "assignment.py", "one_round", seed=0, rounds=1)
    assert run["problem"] == "part 6, one_round: not written yet"


FEW = main_job.np.ones((4, 1), dtype=bool)


@pytest.mark.slow
def test_the_whole_check(tmp_path):
    command = [sys.executable, "-m", "course.assignment.check", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--file", str(FOLDER / "solution.py")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the goal, 0.04, is reached" in done.stdout
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    # The functions are right and the random numbers are those of train.py, so up to rounding it
    # is the run of train.py.
    ours = json.loads(main_job.OURS.read_text())["test"]["0"]
    mine = json.loads((tmp_path / "evals.json").read_text())["one_round"]["test"]
    assert mine["0"] == ours["0"]
    assert mine["20"] == pytest.approx(ours["20"], abs=0.03)
