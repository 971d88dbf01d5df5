"""Problems whose answer is a program: rows in the shape of MBPP or of HumanEval, and the tests as a gold answer."""

from typing import NamedTuple

from slimrl.records import Problem
from slimrl.tasks.rows import MISSING, Row, kind_of

TEST = "\n# test\n"
"""Stands before each test in a gold answer."""


class Suite(NamedTuple):
    """The tests of a program."""

    setup: str
    """Runs behind the program and before its tests."""
    tests: tuple[str, ...]

    @property
    def answer(self) -> str:
        """As the gold answer of a problem, which is a program itself."""
        return "".join((self.setup, *(TEST + test for test in self.tests)))


def suite_of(answer: str) -> Suite:
    """The tests of a gold answer; none where it has none."""
    setup, *tests = answer.split(TEST)
    return Suite(setup, tuple(tests))


def code_problem(row: Row, new_id: str) -> Problem:
    """The problem of a row; raises RowError for a bad one.

    MBPP: `text` or `prompt`, `test_list`, and as far as there are `code`, `test_setup_code`, `test_imports`. HumanEval: `prompt`,
    the beginning of a function, `test`, which defines `check`, `entry_point` and `canonical_solution`.
    """
    name = row.answer("task_id") if row.at("task_id") not in (MISSING, None) else new_id
    if row.at("entry_point") is not MISSING:
        begun, function = row.text("prompt"), row.text("entry_point").strip()
        found = Suite("", (f"{row.text('test').strip()}\ncheck({function})",))
        question = f"Complete this function, and write the whole of it:\n\n{begun.strip()}"
        rest = row.optional_text("canonical_solution")
        solution = f"{begun.rstrip()}\n{rest.strip(chr(10))}" if rest else ""
        used: tuple[str, ...] = ("prompt", "entry_point", "test", "canonical_solution", "task_id")
    else:
        setup = "\n".join((*_list(row, "test_imports"), row.optional_text("test_setup_code"))).strip()
        found = Suite(setup, _tests(row))
        listed = "\n".join(found.tests)
        question = f"{row.text('text', 'prompt').strip()}\n\nYour code should pass these tests:\n\n{listed}"
        solution = row.optional_text("code")
        used = ("text", "prompt", "code", "test_list", "test_setup_code", "test_imports", "task_id")
    if suite_of(found.answer) != found:
        row.fail("its tests, or what is set up for them, have a line `# test`, which separates tests; remove the line")
    return Problem(name, question, found.answer, solution.strip(), columns=row.rest(*used))


def _tests(row: Row) -> tuple[str, ...]:
    tests = _list(row, "test_list")
    if row.at("test_list") is MISSING:
        row.missing(["test_list"])
    if not tests:
        row.fail("field 'test_list' has no tests; add some or remove the row")
    return tests


def _list(row: Row, name: str) -> tuple[str, ...]:
    """A list of texts, blank ones left out; empty where there is no such field."""
    value = row.at(name)
    if value in (MISSING, None):
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        row.fail(f"field {name!r} must be a list of strings, but is {kind_of(value)}; correct it")
    return tuple(text.strip() for text in texts if text.strip())
