"""Checkpoints: whatever a kill leaves behind, the newest whole one is found."""

import pytest
import torch

from infra.checkpoint import list_checkpoints, load_newest, save


@pytest.fixture
def folder(tmp_path):
    """A folder with checkpoints of rounds 2, 4 and 10, of which the last two are kept."""
    for number in (2, 4, 10):
        save(tmp_path, number, {"round": number, "model": {"w": torch.full((3,), number)}})
    return tmp_path


def test_there_is_none(tmp_path):
    assert load_newest(tmp_path) is None
    assert list_checkpoints(tmp_path) == []


def test_the_last_two_are_kept(folder):
    names = [path.name for path in list_checkpoints(folder)]
    assert names == ["round-000010.pt", "round-000004.pt"]


def test_rounds_are_compared_as_numbers(folder):
    """Previously the millionth round was older than the one before it, and deleted at once."""
    for number in (999_999, 1_000_000):
        save(folder, number, {"round": number})
    names = [path.name for path in list_checkpoints(folder)]
    assert names == ["round-1000000.pt", "round-999999.pt"]
    assert load_newest(folder)["round"] == 1_000_000


def test_a_half_written_one_is_not_found(folder):
    (folder / "checkpoints" / "round-000012.tmp").write_bytes(b"half")
    state = load_newest(folder)
    assert state["round"] == 10
    assert torch.equal(state["model"]["w"], torch.full((3,), 10))


def test_a_damaged_one_is_passed_over(folder, capsys):
    newest = list_checkpoints(folder)[0]
    newest.write_bytes(newest.read_bytes()[:100])
    assert load_newest(folder)["round"] == 4
    assert "round-000010.pt cannot be read" in capsys.readouterr().err


def test_a_flipped_bit_is_found(folder, capsys):
    """torch.load would return a wrong number."""
    newest = list_checkpoints(folder)[0]
    data = bytearray(newest.read_bytes())
    place = data.index(torch.full((3,), 10).numpy().tobytes())
    data[place] ^= 1
    newest.write_bytes(data)
    assert load_newest(folder)["round"] == 4
    assert "the checksum of" in capsys.readouterr().err


def test_a_run_is_not_started_over_when_none_can_be_read(folder):
    for path in list_checkpoints(folder):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
        load_newest(folder)


def test_a_failure_while_writing_leaves_the_earlier_ones(folder, monkeypatch):
    """As of a full disk: the new one never gets its name, and nothing old is deleted."""

    def fail(state, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save(folder, 12, {"round": 12})
    assert [path.name for path in list_checkpoints(folder)] == [
        "round-000010.pt",
        "round-000004.pt",
    ]
    assert load_newest(folder)["round"] == 10
