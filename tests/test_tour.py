"""The notebook: calls and plots only, of functions that there are; it runs from top to bottom and leaves nothing."""

import ast
import importlib
import json
import os
import sys
from pathlib import Path

import matplotlib
import pytest
from conftest import ROOT

BOOK = json.loads((ROOT / "tour.ipynb").read_text(encoding="utf-8"))
CODE = [(f"cell {i}", "".join(cell["source"])) for i, cell in enumerate(BOOK["cells"]) if cell["cell_type"] == "code"]
TREES = [ast.parse(source, name) for name, source in CODE]


def test_it_is_a_plain_notebook_without_outputs():
    assert (BOOK["nbformat"], BOOK["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert len({cell["id"] for cell in BOOK["cells"]}) == len(BOOK["cells"])
    for cell in BOOK["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_every_cell_compiles_and_is_not_long():
    for name, source in CODE:
        compile(source, name, "exec")
        assert max(map(len, source.splitlines())) <= 120


def test_it_defines_no_function_and_no_class():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [node for tree in TREES for node in ast.walk(tree) if isinstance(node, kinds)]


def test_the_names_it_takes_from_the_files_exist():
    nodes = [node for tree in TREES for node in ast.walk(tree)]
    modules = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = importlib.import_module(alias.name)
                modules[alias.asname or alias.name] = module
        elif isinstance(node, ast.ImportFrom):
            assert all(hasattr(importlib.import_module(node.module), alias.name) for alias in node.names)
    ours = {name for name, module in modules.items() if (getattr(module, "__file__", "") or "").startswith(str(ROOT))}
    assert {"data", "rollout", "reward", "bandit", "tabular", "train", "report", "evaluate"} <= ours
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


def watch():
    """The list of what this process, from now on, makes in the repository (others may be at work there too)."""
    made = []

    def hook(event, args):
        if event == "os.mkdir" or event == "open" and args[2] & os.O_CREAT:
            path = Path(os.path.abspath(os.fsdecode(args[0]))) if not isinstance(args[0], int) else Path("/")
            if path.is_relative_to(ROOT) and "__pycache__" not in path.parts:
                made.append(path)

    sys.addaudithook(hook)
    return made


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(monkeypatch):
    monkeypatch.chdir(ROOT)  # where Jupyter starts it
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.close("all")
    made, names = watch(), {}
    for name, source in CODE:
        exec(compile(source, name, "exec"), names)
    assert made == []
    assert len(plt.get_fignums()) == sum("plt.subplots" in source for _, source in CODE) == 8
    plt.close("all")
    # the update by hand is the one that explain.py prints, and the words beside the figures hold
    assert names["step"]["loss"] == pytest.approx(names["explain"].walk(names["explain"].parse([])).total, abs=1e-6)
    changes = [(after - before).sum() for before, after in zip(names["before"], names["after"], strict=True)]
    assert [change > 0 for change in changes] == names["right"].tolist() == [True, False, False, True]
    assert names["after"][0][-1] < names["before"][0][-1]
    assert not names["out"].exists()
