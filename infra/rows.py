"""Rows of a problem set: from tiny/, from the Hugging Face hub, or from files of one's own."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

TINY = Path(__file__).parent.parent / "tiny"
TINY_SETS = ("tiny-gsm", "tiny-math", "tiny-sums")
HUB = {  # name -> (repository, configuration)
    "gsm8k": ("openai/gsm8k", "main"),
    "math": ("DigitalLearningGmbH/MATH-lighteval", "default"),
}


def open_rows(name: str, split: str) -> tuple[str, Iterable[tuple[int, dict]]]:
    """Where the rows of a split come from, and the rows, each with its number from 1.

    Raises ValueError, in one sentence, if there are none or they cannot be read.
    """
    if name in HUB:
        return name, enumerate(hub_rows(name, split), 1)
    path = find_file(name, split)
    return str(path), read_rows(path)


def is_its_own_test_set(name: str) -> bool:
    """Whether the test split is the train split, for lack of a test file beside it."""
    return name not in HUB and find_file(name, "test") == find_file(name, "train")


def find_file(name: str, split: str) -> Path:
    """The file of a split of a tiny set, of a folder, or of a single file."""
    if name in TINY_SETS:
        return TINY / f"{name.removeprefix('tiny-')}_{split}.jsonl"
    if not name:
        raise ValueError("--data: the name is empty")
    path = Path(name)
    if path.is_dir():
        files = sorted([*path.glob(f"*{split}*.jsonl"), *path.glob(f"*{split}*.jsonl.gz")])
        if len(files) != 1:
            raise ValueError(
                f"{path} holds {len(files) or 'no'} files named *{split}*.jsonl or "
                f"*{split}*.jsonl.gz, and one is needed"
            )
        return files[0]
    if not path.exists():
        raise ValueError(
            f"--data {name}: neither one of {', '.join((*TINY_SETS, *HUB))} nor a file or folder"
        )
    test_file = path.with_name(path.name.replace("train", "test"))
    return test_file if split == "test" and test_file.exists() else path


def read_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, row) of a .jsonl or .jsonl.gz file."""
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    with opener(path, "rt", encoding="utf-8-sig") as file:  # Windows editors write a mark first
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    # Half of a character (a surrogate alone) could be neither tokenized nor shown.
                    json.dumps(row := json.loads(line), ensure_ascii=False).encode()
                    yield number, row
        except UnicodeEncodeError:
            raise ValueError(f"{path}, line {number}: holds half of a character") from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}, after line {number}: cannot be read ({error})") from None


def hub_rows(name: str, split: str) -> Iterable[dict]:
    """The rows of a set of the hub."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"--data {name} comes from the hub: pip install datasets, or give the path of a "
            ".jsonl file that you have"
        ) from None
    repository, configuration = HUB[name]
    try:
        return datasets.load_dataset(repository, configuration, split=split)
    except Exception as error:  # offline, not found, a proxy, a full disk: a dozen kinds
        reason = str(error).strip().split("\n")[0]
        message = f"--data {name}: cannot get {repository} from the hub ({reason})"
        raise ValueError(message) from None
