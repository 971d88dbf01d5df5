"""Episodes on a page: everything that was said behind the prompt, turn by turn, with what is known of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from slimrl.records import Turns
from slimrl.report.page import LONGEST_TEXT
from slimrl.text import turn_titles

NOTHING = Markup()
MOST_TURNS = 60
"""Of an episode that are shown."""
LONGEST_TITLE = 200


@dataclass(frozen=True)
class Turn:
    """A turn of the policy, or a message of the environment."""

    title: str
    """Who speaks: `policy, turn 2, reward 0.25`, `tool`, `user`."""
    text: str
    given: bool
    """The environment wrote it."""
    tokens: Markup = NOTHING
    """Empty where their numbers are not stored."""


def turns_said(said: Any, rewards: Any = (), finish: Any = "", *, most: int = LONGEST_TEXT) -> tuple[Turn, ...]:
    """The turns of an episode as texts of at most `most` characters together; empty for what is no episode.

    `said` are role and content of each message and `rewards` those of the policy's turns, as a file has them; whatever is of
    another form counts as missing.
    """
    messages = read_said(said)
    if not messages:
        return ()
    titles = turn_titles([role[:LONGEST_TITLE] for role, _ in messages], read_rewards(rewards))
    if finish == "length":
        last = max((n for n, (role, _) in enumerate(messages) if role == "assistant"), default=-1)
        titles[last] += ", cut off here"
    found, room = [], most
    for title, (role, text) in zip(titles[:MOST_TURNS], messages, strict=False):
        shown = text if len(text) <= room else f"{text[:room]}\n[… {len(text) - room:,} more characters]"
        found.append(Turn(title, shown, role != "assistant"))
        room = max(0, room - len(text))
    if (more := len(messages) - MOST_TURNS) > 0:
        found.append(Turn(f"{more} more turns and messages", "", True))
    return tuple(found)


def read_said(said: Any) -> Turns:
    """Role and content of each message of a stored row; empty for anything else."""
    pairs = [*said] if isinstance(said, list | tuple) else []
    texts = [pair for pair in pairs if isinstance(pair, list | tuple) and [*map(type, pair)] == [str, str]]
    return tuple((role, text) for role, text in texts) if len(texts) == len(pairs) else ()


def read_rewards(rewards: Any) -> list[float | None]:
    """The rewards of turns of a stored row; None for what is no number."""
    values = rewards if isinstance(rewards, list | tuple) else ()
    return [float(value) if type(value) in (int, float) and math.isfinite(value) else None for value in values]


def facts_of(row: Mapping[str, Any]) -> list[str]:
    """The score of a stored episode, where it is paid, and the numbers that its environment gave, by name."""
    logged, scores = row.get("logged"), row.get("scores")
    metrics = logged.get("environment") if isinstance(logged, dict) else None
    numbers = metrics.items() if isinstance(metrics, dict) else ()
    found = [(str(name), value) for name, value in numbers if type(value) in (int, float)]
    if isinstance(scores, dict) and "environment" in scores and type(row.get("environment_score")) in (int, float):
        found = [("score", row["environment_score"]), *found]
    return [f"{name} {value:.3g}" for name, value in found]


def said_by_run(said: Turns, rewards: Sequence[float | None]) -> list[tuple[str, str]]:
    """Title and text of an episode's runs of tokens: turns of the policy, and between two of them all messages as one."""
    titles = turn_titles([role[:LONGEST_TITLE] for role, _ in said], rewards)
    found: list[tuple[str, str]] = []
    for n, (role, text) in enumerate(said):
        if n and role != "assistant" and said[n - 1][0] != "assistant":
            before, texts = found.pop()
            found.append((f"{before}, {titles[n]}", f"{texts}\n{text}"))
        else:
            found.append((titles[n], text))
    return found
