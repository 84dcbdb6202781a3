"""The loaders, on the tiny sets, on GSM8K's own files and on files that are broken."""

import gzip
import json
import subprocess
import sys
import types

import pytest
from conftest import ROOT
from transformers import AutoTokenizer

import data


def write(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


def test_both_schemas(tmp_path):
    gsm = data.load(write(tmp_path / "a.jsonl", {"question": "2+2?", "answer": "It is <<2+2=4>>4.\n#### 4"}), "train")
    assert gsm == [data.Query('2+2? Let\'s think step by step and output the final answer after "####".', "4", "####",
                              None)]
    row = {"problem": "Half?", "level": "Level 3", "type": "Algebra", "solution": r"\boxed{1} or \boxed{\frac{1}{2}}."}
    (math,) = data.load(write(tmp_path / "b.jsonl.gz", row), "train")
    assert math.prompt == r"Half? Let's think step by step and output the final answer within \boxed{}."
    assert (math.gold, math.form, math.level) == (r"\frac{1}{2}", "boxed", 3)


def test_rows_without_an_answer_are_dropped_aloud(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", {"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "no idea"},
                 {"problem": "c", "solution": r"\boxed{}"}, {"question": "d", "answer": None})
    assert [q.gold for q in data.load(path, "train")] == ["1"]
    assert "dropped 3 rows" in capsys.readouterr().err


@pytest.mark.parametrize("rows, message", [
    (['{"question": "a", "answer": "#### 1"}', '{"question": '], "line 2: not JSON"),
    (['["a", "b"]'], "line 1: a row must be a JSON object"),
    ([{"query": "a", "answer": "1"}], "line 1: needs the columns"),
    ([{"question": "a", "answer": 4}], "line 1: the question and its answer must be text"),
    ([{"question": " ", "answer": "#### 4"}], "line 1: the question is empty"),
    ([], "no usable row"),
])
def test_unusable_files(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(tmp_path / "a.jsonl", *rows), "train")


def test_places(tmp_path):
    row = {"question": "a", "answer": "#### 1"}
    train, test = write(tmp_path / "x_train.jsonl", row), write(tmp_path / "x_test.jsonl", row, row)
    assert len(data.load(train, "test")) == len(data.load(str(tmp_path), "test")) == len(data.load(test, "train")) == 2
    with pytest.raises(ValueError, match="neither one of tiny-gsm"):
        data.load("nowhere", "train")
    assert len(data.load(write(tmp_path / "alone.jsonl", row), "test")) == 1
    write(tmp_path / "other_train.jsonl", row)
    with pytest.raises(ValueError, match="holds 2 files"):
        data.load(str(tmp_path), "train")
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"this is not gzip")
    with pytest.raises(ValueError, match="cannot be read"):
        data.load(str(broken), "train")


def test_the_hub_is_named_when_it_cannot_be_had():
    """Without `datasets`, or without a network: one sentence either way."""
    with pytest.raises(ValueError, match="--data gsm8k"):
        data.load("gsm8k", "train")


def test_hub_sets(monkeypatch):
    """The loading code, with a stand-in for the library: names, columns, and MATH's levels."""
    asked = []

    def load_dataset(repository, configuration, split):
        asked.append((repository, configuration, split))
        if "gsm8k" in repository:
            return [{"question": "a", "answer": "#### 1,000"}]
        return [{"problem": "b", "solution": r"\boxed{2}", "level": "Level 4", "type": "Algebra"},
                {"problem": "c", "solution": "none", "level": "Level ?", "type": "Algebra"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert [q.gold for q in data.load("gsm8k", "test")] == ["1,000"]
    assert [(q.gold, q.level) for q in data.load("math", "train")] == [("2", 4)]
    assert [split for *_, split in asked] == ["test", "train"]


def test_gsm8k(real_data):
    for split, count in (("train", 7473), ("test", 1319)):
        queries = data.load(str(real_data / "gsm8k_train.jsonl.gz"), split)
        assert len(queries) == count
        assert all(q.form == "####" and q.gold and q.gold.lstrip("-").replace(",", "").isdigit() for q in queries)


def test_prompts_go_through_the_chat_template():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / "llama")
    query = data.load("tiny-gsm", "train")[0]
    (ids,) = data.encode(tokenizer, [query])
    assert tokenizer.decode(ids) == f"<|im_start|>user\n{query.prompt}<|im_end|>\n<|im_start|>assistant\n"


def test_no_second_beginning_of_sequence():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / "llama")

    class AddsOne:
        """A tokenizer like Llama's: a template that writes the token, and a tokenizer that adds it too."""

        chat_template = "yes"

        def get_chat_template(self):
            return self.chat_template

        def apply_chat_template(self, messages, tokenize, add_generation_prompt, **kwargs):
            return "<|endoftext|>" + messages[0]["content"]

        def __call__(self, text, add_special_tokens=True):
            ids = tokenizer(text)["input_ids"]
            return {"input_ids": [tokenizer.pad_token_id] * add_special_tokens + ids}

    (ids,) = data.encode(AddsOne(), [data.Query("Hello", "1", "####", None)])
    assert ids.count(tokenizer.pad_token_id) == 1
    plain = AddsOne()
    plain.chat_template = None  # a base model: no template, so the tokenizer's own beginning is wanted
    (ids,) = data.encode(plain, [data.Query("Hello", "1", "####", None)])
    assert ids.count(tokenizer.pad_token_id) == 1


def test_a_template_with_a_date_gets_a_fixed_one():
    """Llama 3.2's template, in short: today's date, by strftime_now, unless it is given."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / "llama")
    tokenizer.chat_template = (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = 'never' %}{%- endif %}"
        "{%- endif %}Today Date: {{ date_string }} {{ messages[0]['content'] }}")
    (ids,) = data.encode(tokenizer, [data.Query("Hello", "1", "####", None)])
    assert tokenizer.decode(ids) == "Today Date: 26 Jul 2024 Hello"


def test_prompts_too_long_are_dropped_and_counted(capsys):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / "llama")
    queries = data.load("tiny-gsm", "test")
    lengths = [len(ids) for ids in data.encode(tokenizer, queries)]
    longest = sorted(lengths)[100]
    kept = data.within(tokenizer, queries, longest, "tiny-gsm, test")
    assert kept == [q for q, length in zip(queries, lengths, strict=True) if length <= longest]
    assert f"dropped {512 - len(kept)} of 512 queries" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--max-prompt-tokens 3"):
        data.within(tokenizer, queries, 3, "tiny-gsm, test")


def test_the_script():
    done = subprocess.run([sys.executable, ROOT / "data.py", "--data", "tiny-math"], capture_output=True, text=True)
    assert done.returncode == 0 and "1024 queries in tiny-math, train" in done.stdout
    done = subprocess.run([sys.executable, ROOT / "data.py", "--data", "nowhere"], capture_output=True, text=True)
    assert done.returncode != 0 and "--data nowhere" in done.stderr and "Traceback" not in done.stderr
