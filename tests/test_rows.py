"""Where the rows of a problem set come from, and files that cannot be read."""

import pytest
from helpers import write_rows

from infra import rows

ROW = {"question": "a", "answer": "#### 1"}


def read(name, split):
    """All numbered rows of a split."""
    return list(rows.open_rows(str(name), split)[1])


def test_rows_come_with_their_line_numbers(tmp_path):
    """An empty line counts, and gives no row."""
    path = write_rows(tmp_path / "a.jsonl.gz", ROW, "", ROW)
    assert read(path, "train") == [(1, ROW), (3, ROW)]
    assert rows.open_rows(path, "train")[0] == path


def test_the_test_split_of_a_file_and_of_a_folder(tmp_path):
    train = write_rows(tmp_path / "x_train.jsonl", ROW)
    test = write_rows(tmp_path / "x_test.jsonl", ROW, ROW)
    assert len(read(train, "test")) == 2  # the file of the same name
    assert len(read(tmp_path, "test")) == 2
    assert len(read(test, "train")) == 2  # the file itself
    assert not rows.is_its_own_test_set(train)
    assert not rows.is_its_own_test_set(str(tmp_path))

    alone = write_rows(tmp_path / "alone.jsonl", ROW)
    assert len(read(alone, "test")) == 1
    assert rows.is_its_own_test_set(alone)
    assert not rows.is_its_own_test_set("gsm8k")

    write_rows(tmp_path / "other_train.jsonl", ROW)
    with pytest.raises(ValueError, match="holds 2 files"):
        read(tmp_path, "train")


def test_a_name_that_is_nothing():
    with pytest.raises(ValueError, match="--data nowhere: neither one of tiny-gsm"):
        read("nowhere", "train")


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", ROW, '{"question": ')
    with pytest.raises(ValueError, match=f"{path}, line 2: not JSON"):
        read(path, "train")


def test_a_damaged_archive(tmp_path):
    """Not an archive at all, and one that ends early."""
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"this is not gzip")
    with pytest.raises(ValueError, match="cannot be read"):
        read(broken, "train")
    whole = write_rows(tmp_path / "whole.jsonl.gz", ROW)
    content = (tmp_path / "whole.jsonl.gz").read_bytes()
    (tmp_path / "whole.jsonl.gz").write_bytes(content[:-12])
    with pytest.raises(ValueError, match="cannot be read"):
        read(whole, "train")


def test_a_set_of_the_hub_that_cannot_be_loaded():
    """Without `datasets`, or without a network: one sentence either way."""
    with pytest.raises(ValueError, match="--data gsm8k") as error:
        read("gsm8k", "train")
    assert len(str(error.value).splitlines()) == 1
