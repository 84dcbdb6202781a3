"""Pretrain the three tiny base models on generated solutions: the next-token loss and nothing else.

    python tiny/pretrain.py              # all three, one after the other
    python tiny/pretrain.py qwen2        # one of them
    python tiny/pretrain.py --measure    # no training: what the committed models can do

Each model reads first the solutions of a perfect student, then those of its own mixture of habits (problems.py),
so that it ends as the base models of the real world are: right sometimes. The three differ in their habits, hence
in strength; nothing that separates them says anything about the three architectures.

`python tiny/pretrain.py qwen2 --clean --out DIR` keeps to the perfect student throughout: what this architecture
could know, beside which the base's greedy accuracy shows how much there is to learn.
"""

import math
import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the scripts of the repository's root: data.py, rollout.py

import torch  # noqa: E402
from problems import MARK, Habits, draw, reserved_keys, write  # noqa: E402
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformers import (  # noqa: E402
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import data  # noqa: E402
import evaluate  # noqa: E402
import rollout  # noqa: E402

BASES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, Habits(direct=0.28, forget=0.22, run_on=0.05, slip=0.6)),
    "llama": (LlamaConfig, LlamaForCausalLM, Habits(direct=0.12, forget=0.10, run_on=0.02, slip=0.65)),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, Habits(direct=0.18, forget=0.17, run_on=0.02, slip=1.25)),
}
SIZES = dict(hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True)
CLEAN_STEPS, HABIT_STEPS, BATCH = 5000, 1500, 64
CLEAN_LR, HABIT_LR = 3e-3, 1e-3
VOCABULARY = 1024
TURN, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
# Qwen2's way of cutting text into words: every digit a token of its own.
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")


def train_tokenizer():
    """A byte-level BPE on generated text. The parts are Qwen2's, because AutoTokenizer puts them in place of
    whatever tokenizer.json says once config.json says "qwen2"; so one tokenizer serves all three models. It learns
    how to cut words, from random problems of which none is left out."""
    rng = random.Random(0)
    texts = []
    for problem_set in MARK:
        for level in range(1, 6):
            for _ in range(400):
                problem = draw(problem_set, level, rng, Habits(slip=1.0))
                texts.append(problem.text + data.INSTRUCTION["####" if problem_set == "gsm" else "boxed"])
                texts.append(write(problem, problem_set, rng, Habits(forget=0.3)))
    texts += ["user\n", "assistant\n"] * 400
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY - 3, min_frequency=20, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=TEXT_END, additional_special_tokens=[TURN],
        chat_template=TEMPLATE, clean_up_tokenization_spaces=False)


def make_batches(tokenizer, habits, steps, rng, reserved):
    """Yield `steps` batches (token ids [BATCH, T], labels [BATCH, T]); the labels are -100 but on completions."""
    end = tokenizer.convert_tokens_to_ids(END)
    group = 16  # batches drawn at a time and sorted by length, so that little of a batch is padding
    while steps > 0:
        queries, completions = [], []
        while len(queries) < group * BATCH:
            problem_set = rng.choice(list(MARK))
            problem = draw(problem_set, rng.randint(1, 5), rng, habits)
            if problem.key in reserved:
                continue
            form = "####" if problem_set == "gsm" else "boxed"
            queries.append(data.Query(problem.text + data.INSTRUCTION[form], "", form, None))
            completions.append(write(problem, problem_set, rng, habits, reserved))
        prompts = data.encode(tokenizer, queries)
        completions = tokenizer(completions, add_special_tokens=False)["input_ids"]
        rows = sorted(((p, c + [end]) for p, c in zip(prompts, completions, strict=True)),
                      key=lambda row: len(row[0]) + len(row[1]))
        batches = [rows[i:i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(batches)
        for batch in batches[:steps]:
            longest = max(len(p) + len(c) for p, c in batch)
            ids, labels = torch.zeros(BATCH, longest, dtype=torch.long), torch.full((BATCH, longest), -100)
            for row, (p, c) in enumerate(batch):
                ids[row, :len(p) + len(c)] = torch.tensor(p + c)
                labels[row, len(p):len(p) + len(c)] = torch.tensor(c)
            yield ids, labels
        steps -= len(batches)


def learn(model, batches, steps, lr):
    """The next-token loss on the completions; AdamW, 100 steps of warm-up, then a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / 100, 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))))
    bar, smooth = tqdm(batches, total=steps, mininterval=2), None
    for ids, labels in bar:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] != -100  # logits for the completions only: most of the tokens are prompt
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
        bar.set_postfix_str(f"loss {smooth:.3f}", refresh=False)


def pretrain(name, out, steps=(CLEAN_STEPS, HABIT_STEPS)):
    config_class, model_class, habits = BASES[name]
    torch.manual_seed(0)
    tokenizer = train_tokenizer()
    reserved = reserved_keys()
    end, text_end = tokenizer.convert_tokens_to_ids([END, TEXT_END])
    model = model_class(config_class(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=end,
                                     pad_token_id=text_end, **SIZES))
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, {habits}")
    start = time.time()
    learn(model, make_batches(tokenizer, Habits(), steps[0], random.Random(1), reserved), steps[0], CLEAN_LR)
    if steps[1]:
        learn(model, make_batches(tokenizer, habits, steps[1], random.Random(2), reserved), steps[1], HABIT_LR)
    model.generation_config = GenerationConfig(
        eos_token_id=[end, text_end], pad_token_id=text_end, do_sample=True, temperature=1.0)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{name}: {time.time() - start:.0f} s, saved in {out}")


def measure(path):
    """Print the row of the README's table: what a model can do on the train sets before any reinforcement."""
    model, tokenizer = rollout.load(str(path))
    for problem_set in MARK:
        queries = data.load(f"tiny-{problem_set}", "train")
        right, in_format, _ = evaluate.success(model, tokenizer, queries, 16, max_new_tokens=64, seed=1)
        greedy, _, _ = evaluate.success(model, tokenizer, queries, 1, max_new_tokens=64, temperature=0)
        values = right.mean(), in_format.mean(), right.any(axis=1).mean(), greedy.mean(), evaluate.spread(right)
        print(f"| {path} | tiny-{problem_set} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    parser = data.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", help="qwen2, llama, olmo2 (default: all)")
    parser.add_argument("--clean", action="store_true", help="the perfect student's solutions only")
    parser.add_argument("--out", default=str(HERE), help="the folder that gets a folder per model")
    parser.add_argument("--steps", type=int, nargs=2, default=(CLEAN_STEPS, HABIT_STEPS))
    parser.add_argument("--measure", action="store_true", help="no training: what the models in --out can do")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure:
        print("| model | train set | pass@1 | in the asked format | pass@16 | greedy | spread of the success rates |")
        print("|---|---|---|---|---|---|---|")
    for name in args.models or BASES:
        if args.measure:
            measure(Path(args.out) / name)
        else:
            pretrain(name, Path(args.out) / name, (args.steps[0], 0) if args.clean else args.steps)
