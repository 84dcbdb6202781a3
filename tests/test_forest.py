"""The picture of all gains shows what the tables say."""

import matplotlib.pyplot as plt
import pytest

from lab import forest

HEAD = 'pair,rung,setting,seeds,"gain, test, equal rounds","gain, train, equal rollouts"\n'


@pytest.fixture
def tables(tmp_path):
    lines = {
        "one": [
            "qwen,baseline,32x1,3,,",
            "qwen,split,16x16,3,+0.100 ± 0.020,-0.300 ± 0.010",
            "qwen,split,4x64,3,-0.050 ± 0.040,-0.200 ± 0.050",
            "llama,split,4x64,3,+0.010 (one seed),",
            "qwen,neighbours,raft,3,+0.500 ± 0.100,",
        ],
        "two": ["qwen,split,4x64,5,-0.060 ± 0.030,", "qwen,advantage,32x1+7,5,+0.020 ± 0.010,"],
    }
    paths = []
    for name, rows in lines.items():
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text(HEAD + "\n".join(rows) + "\n")
    return paths


def test_of_each_gain_the_table_of_more_seeds_counts(tables):
    settings, gains = forest.read_tables(tables)
    assert settings == [("advantage", "32x1+7"), ("split", "4x64"), ("split", "16x16")]
    assert gains["gain, test, equal rounds", "4x64", "qwen"] == (5, -0.06, 0.03)
    # The table of five seeds leaves this gain out.
    assert gains["gain, train, equal rollouts", "4x64", "qwen"] == (3, -0.2, 0.05)


def test_each_point_is_drawn_where_the_table_says(tables, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    forest.draw_forest(tables, tmp_path / "forest.png")
    assert (tmp_path / "forest.png").stat().st_size > 5000
    (figure,) = drawn
    panels = {panel.get_title(): panel for panel in figure.axes}
    assert set(panels) == {"test, equal rounds", "train, equal rollouts"}
    found = {}
    for title, panel in panels.items():
        names = [label.get_text() for label in panels["test, equal rounds"].get_yticklabels()]
        for container in panel.containers:
            points, _, (bars,) = container.lines
            for x, y, bar in zip(*points.get_data(), bars.get_segments(), strict=True):
                half = (bar[1][0] - bar[0][0]) / 2
                key = title, container.get_label(), names[round(y)]
                found[key] = (round(x, 6), round(half, 6))
    assert found == {
        ("test, equal rounds", "qwen", "advantage: 32x1+7"): (0.02, 0.01),
        ("test, equal rounds", "qwen", "split: 4x64"): (-0.06, 0.03),
        ("test, equal rounds", "qwen", "split: 16x16"): (0.1, 0.02),
        ("train, equal rollouts", "qwen", "split: 4x64"): (-0.2, 0.05),
        ("train, equal rollouts", "qwen", "split: 16x16"): (-0.3, 0.01),
    }
    plt.close("all")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv is no table"):
        forest.read_tables([tmp_path / "other.csv"])
