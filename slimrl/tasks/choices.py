"""The options of a multiple-choice question: their text below the question, and the right one's letter."""

import re
import string
from collections.abc import Iterable
from typing import Literal, NoReturn

from slimrl.records import Answer, right_answers
from slimrl.tasks.forms import choice
from slimrl.tasks.rows import MISSING, Row, RowError, Spelled

LETTERS = string.ascii_uppercase
Counted = Literal["", "from 0", "from 1"]
YES_NO = (("yes", "no"), ("true", "false"))
"""Answers that are options themselves, where the rows have no others."""
_LINE = re.compile(r"^\s*\(?[A-Za-z][).:]\s*\S", re.MULTILINE)
"""An option on a line of its own, after its letter."""
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


def yes_or_no(values: Iterable[object], most: float) -> tuple[str, ...]:
    """The pair of YES_NO of which at least this share of a column's answers are; empty where there is none.

    A boolean is a word of either pair, and of the first where no word decides.
    """
    given = [value for value in values if value not in (MISSING, None, "")]
    shares = [sum(isinstance(one, bool) or _word(one) in pair for one in given) for pair in YES_NO]
    best = max(range(len(YES_NO)), key=shares.__getitem__)
    return YES_NO[best] if given and shares[best] >= most * len(given) else ()


def lists_options(question: object) -> bool:
    """True for a question that has lettered lines of its own."""
    return isinstance(question, str) and len(_LINE.findall(question)) > 1


def word_option(row: Row, given: str, pair: tuple[str, ...]) -> str:
    """The letter of the answer among the options of `yes_or_no`; refuses a row with another answer, and one with both."""
    found = {pair.index(word) for word in map(_word, right_answers(given)) if word in pair}
    if len(found) > 1:
        row.fail(
            f"the answers are both {pair[0]} and {pair[1]}, which are all the options; correct it or remove the row"
        )
    if not found:
        row.fail(f"the answer {given[:60]!r} is neither {pair[0]} nor {pair[1]}; correct it or remove the row")
    return LETTERS[found.pop()]


def _word(value: object) -> str:
    return value.strip().casefold() if isinstance(value, str) else ""


def right_options(row: Row, field: str, given: str, *, choices: str, labels: list[str], texts: list[str]) -> str:
    """The letter of the right option, or an Answer of several letters; refuses a row whose answer names none.

    Args:
        field: column of the answer, whose value is `given` as a text.
        choices: column of the options, which are `labels` and `texts`.
    """
    value = row.at(field)
    if isinstance(value, bool):  # yes and true are two spellings of one answer
        plain = [text.casefold() for text in texts]
        found = [plain.index(word) for word in right_answers(given) if word in plain][:1]
        return LETTERS[found[0]] if found else _none(row, given, texts)
    numbers = {item.text for item in (value if isinstance(value, list) else [value]) if isinstance(item, Spelled)}
    by_index = not _are_numbers(row.at(choices))
    letters = [
        _right_option(row, one, labels, texts, is_index=by_index and one in numbers) for one in right_answers(given)
    ]
    first, *others = dict.fromkeys(letters)
    return Answer(first, others) if others else first


def counted(rows: Iterable[Row], field: str, choices: str) -> Counted:
    """The reading of a column whose every answer is a number: an index of its options counted from 0, or from 1.

    A digit may be an option's index and another option's text. It is an index in every row where in some row it can be nothing
    else; empty where no row tells, and where some answer is no index. A row that is bad in any reading tells nothing.
    """
    proved = from_one = zero = text_zero = False
    for row in rows:
        try:
            labels, texts = options(row, choices)
        except RowError:
            continue
        if _are_numbers(row.at(choices)):
            return ""
        value = row.at(field)
        for item in value if isinstance(value, list) else [value]:
            if item in (MISSING, None, ""):
                continue
            if not isinstance(item, Spelled | str):
                return ""
            text = (item.text if isinstance(item, Spelled) else item).strip()
            n, is_text = len(texts), text in texts
            index = _index(text)
            if text and (text in labels or choice(text) or (is_text and (index is None or index >= n))):
                return ""
            if index is None or index > n:
                continue
            from_one |= index == n
            zero |= index == 0 and not is_text
            text_zero |= index == 0 and is_text
            proved |= not is_text and index < n
    if not proved or (from_one and text_zero and not zero):
        return ""
    return "from 1" if from_one and not zero else "from 0"


def counted_options(row: Row, given: str, texts: list[str], how: Counted) -> str:
    """The letter of the right option by its index, or an Answer of several letters; refuses indexes that are counted from 1."""
    if how == "from 1":
        row.fail(
            f"the answer {given[:60]!r} is an index that counts from 1, since some row has the number of its options; write "
            "letters, or count from 0"
        )
    indexes = ((one, _index(one.strip())) for one in right_answers(given))
    first, *others = dict.fromkeys(
        _none(row, one, texts) if index is None or index >= len(texts) else LETTERS[index] for one, index in indexes
    )
    return Answer(first, others) if others else first


def _right_option(row: Row, given: str, labels: list[str], texts: list[str], *, is_index: bool) -> str:
    """The letter of the option that is given by its label, its text, its letter, or its number, counted from 0.

    With `is_index` the answer is a number among options that are none: an index, unless it is also another option's text.
    """
    written, letter = given.strip(), choice(given)
    if written in labels:
        return LETTERS[labels.index(written)]
    index = number if (number := _index(written)) is not None and number < len(texts) else None
    if written in texts:
        place = texts.index(written)
        if is_index and index not in (None, place):
            row.fail(
                f"the answer {written} is an option and also the index of another; write the right option's letter"
            )
        return LETTERS[place]
    if letter and letter in LETTERS[: len(texts)]:
        return letter
    return _none(row, given, texts) if index is None else LETTERS[index]


def _index(written: str) -> int | None:
    return int(written) if re.fullmatch("[0-9]{1,2}", written) else None


def _none(row: Row, given: str, texts: list[str]) -> NoReturn:
    row.fail(f"the answer {given[:60]!r} is none of the {len(texts)} options; correct it or remove the row")


def _are_numbers(value: object) -> bool:
    items = value.get("text", [*value.values()]) if isinstance(value, dict) else value
    texts = [item.get("text") if isinstance(item, dict) else item for item in items] if isinstance(items, list) else []
    return any(isinstance(text, Spelled) for text in texts)


def _text(row: Row, field: str, value: object, *, blank: bool = False) -> str:
    text = value.text if isinstance(value, Spelled) else value
    if not isinstance(text, str) or not (blank or text.strip()):
        row.fail(f"field {field!r} has an option that is no text; correct it or remove the row")
    return text.strip()
