"""Chat messages in data: the turns of a prompt, in the two spellings that data sets use."""

from itertools import pairwise

from slimrl.records import Turns
from slimrl.tasks.formats import are_messages
from slimrl.tasks.rows import Row, kind_of

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "model": "assistant",
}  # fmt: skip
"""Our name of a role by the names in use, ShareGPT's and Gemma's too."""


def read_turns(row: Row, field: str, *, episodes: bool = False) -> Turns:
    """The turns of a field that is a text, one turn of the user's, or a list of messages; of `episodes` those of tools too.

    Refuses the row for messages without text (images, calls of tools) and for a system message that is not the first.
    """
    value = row.at(field)
    if not are_messages(value):
        return (("user", row.text(field)),)
    assert isinstance(value, list)
    roles = {**ROLES, "tool": "tool"} if episodes else ROLES
    turns = tuple(_turn(row, f"{field}.{i}", message, roles) for i, message in enumerate(value))
    if "system" in [role for role, _ in turns[1:]]:
        row.fail(f"field {field!r} has a system message behind another message; put it first")
    return turns


def split_episode(row: Row, field: str, turns: Turns) -> tuple[Turns, Turns]:
    """The prompt of a conversation and the episode behind it, which begins with the assistant's first turn; all of it is prompt
    where it ends with the user's.

    Refuses the row for a tool's message in a prompt, for an episode that does not end with the assistant's turn, and for one
    with two of them in a row.
    """
    roles = [role for role, _ in turns]
    begin = roles.index("assistant") if "assistant" in roles and roles[-1] != "user" else len(roles)
    if "tool" in roles[:begin]:
        row.fail(f"field {field!r} has a message of a tool in the prompt, before a turn of the assistant's calls it")
    if "tool" in roles[-1:]:
        row.fail(
            f"field {field!r} ends with a message of a tool; add the assistant's turn behind it, or remove the row"
        )
    if ("assistant", "assistant") in pairwise(roles[begin:]):
        row.fail(
            f"field {field!r} has two turns of the assistant's in a row; join them, or add what was answered between"
        )
    return turns[:begin], turns[begin:]


def _turn(row: Row, field: str, message: dict[str, object], roles: dict[str, str]) -> tuple[str, str]:
    given = message.get("role", message.get("from"))
    role = roles.get(str(given))
    if role is None:
        further = ", and with environment.name tool" if given == "tool" else ""
        row.fail(f"field {field!r} has the role {str(given)[:60]!r}; the roles are system, user and assistant{further}")
    if message.get("tool_calls") or message.get("function_call"):
        row.fail(
            f"field {field!r} has calls apart from its text (tool_calls); write them into the content, in the form to learn "
            "(docs/environments.md)"
        )
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        content = "\n".join(str(part["text"]) for part in content)
    if not isinstance(content, str) or not content.strip():
        found = "empty" if isinstance(content, str) else kind_of(content)
        row.fail(f"the content of field {field!r} must be text, but is {found}; remove the row")
    return role, content


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)
