"""The templates of the pages: escaping, control characters made visible, nothing undefined."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from slimrl.text import UNKNOWN, visible

LONGEST_TEXT = 3000
"""Characters of a completion on a page."""
MOST = 20_000
"""Characters of any other text on it."""


def page_template(name: str) -> Template:
    """A template of this folder. Whatever it fills in is text, except for markup of our own."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("slimrl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"unknown": UNKNOWN, "shortened": shortened}
    return environment


def _shown(value: Any) -> Any:
    """A value of the page: plain text is bounded, with control characters made visible; our own markup is of another type."""
    return visible(shortened(value, MOST)) if type(value) is str else value


def shortened(text: str, most: int = LONGEST_TEXT) -> str:
    """The first characters of a text, and how many more there are."""
    rest = len(text) - most
    return text if rest <= 0 else f"{text[:most]}\n[… {rest:,} more characters]"
