"""Text for people: numbers as they are read, and control characters made visible. Knows neither screen nor page."""

import math
import os
import re
import unicodedata
from collections.abc import Sequence

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's kinds of characters that act instead of showing: controls, formats (bidi), surrogates, further line ends."""
UNKNOWN = "–"
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
"""Ends of the names of environment variables whose values are nobody's business."""
SHORTEST_SECRET = 6


def visible(text: str) -> str:
    """The text with characters of the kinds HIDDEN as escapes; line breaks and tabs stay."""
    return "\n".join(line if line.isprintable() else _without_hidden(line) for line in text.split("\n"))


def _without_hidden(text: str) -> str:
    return "".join(c if c == "\t" or unicodedata.category(c) not in HIDDEN else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: str) -> str:
    """The text on one line, every run of white space as one space."""
    return " ".join(visible(text).split())


def in_millions(parameters: int) -> str:
    """The size of a model: 494 million parameters, 0.87 million parameters."""
    millions = parameters / 1e6
    return f"{millions:,.0f} million parameters" if millions >= 10 else f"{millions:.2g} million parameters"


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage, without its sign: 0.125 is 12.5."""
    return f"{100 * share:.{digits}f}" if math.isfinite(share) else UNKNOWN


def signed(difference: float) -> str:
    """A difference of shares in points: 0.125 is +12.5, and a difference that rounds to zero is +0.0."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}" if math.isfinite(difference) else UNKNOWN


def points(difference: float) -> str:
    """A size in points: 0.125 is 12.5 points."""
    return f"{percent(difference)} points" if math.isfinite(difference) else "unknown"


def signed_points(difference: float) -> str:
    """A difference in points: 0.125 is +12.5 points."""
    return f"{signed(difference)} points" if math.isfinite(difference) else "unknown"


def counted(n: int, noun: str) -> str:
    """A number of things: 1 seed, 2 seeds."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def turn_titles(roles: Sequence[str], rewards: Sequence[float | None] = ()) -> list[str]:
    """Titles of all that was said in an episode: `policy, turn 2, reward 0.25` for the second turn of the role assistant, and any
    other role by its name. `rewards` are those of the first turns, None where a turn has none.
    """
    titles, turn = [], 0
    for role in roles:
        if role != "assistant":
            titles.append(one_line(role) or UNKNOWN)
            continue
        reward = rewards[turn] if turn < len(rewards) else None
        turn += 1
        titles.append(f"policy, turn {turn}" + ("" if reward is None else f", reward {reward:.3g}"))
    return titles


def duration(seconds: float) -> str:
    """A time in at most six characters: 45s, 12m30s, 3h05m, 4d06h."""
    whole = round(seconds)
    for unit, part, size in (("d", "h", 86400), ("h", "m", 3600), ("m", "s", 60)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size * (24 if unit == 'd' else 60) // size:02d}{part}"
    return f"{whole}s"


def time_taken(steps: int, seconds: float) -> str:
    """The time of a run's steps: 30 steps in 21s, 0.70 s each without evaluations."""
    each = seconds / max(1, steps)
    return f"{counted(steps, 'step')} in {duration(seconds)}, {each:,.2f} s each without evaluations"


def without_secrets(text: str) -> str:
    """An error's words on one line, without keys and passwords that the environment or an address in it holds."""
    text = re.sub(r"//[^/@\s]+@", "//", " ".join(text.split()))
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, f"${name}")
    return text[:300]
