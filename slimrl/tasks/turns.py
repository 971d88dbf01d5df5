"""Chat messages in data: the turns of a prompt, in the two spellings that data sets use."""

from slimrl.records import Turns
from slimrl.tasks.formats import are_messages
from slimrl.tasks.rows import Row, kind_of

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "model": "assistant",
}  # fmt: skip
"""Our name of a role by the names in use, ShareGPT's and Gemma's too."""


def read_turns(row: Row, field: str) -> Turns:
    """The turns of a field that is a text, one turn of the user's, or a list of messages.

    Refuses the row for messages without text (images, calls of tools) and for a system message that is not the first.
    """
    value = row.at(field)
    if not are_messages(value):
        return (("user", row.text(field)),)
    assert isinstance(value, list)
    turns = tuple(_turn(row, f"{field}.{i}", message) for i, message in enumerate(value))
    if "system" in [role for role, _ in turns[1:]]:
        row.fail(f"field {field!r} has a system message behind another message; put it first")
    return turns


def _turn(row: Row, field: str, message: dict[str, object]) -> tuple[str, str]:
    given = message.get("role", message.get("from"))
    role = ROLES.get(str(given))
    if role is None:
        row.fail(f"field {field!r} has the role {str(given)[:60]!r}; the roles are system, user and assistant")
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        content = "\n".join(str(part["text"]) for part in content)
    if not isinstance(content, str) or not content.strip():
        found = "empty" if isinstance(content, str) else kind_of(content)
        row.fail(f"the content of field {field!r} must be text, but is {found}; remove the row")
    return role, content


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)
