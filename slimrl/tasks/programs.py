"""The checker that runs the program of an answer against its tests, in the sandbox, many of them side by side."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock

from slimrl.config.sandbox import SandboxConfig
from slimrl.records import Problem
from slimrl.sandbox import Outcome, Sandbox, SandboxError
from slimrl.tasks.answers import Grade, Grader
from slimrl.tasks.code import suite_of
from slimrl.tasks.styles import Style, unfenced
from slimrl.terms import Checker

KEPT = 4096
"""Programs whose verdicts are kept."""
HARNESS = """
import os, sys

def run():
    data = sys.stdin.buffer.read()
    parts = []
    while data:
        size, _, data = data.partition(b"\\n")
        parts.append(data[:int(size)].decode("utf-8", "surrogatepass"))
        data = data[int(size):]
    mark, code, setup, *tests = parts
    told = os.dup(1)
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    module = sys.modules["answer"] = type(sys)("answer")
    # bound before the program runs, which could put others in their place
    execute, translate, kind, any_error, write, leave = exec, compile, type, BaseException, os.write, os._exit
    for number, text in enumerate((code, setup, *tests), -2):
        try:
            execute(translate(text, f"test {number}" if number >= 0 else "answer", "exec"), module.__dict__)
            why = ""
        except any_error as error:
            why = " ".join(f"{kind(error).__name__}: {error}".split())[:200].rstrip(" :") or "an exception"
        write(told, f"{mark} {number} {why}\\n".encode("utf-8", "replace"))
        if why and number < 0:
            break
    leave(0)

run()
"""
"""Runs the program, what is to run behind it, and each test, in one module, and reports each by its number: -2, -1, 0, ...

Reports begin with a word that is another each time. A program whose process ends before its tests, by whatever it does, has
passed none; one that looks for the word in the memory of its own process can find it (docs/sandbox.md).
"""


@dataclass(frozen=True)
class Tried:
    """A program that was run against its tests."""

    passed: tuple[bool, ...]
    why: str = ""
    """The reason of the first failure."""

    @property
    def share(self) -> float:
        """Of the tests that pass; 0 where there are none."""
        return sum(self.passed) / len(self.passed) if self.passed else 0.0


class ProgramGrader(Grader):
    """Grades by running programs; each is run once against the same tests, whoever asks.

    Raises SettingsError, where it is made, if the sandbox of the settings does not work here.
    """

    def __init__(self, config: SandboxConfig) -> None:
        super().__init__("tests")
        self.sandbox = Sandbox(config)
        self._begun: OrderedDict[tuple[str, str], tuple[str, Future[Outcome]]] = OrderedDict()
        self._lock = Lock()

    def begin(self, texts: Iterable[str], answer: str, style: Style) -> None:
        """Start the programs of completions whose verdicts will be asked for."""
        for text in texts:
            if code := style.extract(text):
                self._start(code, answer)

    def grade(self, text: str, answer: str, style: Style) -> Grade:
        """Strict: all tests pass. Lenient: also those of a text without a block, or with one that has no end."""
        code = style.extract(text)
        found = self.tried(code, answer) if code else Tried(())
        strict = found is not None and bool(found.passed) and all(found.passed)
        if code:
            return Grade(strict, strict, code, code, undecided=found is None)
        loose = unfenced(text)
        tried = self.tried(loose, answer) if loose else None
        return Grade(False, tried is not None and bool(tried.passed) and all(tried.passed), "", loose)

    def shares(self, texts: Sequence[str], answers: Sequence[str], style: Style) -> list[float | None]:
        """The share of tests that each completion passes; None where the sandbox itself failed."""
        codes = [style.extract(text) for text in texts]
        for code, answer in zip(codes, answers, strict=True):
            if code:
                self._start(code, answer)
        tried = [self.tried(code, answer) if code else Tried(()) for code, answer in zip(codes, answers, strict=True)]
        return [None if one is None else one.share for one in tried]

    def tried(self, code: str, answer: str) -> Tried | None:
        """The verdict on a program; None where the sandbox itself failed."""
        mark, future = self._start(code, answer)
        try:
            outcome = future.result()
        except (SandboxError, OSError):
            with self._lock:  # it may do better the next time
                self._begun.pop((code, answer), None)
            return None
        return _read(outcome, mark, len(suite_of(answer).tests))

    def faults(self, problems: Sequence[Problem]) -> Mapping[str, str]:
        """By id, why the solution of a problem does not pass its tests; problems without a solution are not tried."""
        solved = [problem for problem in problems if problem.solution]
        for problem in solved:
            self._start(problem.solution, problem.answer)
        found = {problem.id: self.tried(problem.solution, problem.answer) for problem in solved}
        return {
            name: f"the code passes {sum(one.passed)} of {len(one.passed)} tests ({one.why}); correct the code or the tests"
            for name, one in found.items()
            if one is not None and not all(one.passed)
        }

    def earns(self, answer: str) -> bool:
        """True for every answer with tests."""
        return bool(suite_of(answer).tests)

    def close(self) -> None:
        """End the programs that run."""
        self.sandbox.close()

    def _start(self, code: str, answer: str) -> tuple[str, Future[Outcome]]:
        with self._lock:
            key = code, answer
            if key not in self._begun:
                mark, (setup, tests) = os.urandom(8).hex(), suite_of(answer)
                data = [text.encode("utf-8", "surrogatepass") for text in (mark, code, setup, *tests)]
                stdin = b"".join(b"%d\n%s" % (len(part), part) for part in data).decode("utf-8", "surrogatepass")
                self._begun[key] = mark, self.sandbox.start(HARNESS, stdin=stdin)
                while len(self._begun) > KEPT:
                    self._begun.popitem(last=False)
            self._begun.move_to_end(key)
            return self._begun[key]


def _read(outcome: Outcome, mark: str, tests: int) -> Tried:
    """The verdict that a program's harness reported."""
    reports = [line.split(" ", 2) for line in outcome.stdout.splitlines() if line.startswith(f"{mark} ")]
    whys = {int(number): why for _, number, why in reports}
    passed = tuple(whys.get(-2) == whys.get(-1) == whys.get(number) == "" for number in range(tests))
    ended = f"ended by its limit of {outcome.ended_by}" if outcome.ended_by else "the process ended before its tests"
    return Tried(passed, next((why for why in whys.values() if why), "" if all(passed) else ended))


def grader_for(checker: Checker, sandbox: SandboxConfig) -> Grader:
    """The grader of a checker."""
    return ProgramGrader(sandbox) if checker == "tests" else Grader(checker)
