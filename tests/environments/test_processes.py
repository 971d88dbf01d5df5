"""Environments in processes of their own answer as in this one, and nothing of what they do is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from slimrl.config.environment import EnvironmentConfig
from slimrl.environments import maker, opening
from slimrl.environments.episodes import Play, Rules
from slimrl.environments.processes import Processes
from slimrl.environments.stage import Loading
from slimrl.errors import DataError, SettingsError
from slimrl.records import Completion, Played, Problem
from slimrl.rewards.custom import files_digest, load_function

SOURCE = '''
import os, subprocess, sys, time

class Text(str):
    """A text of a module that the other process does not have."""

def add(a: int, b: int) -> int:
    """Add.

    Args:
        a: a number
        b: another
    """
    while a < 0:
        pass
    return a + b

class Tries:
    def __len__(self):
        return 0  # an object that Python takes for false

    def __init__(self, tools=False):
        self.heard, self.metrics, self.tools = [], {}, [add] if tools else []

    def reset(self, problem):
        return [{"role": "user", "content": Text(problem.question)}]

    async def step(self, text):
        self.heard.append(text)
        kind, _, rest = text.partition(" ")
        if kind == "print":
            for _ in range(int(rest)):
                print("x" * 2**20)
        if kind == "hang":
            while True:
                pass
        if kind == "wait":
            time.sleep(2)
        if kind == "raise":
            raise ValueError(rest)
        if kind == "exit":
            sys.exit(3)
        if kind == "die":
            os._exit(7)
        if kind == "stop":
            return [], True
        if kind == "torch":
            return [{"role": "user", "content": str("torch" in sys.modules)}], False
        if kind == "fork":
            if not os.fork():
                if rest == "sleep":
                    time.sleep(300)
                return [{"role": "user", "content": "of the copy"}], False
        if kind == "start":
            shell = "setsid sleep 300 > /dev/null 2>&1 & echo $!"  # an orphan in a session of its own
            started = subprocess.run(shell, shell=True, capture_output=True, text=True).stdout
            return [{"role": "user", "content": started}], False
        return [{"role": "tool", "content": Text(f"heard {text}")}], False, len(self.heard) / 10

    def cut(self, text):
        self.heard.append(f"cut {text}")

    def score(self):
        self.metrics["heard"] = len(self.heard)
        print("scored")
        return len(self.heard)
'''
PROBLEM = Problem("p", "q", "1")
LOAD = partial(load_function, setting="environment.name")


def ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def gone(pid: int) -> bool:
    """True once a process is not there any more."""
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


class Theatre:
    """Plays episodes of the class above, here or elsewhere."""

    def __init__(self, folder: Path, *, tools: bool = False, memory: float = 4.0) -> None:
        path = folder / "tries.py"
        path.write_text(SOURCE)
        self.config, self.shown = (
            EnvironmentConfig(name=f"{path}:Tries", arguments={"tools": tools}, memory=memory),
            list[str](),
        )
        digest = partial(files_digest, [path])
        self.path, self.processes = path, Processes(Loading(self.config, LOAD, digest, digest()), 1, self.shown.append)

    @property
    def pid(self) -> int:
        return self.processes._current[0]._worker.pid

    def rules(self, *, here: bool = False, deadline: float = 20.0) -> Rules:
        make = maker(self.config, LOAD) if here else self.processes.make
        decode: Callable[[tuple[int, ...], tuple[int, ...]], str] = lambda ids, _: "".join(map(chr, ids))  # noqa: E731
        encode = lambda messages, _: ids("".join(m["content"] for m in messages))  # noqa: E731
        own = {} if here else {"ready": self.processes.ready}
        return Rules(make, lambda _: (("user", "q"),), decode, encode, 8, deadline, **own)

    def play(self, *turns: str, here: bool = False, deadline: float = 20.0, end: bool = True) -> Played:
        """An episode of these turns, the last of which is answered where it has an `end`."""
        play, written = Play(self.rules(here=here, deadline=deadline), PROBLEM), ()
        for number, turn in enumerate(turns):
            written += ids(turn)
            if end or number + 1 < len(turns):
                written += play(0, written).result()
        completion = Completion((1,), written, (0.0,) * len(written), "stop" if end else "length")
        return play.played([completion])[0]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """One for all tests that leave its file alone, and after which it goes on."""
    found = Theatre(tmp_path_factory.mktemp("shared"))
    yield found
    found.processes.close()


@pytest.fixture
def theatre(tmp_path: Path) -> Iterator[Theatre]:
    found = Theatre(tmp_path)
    yield found
    found.processes.close()


@pytest.mark.parametrize(
    "turns",
    [
        ("a", "b", "stop"),
        ("a", "raise it"),
        ("exit",),
    ],
)
def test_an_episode_is_the_same_here_and_there(shared: Theatre, turns: tuple[str, ...]) -> None:
    there = shared.play(*turns)
    assert there == shared.play(*turns, here=True)
    assert there.failed or there.score is not None
    assert shared.play("a", "b", end=False) == shared.play("a", "b", here=True, end=False)


def test_tools_are_called_there(tmp_path: Path) -> None:
    theatre = Theatre(tmp_path, tools=True)
    made = theatre.processes.make()
    assert [tool.schema["function"]["name"] for tool in made.tools] == ["add"]  # type: ignore[attr-defined]
    turns = ('<add>{"a": 1, "b": 2}</add>', "<add>1</add>", "c")
    there = theatre.play(*turns)
    assert there == theatre.play(*turns, here=True)
    assert [call.tool for call in there.calls or ()] == ["add", ""]
    assert theatre.play("a", end=False).calls == theatre.play("a", here=True, end=False).calls == ()
    assert theatre.play("torch", "c").turns[1] == ("user", "False"), "it takes seconds, and memory"
    late = theatre.play('<add>{"a": -1, "b": 2}</add>', deadline=0.5).failed
    assert late.startswith("the environment's tool add gave no answer within environment.deadline=0.5 s")
    assert theatre.rules().scores
    assert not theatre.rules().shown
    assert opening(theatre.processes.make, PROBLEM, 20.0) == [{"role": "user", "content": "q"}]
    theatre.processes.close()


def test_what_is_printed_is_shown_in_part(theatre: Theatre, capfd: pytest.CaptureFixture[str]) -> None:
    assert theatre.play("print 64", "stop").score == 2
    assert capfd.readouterr().out == ""
    shown = "".join(theatre.shown)
    assert len(shown) < 2**17
    assert "what environments print from here on is not shown" in shown


def test_a_copy_of_the_process_says_nothing(shared: Theatre) -> None:
    played = shared.play("fork", "fork", "stop")
    assert [content for role, content in played.turns if role != "assistant"] == ["heard fork", "heard fork"]


def test_nothing_that_was_started_is_left(theatre: Theatre) -> None:
    pid = theatre.pid
    played = theatre.play("start", "fork sleep", "stop")
    started = int(played.turns[1][1])
    assert alive(started)
    theatre.processes.close()
    assert gone(pid)
    assert gone(started)


def test_a_late_answer_costs_its_episode_and_its_process(shared: Theatre) -> None:
    shared.play("stop")  # it has loaded
    pid = shared.pid
    assert shared.play("hang", deadline=0.5).failed == (
        "the environment's step gave no answer within environment.deadline=0.5 s (raise it where an answer takes longer)"
    )
    assert shared.play("a", "stop").score == 2
    assert shared.pid != pid
    shared.play("stop")
    assert gone(pid)


def test_an_episode_outlives_the_lateness_of_another(shared: Theatre) -> None:
    first, late = Play(shared.rules(), PROBLEM), Play(shared.rules(deadline=0.5), PROBLEM)
    begun = first(0, ids("a"))
    begun.result()
    late(0, ids("hang")).result()
    shared.play("stop")
    written = ids("a") + begun.result() + ids("stop")
    assert first(0, written).result() == ()
    played = first.played([Completion((1,), written, (0.0,) * len(written), "stop")])
    assert played[0].score == 2


def test_a_process_that_ends_takes_its_episodes_with_it(shared: Theatre) -> None:
    assert shared.play("a", "die").failed == "the environment lost its process, which ended with exit code 7"
    assert shared.play("a", "stop").score == 2


def test_a_lost_process_is_not_blamed_on_the_next_prompt(shared: Theatre) -> None:
    shared.play("stop")
    made = shared.processes.make()
    with suppress(DataError):
        made.step("die")
    assert opening(shared.processes.make, PROBLEM, 20.0) == [{"role": "user", "content": "q"}]


def test_loading_a_new_process_does_not_count(tmp_path: Path) -> None:
    theatre = Theatre(tmp_path)
    theatre.play("stop")
    theatre.path.write_text(SOURCE)
    assert theatre.play("hang", deadline=0.3).failed
    assert opening(theatre.processes.make, PROBLEM, 0.3) == [{"role": "user", "content": "q"}]
    theatre.processes.close()


def test_many_requests_are_under_way_at_once(tmp_path: Path) -> None:
    theatre = Theatre(tmp_path, tools=False, memory=1.0)
    plays = [Play(theatre.rules(deadline=60.0), PROBLEM) for _ in range(600)]
    answers = [play(0, ids("wait")) for play in plays]
    assert {answer.result() for answer in answers} == {ids("heard wait")}
    theatre.processes.close()


def test_a_file_that_changes_is_refused(theatre: Theatre) -> None:
    theatre.play("stop")
    theatre.path.write_text(SOURCE + "# changed\n")
    theatre.play("die")
    assert "environment.name changed during the run" in theatre.play("stop").failed


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("raise ValueError('no')", "running the file raised ValueError: no"),
        ("class Tries: pass", "has no method step"),
        ("import os; os._exit(4)", "ended with exit code 4"),
        ("class Tries:\n    def __init__(self):\n        raise KeyError('k')", "raised KeyError"),
    ],
)
def test_a_class_that_cannot_be_loaded_is_refused(tmp_path: Path, source: str, sentence: str) -> None:
    (tmp_path / "tries.py").write_text(source)
    config = EnvironmentConfig(name=f"{tmp_path / 'tries.py'}:Tries")
    digest = partial(files_digest, [tmp_path / "tries.py"])
    processes = Processes(Loading(config, LOAD, digest, digest()), 1, print)
    with pytest.raises(SettingsError, match=sentence):
        _ = processes.known
    processes.close()


def test_a_reset_that_hangs_is_refused() -> None:
    class Hangs:
        def reset(self, _problem: Problem) -> None:
            time.sleep(60)

        def step(self, _text: str) -> object:
            return [], True

    with pytest.raises(SettingsError, match=r"reset did not return within environment\.deadline=0\.2 s"):
        opening(Hangs, PROBLEM, 0.2)


def test_several_processes_share_the_episodes(shared: Theatre) -> None:
    digest = partial(files_digest, [shared.path])
    processes = Processes(Loading(shared.config, LOAD, digest, digest()), 2, print)
    assert [processes.make()._process is processes._current[n % 2] for n in range(4)] == [True] * 4  # type: ignore[attr-defined]
    processes.close()
