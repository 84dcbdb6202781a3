"""Problem sets and prompts: a row of a data set becomes a query, a query becomes token ids.

    python data.py --data tiny-math                  # print a few queries: prompt and gold answer
    python data.py --data my_problems.jsonl.gz       # the same for a file of your own, in either schema

Four sets have names: `tiny-gsm` and `tiny-math` lie in tiny/, `gsm8k` and `math` come from the Hugging Face hub
(`pip install datasets`). Anything else is a path: a `.jsonl` or `.jsonl.gz` file whose rows have GSM8K's columns
(`question`, `answer` ending in "#### 42") or MATH's (`problem`, `solution` holding "\\boxed{42}", `level`), or a
folder with a train and a test file.

Left out, with reason: few-shot prompts and system prompts (the paper uses none); other schemas (convert the file:
two columns are quickly written).
"""

import argparse
import gzip
import json
import math
import random
import re
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

from reward import extract_answer

TINY = Path(__file__).parent / "tiny"
HUB = {  # name -> (repository, configuration)
    "gsm8k": ("openai/gsm8k", "main"),
    "math": ("DigitalLearningGmbH/MATH-lighteval", "default"),
}
# What the paper's scripts append to each question (arXiv:2601.22532, the authors' data files).
INSTRUCTION = {
    "####": ' Let\'s think step by step and output the final answer after "####".',
    "boxed": r" Let's think step by step and output the final answer within \boxed{}.",
}


# Some templates ask for today's date. This one is the day that Llama 3.2's falls back to.
SAME_DAY = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}"


class Query(NamedTuple):
    prompt: str  # the user's turn: the question and the instruction
    gold: str  # the reference answer: what stands after #### or inside \boxed{}
    form: str  # the format the prompt asks for, "####" or "boxed"
    level: int | None  # difficulty from 1 to 5, None where the set gives none


def load(data, split):
    """All queries of a problem set, in the order of its rows.

    data: a name or a path, as this file's docstring says; split: "train" or "test".
    The test split of a file is the file named alike with "test" for "train"; without one it is the file itself.
    Rows without an answer are dropped, and said aloud. Raises ValueError, in one sentence, for anything unusable.
    """
    if data in HUB:
        where, rows = data, enumerate(hub_rows(data, split), 1)
    else:
        where = find_file(data, split)
        rows = read_rows(where)
    queries, without_answer = [], []
    for number, row in rows:
        query = to_query(row, f"{where}, line {number}")
        if query.gold:
            queries.append(query)
        else:
            without_answer.append(number)
    if without_answer:
        lines = ", ".join(map(str, without_answer[:5])) + (", ..." if len(without_answer) > 5 else "")
        print(f"{where}: dropped {len(without_answer)} rows that have no answer (line {lines})", file=sys.stderr)
    if not queries:
        raise ValueError(f"{where} holds no usable row")
    return queries


def find_file(data, split):
    if data in ("tiny-gsm", "tiny-math"):
        return TINY / f"{data[5:]}_{split}.jsonl"
    path = Path(data)
    if path.is_dir():
        files = sorted([*path.glob(f"*{split}*.jsonl"), *path.glob(f"*{split}*.jsonl.gz")])
        if len(files) != 1:
            raise ValueError(f"{path} holds {len(files) or 'no'} files named *{split}*.jsonl or *{split}*.jsonl.gz, "
                             "and one is needed")
        return files[0]
    if not path.exists():
        raise ValueError(f"--data {data}: neither one of tiny-gsm, tiny-math, gsm8k, math nor a file or folder")
    other = path.with_name(path.name.replace("train", "test"))
    return other if split == "test" and other.exists() else path


def read_rows(path):
    """Yield (line number from 1, row) of a .jsonl or .jsonl.gz file."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}, after line {number}: cannot be read ({error})") from None


def hub_rows(name, split):
    try:
        import datasets
    except ImportError:
        raise ValueError(f"--data {name} comes from the hub: pip install datasets, or give the path of a "
                         ".jsonl file that you have") from None
    repository, configuration = HUB[name]
    try:
        return datasets.load_dataset(repository, configuration, split=split)
    except Exception as error:  # the hub's client raises a dozen kinds: offline, not found, a proxy, a full disk
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"--data {name}: cannot get {repository} from the hub ({reason})") from None


def to_query(row, where):
    """One row in either schema as a Query; its gold is empty when the row has no answer."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    if "question" in row and "answer" in row:
        text, solution, form = row["question"], row["answer"], "####"
    elif "problem" in row and "solution" in row:
        text, solution, form = row["problem"], row["solution"], "boxed"
    else:
        raise ValueError(f"{where}: needs the columns question and answer, or problem and solution; "
                         f"has {', '.join(map(str, row)) or 'none'}")
    solution = "" if solution is None else solution
    if not isinstance(text, str) or not isinstance(solution, str):
        raise ValueError(f"{where}: the question and its answer must be text")
    if not text.strip():
        raise ValueError(f"{where}: the question is empty")
    if form == "####":
        gold = solution.rsplit("####", 1)[1].strip() if "####" in solution else ""
    else:
        gold = extract_answer(solution, "boxed") or ""
    level = re.fullmatch(r"(?:Level )?([1-5])", str(row.get("level", "")))
    return Query(text + INSTRUCTION[form], gold, form, int(level[1]) if level else None)


def encode(tokenizer, queries):
    """Token ids of each query's prompt, list[list[int]]: one user turn through the tokenizer's chat template.

    The template writes the beginning-of-sequence token itself where the model wants one, so the tokenizer must not
    add a second. A tokenizer without a template (a plain base model's) gets the text alone, with its own specials.
    A template that asks for today's date (Llama 3.2's) gets the same each day: runs are to be compared.
    """
    if not tokenizer.chat_template:
        return [tokenizer(query.prompt)["input_ids"] for query in queries]
    template = SAME_DAY + tokenizer.get_chat_template()
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": query.prompt}], tokenize=False,
                                           chat_template=template, add_generation_prompt=True) for query in queries]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def within(tokenizer, queries, longest, where):
    """The queries whose prompts have at most `longest` tokens, as the paper's; the others are counted aloud."""
    kept = [query for query, ids in zip(queries, encode(tokenizer, queries), strict=True) if len(ids) <= longest]
    if len(kept) < len(queries):
        print(f"{where}: dropped {len(queries) - len(kept)} of {len(queries)} queries, whose prompts have more than "
              f"{longest} tokens", file=sys.stderr)
    if not kept:
        raise ValueError(f"--max-prompt-tokens {longest}: no prompt of {where} is as short")
    return kept


class Parser(argparse.ArgumentParser):
    """What the scripts read their flags with: a bad one gets one sentence, without a screenful of usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def at_least(bound):
    """A type for flags: numbers of the kind of the bound, from it on."""
    return number(bound, lambda value: value >= bound, f"at least {bound:g}")


def above(bound):
    return number(bound, lambda value: value > bound, f"a finite number above {bound:g}")


def number(bound, good, wanted):
    def parsed(text):
        try:
            value = type(bound)(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is not a {'whole ' * isinstance(bound, int)}number") from None
        if not (good(value) and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} must be {wanted}")
        return value

    return parsed


if __name__ == "__main__":
    parser = Parser(description="Print a few queries of a problem set.")
    parser.add_argument("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, gsm8k, math or a path")
    parser.add_argument("--split", default="train", choices=["train", "test"])
    parser.add_argument("--count", type=int, default=5, help="how many to print")
    args = parser.parse_args()
    try:
        if args.count < 1:
            raise ValueError(f"--count {args.count} must be at least 1")
        queries = load(args.data, args.split)
    except (ValueError, OSError) as error:
        sys.exit(f"data.py: {error}")
    for query in random.Random(0).sample(queries, min(args.count, len(queries))):
        print(f"level {query.level}\n{query.prompt}\ngold: {query.gold}\n")
    print(f"{len(queries)} queries in {args.data}, {args.split}")
