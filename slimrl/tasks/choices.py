"""The options of a multiple-choice question: their text below the question, and the right one's letter."""

import re
import string

from slimrl.tasks.forms import choice
from slimrl.tasks.rows import Row, Spelled

LETTERS = string.ascii_uppercase
_LABEL = re.compile(r"\s*\(?[A-Za-z0-9][).:]\s*")


def options(row: Row, field: str) -> tuple[list[str], list[str]]:
    """(labels, texts) of a list of texts, of a list of {label, text}, of lists by `label` and `text`, and of texts by label.

    Labels that the data does not give are empty. Refuses a row with fewer than two options, or more than there are letters.
    """
    value = row.at(field)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, labels = value["text"], value.get("label", value.get("labels", []))
    elif isinstance(value, dict):
        texts, labels = [*value.values()], [*value]
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        texts, labels = [item.get("text") for item in value], [item.get("label", "") for item in value]
    else:
        texts, labels = value, []
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(LETTERS):
        row.fail(f"field {field!r} must be a list of 2 to {len(LETTERS)} options; correct it or remove the row")
    written = [_text(row, field, text) for text in texts]
    names = [_text(row, field, label, blank=True) for label in labels] if isinstance(labels, list) else []
    if not names and all(_LABEL.match(text) for text in written):  # ["A) 21", "B) 22"]
        names = [text.strip(" (")[0] for text in written]
        written = [_LABEL.sub("", text, count=1) for text in written]
    return names if len(names) == len(written) else [""] * len(written), written


def listed(texts: list[str]) -> str:
    """The options as lines with letters, as they stand below the question."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))


def right_option(given: str, labels: list[str], texts: list[str], *, is_number: bool) -> int | None:
    """The place of the right option, given by its label, its text, its letter, or its number, counted from 0; None for none.

    What the data writes as a number is not looked for among the texts.
    """
    given, letter = given.strip(), choice(given)
    if given in labels:
        return labels.index(given)
    if not is_number and given in texts:
        return texts.index(given)
    if letter and letter in LETTERS[: len(texts)]:
        return LETTERS.index(letter)
    return int(given) if re.fullmatch("[0-9]{1,2}", given) and int(given) < len(texts) else None


def _text(row: Row, field: str, value: object, *, blank: bool = False) -> str:
    text = value.text if isinstance(value, Spelled) else value
    if not isinstance(text, str) or not (blank or text.strip()):
        row.fail(f"field {field!r} has an option that is no text; correct it or remove the row")
    return text.strip()
