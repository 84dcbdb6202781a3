"""Which way the imports go: lab/ and the root import infra/, never the other way round."""

import ast

from helpers import ROOT


def modules(folder):
    """The names under which the scripts of a folder can be imported, "" for the root."""
    return {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}


ROOT_MODULES = modules("")


def imported(path):
    return imported_by(path.read_text())


def imported_by(source):
    """The first word of everything that a script imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module.split(".")[0])
    return names


def check_imports(folder, forbidden):
    for path in (ROOT / folder).glob("*.py"):
        wrong = imported(path) & set(forbidden)
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_there_is_something_to_check():
    assert {"train", "data", "rollout", "reward", "bandit", "evaluate"} <= ROOT_MODULES
    assert {"optimizer", "distributed", "seeding"} <= modules("infra")
    assert {"bandit", "evaluate", "infra"} <= imported(ROOT / "train.py")


def test_infra_imports_nothing_of_the_root_or_of_other_folders():
    check_imports("infra", ROOT_MODULES | {"lab", "tiny", "tests"})


def test_the_root_imports_nothing_of_the_lab():
    check_imports("", {"lab", "tiny", "tests"})


def test_the_chain_of_the_root():
    """queries -> rollouts -> rewards -> advantages -> loss: who needs whom."""
    sources = {name: (ROOT / f"{name}.py").read_text() for name in ROOT_MODULES}
    # Run as a script, rollout.py reads a problem set, so only its head is looked at.
    sources["rollout"] = sources["rollout"].split('if __name__ == "__main__"')[0]
    assert {
        name: imported_by(source) & ROOT_MODULES for name, source in sources.items()
    } == {
        "reward": set(),
        "rollout": set(),
        "bandit": set(),
        "data": {"reward"},
        "evaluate": {"bandit", "data", "reward", "rollout"},
        "train": {"bandit", "data", "evaluate", "rollout"},
    }


def test_no_script_changes_where_python_looks_for_modules():
    """Scripts in folders run with python -m from the root."""
    for folder in ("", "infra", "lab", "tiny", "tests"):
        for path in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                is_changed = isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
                assert not is_changed, f"{path.relative_to(ROOT)}, line {node.lineno}"
