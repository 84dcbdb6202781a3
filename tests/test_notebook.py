"""The notebook only calls functions and draws; it runs from top to bottom and leaves nothing."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import matplotlib.pyplot as plt
import pytest
from helpers import ROOT

FOLDER = ROOT / "course"
BOOK = json.loads((FOLDER / "tour.ipynb").read_text(encoding="utf-8"))
CODE = [
    (f"cell {i}", "".join(cell["source"]))
    for i, cell in enumerate(BOOK["cells"])
    if cell["cell_type"] == "code"
]
NODES = [node for name, source in CODE for node in ast.walk(ast.parse(source, name))]


# --- the file -------------------------------------------------------------------------------------


def test_it_is_a_plain_notebook_without_outputs():
    assert BOOK["nbformat"] == 4
    assert BOOK["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in BOOK["cells"]}) == len(BOOK["cells"])
    for cell in BOOK["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_every_cell_compiles_and_is_not_wide():
    for name, source in CODE:
        compile(source, name, "exec")
        assert max(map(len, source.splitlines())) <= 100
    for cell in BOOK["cells"]:
        assert max(map(len, "".join(cell["source"]).splitlines())) <= 120


def test_it_defines_no_function_and_no_class():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [node for node in NODES if isinstance(node, kinds)]


def test_it_names_what_to_read_next():
    first = "".join(BOOK["cells"][0]["source"])
    assert first.index("(lecture.md)") < first.index("`train.py`")


# --- the names ------------------------------------------------------------------------------------


def imported_modules() -> dict[str, ModuleType]:
    """The modules that the notebook imports, by the names that it gives them."""
    modules = {}
    for node in NODES:
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            package = importlib.import_module(node.module)
            is_ours = (package.__file__ or "").startswith(str(ROOT))
            for alias in node.names:
                if is_ours:
                    name = f"{node.module}.{alias.name}"
                    modules[alias.asname or alias.name] = importlib.import_module(name)
                else:
                    assert hasattr(package, alias.name), f"{node.module}.{alias.name}"
    return modules


def test_the_names_it_takes_from_the_files_exist():
    modules = imported_modules()
    files = {name: getattr(module, "__file__", None) or "" for name, module in modules.items()}
    ours = {name for name, file in files.items() if file.startswith(str(ROOT))}
    root_files = {"data", "rollout", "reward", "bandit", "train", "evaluate"}
    assert root_files | {"models", "optimizer", "curve", "explain", "tabular"} <= ours
    for node in NODES:
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        module = modules.get(node.value.id)
        assert module is None or hasattr(module, node.attr), f"{node.value.id}.{node.attr}"


# --- running it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [ROOT, FOLDER])
def test_the_first_cell_goes_to_the_root(folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(CODE[0][1], CODE[0][0], "exec"), {})
    assert Path.cwd() == ROOT


def test_the_first_cell_fetches_the_repository_when_it_is_not_there(tmp_path, monkeypatch):
    """As in a hosted notebook service: an empty folder, and the address of a repository."""
    monkeypatch.chdir(tmp_path)
    first_cell = compile(CODE[0][1], CODE[0][0], "exec")
    with pytest.raises(FileNotFoundError, match="set REPOSITORY"):
        exec(first_cell, {})
    origin = tmp_path / "origin"
    subprocess.run(["git", "init", "--quiet", origin], check=True)
    (origin / "train.py").write_text("")
    who = ["-c", "user.name=A", "-c", "user.email=a@b"]
    for words in (["add", "."], [*who, "commit", "--quiet", "-m", "One"]):
        subprocess.run(["git", "-C", origin, *words], check=True)
    monkeypatch.setenv("REPOSITORY", origin.as_uri())
    for _ in range(2):  # the second time it is there
        monkeypatch.chdir(tmp_path)
        exec(first_cell, {})
        assert Path.cwd() == tmp_path / "rft"


def record_files_made() -> list[Path]:
    """A list of what this process makes in the repository from now on.

    A comparison of the folder before and after would also show what other processes make there.
    """
    made = []

    def hook(event, args):
        makes_file = event == "open" and args[2] & os.O_CREAT
        if not makes_file and event != "os.mkdir" or isinstance(args[0], int):
            return
        path = Path(os.path.abspath(os.fsdecode(args[0])))
        if path.is_relative_to(ROOT) and "__pycache__" not in path.parts:
            made.append(path)

    sys.addaudithook(hook)
    return made


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(monkeypatch):
    monkeypatch.chdir(FOLDER)  # where Jupyter starts it
    matplotlib.use("Agg")
    plt.close("all")
    made, names = record_files_made(), {}
    for name, source in CODE:
        exec(compile(source, name, "exec"), names)
    assert made == []
    figures = sum("plt.subplots" in source for _, source in CODE)
    assert len(plt.get_fignums()) == figures == 8
    plt.close("all")

    # The update by hand is the one that lab/explain.py prints.
    explain = names["explain"]
    assert names["step"]["loss"] == pytest.approx(explain.walk(explain.parse([])).total, abs=1e-6)
    # The words beside the figures hold.
    before, after = names["before"], names["after"]
    changes = [(new - old).sum() for old, new in zip(before, after, strict=True)]
    assert [change > 0 for change in changes] == names["right"].tolist()
    assert names["right"].tolist() == [True, False, False, True]
    assert after[0][-1] < before[0][-1]
    assert not names["out"].exists()
