"""Problem sets: rows become queries, queries become token ids, on the tiny sets and on GSM8K."""

import subprocess
import sys
import types
from argparse import Namespace

import numpy as np
import pytest
from helpers import ROOT, write_rows
from transformers import AutoTokenizer

import data


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "tiny" / "llama")


# --- rows -----------------------------------------------------------------------------------------


def test_both_schemas(tmp_path):
    row = {"question": "2+2?", "answer": "It is <<2+2=4>>4.\n#### 4"}
    (query,) = data.load(write_rows(tmp_path / "a.jsonl", row), "train")
    instruction = 'Let\'s think step by step and output the final answer after "####".'
    assert query == data.Query(f"2+2? {instruction}", "4", "####", None, row)

    row = {
        "problem": "Half?",
        "level": "Level 3",
        "type": "Algebra",
        "solution": r"\boxed{1} or \boxed{\frac{1}{2}}.",
    }
    (query,) = data.load(write_rows(tmp_path / "b.jsonl.gz", row), "train")
    instruction = r"Let's think step by step and output the final answer within \boxed{}."
    assert query == data.Query(f"Half? {instruction}", r"\frac{1}{2}", "boxed", 3, row)


def test_rows_without_an_answer_are_dropped_and_counted(tmp_path, capsys):
    rows = [
        {"question": "a", "answer": "#### 1"},
        {"question": "b", "answer": "no idea"},
        {"problem": "c", "solution": r"\boxed{}"},
        {"question": "d", "answer": None},
    ]
    queries = data.load(write_rows(tmp_path / "a.jsonl", *rows), "train")
    assert [query.gold for query in queries] == ["1"]
    assert "dropped 3 rows that have no answer (line 2, 3, 4)" in capsys.readouterr().err


# --- the hub and real data ------------------------------------------------------------------------


def test_sets_of_the_hub(monkeypatch):
    """The loading code, with a stand-in for the library: names, columns, and MATH's levels."""
    asked = []

    def load_dataset(repository, configuration, split):
        asked.append((repository, configuration, split))
        if "gsm8k" in repository:
            return [{"question": "a", "answer": "#### 1,000"}]
        return [
            {"problem": "b", "solution": r"\boxed{2}", "level": "Level 4", "type": "Algebra"},
            {"problem": "c", "solution": "none", "level": "Level ?", "type": "Algebra"},
        ]

    library = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert [query.gold for query in data.load("gsm8k", "test")] == ["1,000"]
    assert [(query.gold, query.level) for query in data.load("math", "train")] == [("2", 4)]
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("DigitalLearningGmbH/MATH-lighteval", "default", "train"),
    ]


def test_gsm8k(real_data):
    for split, count in (("train", 7473), ("test", 1319)):
        queries = data.load(str(real_data / "gsm8k_train.jsonl.gz"), split)
        assert len(queries) == count
        for query in queries:
            assert query.form == "####"
            assert query.gold.lstrip("-").replace(",", "").isdigit()


# --- prompts --------------------------------------------------------------------------------------


def test_prompts_go_through_the_chat_template(tokenizer):
    query = data.load("tiny-gsm", "train")[0]
    (ids,) = data.encode(tokenizer, [query])
    turns = f"<|im_start|>user\n{query.prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == turns


def test_a_prompt_without_a_template_goes_on():
    """Some tokenizers end every text with the end-of-sequence id. The last token is left whole."""

    class AddsEnd:
        chat_template, eos_token_id = None, 9

        def __call__(self, text):
            return {"input_ids": [int(digit) for digit in text] + [9]}

    prompts = data.encode(AddsEnd(), [data.Query(text, "1", None, None) for text in ("12", "19")])
    assert prompts == [[1, 2], [1, 9]]


@pytest.mark.parametrize("template", ["yes", None])
def test_no_second_beginning_of_sequence(tokenizer, template):
    """With a template that writes the beginning-of-sequence token, the tokenizer must not add
    another. Without a template, as for a base model, the tokenizer's own is wanted."""
    beginning = tokenizer.pad_token_id

    class AddsOne:
        """Like Llama's: the template writes the token, and the tokenizer adds it too."""

        chat_template = template
        eos_token_id = tokenizer.eos_token_id

        def get_chat_template(self):
            return self.chat_template

        def apply_chat_template(self, messages, tokenize, add_generation_prompt, **kwargs):
            return "<|endoftext|>" + messages[0]["content"]

        def __call__(self, text, add_special_tokens=True):
            ids = tokenizer(text)["input_ids"]
            return {"input_ids": [beginning] * add_special_tokens + ids}

    (ids,) = data.encode(AddsOne(), [data.Query("Hello", "1", "####", None)])
    assert ids.count(beginning) == 1


def test_a_template_with_a_date_gets_a_fixed_one(tokenizer):
    """Llama 3.2's template, in short: today's date by strftime_now, unless it is given. Previously
    the prompt had the date of the day, so runs of different days could not be compared."""
    tokenizer.chat_template = (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}"
        "{%- else %}{%- set date_string = 'never' %}{%- endif %}"
        "{%- endif %}Today Date: {{ date_string }} {{ messages[0]['content'] }}"
    )
    (ids,) = data.encode(tokenizer, [data.Query("Hello", "1", "####", None)])
    assert tokenizer.decode(ids) == "Today Date: 26 Jul 2024 Hello"


@pytest.mark.parametrize("template, message", [
    ("{{ raise_exception('system first') }}", "refuses a question .system first."),
    ("{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}", "leaves out"),
    ("{{ messages[0]['content']", "refuses a question"),
])  # fmt: skip
def test_a_template_that_does_not_take_a_question_alone(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        data.encode(tokenizer, [data.Query("Hello", "1", "####", None)])


def test_prompts_too_long_are_dropped_and_counted(tokenizer, capsys):
    queries = data.load("tiny-gsm", "test")
    lengths = [len(ids) for ids in data.encode(tokenizer, queries)]
    limit = sorted(lengths)[100]
    kept = data.drop_long_prompts(tokenizer, queries, limit, "tiny-gsm, test")
    rows = zip(queries, lengths, strict=True)
    assert kept == [query for query, length in rows if length <= limit]
    assert f"dropped {512 - len(kept)} of 512 queries" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--max-prompt-tokens 3"):
        data.drop_long_prompts(tokenizer, queries, 3, "tiny-gsm, test")


# --- the sets of a run ----------------------------------------------------------------------------


def load_sets(tokenizer, **flags):
    """data.load_sets with these flags of train.py, on tiny-gsm by default."""
    defaults = {
        "data": "tiny-gsm",
        "max_prompt_tokens": 512,
        "levels": None,
        "queries": None,
        "seed": 0,
        "batch_size": 32,
        "reward": None,
    }
    return data.load_sets(Namespace(**(defaults | flags)), tokenizer)


def test_the_sets_of_a_run(tokenizer):
    sets = load_sets(tokenizer)
    assert sets.train == data.load("tiny-gsm", "train")
    assert sets.test == data.load("tiny-gsm", "test")
    assert sets.train_prompts == data.encode(tokenizer, sets.train)


def test_levels_limit_the_train_set_only(tokenizer):
    sets = load_sets(tokenizer, levels=[1, 5])
    everything = data.load("tiny-gsm", "train")
    assert sets.train == [query for query in everything if query.level in (1, 5)]
    assert len(sets.test) == 512


def test_a_subset_is_seeded_and_keeps_the_order_of_the_rows(tokenizer):
    sets = load_sets(tokenizer, queries=40, seed=3)
    everything = data.load("tiny-gsm", "train")
    chosen = np.random.default_rng([3, 0]).permutation(1024)[:40]
    assert sets.train == [everything[i] for i in sorted(chosen)]
    assert load_sets(tokenizer, queries=40, seed=4).train != sets.train


def test_a_set_without_a_test_file_is_announced(tokenizer, tmp_path, capsys):
    path = write_rows(tmp_path / "alone.jsonl", *[{"question": "a", "answer": "#### 1"}] * 2)
    sets = load_sets(tokenizer, data=path, batch_size=2)
    assert sets.test == sets.train
    assert "it is its own test set" in capsys.readouterr().err
    load_sets(tokenizer)
    assert capsys.readouterr().err == ""


# --- the script -----------------------------------------------------------------------------------


def test_the_script():
    command = [sys.executable, ROOT / "data.py", "--data"]
    done = subprocess.run([*command, "tiny-math"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "1024 queries in tiny-math, train" in done.stdout
    done = subprocess.run([*command, "nowhere"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "--data nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_enough_ends_the_script_without_a_word():
    """As in `python data.py --count 500 | head`: more is printed than a pipe holds."""
    command = [sys.executable, ROOT / "data.py", "--count", "500"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as script:
        script.stdout.readline()
        script.stdout.close()
        assert script.stderr.read() == b""
