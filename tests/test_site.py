"""The pages as a whole: every link leads somewhere, also in the site; the site builds without a warning; tables repeat what was measured."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.conftest import ROOT

DOCS = ROOT / "docs"
BUILD = DOCS / "site" / "build.py"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))
OF_DOCS = [*sorted(DOCS.rglob("*.md")), *NOTEBOOKS]
PAGES = [*sorted(ROOT.glob("*.md")), *OF_DOCS, ROOT / "benchmarks" / "README.md"]
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(page: Path) -> str:
    """A page, or the cells of a notebook that are text."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings as both GitHub and MkDocs make them, and those that stand in its text."""
    text = BLOCK.sub("", text_of(page))
    found = set(re.findall(r'<a id="([^"]+)">', text))
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = (
            unicodedata.normalize("NFKD", re.sub(r"`|\*|\[([^]]*)\]\([^)]*\)", r"\1", title))
            .encode("ascii", "ignore")
            .decode()
        )
        words = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        if re.sub(r"[\s-]+", "-", words) == words.replace(" ", "-"):
            found.add(words.replace(" ", "-"))
    return found


def broken(page: Path, text: str) -> set[str]:
    """Links of a page to no file or no heading; an address elsewhere is not looked up."""
    found = set()
    for target, anchor in LINK.findall(BLOCK.sub("", text)):
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            found.add(f"{target}#{anchor}")
    return found


@pytest.mark.parametrize("page", OF_DOCS, ids=relative)
def test_lists_and_tables_stand_after_an_empty_line(page: Path) -> None:
    """GitHub needs none; the site would show them as running text."""
    lines = BLOCK.sub("", text_of(page)).splitlines()
    begins = re.compile(r"- |\d+\. |\|")
    for before, line in itertools.pairwise(lines):
        assert not begins.match(line) or not before or before.startswith("  ") or begins.match(before), line
        assert not re.match(r" {1,3}[-*] ", line), f"a list in a list is indented by four: {line}"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """docs/site/build.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("site_build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, text_of(page)) == set()


FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`((?:slimrl|python3?|bash|sbatch|pip) [^`]+)`")
IN_THE_CLONE = re.compile(
    r"(?<![\w$/-])(?:\.\./)?(?:recipes|studies|benchmarks|tests|docs)/\S|-c constraints\.txt|pip install .*'?\.(?=\[|'|\s|$)"
)


def needs_the_clone(text: str) -> list[str]:
    """Commands of a page that name a file of the repository, which a wheel does not bring."""
    lines = [
        line.partition(" #")[0]
        for kind, block in FENCED.findall(text)
        if kind in ("", "bash")
        for line in block.splitlines()
    ]
    return [command for command in (*lines, *SPAN.findall(FENCED.sub("", text))) if IN_THE_CLONE.search(command)]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in ("CHANGELOG.md", "CONTRIBUTING.md")], ids=relative
)
def test_commands_work_without_a_clone_or_say_that_they_need_one(page: Path) -> None:
    """Recipes and studies go by their @name; what is in the repository alone stands on a page that says so."""
    text = page.read_text(encoding="utf-8")
    found = needs_the_clone(text)
    assert [command for command in found if command.startswith("slimrl ")] == []
    assert not found or "clone" in text, found


def test_a_command_that_needs_the_clone_is_found() -> None:
    page = "```\nslimrl train recipes/gsm8k.yaml\nslimrl train @gsm8k mine/mine.yaml\n```\n`python benchmarks/step.py` and `pip install '.[dev]'`"
    assert needs_the_clone(page) == [
        "slimrl train recipes/gsm8k.yaml",
        "python benchmarks/step.py",
        "pip install '.[dev]'",
    ]


@pytest.mark.parametrize(
    "link",
    ["[x](nothing.md)", "[x](data.md#nothing)", "[x](#nothing)", "[x](../docs)", "[a](data.md) [x](../slimrl/none.py)"],
)
def test_a_link_to_nothing_is_found(link: str) -> None:
    assert len(broken(DOCS / "rewards.md", link)) == 1
    assert (
        broken(
            DOCS / "rewards.md",
            "[x](data.md#columns), [y](#a-judge), [z](../README.md), [w](https://arxiv.org/abs/2402.03300)",
        )
        == set()
    )


def test_every_page_is_in_the_navigation() -> None:
    def pages(entries: list[object]) -> list[str]:
        return [
            page
            for entry in entries
            for value in entry.values()
            for page in (pages(value) if isinstance(value, list) else [value])
        ]  # type: ignore[attr-defined]

    listed = pages(yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(page.relative_to(DOCS).with_suffix(".md").as_posix() for page in OF_DOCS)


def test_staged_pages_link_to_each_other_and_to_files_of_the_repository(build: ModuleType, tmp_path: Path) -> None:
    build.stage(tmp_path)
    pages = sorted((tmp_path / "docs").rglob("*.md"))
    assert [page for page in pages if broken(page, page.read_text(encoding="utf-8"))] == []
    assert not [
        page
        for page in pages
        if re.search(r"\]\((?:\.\./)+(?:docs|slimrl|recipes|studies)/", BLOCK.sub("", page.read_text(encoding="utf-8")))
    ]
    minimal = (tmp_path / "docs" / "repository" / "recipes" / "minimal.py.md").read_text(encoding="utf-8")
    assert (ROOT / "recipes" / "minimal.py").read_text(encoding="utf-8") in minimal
    assert "(repository/recipes/minimal.py.md)" in (tmp_path / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert (tmp_path / "docs" / "files" / "studies" / "results" / "case-study" / "report.html").is_file()
    assert not [*(tmp_path / "docs" / "site").glob("*.py")]


def test_a_notebook_is_a_page_with_its_outputs(build: ModuleType, tmp_path: Path) -> None:
    build.stage(tmp_path)
    page = (tmp_path / "docs" / "first-steps.md").read_text(encoding="utf-8")
    assert "](repository/" not in page
    assert "(images/run-numbers.png)" in page
    assert "```python\nresult = slimrl.train(" in page
    assert page.index("result = slimrl.train(") < page.index("<th ") < page.index("<svg") < page.index("data:image/png")
    assert "(first-steps.md)" in (tmp_path / "docs" / "index.md").read_text(encoding="utf-8")
    assert (tmp_path / "docs" / "first-steps.ipynb").is_file(), "to download"
    cell = {"cell_type": "code", "source": ["1\n", "2"], "outputs": [{"data": {"text/html": ["<p>\n", "\n", "</p>"]}}]}
    shown = build.notebook_as_markdown({"cells": [cell, {"cell_type": "markdown", "source": "words"}]})
    assert shown == "```python\n1\n2\n```\n\n<p>\n</p>\n\nwords\n"


def test_the_site_builds_without_a_warning_and_asks_for_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    done = subprocess.run([sys.executable, str(BUILD), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "how-to" / "model.html").read_text(encoding="utf-8")
    assert 'src="../site/iframe-worker.js"' in page
    for file in (tmp_path / "site").rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//", text), file
    assert (tmp_path / "site" / "search" / "search_index.js").is_file()  # found from a disk, too


def test_a_page_that_links_to_nothing_fails_the_build(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    stage = build.stage

    def broken_stage(folder: Path) -> None:
        stage(folder)
        (folder / "docs" / "data.md").write_text("# Data\n\n[x](rewards.md#nothing)\n")

    monkeypatch.setattr(build, "stage", broken_stage)
    assert build.build(tmp_path) != 0


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize(
    ("folder", "heading", "seeds", "weight"),
    [
        ("case-study", "Which technique helps? The case study again, with seeds", 10, "1"),
        ("case-study-smollm2-135m", "The case study on a pretrained model", 5, "0.5"),
    ],
)
def test_the_case_study_s_table_is_that_of_its_report(folder: str, heading: str, seeds: int, weight: str) -> None:
    report = (ROOT / "studies" / "results" / folder / "report.md").read_text(encoding="utf-8")
    results = (DOCS / "results.md").read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = 0
    for line in re.findall(rf"^\| `\w+` \|.*/{seeds} \|$", report, re.MULTILINE):
        arm, _, verdict, difference, accuracy, holm, *_, tokens, _, _ = cells(line)
        name = {"base": "base (GRPO)", "soft_overlong": f"soft overlong (weight {weight})"}.get(
            arm.strip("`"), arm.strip("`").replace("_", " ")
        )
        row = next(cells(row) for row in results.splitlines() if row.startswith(f"| {name} |"))
        assert row[1] == accuracy
        assert row[5] == tokens.replace("×", " x")
        if difference != "–":
            assert row[2] == difference
            assert verdict.partition(" ")[2].rpartition(": ")[2] in row[4]
            assert row[3] in (holm, "")
        found += 1
    assert found == 11


def test_the_table_at_equal_tokens_is_that_of_its_report() -> None:
    report = (ROOT / "studies" / "results" / "dynamic-sampling-smollm2-135m" / "report.md").read_text(encoding="utf-8")
    results = (
        (DOCS / "results.md").read_text(encoding="utf-8").partition("**At equal tokens**")[2].partition("\n## ")[0]
    )
    rows = {cells(row)[0]: cells(row)[1:5] for row in results.splitlines() if row.startswith("| ")}
    steps = dict(re.findall(r"^\| `(\w+)` \| [^|]*× \| [^|]*× \| (\d+) \|", report, re.MULTILINE))
    found = [cells(line) for line in re.findall(r"^\| `\w+` \|.*/5 \|$", report, re.MULTILINE)]
    for arm, _, _, difference, accuracy, holm, *_ in found:
        name = arm.strip("`")
        ours = rows[name.replace("_", " ")]
        assert (ours[0], ours[3]) == (accuracy, steps[name])
        assert ours[1] == difference.replace("–", "")
        assert ours[2] in (holm, "")
    assert len(found) == 4


def test_the_readme_repeats_the_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = (DOCS / "results.md").read_text(encoding="utf-8")
    numbers = re.findall(r"[+-]\d+\.\d \[[^]]*\]", readme)
    assert len(numbers) == 10, "five of each model"
    for number in numbers:
        assert f"| {number} |" in results
    assert "| `slimrl train` (GRPO, seed 0) | 46.0 | 97.0 |" in results
    assert "goes from 46 to 97 %" in readme
