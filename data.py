"""Problem sets and prompts: a row of a data set becomes a query, a query becomes token ids.

    python data.py --data tiny-math                  # print a few queries: prompt and gold answer
    python data.py --data my_problems.jsonl.gz       # the same for a file of your own

Five sets have names. tiny-gsm, tiny-math and tiny-sums lie in tiny/; gsm8k and math come from the
hub (`pip install datasets`). Anything else is a path: a .jsonl or .jsonl.gz file, or a folder with
a train and a test file. Its rows have GSM8K's columns (`question`, `answer` ending in "#### 42"),
MATH's (`problem`, `solution` with "\\boxed{42}") or `prompt` and `gold`, where the prompt is the
user's turn as it stands. The column `level` is optional, and --reward sees all others.

Left out: few-shot and system prompts, because the paper uses none.
"""

import infra  # noqa: F401 (first, because from here on Ctrl-C ends in a sentence)

# isort: split
import hashlib
import json
import random
import re
import sys
from argparse import Namespace
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from infra import flags
from infra.rows import is_its_own_test_set, open_rows
from infra.seeding import Purpose, permutation
from reward import LONGEST_BOX, extract_answer

# What the paper's scripts append to each question (arXiv:2601.22532, the authors' data files).
INSTRUCTION = {
    "####": ' Let\'s think step by step and output the final answer after "####".',
    "boxed": r" Let's think step by step and output the final answer within \boxed{}.",
}
# Some chat templates ask for today's date. They always get this one (Llama 3.2's own fallback), so
# that runs of different days can be compared.
FIXED_DATE = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}"


class Query(NamedTuple):
    prompt: str  # the user's turn: the question and the instruction
    gold: str  # the reference answer: what stands after #### or inside \boxed{}
    form: str | None  # the format the prompt asks for, "####" or "boxed"; None: the later of them
    level: int | None  # difficulty from 1 to 5; None where the set gives none
    row: dict | None = None  # the line of the file as it was


def load(name: str, split: str, needs_gold: bool = True) -> list[Query]:
    """All queries of a problem set, in the order of its rows.

    name: a set or a path, as the docstring of this file says.
    split: "train" or "test". The test split of a single file is the file of the same name with
        "test" for "train"; without one, the file is its own test split.
    needs_gold: False keeps rows whose column `gold` is empty, for a reward that does not read it.
    Drops rows without an answer, and says so. Raises ValueError, in one sentence, for bad input.
    """
    where, rows = open_rows(name, split)
    queries, lines_without_answer = [], []
    for number, row in rows:
        query = to_query(row, f"{where}, line {number}")
        if query.gold or (query.form is None and not needs_gold):
            queries.append(query)
        else:
            lines_without_answer.append(number)
    if lines_without_answer:
        shown = ", ".join(str(number) for number in lines_without_answer[:5])
        more = ", ..." if len(lines_without_answer) > 5 else ""
        dropped = f"dropped {len(lines_without_answer)} rows that have no answer"
        print(f"{where}: {dropped} (line {shown}{more})", file=sys.stderr)
    if not queries:
        raise ValueError(
            f"{where} holds no usable row: `answer` ends in #### and the answer, `solution` has it "
            "in \\boxed{}, and `gold` may be empty with --reward only"
        )
    if too_long := sum(len(query.gold) > LONGEST_BOX for query in queries):
        print(f"{where}: {too_long} answers have more than the {LONGEST_BOX:,} characters that the "
              "verifier reads", file=sys.stderr)  # fmt: skip
    return queries


def to_query(row: dict, where: str) -> Query:
    """A row in one of the schemas as a query; its gold is empty if the row has no answer."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    if "question" in row and "answer" in row:
        text, solution, form = row["question"], row["answer"], "####"
    elif "problem" in row and "solution" in row:
        text, solution, form = row["problem"], row["solution"], "boxed"
    elif "prompt" in row and "gold" in row:
        text, solution, form = row["prompt"], row["gold"], None
    else:
        columns = ", ".join(map(str, row)) or "none"
        raise ValueError(
            f"{where}: needs the columns question and answer, or problem and solution, or prompt "
            f"and gold; has {columns}"
        )
    solution = "" if solution is None else solution
    if not isinstance(text, str) or not isinstance(solution, str):
        raise ValueError(f"{where}: the question and its answer must be text, in quotes")
    if not text.strip():
        raise ValueError(f"{where}: the question is empty")
    if form is None:
        gold = solution.strip()
    elif form == "####":
        gold = solution.rsplit("####", 1)[1].strip() if "####" in solution else ""
    else:
        gold = extract_answer(solution, "boxed") or ""
    level = re.fullmatch(r"(?:Level )?([1-5])", str(row.get("level", "")))
    prompt = text + INSTRUCTION.get(form, "")
    return Query(prompt, gold, form, int(level[1]) if level else None, row)


def encode(tokenizer: PreTrainedTokenizerBase, queries: list[Query]) -> list[list[int]]:
    """The token ids of each prompt: one user turn through the tokenizer's chat template.

    The template writes the beginning-of-sequence token where the model wants one, so the tokenizer
    must not add a second. A tokenizer without a template (of a plain base model) gets the text
    alone and adds its own special tokens.
    """
    if not tokenizer.chat_template:
        prompts = [tokenizer(query.prompt)["input_ids"] for query in queries]
        # Some tokenizers end every text; a prompt goes on.
        end = tokenizer.eos_token_id
        return [ids[:-1] if ids[-1:] == [end] and len(ids) > 1 else ids for ids in prompts]
    template = FIXED_DATE + tokenizer.get_chat_template()
    prompts = []
    for query in queries:
        turns = [{"role": "user", "content": query.prompt}]
        try:
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, chat_template=template, add_generation_prompt=True
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the model's chat template refuses a question ({error})") from None
        if query.prompt.strip() not in text:
            raise ValueError("the model's chat template leaves out the question")
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return prompts


def drop_long_prompts(
    tokenizer: PreTrainedTokenizerBase, queries: list[Query], max_tokens: int, where: str
) -> list[Query]:
    """The queries whose prompts have at most `max_tokens` tokens; says how many were dropped."""
    prompts = encode(tokenizer, queries)
    kept = [query for query, ids in zip(queries, prompts, strict=True) if len(ids) <= max_tokens]
    if len(kept) < len(queries):
        dropped = f"dropped {len(queries) - len(kept)} of {len(queries)} queries"
        reason = f"whose prompts have more than {max_tokens} tokens"
        print(f"{where}: {dropped}, {reason}", file=sys.stderr)
    if not kept:
        raise ValueError(f"--max-prompt-tokens {max_tokens}: every prompt of {where} is longer")
    return kept


class ProblemSets(NamedTuple):
    train: list[Query]
    test: list[Query]
    train_prompts: list[list[int]]  # the token ids of the train set's prompts


def load_sets(args: Namespace, tokenizer: PreTrainedTokenizerBase) -> ProblemSets:
    """The train and test sets of a run; --levels and --queries thin out the train set only.

    args: the flags of train.py. Raises ValueError, in one sentence, if they ask for too much.
    """
    train, test = (
        drop_long_prompts(
            tokenizer, load(args.data, split, needs_gold=not args.reward),
            args.max_prompt_tokens, f"{args.data}, {split}",
        )  # fmt: skip
        for split in ("train", "test")
    )
    if args.levels:
        train = [query for query in train if query.level in args.levels]
        if missing := set(args.levels) - {query.level for query in train}:
            levels = " ".join(map(str, args.levels))
            which = f"no query of {args.data} is of level {min(missing)}"
            raise ValueError(f"--levels {levels}: {which}")
    if args.queries:
        if args.queries > len(train):
            raise ValueError(f"--queries {args.queries} is more than the {len(train)} there are")
        order = permutation(args.seed, Purpose.SUBSET, size=len(train))
        train = [train[i] for i in sorted(order[: args.queries])]
    if args.batch_size > len(train):
        raise ValueError(
            f"--batch-size {args.batch_size} is more than the {len(train)} queries of the train set"
        )
    if end := sum((tokenizer.eos_token or "\0") in query.prompt for query in train + test):
        print(f"{args.data}: {end} questions hold {tokenizer.eos_token}, which the model reads as "
              "the end of a turn", file=sys.stderr)  # fmt: skip
    if is_its_own_test_set(args.data):
        print(
            f"{args.data} has no test set beside it (a file of the same name with test for train): "
            "it is its own test set, which says nothing about generalization",
            file=sys.stderr,
        )
    return ProblemSets(train, test, encode(tokenizer, train))


def fingerprint(sets: ProblemSets) -> str:
    """A hash of all queries of a run, so that a resume notices other ones."""
    text = json.dumps([sets.train, sets.test], default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    parser = flags.FlagParser(description="Print a few queries of a problem set.")
    flag = parser.add_argument
    flag("--data", default="tiny-gsm", help="tiny-gsm, tiny-math, tiny-sums, gsm8k, math or a path")
    flag("--split", default="train", choices=["train", "test"])
    flag("--count", type=flags.at_least(1), default=5, help="how many to print")
    args = parser.parse_args()
    try:
        queries = load(args.data, args.split, needs_gold=False)
    except (ValueError, OSError) as error:
        sys.exit(f"data.py: {error}")
    for query in random.Random(0).sample(queries, min(args.count, len(queries))):
        print(f"level {query.level}\n{query.prompt}\ngold: {query.gold}\n")
    print(f"{len(queries)} queries in {args.data}, {args.split}")


if __name__ == "__main__":
    main()
