"""Environments of `verifiers` are played turn by turn, scored by their rubric, and refused by name where they need more."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.environment import EnvironmentConfig
from slimrl.config.task import TaskConfig
from slimrl.environments import opening, verifiers
from slimrl.environments.episodes import Play, Rules
from slimrl.environments.packages import Package, load_package, module_of
from slimrl.environments.tools import told, tools_of
from slimrl.environments.verifiers import VerifiersEpisode, bridge, plain
from slimrl.errors import DataError, SettingsError
from slimrl.records import Completion, turns_of
from slimrl.rewards.custom import load_function
from slimrl.tasks.packaged import packaged_task
from tests.environments import stand_in
from tests.environments.guess import GUESS

REAL = importlib.util.find_spec("verifiers") is not None
Load = Callable[..., Package]


@pytest.fixture(
    params=[
        "stand-in",
        pytest.param("package", marks=pytest.mark.skipif(not REAL, reason="verifiers is not installed")),
    ]
)
def load(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Loads an environment from its text, with the stand-in and with the package itself."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "verifiers"]:
        monkeypatch.delitem(sys.modules, name)
    if request.param == "stand-in":
        for name, module in stand_in.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    bridge.cache_clear()

    def loaded(text: str = GUESS, **arguments: Any) -> Package:
        file = tmp_path / "mine.py"
        file.write_text(text)
        config = EnvironmentConfig(name=f"verifiers:{file}", arguments=arguments)
        found = load_package(config, partial(load_function, setting="task.name"))
        assert found is not None
        return found

    yield loaded
    bridge.cache_clear()


def episode(package: Package, number: int = 4) -> tuple[VerifiersEpisode, Any]:
    made = package.make()
    assert isinstance(made, VerifiersEpisode)
    return made, made.reset(package.problems("train")[number])


def user(text: str) -> tuple[list[dict[str, str]], bool]:
    return [{"role": "user", "content": text}], False


def test_turns_state_and_rubric(load: Load) -> None:
    played, prompt = episode(load())
    assert prompt == [{"role": "system", "content": "Guess."}, {"role": "user", "content": "From 4 on?"}]
    assert played.step("It is 3") == user("Higher.")
    assert played.step("7") == user("Lower.")
    assert played.step("5") == ([], True)
    assert played.score() == 1.0 - 0.25 * 3 + 0.5
    assert {"won": 1.0, "tries": 3.0, "bonus": 1.0}.items() <= played.metrics.items()


STEPS = """
import verifiers as vf
from datasets import Dataset
from verifiers.types import UserMessage


class Steps(vf.MultiTurnEnv):
    async def env_response(self, messages, state, **kwargs):
        said = messages[-1].content
        if said != "nothing":
            state["trajectory"][-1]["reward"] = float(said)
        if said == "1":
            state["final_env_response"] = [UserMessage(content="Over.")]
            return state["final_env_response"]
        return [UserMessage(content="Go on.")]


async def steps(state, **kwargs):
    return sum(step["reward"] or 0 for step in state["trajectory"])


async def end(**kwargs):
    return 0.5


def load_environment(**arguments):
    rows = Dataset.from_list([{"question": f"From {n} on?", "answer": "1"} for n in range(20)])
    rubric = vf.RubricGroup([vf.Rubric(funcs=[steps]), vf.Rubric(funcs=[end])])
    return Steps(dataset=rows, rubric=rubric, pass_threshold=0.75, **arguments)
"""


def test_rewards_of_steps_are_those_of_turns_and_paid_once(load: Load) -> None:
    """The rubric sums them, and `score` is what it pays beside them."""
    played, _ = episode(load(STEPS))
    assert played.step("0.1") == (*user("Go on."), 0.1)
    assert played.step("nothing") == user("Go on.")
    assert played.step("0.2") == (*user("Go on."), 0.2)
    assert played.step("1") == ([], True, 1.0), "the last turn too"
    assert played.score() == pytest.approx(0.5, abs=1e-15)
    assert played.total == 0.1 + 0.2 + 1.0 + 0.5
    short, _ = episode(load(STEPS, max_turns=2))
    assert short.step("0.25") == (*user("Go on."), 0.25)
    assert short.step("0.5") == ([], True), "the environment does not answer the last turn"
    assert short.score() == 0.5


def test_the_whole_reward_of_paid_turns_tells_whether_an_episode_is_right(load: Load) -> None:
    """0.25 of the first turn and 0.5 of the rubric reach 0.75, which the score alone does not."""
    package = load(STEPS, max_turns=2)
    texts = {1: "0.25", 2: "0.5"}
    rules = Rules(
        package.make,
        lambda _: turns_of(opening(package.make, _, 30.0) or ()),
        lambda ids, _: texts[ids[0]],
        lambda *_: (9,),
        8,
        30.0,
        package,
    )
    play = Play(rules, package.problems("train")[0])
    play(0, (1,)).result()
    play(0, (1, 9, 2)).result()
    (found,) = play.played([Completion((0,), (1, 9, 2), (0.0,) * 3, "stop", (False, True, False))])
    assert (found.rewards, found.score, found.right) == ((0.25, None), 0.5, True)


def test_the_environment_bounds_its_turns(load: Load) -> None:
    played, _ = episode(load(max_turns=2))
    assert played.step("1") == user("Higher.")
    assert played.step("1") == ([], True)
    assert played.score() == -0.25 * 2 + 0.5


def test_an_episode_without_tokens_left_is_scored(load: Load) -> None:
    played, _ = episode(load())
    assert played.step("1") == user("Higher.")
    assert played.score() == -0.25 + 0.5
    cut, _ = episode(load())
    cut.cut("5 and so")
    assert cut.score() == 1.0 - 0.25 + 0.5


def test_episodes_wait_at_the_same_time(load: Load) -> None:
    package = load()
    first, second = episode(package, 3)[0], episode(package, 8)[0]
    assert [first.step("6"), second.step("6")] == [user("Lower."), user("Higher.")]
    assert [first.step("4"), second.step("9")] == [([], True)] * 2


def test_episodes_that_are_given_up_are_cleaned_up(load: Load) -> None:
    package = load()
    before = package.environment.ended
    played = episode(package)[0]
    played.step("1")
    del played
    gc.collect()
    loop = verifiers._loop()
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result()
    assert package.environment.ended == before + 1
    assert len(asyncio.all_tasks(loop)) == 0


def changed(old: str, new: str) -> str:
    assert old in GUESS
    return GUESS.replace(old, new)


RESPONSE = 'guess = "".join(filter(str.isdigit, messages[-1].content))'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (changed(RESPONSE, "raise KeyError('mine')"), r"raised KeyError: 'mine'"),
        (changed(RESPONSE, "raise vf.Error('theirs')"), r"raised Error: theirs"),
        (changed(RESPONSE, "raise SystemExit(3)"), r"raised SystemExit: 3"),
        (changed(RESPONSE, "return [UserMessage(content=[{'type': 'image_url', 'image_url': {'url': 'x'}}])]"), r"has a message with image_url"),
        (changed(RESPONSE, "await state['client'].client.chat.completions.create()"), r"calls the client of an API itself"),
        (changed(RESPONSE, "messages[-1].content = 'other'; guess = '1'"), r"writes earlier turns anew"),
    ],
)  # fmt: skip
def test_an_episode_that_cannot_go_on_says_why(load: Load, text: str, sentence: str) -> None:
    played, _ = episode(load(text))
    with pytest.raises((DataError, KeyError), match=sentence.removeprefix("raised KeyError: ")):
        played.step("1")


def test_a_reward_function_that_raises_is_no_reward_of_0(load: Load) -> None:
    played, _ = episode(load(changed('return float(state["won"])', "return float(state['lost'])")))
    with pytest.raises(DataError, match=r"has the reward function won, which raised KeyError: 'lost'"):
        played.step("5")


def test_reset_refuses_what_is_over_before_the_first_turn(load: Load) -> None:
    over = changed(
        "return state\n", "state['final_env_response'] = [UserMessage(content='Over.')]\n        return state\n"
    )
    with pytest.raises(DataError, match="is over before the first turn"):
        episode(load(over.replace("parser.parse_answer(completion)", "pass")))


LOADED = "def load_environment(problems=20, **arguments):\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1", r"task.name: '.*mine.py:load_environment'"),
        (changed(LOADED, f"{LOADED}    raise KeyError('key')\n"), r"load_environment of .*mine.py raised KeyError: 'key' \(mine.py:\d+ in load_environment\); correct it, or environment.arguments"),
        (changed(LOADED, f"{LOADED}    return 3\n"), r"made int, which is no Environment of verifiers"),
        (changed("class Guess(", "class SandboxEnv: pass\n\n\nclass Guess(SandboxEnv, "), r"Guess is a SandboxEnv, which runs code in a sandbox"),
        (changed("def bonus(answer, info)", "def bonus(completions)"), r"the reward function bonus reads all completions of a group at once"),
    ],
)  # fmt: skip
def test_what_is_not_played_is_refused_by_name(load: Load, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load(text)


def test_the_package_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(name for name in sys.modules if name.partition(".")[0] == "verifiers"), "verifiers"):
        monkeypatch.setitem(sys.modules, name, None)
    bridge.cache_clear()
    way_out = (
        "install slimrl.verifiers.$"
        if not REAL
        else "does not have .*install slimrl.verifiers., which takes an earlier one"
    )
    with pytest.raises(SettingsError, match=rf"task.name=verifiers:some-game needs the .*{way_out}"):
        load_package(EnvironmentConfig(name="verifiers:some-game"), load_function)


def test_names_of_packages() -> None:
    assert [module_of(place) for place in ("my-game", "owner/my-game", "my_game", "dir/my-game.py")] == [
        "my_game"
    ] * 3 + ["dir/my-game.py"]


def test_signals_stay_with_the_run(load: Load) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    setting = "import signal\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    load(changed(LOADED, f"{LOADED}    {setting}"))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_time_limits_of_the_environment_give_way(load: Load) -> None:
    assert load(timeout_seconds=0.5).environment.timeout_seconds is None


def test_problems_of_rows(load: Load) -> None:
    problem = load().problems("train")[3]
    assert (problem.id, problem.question, problem.answer) == ("mine/train/00003", "From 3 on?", "4")
    assert problem.columns == {"question": "From 3 on?", "info": {"secret": 4}}


def test_a_tenth_is_held_out_where_there_is_no_evaluation_data(load: Load) -> None:
    package = load(problems=100)
    assert package.test is None
    problems = package.problems("train")
    task = packaged_task(TaskConfig.model_validate({"name": "verifiers:mine.py"}), problems + problems, None)
    assert 5 < len({p.id for p in task.test}) < 20
    assert {p.id for p in task.train} | {p.id for p in task.test} == {p.id for p in problems}
    assert not {p.id for p in task.train} & {p.id for p in task.test}
    assert "has no evaluation data" in task.notes[0]


def test_held_out_problems_are_not_trained_on(load: Load) -> None:
    package = load(changed("dataset=rows(range(problems))", "dataset=rows(range(8)), eval_dataset=rows(range(6, 10))"))
    assert package.test is not None
    task = packaged_task(
        TaskConfig.model_validate({"name": "verifiers:mine.py"}), package.problems("train"), package.problems("test")
    )
    assert [p.question for p in task.train] == [f"From {n} on?" for n in range(6)]
    assert [p.id for p in task.test] == [f"mine/test/{n:05d}" for n in range(4)]
    assert "2 training problems are held out too" in task.notes[0]
    assert package.row(task.test[1])["answer"] == "8"


def test_contents_that_are_no_text() -> None:
    assert plain({"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}) == {"role": "user", "content": "ab"}
    assert plain({"role": "assistant", "content": None}) == {"role": "assistant", "content": ""}
    with pytest.raises(DataError, match="has a message with input_audio"):
        plain({"role": "user", "content": [{"type": "input_audio"}]})


TOOLS = '''
import verifiers as vf
from datasets import Dataset


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: One of them.
        b: The other.
    """
    return a + b


async def right(completion, answer):
    return float(answer in completion[-1].content)


def load_environment(max_turns=4):
    rows = Dataset.from_list([{"question": "23 + 58 = ?", "answer": "81"}] * 2)
    return vf.ToolEnv(tools=[add], max_turns=max_turns, dataset=rows, rubric=vf.Rubric(funcs=[right]))
'''


def tool(text: str) -> tuple[list[dict[str, str]], bool]:
    return [{"role": "tool", "content": text}], False


def test_tools_are_described_called_and_answered(load: Load) -> None:
    played, _ = episode(load(TOOLS), 0)
    (known,) = tools_of(played, where="here")
    assert known.name == "add"
    assert [schema["type"] for schema in known.parameters.values()] == ["integer", "integer"]
    assert "add" in told([known])
    assert played.step('<tool_call>{"name": "add", "arguments": {"a": 23, "b": 58}}</tool_call>') == tool("81")
    assert played.step('<add>{"a": 1, "b": 2}</add>') == tool("3")
    (message,), over = played.step('<tool_call>{"name": "add", "arguments": {"a": 23</tool_call>')
    assert not over
    assert message["content"].startswith("Expecting value")
    assert played.step("It is 81.") == ([], True)
    assert played.score() == 1.0


def test_arguments_of_plain_tags_have_the_type_of_the_schema(load: Load) -> None:
    two = (
        TOOLS.replace("def add(a: int, b: int)", "def add(a: int)")
        .replace("a + b", "a + 1")
        .replace("        b: The other.\n", "")
    )
    played, _ = episode(load(two), 0)
    assert played.step("<add>41</add> <add>7</add>") == ([*tool("42")[0], *tool("8")[0]], False)


SHIPPED = """
import verifiers as vf
from datasets import Dataset


class Line:
    def reset(self, seed):
        self.place, self.goal = 0, seed % 3 + 1
        return f"Walk to {self.goal}."

    def step(self, action):
        self.place += action
        done = self.place >= self.goal
        return f"You are at {self.place}.", float(done), done, {}


def right(completion, answer):
    return float(completion[-1].content == answer)


def load_environment(kind):
    if kind == "gym":
        return vf.GymEnv(env_cls=Line, action_parser=lambda text: int("right" in text), num_train_episodes=6, num_eval_episodes=3)
    rows = [Dataset.from_list([{"question": f"{a} + {b} = ?", "answer": str(a + b)}]) for a, b in ((1, 2), (3, 4))]
    return vf.EnvGroup([vf.SingleTurnEnv(dataset=one, rubric=vf.Rubric(funcs=[right])) for one in rows])
"""


@pytest.mark.skipif(not REAL, reason="verifiers is not installed")
@pytest.mark.parametrize("load", ["package"], indirect=True)
def test_environments_that_come_with_the_package(load: Load) -> None:
    walk = load(SHIPPED, kind="gym")
    assert walk.test is not None
    assert (len(walk.train), len(walk.test)) == (6, 3)
    played, prompt = episode(walk, 1)
    assert prompt == user("Walk to 2.")[0]
    assert played.step("right") == (*user("You are at 1."), 0.0)
    assert played.step("right") == (*user("You are at 2.\nEpisode already ended."), 1.0)
    assert played.step("right") == ([], True)
    assert (played.score(), played.total) == (0.0, 1.0)
    group = load(SHIPPED, kind="group")
    for number, answer in enumerate(("3", "7")):
        played, _ = episode(group, number)
        assert played.step(answer) == ([], True)
        assert played.score() == 1.0
