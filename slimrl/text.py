"""Text that a person reads, wherever it is shown: no screen, no page, no other module of the package."""

from __future__ import annotations

import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's kinds of characters that act instead of showing: controls, formats (bidi), surrogates, further line ends."""


def visible(text: str) -> str:
    """The text with characters of the kinds HIDDEN as escapes; line breaks and tabs stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in HIDDEN else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
