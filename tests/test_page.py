"""The pages: one file, no request, safe with any completion; in a browser the slider moves."""

import html
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import read_log

from lab import explain, page

NASTY = [
    "</script>", "<img src=x onerror=alert(1)>", "<!--", "\"'&amp;", "🙂", "\u2028", "\n", "\ufffd",
]  # fmt: skip


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and the text of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, text):
        if self.tags and self.tags[-1][0] == "script" and self.scripts:
            self.scripts[-1] += text


def content(steps: int = 2, pieces: list[str] = NASTY, scale: float = 1.0) -> dict:
    """The content of a page: one query whose completions are made of these pieces."""
    def attempt(step: int) -> dict:
        moved = [[text, -1.0, -1.0 + scale * step * (-1) ** i] for i, text in enumerate(pieces)]
        return {"query": 0, "right": step > 0, "note": NASTY[0], "tokens": moved}

    curve = {"last": 10, "accuracy": [[1, 0.2], [10, 0.8]],
             "sets": [{"name": name, "evaluations": [[0, 0.2, 0.1], [10, 0.9, 0.1]]}
                      for name in ("train", "test")]}  # fmt: skip
    return {
        "title": "".join(NASTY[:-1]), "notes": [NASTY[0]], "legend": NASTY[1], "curve": curve,
        "queries": [{"prompt": NASTY[0], "gold": NASTY[1]}],
        "steps": [{"round": 10 * i, "label": f"after round {10 * i}", "figures": NASTY[3],
                   "attempts": [attempt(i)]} for i in range(steps)],
    }  # fmt: skip


@pytest.fixture(scope="session")
def pages(tmp_path_factory, finished_run) -> dict[str, Path]:
    """Three pages: of lab.explain, of a run, and of completions that look like markup."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name}.html" for name in ("explain", "run", "nasty")}
    explain.main(["--html", str(paths["explain"])])
    page.main([str(finished_run), "--out", str(paths["run"])])
    page.write_page(paths["nasty"], content())
    return paths


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["explain", "run", "nasty"])
def test_a_page_is_one_file_that_asks_for_nothing(pages, name):
    text = pages[name].read_text(encoding="utf-8")
    parsed = Parsed(text)
    # What could load something, by its attributes or as a whole.
    for tag, attributes in parsed.tags:
        assert not attributes.keys() & {"src", "href", "srcset", "action", "data", "poster"}
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
    (policy,) = [a["content"] for _, a in parsed.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    template = page.TEMPLATE.read_text(encoding="utf-8")
    assert "http:" not in template and "https:" not in template and "url(" not in template
    assert "innerHTML" not in template and "insertAdjacent" not in template
    # Two scripts: the data, and the one of the template.
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert len(text.encode()) < 100_000


def test_any_completion_survives_as_text(pages):
    data, script = Parsed(pages["nasty"].read_text(encoding="utf-8")).scripts
    assert "<" not in data
    assert json.loads(data)["steps"][1]["attempts"][0]["tokens"][0][0] == "</script>"
    assert json.loads(data)["title"] == "".join(NASTY[:-1])
    assert script.strip().endswith("show(0);")


def test_a_long_run_stays_below_500_kb(tmp_path):
    long = content(steps=page.MOST_STEPS, pieces=["\N{SNOWMAN}" * 3] * 3000)
    for step in long["steps"]:
        step["attempts"] *= 4
        step["attempts"] = [dict(one) for one in step["attempts"]]
    page.write_page(tmp_path / "long.html", long)
    assert (tmp_path / "long.html").stat().st_size < 500_000


# --- what it shows --------------------------------------------------------------------------------


def test_a_run_shows_its_evaluations(finished_run):
    lines = [line for line in read_log(finished_run, "evals") if line["split"] == "test"]
    shown = page.page_of_run(finished_run)
    assert [step["round"] for step in shown["steps"]] == [0, 2, 4, 6]
    for step, line in zip(shown["steps"], lines, strict=True):
        assert f"{line['pass@1']:.3f}" in step["figures"]
        for attempt, sample in zip(step["attempts"], line["samples"], strict=True):
            texts, before, after = zip(*attempt["tokens"], strict=True)
            assert list(texts) == sample["tokens"]
            assert list(before) == sample["logprobs_base"]
            assert list(after) == sample["logprobs"]
    assert all(old == new for attempt in shown["steps"][0]["attempts"]
               for _, old, new in attempt["tokens"])  # fmt: skip
    test_set = shown["curve"]["sets"][1]["evaluations"]
    assert [point[:2] for point in test_set] == [[ln["round"], ln["pass@1"]] for ln in lines]


def test_an_explained_round_shows_the_step():
    args = explain.parse([])
    walked = explain.walk(args)
    (step,) = explain.content_of_page(args, walked)["steps"]
    for attempt, one in zip(step["attempts"], walked.attempts, strict=True):
        moved = sum(after - before for _, before, after in attempt["tokens"])
        assert moved == pytest.approx(one.change, abs=0.01)


def test_long_completions_and_many_evaluations_are_thinned_out():
    tokens = [[str(i), 0.0, 0.0] for i in range(100)]
    short = page.shorten(tokens, 9)
    assert [text for text, _, _ in short] == [*"012345", "… 91 tokens …", "97", "98", "99"]
    assert page.shorten(tokens, 100) == tokens
    thin = page.thin_out(list(range(1000)), 60)
    assert (len(thin), thin[0], thin[-1]) == (60, 0, 999)
    gaps = {b - a for a, b in zip(thin, thin[1:], strict=False)}
    assert gaps <= {16, 17}


def test_full_colour_is_for_nearly_the_largest_change():
    tokens = [["a", -1.0, -1.0 + i / 100] for i in range(101)]
    assert page.scale_of([{"tokens": tokens}]) == pytest.approx(0.95, abs=0.01)
    assert page.scale_of([{"tokens": [["a", -1.0, -1.0], ["…", None, None]]}]) == 1.0


def test_a_folder_without_a_run_gets_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="there is no evaluated run in"):
        page.main([str(tmp_path)])


# --- in a browser ---------------------------------------------------------------------------------

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
LISTEN = """<script>
  window.said = [];
  for (const name of ["log", "info", "warn", "error"]) console[name] = text => said.push(`${text}`);
  addEventListener("error", event => said.push(event.message));
  addEventListener("securitypolicyviolation", event => said.push(event.blockedURI));
</script>"""
PROBE = """<script>
  const slider = document.getElementById("slider");
  const text = id => document.getElementById(id).innerText;
  const first = [text("label"), text("queries")];
  slider.value = slider.max;
  slider.dispatchEvent(new Event("input"));
  const last = [text("label"), text("queries")];
  const token = document.querySelector(".token");
  token.focus();
  const readout = text("readout");
  token.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  const found = { said, first, last, readout, next: text("readout"), images: document.images.length,
    stops: document.querySelectorAll(".token[tabindex='0']").length,
    lines: document.querySelectorAll(".tokens").length, steps: Number(slider.max) + 1,
    wide: document.documentElement.scrollWidth > innerWidth,
    svg: getComputedStyle(document.getElementById("curve")).display };
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
</script>"""


def look(path: Path, folder: Path, width: int) -> dict:
    """What the probe finds in a page that headless Chromium shows at this width."""
    text = path.read_text(encoding="utf-8")
    probed = folder / f"{path.stem}-{width}.html"
    text = text.replace("<title>", LISTEN + "<title>").replace("</html>", PROBE + "</html>")
    probed.write_text(text, encoding="utf-8")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile",
        f"--window-size={width},900", "--dump-dom", probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    return json.loads(html.unescape(done.stdout.split('<pre id="result">')[1].split("</pre>")[0]))


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")
@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize("name", ["explain", "run", "nasty"])
def test_a_page_in_a_browser(pages, name, width, tmp_path):
    found = look(pages[name], tmp_path, width)
    assert found["said"] == []
    assert found["images"] == 0
    assert not found["wide"]
    assert found["stops"] == found["lines"] > 0
    assert "log-probability" in found["readout"] != found["next"]
    assert (found["svg"] == "none") == (name == "explain")
    if name == "explain":
        assert found["steps"] == 1
    else:
        assert found["steps"] > 1
        assert all(a != b for a, b in zip(found["first"], found["last"], strict=True))
    if name == "nasty":
        assert "<img src=x onerror=alert(1)>" in found["last"][1]
