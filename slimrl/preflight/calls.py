"""The calls of tools in a probe of episodes: those that failed, in sentences that say what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from slimrl.records import Group
from slimrl.text import counted

NEARLY_ALL = 0.9


def call_warnings(groups: Sequence[Group]) -> list[str]:
    """A sentence on each tool whose calls all raised an error, on calls that cannot be read, and where nothing is called."""
    played = [rollout.calls for group in groups for rollout in group.rollouts if rollout.calls is not None]
    if not played:
        return []
    calls = [call for episode in played for call in episode]
    if not calls:
        return [
            f"none of {counted(len(played), 'episode')} calls a tool; say in task.instruction when to call one, or warm-start "
            "with slimrl sft on episodes that do (docs/environments.md)"
        ]
    found = []
    for tool in sorted({call.tool for call in calls if call.tool}):
        errors = [call.error for call in calls if call.tool == tool]
        if all(errors):
            each = f"each of {len(errors)} calls" if len(errors) > 1 else "its only call"
            found.append(
                f"the tool {tool} failed in {each}: it {_most_frequent(errors)}; correct it, or let it answer wrong "
                "arguments with words that the policy can act on"
            )
    malformed = [call.error for call in calls if not call.tool]
    if len(malformed) >= NEARLY_ALL * len(calls):
        found.append(
            f"{len(malformed)} of {counted(len(calls), 'call')} of tools could not be carried out (most often: "
            f"{_most_frequent(malformed)}); warm-start with slimrl sft on episodes with calls, or describe the tools otherwise "
            "(environment.tool_prompt)"
        )
    return found


def _most_frequent(errors: Sequence[str]) -> str:
    ((error, _),) = Counter(errors).most_common(1)
    return error
