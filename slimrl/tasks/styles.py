"""Forms of an answer: the instruction that asks for one, the reader of it, and the gold answer rendered in it.

Strict reading is hard to game: an answer counts only if the completion commits to it. A completion that holds the form
twice with different answers is not in the form, and an answer line followed by more text is not final. Every style reads
from the end of the thinking on (`slimrl/thinking.py`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from slimrl.terms import Checker
from slimrl.thinking import committed, ended, split

MARKERS = {"hashes": "####", "boxed": "\\boxed", "tags": "<SOLUTION>", "answer": "Answer:", "code": "```"}
"""The mark of an answer in each style, which an instruction that asks for the style holds too."""
ASKED = {
    "choice": ("the letter of the right option", "letter"),
    **dict.fromkeys(("exact", "regex", "none"), ("the final answer", "answer")),
}
"""The words for an answer in an instruction where it is no number, by the checker."""
MAX_ANSWER = 300  # characters of the longest answer

TAGS = ("<start_working_out>", "<end_working_out>", "<SOLUTION>", "</SOLUTION>")  # the case study's four tags, in order


@dataclass(frozen=True)
class Style:
    """One way to write an answer."""

    name: str
    instruction: str
    """System message that asks for this form."""
    _extract: Callable[[str], str]
    _render: Callable[[str, str], str]
    _well_formed: Callable[[str], bool] | None = None
    """None: a text from which an answer can be extracted."""

    def instruction_for(self, checker: Checker) -> str:
        """The instruction in the words for answers of this kind."""
        if checker not in ASKED:
            return self.instruction
        answer, short = ASKED[checker]
        asked = re.sub("the final (?:number|answer)", answer, self.instruction)
        return re.sub("<(?:number|answer)>", f"<{short}>", asked)

    def extract(self, completion: str) -> str:
        """The answer in a completion, strictly read; empty if the completion is not in the form."""
        return self._extract(committed(completion))

    def well_formed(self, completion: str) -> bool:
        """True if the completion has the whole form, right or wrong."""
        return bool((self._well_formed or self._extract)(committed(completion)))

    def render(self, solution: str, answer: str) -> str:
        """A completion in this form. Marks of the form inside the solution are removed, its thinking stays in front."""
        thinking, rest = split(ended(solution))
        return (f"{thinking}\n" if thinking else "") + self._render(rest, answer)


def _answer(text: str) -> str:
    """A candidate answer, stripped; empty if it is too long."""
    stripped = text.strip()
    return stripped if len(stripped) <= MAX_ANSWER else ""


def _one_line(text: str) -> str:
    return "" if "\n" in text.strip() else _answer(text)


def _join(solution: str, last_line: str) -> str:
    return f"{solution.strip()}\n{last_line}" if solution.strip() else last_line


_LABEL = re.compile(r"(\*\*)?(?:the\s)?(?:final\s)?answer(?:\s?[:=]|\sis\b:?)(\*\*)?", re.IGNORECASE)


def _unlabelled(answer: str) -> str:
    """An answer without the word `Answer:` before it, which repeats the form."""
    label = _LABEL.match(answer)
    if label is None:
        return answer
    rest = answer[label.end() :].strip()
    return rest.removesuffix("**") if label[1] and not label[2] else rest


def _extract_hashes(text: str) -> str:
    """The text after the only `####`, up to the end of the completion, on one line."""
    _, marker, after = text.partition("####")
    return "" if not marker or "####" in after or after.startswith("#") else _unlabelled(_one_line(after))


def _render_hashes(solution: str, answer: str) -> str:
    return _join(re.sub(r"#{4,}\s*", "", solution), f"#### {answer.strip()}")


# TeX boxes a whole group, or the one sign that follows.
_BOX = r"\\(?:boxed|fbox)\s*\{"
_BOX_OF_ONE_DIGIT = r"\\(?:boxed|fbox)\s*[0-9](?!\s*[0-9A-Za-z/^_\\{(+*=-]|[.,:][0-9])"
_BOXES = re.compile(rf"{_BOX}|{_BOX_OF_ONE_DIGIT}|\\.|[{{}}]", re.DOTALL)
_GAP = re.compile(r"[\s$]|\\[()\[\],;: ]|\\q?quad(?![A-Za-z])")
_JOINS = (",", ";", "and", ",and", ";and", "\\text{and}", ",\\text{and}")
_NAMED_JOINS = (*_JOINS, "", ".")


def boxes(text: str) -> list[tuple[int, int]]:
    """Spans of the contents of outermost balanced `\\boxed{...}` or `\\fbox{...}`, in order; linear in the text."""
    spans: list[tuple[int, int]] = []
    open_braces: list[int] = []  # start of a box's content, or -1 for any other brace
    for match in _BOXES.finditer(text):
        token = match[0]
        if token == "{":
            open_braces.append(-1)
        elif token == "}":
            start = open_braces.pop() if open_braces else -1
            if start >= 0:
                while spans and spans[-1][0] > start:
                    spans.pop()
                spans.append((start, match.start()))
        elif token.endswith("{") and len(token) > 2:
            open_braces.append(match.end())
        elif token[-1].isdigit() and len(token) > 2:
            spans.append((match.end() - 1, match.end()))
    return spans


def last_box(text: str) -> str:
    """The content of the last balanced box; empty if there is none."""
    spans = boxes(text)
    return _answer(text[slice(*spans[-1])]) if spans else ""


def _extract_boxed(text: str) -> str:
    """The content of the boxes, if all hold the same or make up one list; a sentence may end after it.

    A list is joined by commas or "and". Values of different names (`k=4`, `n=2`) may also follow each other directly.
    """
    spans = boxes(text)
    held = [text[slice(*span)].strip() for span in spans]
    if len(set(held)) <= 1:
        return _answer(held[0]) if held else ""
    names = {name.strip() for name, equals, _ in (content.partition("=") for content in held) if equals}
    joins = _NAMED_JOINS if len(names) == len(held) else _JOINS
    between = [text[stop + 1 : start] for (_, stop), (start, _) in pairwise(spans)]
    joined = all(_GAP.sub("", re.sub(rf"{_BOX}\Z", "", gap[-400:])) in joins and len(gap) < 400 for gap in between)
    return _answer(", ".join(held)) if joined and all(held) else ""


def _render_boxed(solution: str, answer: str) -> str:
    plain, end = "", 0
    for start, stop in boxes(solution):
        opening = solution.rindex("\\", 0, start)
        plain += solution[end:opening] + solution[start:stop]
        end = stop + 1 if solution[stop : stop + 1] == "}" else stop
    rest = re.sub(r"\\(?:boxed|fbox)(?![A-Za-z])", "", plain + solution[end:])
    return _join(rest, f"The answer is $\\boxed{{{answer.strip()}}}$.")


def _extract_tags(text: str) -> str:
    """The text between the only <SOLUTION> and the only </SOLUTION>, which ends the completion."""
    _, opening, after = text.partition(TAGS[2])
    inside, closing, rest = after.partition(TAGS[3])
    once = text.count(TAGS[2]) == text.count(TAGS[3]) == 1
    return _unlabelled(_answer(inside)) if opening and closing and once and not rest.strip() else ""


def _well_formed_tags(text: str) -> bool:
    """All four tags, each once, in order, around some working and an answer, with nothing outside of them."""
    if any(text.count(tag) != 1 for tag in TAGS) or not _extract_tags(text):
        return False
    before, _, rest = text.partition(TAGS[0])
    working, end, between = rest.partition(TAGS[1])
    return not before.strip() and bool(working) and bool(end) and between.lstrip().startswith(TAGS[2])


def _render_tags(solution: str, answer: str) -> str:
    for tag in TAGS:
        solution = solution.replace(tag, "")
    return f"{TAGS[0]}\n{solution.strip()}\n{TAGS[1]}\n{TAGS[2]}{answer.strip()}{TAGS[3]}"


def _extract_answer(text: str) -> str:
    """The text after `Answer:` on the last line, if no other line starts so."""
    lines = text.rstrip().split("\n")
    marked = [line for line in lines if line.lstrip().startswith("Answer:")]
    if len(marked) != 1 or marked[0] is not lines[-1]:
        return ""
    return _answer(lines[-1].lstrip().removeprefix("Answer:"))


def _render_answer(solution: str, answer: str) -> str:
    return _join(re.sub(r"^[ \t]*(?:Answer:\s*)+", "", solution, flags=re.MULTILINE), f"Answer: {answer.strip()}")


_FENCE = re.compile(r"^[ \t]*(`{3,})[ \t]*([\w+.-]*)[ \t]*$", re.MULTILINE)
"""A line that begins a block of code, or ends one that began with no more backquotes."""


def _blocks(text: str) -> tuple[list[str], int]:
    """The blocks of code that have an end, and the place where one begins that has none; -1: there is no such."""
    found, begun, marks = [], -1, 0
    for fence in _FENCE.finditer(text):
        if begun < 0:
            begun, marks = fence.end(), len(fence[1])
        elif len(fence[1]) >= marks and not fence[2]:
            found.append(text[begun : fence.start()].strip("\n").rstrip())
            begun = -1
    return found, begun


def _extract_code(text: str) -> str:
    """The last block of code; empty if there is none, or another begins behind it and does not end."""
    found, begun = _blocks(text)
    return found[-1] if found and begun < 0 else ""


def unfenced(completion: str) -> str:
    """A program that stands outside of a block, or in one that does not end, after the thinking."""
    text = committed(completion)
    begun = _blocks(text)[1]
    return text[max(begun, 0) :].strip("\n").rstrip()


def _render_code(solution: str, _answer: str) -> str:
    code = solution.strip("\n").rstrip()
    fence = "`" * (1 + max([2, *map(len, re.findall("`{3,}", code))]))
    return f"{fence}python\n{code}\n{fence}"


STYLES: dict[str, Style] = {
    "hashes": Style(
        "hashes",
        'Reason step by step. End with one last line that gives only the final number, in the form "#### <number>".',
        _extract_hashes,
        _render_hashes,
    ),
    "boxed": Style(
        "boxed",
        "Reason step by step. Then state the final answer once, inside \\boxed{}.",
        _extract_boxed,
        _render_boxed,
    ),
    # The case study's prompt, one instruction a line. As run there, every line but the first began with four blanks
    # that an indented f-string had left in it; they are not part of what it meant to ask, so they are not here.
    "tags": Style(
        "tags",
        "You are given a problem.\n"
        "Think about the problem and provide your working out.\n"
        f"Place it between {TAGS[0]} and {TAGS[1]}.\n"
        f"Then, provide your solution between {TAGS[2]}{TAGS[3]}",
        _extract_tags,
        _render_tags,
        _well_formed_tags,
    ),
    "answer": Style(
        "answer",
        'Reason step by step. End with one last line that gives only the final answer, in the form "Answer: <answer>".',
        _extract_answer,
        _render_answer,
    ),
    "code": Style(
        "code",
        "Write a Python program that solves the task. End with the whole program in one block:\n```python\n<program>\n```",
        _extract_code,
        _render_code,
    ),
}
"""By the name that `task.style` takes."""


def interchangeable(name: str) -> list[str]:
    """The styles in which the answers of a task may be written whose style is this one, itself first."""
    return [name, *(other for other in STYLES if other != name and "code" not in (name, other))]
