"""Pretrain the three tiny base models on generated solutions, with the next-token loss only.

    python -m tiny.pretrain              # all three, one after the other
    python -m tiny.pretrain qwen2        # one of them
    python -m tiny.pretrain --measure    # no training: what the committed models can do

Each model first reads the solutions of a perfect student, then those of its own mixture of habits
(problems.py). So it ends like the base models of the real world, which are right sometimes. The
three differ in their habits, and hence in strength: nothing that separates them says anything about
the three architectures.

`python -m tiny.pretrain qwen2 --clean --out DIR` keeps to the perfect student. Its model shows what
this architecture can know. Compared with it, the base model's greedy accuracy shows how much there
is to learn.
"""

import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import data
import evaluate
from infra import flags, models
from tiny.problems import FORM, Habits, draw, reserved_keys, write

HERE = Path(__file__).parent
BASES = {
    "qwen2": (
        Qwen2Config, Qwen2ForCausalLM, Habits(direct=0.28, forget=0.22, run_on=0.05, slip=0.6),
    ),
    "llama": (
        LlamaConfig, LlamaForCausalLM, Habits(direct=0.12, forget=0.10, run_on=0.02, slip=0.65),
    ),
    "olmo2": (
        Olmo2Config, Olmo2ForCausalLM, Habits(direct=0.18, forget=0.17, run_on=0.02, slip=1.25),
    ),
}  # fmt: skip
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
CLEAN_STEPS, HABIT_STEPS, BATCH = 5000, 1500, 64
CLEAN_LR, HABIT_LR = 3e-3, 1e-3
SORTED_BATCHES = 16  # batches are drawn this many at a time and sorted by length: less padding
VOCABULARY = 1024
TURN, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# How Qwen2 splits text into words. Every digit is a token of its own.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on generated text.

    Its parts are Qwen2's. When config.json says "qwen2", AutoTokenizer uses those parts, whatever
    tokenizer.json says. So one tokenizer serves all three models. It only learns how to split
    words, so no problem is left out here.
    """
    rng = random.Random(0)
    texts = []
    for problem_set, form in FORM.items():
        for level in range(1, 6):
            for _ in range(400):
                problem = draw(problem_set, level, rng, Habits(slip=1.0))
                texts.append(problem.text + data.INSTRUCTION[form])
                texts.append(write(problem, problem_set, rng, Habits(forget=0.3)))
    texts += ["user\n", "assistant\n"] * 400

    bpe = Tokenizer(BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    bpe.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - 3,
        min_frequency=20,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=TEXT_END,
        additional_special_tokens=[TURN],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


# --- batches --------------------------------------------------------------------------------------


def make_batches(
    tokenizer: PreTrainedTokenizerBase, habits: Habits, steps: int, rng: random.Random,
    reserved: set[tuple],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Yield `steps` batches (token ids, labels), both [BATCH, T].

    The labels are -100 everywhere but on completions.
    reserved: the keys of problems that are skipped.
    """
    while steps > 0:
        rows = make_rows(tokenizer, habits, rng, reserved)
        batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(batches)
        for batch in batches[:steps]:
            yield to_tensors(batch)
        steps -= len(batches)


def make_rows(
    tokenizer: PreTrainedTokenizerBase, habits: Habits, rng: random.Random, reserved: set[tuple]
) -> list[tuple[list[int], list[int]]]:
    """SORTED_BATCHES * BATCH rows (prompt, completion) of token ids, the shortest first."""
    end = tokenizer.convert_tokens_to_ids(END)
    queries, texts = [], []
    while len(queries) < SORTED_BATCHES * BATCH:
        problem_set = rng.choice(list(FORM))
        problem = draw(problem_set, rng.randint(1, 5), rng, habits)
        if problem.key in reserved:
            continue
        form = FORM[problem_set]
        queries.append(data.Query(problem.text + data.INSTRUCTION[form], "", form, None))
        texts.append(write(problem, problem_set, rng, habits, reserved))
    prompts = data.encode(tokenizer, queries)
    completions = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [(prompt, ids + [end]) for prompt, ids in zip(prompts, completions, strict=True)]
    return sorted(rows, key=lambda row: len(row[0]) + len(row[1]))


def to_tensors(batch: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels [BATCH, T] of rows (prompt, completion), padded on the right."""
    longest = max(len(prompt) + len(completion) for prompt, completion in batch)
    ids = torch.zeros(BATCH, longest, dtype=torch.long)
    labels = torch.full((BATCH, longest), -100)
    for row, (prompt, completion) in enumerate(batch):
        length = len(prompt) + len(completion)
        ids[row, :length] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : length] = torch.tensor(completion)
    return ids, labels


# --- training -------------------------------------------------------------------------------------


def learn(
    model: PreTrainedModel, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int,
    lr: float,
) -> None:  # fmt: skip
    """The next-token loss on completions; AdamW with 100 steps of warm-up, then a cosine."""

    def share_of_lr(step: int) -> float:
        return min((step + 1) / 100, 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_lr)
    bar = tqdm(batches, total=steps, mininterval=2)
    smooth = None
    for ids, labels in bar:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        # Most tokens belong to prompts, so logits are computed for completions only.
        is_completion = labels[:, 1:] != -100
        logits = model.lm_head(hidden[is_completion])
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:][is_completion])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
        bar.set_postfix_str(f"loss {smooth:.3f}", refresh=False)


def pretrain(name: str, out: Path, clean_steps: int, habit_steps: int) -> None:
    """Make the tokenizer and the model of a name, train it, and save both in `out`."""
    config_class, model_class, habits = BASES[name]
    torch.manual_seed(0)
    tokenizer = train_tokenizer()
    reserved = reserved_keys()
    end, text_end = tokenizer.convert_tokens_to_ids([END, TEXT_END])
    config = config_class(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=text_end,
        **SIZES,
    )
    model = model_class(config)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{name}: {parameters:,} parameters, {len(tokenizer)} tokens, {habits}")

    start = time.time()
    if clean_steps:
        batches = make_batches(tokenizer, Habits(), clean_steps, random.Random(1), reserved)
        learn(model, batches, clean_steps, CLEAN_LR)
    if habit_steps:
        batches = make_batches(tokenizer, habits, habit_steps, random.Random(2), reserved)
        learn(model, batches, habit_steps, HABIT_LR)

    model.generation_config = GenerationConfig(
        eos_token_id=[end, text_end], pad_token_id=text_end, do_sample=True, temperature=1.0
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{name}: {time.time() - start:.0f} s, saved in {out}")


def measure(path: Path) -> None:
    """Print a model's rows of the table in tiny/README.md: what it can do before reinforcement."""
    model, tokenizer = models.load(str(path))
    for problem_set in FORM:
        queries = data.load(f"tiny-{problem_set}", "train")
        right, in_format, _ = evaluate.sample_and_grade(
            model, tokenizer, queries, 16, max_new_tokens=64, seed=1
        )
        greedy, _, _ = evaluate.sample_and_grade(
            model, tokenizer, queries, 1, max_new_tokens=64, temperature=0
        )
        values = [
            right.mean(),
            in_format.mean(),
            right.any(axis=1).mean(),
            greedy.mean(),
            evaluate.between_query_std(right),
        ]
        columns = [str(path), f"tiny-{problem_set}", *(f"{value:.3f}" for value in values)]
        print(f"| {' | '.join(columns)} |")


def main() -> None:
    parser = flags.FlagParser(description=__doc__.split("\n")[0])
    flag = parser.add_argument
    flag("models", nargs="*", help="qwen2, llama, olmo2 (default: all)")
    flag("--clean", action="store_true", help="the perfect student's solutions only")
    flag("--out", default=str(HERE), help="the folder that gets a folder for each model")
    flag("--steps", type=flags.at_least(0), nargs=2, default=(CLEAN_STEPS, HABIT_STEPS),
         help="optimizer steps on the perfect student's solutions, and on those with habits")
    flag("--measure", action="store_true", help="no training: what the models in --out can do")
    flag("--threads", type=flags.at_least(1), default=1, help="CPU threads")
    args = parser.parse_args()
    names = args.models or list(BASES)
    for name in names:
        if name not in BASES:
            parser.error(f"{name} is none of {', '.join(BASES)}")

    torch.set_num_threads(args.threads)
    if args.measure:
        print(
            "| model | train set | pass@1 | in the asked format | pass@16 | greedy | spread of the "
            "success rates |\n|---|---|---|---|---|---|---|"
        )
        for name in names:
            measure(Path(args.out) / name)
        return
    clean_steps, habit_steps = args.steps
    for name in names:
        pretrain(name, Path(args.out) / name, clean_steps, 0 if args.clean else habit_steps)


if __name__ == "__main__":
    main()
