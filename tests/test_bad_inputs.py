"""A user's mistake is answered by one sentence and a status that is not 0; nothing is left behind.

Each line of bad_inputs.txt is one mistake. All of them run in this process.
"""

import gzip
import json
import runpy
import shlex
import shutil
import sys

import pytest
import torch
from helpers import ROOT, grade_by_coin, small_run_flags, write_rows
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import data
import evaluate
import train
from infra import curve
from infra.run_folder import RunFolder
from lab import bench, exercises, explain, probe, report

TEXT = (ROOT / "tests" / "bad_inputs.txt").read_text()
LINES = [line.split(" | ") for line in TEXT.splitlines() if line and line[0] != "#"]
LONG = "x" * 300
MAINS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "rollout": lambda: runpy.run_path(str(ROOT / "rollout.py"), run_name="__main__"),
    "data": data.main,
    "report": report.main,
    "explain": explain.main,
    "exercises": exercises.main,
    "probe": probe.main,
    "bench": bench.main,
}
GOOD = {"question": "What is 1 + 1?", "answer": "#### 2", "level": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint, problems):
    """{T}: models, problem sets and runs, most of them damaged."""
    T = tmp_path_factory.mktemp("T")
    shutil.copytree(problems, T / "problems")
    (T / "file").write_text("")
    make_models(T, checkpoint("llama"))
    make_problem_sets(T)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "grade", grade_by_coin)
        patch.setattr(curve, "draw_curve", lambda folder: None)
        train.main(small_run_flags(T / "model", T / "problems", T / "run"))
    make_runs(T)
    return T


def make_models(T, good):
    names = ("model", "missing", "nan", "no_tokenizer", "no_weights", "config", "deep", "own_code",
             "template", "parts", "vocabulary", "learned", "dynamic")  # fmt: skip
    for name in names:
        shutil.copytree(good, T / name)
    weights = load_file(T / "model" / "model.safetensors")
    torn = "model.layers.1.mlp.up_proj.weight"
    left = {key: value for key, value in weights.items() if key != torn}
    save_file(left, T / "missing" / "model.safetensors", {"format": "pt"})
    holed = {**weights, torn: torch.full_like(weights[torn], torch.nan)}
    save_file(holed, T / "nan" / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (T / "no_tokenizer" / name).unlink()
    shutil.copy(ROOT / "tiny" / "qwen2" / "tokenizer_config.json", T / "no_tokenizer")
    (T / "no_weights" / "model.safetensors").unlink()
    (T / "config" / "config.json").write_text("{")
    (T / "deep" / "config.json").write_text("[" * 100_000)
    own = {"model_type": "own", "auto_map": {"AutoConfig": "a.A", "AutoModelForCausalLM": "a.B"}}
    (T / "own_code" / "config.json").write_text(json.dumps(own))
    (T / "template" / "chat_template.jinja").write_text("{{ raise_exception('no users') }}")
    (T / "parts" / "chat_template.jinja").write_text(
        "{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "eos_token_id": 0}  # fmt: skip
    LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).save_pretrained(T / "vocabulary")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    dynamic = LlamaConfig(vocab_size=512, rope_parameters=rope, **sizes)
    LlamaForCausalLM(dynamic).save_pretrained(T / "dynamic")
    learned = GPT2Config(vocab_size=512, n_embd=16, n_layer=1, n_head=2, n_positions=512,
                         eos_token_id=0, bos_token_id=0)  # fmt: skip
    GPT2LMHeadModel(learned).save_pretrained(T / "learned")


def make_problem_sets(T):
    write_rows(T / "level_1.jsonl", *[GOOD] * 8)
    write_rows(T / "empty.jsonl")
    write_rows(T / "torn.jsonl", GOOD, '{"question": ')
    write_rows(T / "list.jsonl", [1])
    write_rows(T / "columns.jsonl", {"a": 1})
    write_rows(T / "types.jsonl", {"question": 1, "answer": 2})
    write_rows(T / "blank.jsonl", {"question": " ", "answer": "#### 2"})
    write_rows(T / "answers.jsonl", {"question": "a", "answer": "2"})
    (T / "latin.jsonl").write_bytes(b'{"question": "\xe9"}\n')
    write_rows(T / "nested.jsonl", "[" * 100_000)
    write_rows(T / "surrogate.jsonl", {"question": "\ud800", "answer": "#### 2"})
    (T / "plain.jsonl.gz").write_text(json.dumps(GOOD))
    (T / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-9])
    (T / "two").mkdir()
    for name in ("train_1.jsonl", "train_2.jsonl"):
        write_rows(T / "two" / name, GOOD)


def make_runs(T):
    names = ("config", "log", "checkpoint", "plan", "summary", "evals")
    for name in names:
        shutil.copytree(T / "run", T / f"bad_{name}")
    (T / "bad_config" / "config.json").write_text("{")
    (T / "bad_log" / "metrics.jsonl").write_text("")
    for path in (T / "bad_checkpoint" / "checkpoints").iterdir():
        path.write_bytes(b"")
    (T / "bad_plan" / "plan.tsv").write_text("one\ttwo\n")
    (T / "latin_plan").mkdir()
    (T / "latin_plan" / "plan.tsv").write_bytes(b"\xe9")
    summary = json.loads((T / "run" / "summary.json").read_text())
    del summary["regret"]
    (T / "bad_summary" / "summary.json").write_text(json.dumps(summary))
    (T / "bad_evals" / "evals.jsonl").write_text('{"round": 0}\n{\n{}\n')
    (T / "bad_answers").mkdir()
    (T / "bad_answers" / "answers.json").write_text("{")


@pytest.mark.parametrize("status, word, command", LINES, ids=[line[2] for line in LINES])
def test_a_mistake_is_answered_by_a_sentence(
    folder, problems, monkeypatch, capsys, status, word, command
):
    monkeypatch.chdir(folder)
    shutil.rmtree(folder / "new", ignore_errors=True)  # of a mistake that was not refused
    script, *words = shlex.split(command.format(T=folder, LONG=LONG))
    if script == "train":
        words = small_run_flags(folder / "model", folder / "problems", folder / "new") + words
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    with pytest.raises(SystemExit) as stop:
        MAINS[script]()
    printed = capsys.readouterr()
    said = stop.value.code if isinstance(stop.value.code, str) else printed.err
    assert (stop.value.code if isinstance(stop.value.code, int) else 1) == int(status)
    sentence = said.strip().splitlines()[-1]
    assert word.format(T=folder, LONG=LONG) in sentence
    assert len(said.strip().splitlines()) == 1
    assert not printed.out or script != "explain"
    assert not RunFolder(folder / "new", {}).holds_a_run()
