"""The documents: commands can be run, links resolve, tables are tables, equations name their code.

They also promise what lies in the first listing, which is checked here.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

import train

README = ROOT / "README.md"
LECTURE = ROOT / "course" / "lecture.md"
EXERCISES = ROOT / "course" / "exercises.md"  # its commands have a test of their own
PAGES = [
    README, ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "course").glob("*.md")), *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "tiny" / "README.md", ROOT / "results" / "README.md",
]  # fmt: skip
OUTSIDE = {"venv", "pytest", "pip"}  # modules that are run with python -m and are not ours


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def each_page(*left_out: Path) -> pytest.MarkDecorator:
    """Run a test once for each page."""
    pages = [page for page in PAGES if page not in left_out]
    return pytest.mark.parametrize("page", pages, ids=page_name)


# --- commands -------------------------------------------------------------------------------------

FENCE = re.compile(r"^```[\w ]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
SCRIPT = r"(?P<script>[\w/]+\.py)\b"
MODULE = r"-m (?P<module>[\w.]+)"
COMMAND = re.compile(rf"(?:python3?|torchrun\b[^.]*?) (?:{SCRIPT}|{MODULE})(?P<words>.*)")


def code_of(page: Path) -> list[str]:
    """The lines of code blocks, and what stands between backquotes in the text."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    return lines + [span.replace("\n", " ") for span in INLINE.findall(FENCE.sub("", text))]


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(path of the script, its words) of each python command; a command with ... is a pattern."""
    for span in code_of(page):
        for part in re.split(r"&&|;", span.removeprefix("$ ")):
            found = COMMAND.search(part)
            if not found or "..." in part or found["module"] in OUTSIDE:
                continue
            script = found["script"] or found["module"].replace(".", "/") + ".py"
            words = shlex.split(found["words"], comments=True)
            yield script, [word for word in words if word not in ("do", "done")]


def every_command() -> list[tuple[str, str, list[str]]]:
    pages = [page for page in PAGES if page != EXERCISES]
    found = [(page_name(page), *command) for page in pages for command in commands(page)]
    assert len(found) > 40
    return found


@pytest.mark.parametrize("page, script, words", every_command())
def test_every_command_has_a_script_and_flags_that_exist(page, script, words):
    assert (ROOT / script).exists(), page
    if script == "train.py":
        seeds = [re.sub(r"^(S|\$seed)$", "0", word) for word in words]
        train.parse([word for word in seeds if word != "--help"])
        return
    source = (ROOT / script).read_text()
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in source, (page, script, word)


def test_the_sections_of_the_benchmark_exist():
    source = (ROOT / "lab" / "bench.py").read_text()
    sections = [
        words[0] for _, script, words in every_command()
        if script == "lab/bench.py" and words and not words[0].startswith("--")
    ]  # fmt: skip
    assert {"tricks", "verifier", "gpu", "needs"} <= set(sections)
    for section in sections:
        assert f'"{section}"' in source, section


@each_page(EXERCISES)
def test_every_call_of_the_experiment_names_rungs_that_exist(page):
    plan = (ROOT / "ablate.sh").read_text().split(" <<END\n")[1].split("\nEND\n")[0]
    rungs = [line for line in plan.splitlines() if re.fullmatch(r"[a-z]+", line)]
    for span in code_of(page):
        for words in re.findall(r"\./ablate\.sh([^&;]*)", span):
            assert set(words.split()) <= {"full", "--list", *rungs}, (page, span)


def test_the_two_lines_that_ci_and_readers_copy_are_there():
    lines = README.read_text().splitlines()
    starts = [line for line in lines if line.startswith("python3 -m venv .venv")]
    assert [line.split("&& ")[-1] for line in starts] == [
        ".venv/bin/python train.py", ".venv/bin/python -m pytest -n auto",
    ]  # fmt: skip
    # .ci/run takes the first line that this pattern finds.
    ci = (ROOT / ".ci" / "run").read_text()
    assert "grep -m 1 '^python3 -m venv .venv .*pytest'" in ci


# --- form -----------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 220


def tables_of(text: str) -> list[list[str]]:
    """The tables of a page: runs of lines that begin with a |, outside of code."""
    tables, previous = [], ""
    for line in FENCE.sub("", text).splitlines():
        if line.startswith("|"):
            if not previous.startswith("|"):
                tables.append([])
            tables[-1].append(line)
        previous = line
    return tables


def cells(row: str) -> list[str]:
    """The cells of a row. A | in code parts cells too, unless it is escaped."""
    return re.split(r"(?<!\\)\|", row.strip())[1:-1]


@each_page()
def test_tables_are_well_formed(page):
    for table in tables_of(page.read_text()):
        assert len(table) >= 3, table[0]
        assert all(re.fullmatch(r" ?:?-+:? ?", cell) for cell in cells(table[1])), table[1]
        for row in table:
            assert row.rstrip().endswith("|"), row
            assert len(cells(row)) == len(cells(table[0])), row


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@each_page()
def test_links_inside_the_repository_resolve(page):
    text = INLINE.sub("", FENCE.sub("", page.read_text()))
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


# --- the map and the imports ----------------------------------------------------------------------


def map_of_the_readme() -> dict[str, str]:
    """{file or folder: minutes} from the table of the map."""
    table = README.read_text().split("## Map")[1].split("\n## ")[0]
    rows = [cells(line) for line in table.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): row[1].strip() for row in rows}


def test_the_map_names_what_is_there():
    files = {path.name for path in ROOT.glob("*.py")} | {"ablate.sh"}
    # runs/ is made by the first run. Names that begin with . or _ belong to tools.
    folders = {
        f"{path.name}/" for path in ROOT.iterdir()
        if path.is_dir() and path.name[0] not in "._" and path.name != "runs"
    }  # fmt: skip
    assert set(map_of_the_readme()) == files | folders


def test_the_minutes_of_the_map_are_honest():
    for name, minutes in map_of_the_readme().items():
        if name.endswith(".py"):
            lines = len((ROOT / name).read_text().splitlines())
            assert lines / 35 <= int(minutes) <= lines / 20, (name, lines, minutes)


# --- the lecture and the tables of code -----------------------------------------------------------

MODULES = "bandit|evaluate|rollout|tabular|report|probe|intervals"
NAME = re.compile(rf"`((?:lab\.|infra\.)?(?:{MODULES})\.(?!py\b)\w+)`")


def description(name: str) -> str:
    """What stands in the code about module.name: a docstring, or the comment above a table."""
    module, _, thing = name.rpartition(".")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == thing:
            about = ast.get_docstring(node)
            assert about, f"{name} has no docstring"
            return about
        if isinstance(node, ast.Assign) and node.targets[0].id == thing:
            above = source.splitlines()[: node.lineno - 1]
            comment = []
            while above and above[-1].startswith("#"):
                comment.insert(0, above.pop())
            return "\n".join(comment)
    raise AssertionError(f"the lecture names {name}, which does not exist")


def test_every_equation_has_a_function_that_names_it_back():
    lecture = LECTURE.read_text()
    numbers = re.findall(r"\\tag\{(\d+)\}", lecture)
    assert numbers == [str(number) for number in range(1, 12)]
    named_back = set()
    for name in sorted(set(NAME.findall(lecture))):
        named_back |= set(re.findall(r"[Ee]quation \((\d+)\)", description(name)))
    assert named_back >= set(numbers), set(numbers) - named_back


def test_the_lines_from_the_baseline_to_grpo_are_in_the_code():
    source = (ROOT / "bandit.py").read_text() + (ROOT / "train.py").read_text()
    (table,) = [
        table for table in tables_of(LECTURE.read_text()) if table[0].startswith("| step | flag")
    ]
    for row in table[2:]:
        line = cells(row)[2].strip(" `")
        assert line in source, line


def test_every_planned_advantage_is_translated_for_other_engines():
    """Those of the plan in ablate.sh. A new row of ADVANTAGES needs no translation."""
    text = (ROOT / "docs" / "engines.md").read_text()
    planned = set(re.findall(r"--advantage ([\w+-]+)", (ROOT / "ablate.sh").read_text()))
    assert len(planned) > 10
    for name in planned:
        assert f"`{name}`" in text or f"--advantage {name}`" in text, name
