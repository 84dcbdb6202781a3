"""Which way the imports go: lab/ and the root import infra/, never the other way round."""

import ast

from helpers import ROOT


def modules(folder):
    """The names under which the scripts of a folder can be imported, "" for the root."""
    return {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}


ROOT_MODULES = modules("")


def imported(path):
    """The first word of everything that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
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


def test_no_script_changes_where_python_looks_for_modules():
    """Scripts in folders run with python -m from the root."""
    for folder in ("", "infra", "lab", "tiny", "tests"):
        for path in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                is_changed = isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
                assert not is_changed, f"{path.relative_to(ROOT)}, line {node.lineno}"
