"""Build the documentation as a site: `pip install -c constraints.txt '.[docs]' && python docs/site/build.py`.

Neither building nor reading build/site/index.html needs a network. Pages link to files of the repository as they lie there, for
instance `../recipes/minimal.py`; the site is complete by itself, so it shows each of these files on a page of its own.
"""

from __future__ import annotations

import html
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r"(?P<code>^```.*?^```)|\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)", re.MULTILINE | re.DOTALL)
"""A link to a file, or a block of code, in which nothing is one."""
PIPE_IN_CODE = re.compile(r"`[^`\n]*\\\|[^`\n]*`")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".json": "json"}
COPIED = {".csv", ".html", ".png"}
NOT_SEARCHED = "---\nsearch: {exclude: true}\n---\n\n"


def targets(text: str, path: str) -> Iterator[str]:
    """What the links of a page lead to; paths of files are relative to the repository."""
    for match in LINK.finditer(text):
        if match["target"]:
            yield posixpath.normpath(posixpath.join(posixpath.dirname(path), match["target"]))


def place(path: str) -> str:
    """The file in the folder of pages that shows a file of the repository."""
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    if Path(path).suffix in COPIED:  # apart: report.html would stand where report.md is built
        return f"files/{path}"
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def source_of(path: str) -> str:
    """The text of a file of the repository; of a notebook as Markdown."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return notebook_as_markdown(json.loads(text)) if path.endswith(".ipynb") else text


def notebook_as_markdown(notebook: dict[str, Any]) -> str:
    """The cells of a notebook, with the outputs that it holds."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else _fenced(source, "python"))
        parts += [_output(output) for output in cell.get("outputs", ())]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    """What a cell shows: a table or a figure as HTML, anything else as text."""
    data = {kind: "".join(value) for kind, value in output.get("data", {"text/plain": output.get("text", "")}).items()}
    if "image/png" in data:
        words = html.escape(data.get("text/plain", ""))
        return f'<img alt="{words}" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "text/html" in data:
        return "\n".join(line for line in data["text/html"].splitlines() if line.strip())
    return _fenced(data["text/plain"], "text")


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def as_page(path: str) -> str:
    """A file of the repository as a page, whose links lead to other pages."""
    text = source_of(path)
    if not path.endswith((".md", ".ipynb")):
        return f"{NOT_SEARCHED}# {path}\n\n```{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}```\n"
    here = posixpath.dirname(place(path))

    def turned(match: re.Match[str]) -> str:
        if not match["target"]:
            return match[0]
        (target,) = targets(match[0], path)
        known = (ROOT / target).is_file()
        return f"]({posixpath.relpath(place(target), here or '.')}{match['anchor'] or ''})" if known else match[0]

    # in a table GitHub wants a bar in code behind a backslash, which Python's Markdown would show
    text = PIPE_IN_CODE.sub(lambda match: match[0].replace("\\|", "|"), LINK.sub(turned, text))
    return text if path.startswith("docs/") else NOT_SEARCHED + text


def stage(folder: Path) -> None:
    """Write the pages, and all that they link to, into folder/docs, and the settings of MkDocs beside it."""
    shutil.rmtree(folder / "docs", ignore_errors=True)
    own = shutil.ignore_patterns("*.py", "mkdocs.yml", "__pycache__", ".ipynb_checkpoints")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=own)
    shutil.copy(ROOT / "docs" / "site" / "mkdocs.yml", folder)
    pages = [path for ending in ("*.md", "*.ipynb") for path in (ROOT / "docs").rglob(ending)]
    waiting = [path.relative_to(ROOT).as_posix() for path in pages if ".ipynb_checkpoints" not in path.parts]
    done = set(waiting)
    while waiting:
        path = waiting.pop()
        page = folder / "docs" / place(path)
        page.parent.mkdir(parents=True, exist_ok=True)
        if Path(path).suffix in COPIED:
            shutil.copy(ROOT / path, page)
            continue
        page.write_text(as_page(path), encoding="utf-8")
        if path.endswith((".md", ".ipynb")):
            found = {target for target in targets(source_of(path), path) if (ROOT / target).is_file()}
            waiting += sorted(found - done)
            done |= found


def build(folder: Path) -> int:
    """Build folder/site; any warning, such as a link to nothing, is an error. Returns the exit code of MkDocs."""
    stage(folder)
    settings = str(folder / "mkdocs.yml")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        settings,
    ]  # --quiet would hide warnings from --strict
    return subprocess.run(command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build"))
