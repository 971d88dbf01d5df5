"""Build the documentation as a site: `pip install -c constraints.txt '.[docs]' && python docs/site/build.py`.

Neither building nor reading build/site/index.html needs a network. Pages link to files of the repository as they lie there, for
instance `../recipes/minimal.py`; the site is complete by itself, so it shows each of these files on a page of its own.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
        return path.removeprefix("docs/")
    if Path(path).suffix in COPIED:  # apart: report.html would stand where report.md is built
        return f"files/{path}"
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def as_page(path: str) -> str:
    """A file of the repository as a page, whose links lead to other pages."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".md"):
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
    shutil.copytree(
        ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("build.py", "mkdocs.yml", "__pycache__")
    )
    shutil.copy(ROOT / "docs" / "site" / "mkdocs.yml", folder)
    waiting = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    done = set(waiting)
    while waiting:
        path = waiting.pop()
        page = folder / "docs" / place(path)
        page.parent.mkdir(parents=True, exist_ok=True)
        if Path(path).suffix in COPIED:
            shutil.copy(ROOT / path, page)
            continue
        page.write_text(as_page(path), encoding="utf-8")
        if path.endswith(".md"):
            found = {
                target
                for target in targets((ROOT / path).read_text(encoding="utf-8"), path)
                if (ROOT / target).is_file()
            }
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
