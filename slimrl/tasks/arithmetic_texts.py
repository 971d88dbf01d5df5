"""The words of the built-in task: names, things, and one entry per kind of reasoning step.

A problem is a chain: a holder has some things, and every step changes the count or passes on to another holder.
In a text, {a} is the present holder, {b} somebody else, {n} the step's number, {things} what is counted.
"""

from dataclasses import dataclass
from typing import Literal

Operator = Literal["+", "-", "*", "/"]

NAMES = (
    "Ada", "Amy", "Ann", "Ben", "Bob", "Carl", "Dan", "Dora", "Ella", "Emma", "Eric", "Eva", "Finn", "Fred", "Gina",
    "Hana", "Hugo", "Ian", "Ida", "Ivan", "Jack", "Jane", "Jin", "Joe", "Kate", "Ken", "Leo", "Lily", "Lina", "Lisa",
    "Luke", "Max", "Mia", "Mina", "Nina", "Noah", "Omar", "Paul", "Rosa", "Sam", "Tara", "Tom", "Vera", "Zoe",
)  # fmt: skip

THINGS = (
    "apples", "balls", "beads", "books", "buttons", "cakes", "candles", "cards", "coins", "cookies", "eggs", "flowers",
    "lemons", "marbles", "nuts", "pears", "pencils", "pens", "plums", "posters", "rings", "seeds", "shells", "stamps",
    "stickers", "stones", "toys",
)  # fmt: skip

STARTS = (
    "{a} has {n} {things}.",
    "{a} starts with {n} {things}.",
    "{a} collects {n} {things}.",
    "{a} buys {n} {things}.",
)


@dataclass(frozen=True)
class Kind:
    """One way to say one operation: result = value `operator` n."""

    name: str
    operator: Operator
    texts: tuple[str, ...]
    misread: tuple[Operator, ...]
    """Operators that a hasty reader may take it for, most tempting first; the number stays the same."""
    number: int = 0
    """The number that the words fix ("half", "twice"); 0: drawn."""
    passes_on: bool = False
    """The count is then {b}'s."""
    question: str = ""
    """The question, if the kind has its own; such a kind can only come last."""


OPENINGS: tuple[Kind, ...] = (
    Kind("bags", "*", ("{a} has {m} bags with {n} {things} in each.", "{a} buys {m} boxes of {n} {things}."), ("+",)),
)
"""Openings that are a step by themselves: {m} `operator` {n}."""

KINDS: tuple[Kind, ...] = (
    Kind("gain", "+", ("{a} finds {n} more.", "Then {a} buys {n} more.", "{a} makes {n} more."), ("-",)),
    Kind("given", "+", ("{b} gives {n} more to {a}.", "{a} gets {n} more from {b}."), ("-",)),
    Kind("give", "-", ("{a} gives {n} of them to {b}.", "{b} takes {n} from {a}."), ("+",)),
    Kind("lose", "-", ("{a} loses {n} of them.", "Then {a} sells {n} of them."), ("+",)),
    Kind("halve", "/", ("{a} gives half of them to {b}.", "{a} loses half of them."), ("*", "-"), number=2),
    Kind("split", "/", ("{a} shares them equally among {n} bags and keeps one bag.",), ("-", "*")),
    Kind("double", "*", ("{b} gives {a} as many again.", "Later {a} has twice as many."), ("+",), number=2),
    Kind("grow", "*", ("Later {a} has {n} times as many.",), ("+",)),
    Kind("more", "+", ("{b} has {n} more than {a}.",), ("-",), passes_on=True),
    Kind("fewer", "-", ("{b} has {n} fewer than {a}.",), ("+",), passes_on=True),
    Kind("twice", "*", ("{b} has twice as many as {a}.",), ("/", "+"), number=2, passes_on=True),
    Kind("times", "*", ("{b} has {n} times as many as {a}.",), ("/", "+"), passes_on=True),
    Kind("half", "/", ("{b} has half as many as {a}.",), ("*", "-"), number=2, passes_on=True),
    Kind("leads", "-", ("So {a} has {n} more than {b}.",), ("+",), passes_on=True),
    Kind("trails", "+", ("So {a} has {n} fewer than {b}.",), ("-",), passes_on=True),
    Kind("doubles", "/", ("So {a} has twice as many as {b}.",), ("*", "-"), number=2, passes_on=True),
    Kind(
        "together", "+", ("{b} has {n} {things}.",), ("-",),
        question="How many {things} do {a} and {b} have together?",
    ),
    Kind(
        "apart", "-", ("{b} has {n} {things}.",), ("+",),
        question="How many more {things} does {a} have than {b}?",
    ),
)  # fmt: skip

QUESTION = "How many {things} does {a} have now?"
QUESTION_PASSED_ON = "How many {things} does {a} have?"
