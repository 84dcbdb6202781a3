"""What README.md says can be run, exists, and is linked, is so."""

import importlib
import inspect
import re
import shlex

import pytest
from conftest import ROOT

import train

TEXT = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), ROOT / "results" / "README.md"]


def commands(text):
    """Word lists, from the script's name on, of the commands in code blocks and between backquotes."""
    text = text.replace("\\\n", " ")
    spans = [line for block in re.findall(r"^```[\w ]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
             for line in block.splitlines()]
    spans += re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for span in spans:
        for part in re.split(r"&&|;", span.removeprefix("$ ")):
            found = re.search(r"(?:python3?|torchrun\b[^.]*?) ([\w/]+\.py)\b(.*)", part.replace("\n", " "))
            if found and "..." not in part and "tiny-..." not in part:
                words = shlex.split(found[2], comments=True)
                yield found[1], [word for word in words if word not in ("do", "done")]


def every_command():
    found = [(path.name, *command) for path in PAGES if path.name != "EXERCISES.md"  # it has a test of its own
             for command in commands(path.read_text())]
    assert len(found) > 20
    return found


@pytest.mark.parametrize("page, script, words", every_command())
def test_every_command_has_flags_that_exist(page, script, words):
    assert (ROOT / script).exists(), page
    if script == "train.py":
        train.parse([re.sub(r"^(S|\$seed)$", "0", word) for word in words if word != "--help"])
    else:
        source = (ROOT / script).read_text()
        for word in words:
            if word.startswith("--"):
                assert word in source, (page, script, word)


def test_every_name_beside_an_equation_exists_and_names_it_back():
    lecture = TEXT[TEXT.index("## The lecture"):TEXT.index("## Flags")]
    numbers = re.findall(r"\\tag\{(\d+)\}", lecture)
    assert numbers == [str(i) for i in range(1, len(numbers) + 1)] and len(numbers) >= 11
    named_back = set()
    for module, name in set(re.findall(r"`(bandit|likelihood|evaluate|rollout|tabular|report|probe)\.(\w+)`", lecture)):
        if (ROOT / f"{module}.{name}").exists():
            continue  # a file: `probe.py`
        thing = getattr(importlib.import_module(module), name)
        source = (ROOT / f"{module}.py").read_text()
        about = inspect.getdoc(thing) if inspect.isfunction(thing) else re.search(
            rf"^{name} = .*", source, re.MULTILINE)[0]
        assert about
        named_back |= set(re.findall(r"\((\d+)\)", about)) if "quation" in about else set()
    assert named_back >= set(numbers), set(numbers) - named_back


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_resolve(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_map_is_true():
    table = TEXT[TEXT.index("## The files"):TEXT.index("One value flows one way")]
    named = set(re.findall(r"`([\w/]+\.(?:py|sh))`", table))
    there = {path.name for path in ROOT.glob("*.py")} | {"ablate.sh"} | {
        f"tiny/{path.name}" for path in (ROOT / "tiny").glob("*.py")}
    assert named == there


def test_the_chain_imports_what_the_readme_says():
    ours = {path.stem for path in ROOT.glob("*.py")}
    for name, allowed in (("rollout", set()), ("reward", set()), ("likelihood", set()), ("bandit", {"likelihood"})):
        source = (ROOT / f"{name}.py").read_text().split('if __name__ == "__main__"')[0]
        assert set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)) & ours == allowed
