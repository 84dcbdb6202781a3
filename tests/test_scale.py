"""What models of the hub and many processes need: precision, memory, checkpoints, the hub's peculiarities."""

import copy
import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from ranks import COMPLETIONS, PROMPTS, update
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import bandit
import checkpoint as checkpoints
import likelihood
import optimizer
import report
import rollout
import train

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]

# --- precision --------------------------------------------------------------------------------------------------


def test_a_step_of_a_millionth_is_not_lost(checkpoint):
    model, _ = rollout.load(checkpoint("qwen2"), "cpu")
    plain = copy.deepcopy(model).bfloat16()
    masters = optimizer.Masters(model, torch.bfloat16)
    steps = optimizer.adamw(masters, 1e-6, weight_decay=0.0)
    lossy = torch.optim.AdamW(plain.parameters(), lr=1e-6, weight_decay=0.0)
    before, rounded = [w.detach().clone() for w in masters.weights], [p.detach().clone() for p in plain.parameters()]
    for _ in range(20):
        bandit.update(model, steps, PROMPTS, COMPLETIONS, torch.ones(3))
        bandit.update(plain, lossy, PROMPTS, COMPLETIONS, torch.ones(3))
        assert all(torch.equal(p, w.bfloat16()) for p, w in zip(model.parameters(), masters.weights, strict=True))
    moved = torch.cat([(w.detach() - b).abs().flatten() for w, b in zip(masters.weights, before, strict=True)])
    used = moved[moved > 0]  # the embeddings of tokens that never came have no gradient
    assert len(used) > 0.5 * len(moved) and used.median().item() == pytest.approx(2e-5, rel=0.2)  # 20 steps of 1e-6
    large = [r.abs() > 1e-3 for r in rounded]  # a number near zero can take small steps in bfloat16 too
    still = [torch.equal(p[m], r[m]) for p, r, m in zip(plain.parameters(), rounded, large, strict=True)]
    assert all(still), "without masters the same steps change nothing"


def test_masters_add_up_gradients_in_float32(checkpoint):
    """Two hundred equal micro-batches: a sum in bfloat16 would stop growing at 256 times its first part."""
    model, _ = rollout.load(checkpoint("llama"), "cpu")
    masters = optimizer.Masters(model, torch.bfloat16)
    sums = []
    for times in (1, 600):
        for w in masters.weights:
            w.grad = torch.zeros_like(w)
        for _ in range(times):
            likelihood.completion_logprobs(model, PROMPTS, COMPLETIONS).sum().backward()
        assert all(p.grad is None for p in model.parameters())
        sums.append(torch.cat([w.grad.flatten() for w in masters.weights]))
    assert torch.allclose(sums[1], 600 * sums[0], rtol=1e-3)


def test_float32_needs_no_second_copy(checkpoint):
    model, _ = rollout.load(checkpoint("olmo2"), "cpu")
    assert all(w is p for w, p in zip(optimizer.Masters(model).weights, model.parameters(), strict=True))


def test_the_gap_to_the_sampler_and_its_correction(checkpoint):
    """The sampler's log-probabilities are given: 0.5 lower for the first completion, 3 lower for the last token."""
    def step(**kwargs):
        model = rollout.load(checkpoint("qwen2"), "cpu")[0].double()
        logprobs = likelihood.completion_logprobs(model, PROMPTS, COMPLETIONS).detach()
        gaps = torch.tensor([0.5, 0.5] + [0.0] * 7 + [3.0])
        sampled = [part.tolist() for part in (logprobs - gaps).split([2, 5, 3])]
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        said = bandit.update(model, torch.optim.SGD(model.parameters(), lr=1.0), PROMPTS, COMPLETIONS,
                             torch.tensor([1.0, -1.0, 2.0]), max_grad_norm=1e9, sampled=sampled, **kwargs)
        return said, torch.cat([p.detach().flatten() for p in model.parameters()]) - before, model

    said, plain, _ = step()
    assert said["gap"] == pytest.approx(0.4) and said["largest_gap"] == pytest.approx(3.0)
    _, corrected, _ = step(correct=True)
    model = rollout.load(checkpoint("qwen2"), "cpu")[0].double()
    weights = torch.tensor([np.exp(0.5)] * 2 + [-1.0] * 5 + [2.0] * 2 + [2.0 * 2.0])  # exp(3) is cut to 2
    value = (weights / 10 * likelihood.completion_logprobs(model, PROMPTS, COMPLETIONS)).sum()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])
    assert torch.allclose(corrected, wanted, atol=1e-6) and not torch.allclose(plain, wanted, atol=1e-4)


def test_a_run_in_bfloat16(micro, coin):
    out = micro("a", "--dtype", "bfloat16", "--rounds", "3", "--kl", "0.01", "--lr", "1e-6", "--correct-sampler")
    lines = report.read_lines(out / "metrics.jsonl")
    assert all(0 < line["gap"] < line["largest_gap"] < 0.5 for line in lines)
    assert lines[0]["kl"] == 0
    saved, _ = rollout.load(str(out / "model"), "cpu")
    base, _ = rollout.load(json.loads((out / "config.json").read_text())["model"], "cpu")
    moved = torch.cat([(p - q).abs().flatten() for p, q in zip(saved.parameters(), base.parameters(), strict=True)])
    assert json.loads((out / "model" / "config.json").read_text())["dtype"] == "float32"
    assert 0 < moved[moved > 0].median() < 1e-5  # the masters were saved, not their roundings


# --- memory -----------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The largest tensor made whose last axis is the vocabulary, the head's weights apart."""

    def __init__(self, vocabulary, hidden):
        super().__init__()
        self.vocabulary, self.weights, self.numbers = vocabulary, (hidden, vocabulary), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocabulary,) \
                    and tensor.shape != self.weights:
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("name", ["qwen2", "llama", "olmo2"])
def test_logprobs_in_pieces_are_those_of_the_whole(name, checkpoint, monkeypatch):
    found = []
    for pieces in (False, True):
        model = rollout.load(checkpoint(name), "cpu")[0].double()
        vocabulary = model.config.vocab_size
        if pieces:
            monkeypatch.setattr(likelihood, "HEAD_NUMBERS", 3 * vocabulary)
        with Largest(vocabulary, model.config.hidden_size) as largest:
            got = likelihood.completion_logprobs(model, PROMPTS, COMPLETIONS, temperature=0.7)
            (got * torch.arange(10.0)).sum().backward()
        assert largest.numbers == (3 if pieces else 10) * vocabulary
        plain = rollout.load(checkpoint(name), "cpu")[0].double()
        rows = [torch.log_softmax(plain(torch.tensor([p + c]), use_cache=False).logits[0, len(p) - 1:-1] / 0.7, -1)
                .gather(1, torch.tensor(c)[:, None]).squeeze(1) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
        (torch.cat(rows) * torch.arange(10.0)).sum().backward()
        assert torch.allclose(got, torch.cat(rows), atol=1e-10)
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, atol=1e-9)
        found.append(got)
    assert torch.allclose(*found, atol=1e-12)


def test_logits_that_are_not_the_heads_are_refused(checkpoint):
    model, _ = rollout.load(checkpoint("llama"), "cpu")
    likelihood.check_head(model)
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = scaled
    with pytest.raises(ValueError, match="after its head"):
        likelihood.check_head(model)


def test_gradient_checkpointing_changes_memory_only(micro, coin, monkeypatch):
    passes, mlp = [], sys.modules["transformers.models.qwen2.modeling_qwen2"].Qwen2MLP
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: passes.append(torch.is_grad_enabled()) or forward(self, x))
    counts, weights = [], []
    for name, flags in (("plain", []), ("saving", ["--gradient-checkpointing"])):
        passes.clear()
        out = micro(name, "--rounds", "2", *flags)
        counts.append(sum(passes))
        weights.append(torch.cat([p.flatten() for p in rollout.load(str(out / "model"), "cpu")[0].parameters()]))
    assert counts[1] > counts[0]  # once more on the way back
    assert torch.allclose(*weights, atol=1e-6)


@pytest.mark.parametrize("place, call, word", [
    ("update", 4, "lower --micro-tokens from 4096 to 2048"),
    ("sample", 9, "sampling had no room: give --cache-tokens"),
    ("distance", 2, "an evaluation had no room: give --cache-tokens"),
    ("distance", 3, "an evaluation had no room"),  # after the last round
])
def test_out_of_memory_says_what_to_lower_and_loses_nothing(micro, coin, monkeypatch, place, call, word):
    """With rewards in windows and an odd evaluation: what the round or the evaluation had begun is done once."""
    flags = ["--save-every", "100", "--micro-tokens", "4096", "--advantage", "window", "--window", "8"]
    whole = micro("whole", *flags)
    owner = {"update": train.bandit, "sample": train.distributed, "distance": train.Run}[place]
    real, calls = getattr(owner, place), []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, place, full)
    with pytest.raises(SystemExit, match=word) as stop:
        micro("part", *flags)
    assert "--resume" in stop.value.code and len(stop.value.code.splitlines()) == 1
    monkeypatch.setattr(owner, place, real)
    assert int(checkpoints.paths(whole.parent / "part")[0].stem[6:]) > 1  # not the one of the beginning
    resumed = micro("part", *flags[:3], "2048", *flags[4:], "--resume")
    for name in ("metrics", "evals"):
        one, two = ([{k: v for k, v in line.items() if "second" not in k}
                     for line in report.read_lines(folder / f"{name}.jsonl")] for folder in (whole, resumed))
        assert one == two


# --- the KL's reference -----------------------------------------------------------------------------------------


def test_the_reference_pulls_back(checkpoint):
    """No advantage, k2: the step is down weight * d * grad logprob, d the distance to the reference, token by token."""
    model = rollout.load(checkpoint("qwen2"), "cpu")[0].double()
    reference = rollout.load(checkpoint("qwen2"), "cpu")[0].double()
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.3)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    logprobs = likelihood.completion_logprobs(model, PROMPTS, COMPLETIONS)
    d = logprobs.detach() - likelihood.completion_logprobs(reference, PROMPTS, COMPLETIONS).detach()
    gradient = torch.autograd.grad((0.1 * d * logprobs / 10).sum(), list(model.parameters()))
    said = bandit.update(model, torch.optim.SGD(model.parameters(), lr=1.0), PROMPTS, COMPLETIONS, torch.zeros(3),
                         kl=0.1, kl_estimator="k2", reference=reference, max_grad_norm=1e9)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(after, before - torch.cat([g.flatten() for g in gradient]), atol=1e-8)
    assert said["kl"] == pytest.approx((torch.exp(-d) + d - 1).mean().item())


def test_there_is_a_reference_only_with_a_kl(micro, coin, monkeypatch):
    runs, init = [], train.Run.__init__
    monkeypatch.setattr(train.Run, "__init__", lambda self, args: runs.append(self) or init(self, args))
    micro("without", "--kl", "0", "--rounds", "1")
    micro("with", "--kl", "0.01", "--rounds", "1")
    assert runs[0].reference is None and runs[1].reference is not None


# --- checkpoints ------------------------------------------------------------------------------------------------


def test_the_newest_whole_checkpoint_is_found(tmp_path, capsys):
    assert checkpoints.newest(tmp_path) is None
    for number in (2, 4, 10):
        checkpoints.save(tmp_path, number, {"round": number, "model": {"w": torch.full((3,), number)}})
    assert [path.name for path in checkpoints.paths(tmp_path)] == ["round-000010.pt", "round-000004.pt"]
    (tmp_path / "checkpoints" / "round-000012.tmp").write_bytes(b"half")
    assert checkpoints.newest(tmp_path)["round"] == 10
    path = checkpoints.paths(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:100])
    assert checkpoints.newest(tmp_path)["round"] == 4 and "round-000010.pt cannot be read" in capsys.readouterr().err
    checkpoints.paths(tmp_path)[1].write_bytes(b"")
    with pytest.raises(ValueError, match="can be read"):
        checkpoints.newest(tmp_path)


@pytest.mark.slow
def test_killed_at_random_moments(micro, tmp_path):
    """kill -9, again and again, whenever it falls: in the end the run equals one that was never stopped."""
    whole = micro("whole", "--rounds", "40")
    config = json.loads((whole / "config.json").read_text())
    part, kills = tmp_path / "part", 0
    argv = [sys.executable, ROOT / "train.py", "--model", config["model"], "--data", str(tmp_path), "--out", part,
            "--batch-size", "8", "--rounds", "40", "--eval-every", "2", "--save-every", "2", "--max-new-tokens", "6",
            "--eval-samples", "2", "--lr", "0.001"]
    moments = random.Random(0)
    while not (part / "summary.json").exists():
        resume = ["--resume"] if (part / "config.json").exists() else []
        process = subprocess.Popen([*argv, *resume], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        length = len(report.read_lines(part / "metrics.jsonl"))
        deadline = time.time() + 60
        while process.poll() is None and time.time() < deadline and kills < 8 and (
                not (part / "config.json").exists() or len(report.read_lines(part / "metrics.jsonl")) <= length):
            time.sleep(0.01)
        if kills < 8:
            time.sleep(moments.random() * 0.3)
            process.kill()
            kills += 1
        said = process.communicate()[1]
        assert "Traceback" not in said and (kills < 8 or process.returncode in (0, -9)), said
    assert kills == 8
    for name in ("metrics", "evals"):
        one, two = ([{k: v for k, v in line.items() if "second" not in k}
                     for line in report.read_lines(folder / f"{name}.jsonl")] for folder in (whole, part))
        assert one == two
    a, b = (rollout.load(str(folder / "model"), "cpu")[0].state_dict() for folder in (whole, part))
    assert all(torch.equal(a[key], b[key]) for key in a)


# --- the hub ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["qwen2", "llama", "olmo2"])
def hub(request, tmp_path):
    """(name, folder): a checkpoint as its owners publish it, sharded, with the architecture's peculiarities."""
    name, folder = request.param, tmp_path / "hub"
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / name)
    end = tokenizer.eos_token_id
    sizes = dict(vocab_size=len(tokenizer) + 7, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                 num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, bos_token_id=None)
    torch.manual_seed(0)
    if name == "qwen2":  # tied, biases on queries, keys and values, more rows than tokens
        model = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, eos_token_id=end, **sizes))
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    elif name == "llama":  # three ends, no padding token, a template that asks for the date
        model = LlamaForCausalLM(LlamaConfig(eos_token_id=[end, 5, 9], pad_token_id=None, **sizes))
        tokenizer.pad_token = None
        tokenizer.chat_template = ("{% set day = strftime_now('%d %b %Y') %}Today Date: {{ day }}\n"
                                   "{{ messages[0]['content'] }}")
    else:
        model = Olmo2ForCausalLM(Olmo2Config(eos_token_id=end, pad_token_id=end, **sizes))
    model.generation_config = GenerationConfig(eos_token_id=model.config.eos_token_id, do_sample=True, top_k=20,
                                               top_p=0.8, repetition_penalty=1.1)
    model.bfloat16().save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return name, folder


def test_a_model_of_the_hub_goes_all_the_way(hub, micro, tmp_path, coin):
    name, folder = hub
    model, tokenizer = rollout.load(str(folder), "cpu")
    ends = rollout.end_ids(model, tokenizer)
    assert ends == ({tokenizer.eos_token_id, 5, 9} if name == "llama" else {tokenizer.eos_token_id})
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (name == "qwen2") and model.dtype == torch.float32
    rollouts = rollout.sample(model, PROMPTS, 40, max_new_tokens=20, end_ids=ends)
    for r in rollouts:
        assert r.cut != (r.tokens[-1] in ends) and not ends & set(r.tokens[:-1])
    assert {r.tokens[-1] for r in rollouts} >= (ends if name == "llama" else set())
    train.main(["--model", str(folder), "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--batch-size", "8",
                "--rounds", "2", "--max-new-tokens", "6", "--eval-samples", "1", "--lr", "0.01", "--dtype",
                "bfloat16", "--kl", "0.001", "--save-every", "1"])
    masters = checkpoints.newest(tmp_path / "run")["model"]
    with torch.no_grad():
        for key, weight in model.named_parameters():
            assert not torch.equal(weight, masters[key])
            weight.copy_(masters[key])
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
        ids = torch.tensor([PROMPTS[0] + COMPLETIONS[0]])
        assert again.dtype == torch.float32 and torch.equal(again(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").get_vocab() == tokenizer.get_vocab()
    if name == "llama":
        text = tokenizer.decode(train.data.encode(tokenizer, [train.data.Query("Hi", "1", "####", None)])[0])
        assert text == "Today Date: 26 Jul 2024\nHi"


def test_a_gated_model_says_what_to_do(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at https://...")

    monkeypatch.setattr(rollout.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ValueError, match="https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct; then log in"):
        rollout.load("meta-llama/Llama-3.2-1B-Instruct")


def test_defaults_follow_the_models_size(checkpoint):
    tiny, paper = train.parse([]), train.parse(["--model", "Qwen/Qwen2.5-0.5B-Instruct", "--data", "gsm8k"])
    assert (tiny.lr, tiny.kl, tiny.max_new_tokens) == (1e-4, 0, 64)
    assert (paper.lr, paper.kl, paper.max_new_tokens, paper.eval_every) == (1e-6, 0.001, 1024, 100)
    assert (paper.batch_size, paper.rollouts, paper.advantage, paper.max_prompt_tokens) == (32, 1, "reward", 512)
    assert train.parse(["--model", checkpoint("qwen2")]).lr == 1e-4
    assert paper.out.name == "model=Qwen_Qwen2.5-0.5B-Instruct,data=gsm8k"


# --- many processes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_make_the_same_update(checkpoint, tmp_path):
    cases = [([[1.0, -0.5, 2.0]] * 2, {}),
             ([[1.0, 0.0, 0.0]] * 2, {}),  # one of them has no row with a gradient
             ([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], {}),  # then neither
             ([[1.0, -0.5, 0.0]] * 2, {"loss_mean": "sequence", "epochs": 2, "micro_tokens": 8}),
             ([[1.0, 0.0, 0.0]] * 3, {"kl": 0.1}),
             ([[1.0, -0.5, 2.0]] * 2, {"correct": True, "loss_mean": "constant", "longest": 6})]
    torch.save(cases, tmp_path / "cases")
    done = subprocess.run([*TORCHRUN, ROOT / "tests" / "ranks.py", "update", checkpoint("qwen2"), tmp_path / "cases"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for i, (advantages, kwargs) in enumerate(cases):
        weights, said = update(checkpoint("qwen2"), advantages, **kwargs)
        for rank in (0, 1):
            theirs, they_said = torch.load(f"{tmp_path / 'cases'}.{i}.{rank}")
            assert torch.allclose(weights, theirs, atol=1e-8)
            assert {k: v for k, v in they_said.items() if v is not None} == pytest.approx(
                {k: v for k, v in said.items() if v is not None}, rel=1e-4, abs=1e-7)


@pytest.mark.slow
def test_two_processes_learn_like_one(micro, checkpoint, tmp_path):
    """Also stopped by SIGTERM on the way and continued, by two and then by one."""
    flags = ["--advantage", "window", "--window", "8", "--kl", "0.01", "--batch-size", "7"]
    argv = ["--model", checkpoint("qwen2"), "--data", str(tmp_path), "--eval-every", "2", "--save-every", "5",
            "--max-new-tokens", "6", "--eval-samples", "2", "--lr", "0.001", *flags, "--out", str(tmp_path / "two")]
    process = subprocess.Popen([*TORCHRUN, ROOT / "train.py", *argv, "--rounds", "5000"], stderr=subprocess.PIPE,
                               text=True)
    deadline = time.time() + 120
    while len(report.read_lines(tmp_path / "two" / "metrics.jsonl")) < 6 and time.time() < deadline:
        time.sleep(0.01)
    process.terminate()
    said = process.communicate()[1]
    stopped = len(report.read_lines(tmp_path / "two" / "metrics.jsonl"))
    assert 6 <= stopped < 5000 and said.count("rank 0: stopped after round") == 1 and "rank 1:" not in said, said
    assert checkpoints.newest(tmp_path / "two")["round"] == stopped
    two = subprocess.run([*TORCHRUN, ROOT / "train.py", *argv, "--resume", "--rounds", str(stopped + 4)],
                         capture_output=True, text=True)
    assert two.returncode == 0, two.stderr
    train.main([*argv, "--resume", "--rounds", str(stopped + 8)])
    whole = micro("whole", *flags, "--rounds", str(stopped + 8))
    one, other = (report.read_lines(folder / "metrics.jsonl") for folder in (whole, tmp_path / "two"))
    assert [line["round"] for line in other] == list(range(1, stopped + 9))
    assert [(line["reward"], line["length"]) for line in one[:30]] == [
        (line["reward"], line["length"]) for line in other[:30]]  # later, rounding may tip a token
    if stopped + 8 <= 40:
        base, a, b = (torch.cat([p.detach().flatten() for p in rollout.load(str(folder), "cpu")[0].parameters()])
                      for folder in (checkpoint("qwen2"), whole / "model", tmp_path / "two" / "model"))
        assert (a - b).norm() < 1e-3 * (a - base).norm()


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run_with_its_message(checkpoint, micro, tmp_path):
    argv = ["--model", checkpoint("qwen2"), "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--batch-size",
            "8", "--rounds", "20", "--max-new-tokens", "6", "--eval-samples", "2", "--eval-every", "0"]
    started = time.time()
    done = subprocess.run([*TORCHRUN, ROOT / "tests" / "ranks.py", *argv], capture_output=True, text=True)
    assert done.returncode != 0 and "rank 1: this one cannot go on" in done.stderr and time.time() - started < 60
    done = subprocess.run([*TORCHRUN, ROOT / "train.py", *argv, "--batch-size", "25", "--out", str(tmp_path / "b")],
                          capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.count("--batch-size 25 is more than the 24 queries") == 1
