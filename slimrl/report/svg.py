"""Figures as SVG elements of a page, in the page's own colours and fonts.

Every colour is drawn as a placeholder that no figure would use and then replaced by a CSS variable, so a figure follows its
page from light to dark.
"""

from __future__ import annotations

import io
import re
import warnings

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from slimrl.text import visible

INK, ACCENT = "#010100", "#010101"
COLOURS = {
    INK: "currentColor", ACCENT: "var(--accent)", "#010102": "var(--better)", "#010103": "var(--worse)", "#010104": "var(--same)",
    "#010105": "var(--undecided)", "#010106": "var(--identical)", "#010107": "var(--line-2)", "#010108": "var(--line-3)",
    "#010109": "var(--line-4)",
}  # fmt: skip
"""The page's colours by placeholder."""
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "slimrl", "font.size": 8.5, "text.parse_math": False, "text.color": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "axes.unicode_minus": False, "xtick.color": INK, "ytick.color": INK, "xtick.bottom": False, "ytick.left": False,
    "lines.linewidth": 1.4, "lines.markersize": 4.5,
}  # fmt: skip
"""Settings of matplotlib for all figures."""
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def as_svg(figure: Figure, prefix: str, spoken: str) -> Markup:
    """A figure as an element of the page, without header and metadata, with names of its own and the page's colours."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # the page's fonts draw the text, so matplotlib's need not have its characters
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", buffer.getvalue(), count=1, flags=re.DOTALL)
    _, _, body = body[body.index("<svg") :].partition(">")
    body = re.sub(r"<[^>]*>\s*", lambda tag: _adapted(tag[0], prefix), body)
    width, height = (72 * inches for inches in figure.get_size_inches())
    label = escape(visible(spoken))
    return Markup(f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{body.strip()}')


def _adapted(tag: str, prefix: str) -> str:
    """A tag, without text, with the page's colours and names of the figure's own."""
    if tag.startswith("<g "):
        tag = re.sub(r' id="[^"]*"', "", tag)
    tag = re.sub(r' id="', f' id="{prefix}-', tag)
    tag = tag.replace("url(#", f"url(#{prefix}-").replace('xlink:href="#', f'href="#{prefix}-')
    tag = re.sub(r" font-family: [^;]*;", "", tag)
    tag = re.sub(r"#0101[0-9a-f]{2}", lambda colour: COLOURS[colour[0]], tag)
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
    return " ".join(tag.split())
