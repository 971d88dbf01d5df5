"""Episodes on several ranks: the same turns and the same update as on one, and one sentence for what fails on any of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import EvalConfig, TrainConfig
from slimrl.environments.episodes import Play
from slimrl.errors import SettingsError
from slimrl.machine.ranks import Ranks
from slimrl.parallel.follow import demand_same_environment
from slimrl.parallel.lead import begin
from slimrl.parallel.orders import Begin
from slimrl.parallel.team import patience
from slimrl.preflight.environment import dealt, environment_digest, portable
from slimrl.records import Plan, Played
from slimrl.rewards.reward import Reward
from slimrl.rollout import Request
from tests.environments.test_episodes import ids, play, user
from tests.parallel.test_ranks import run


def test_any_number_of_ranks_plays_the_same_episodes(tmp_path: Path) -> None:
    """One test, since what takes time is to start the processes."""
    found = run(2, "episodes", str(tmp_path))
    for name in ("guess", "calculator", "odd"):
        case = found[name]
        assert case["same files"] == [True, True, True], name
        assert case["same metrics"], name
        assert case["apart"] < 1e-6, name
        assert case["turns"] > 1.5, name
        assert case["evaluated turns"] > 1, name
    assert found["odd"]["unscorable"] > 0
    assert found["again"]["same files"] == [True, True, True]
    assert len({*found["again"]["weights"]}) == 1, "a run can be repeated to the last bit"
    broken, ended = found["broken"]
    assert broken.startswith("the environment raised KeyError: 'mine' (odd.py:20 in step), on problem arithmetic/")
    assert ended == ""
    absent, ended = found["absent"]
    assert absent.startswith("environment.name: making ")
    assert "raised OSError: the port is taken (odd.py:12 in __init__); correct it" in absent
    assert ended == "exit code 2"


def test_an_episode_elsewhere_opens_as_the_prompt_says() -> None:
    """The prompt was made by rank 0, so an environment that draws its prompt is found out on every rank."""
    request = Request((1,), None, on_turn=play(lambda _: user("more")), turn_tokens=3)  # type: ignore[arg-type]
    sent = dealt(request)
    assert (sent.request, sent.opening) == (replace(request, on_turn=None), ())
    assert dealt(replace(request, on_turn=None)).received(None).on_turn is None
    rules = play(lambda _: user("more")).rules
    received, other = (one.received(rules).on_turn for one in (sent, replace(sent, opening=(("user", "draws"),))))
    assert isinstance(received, Play)
    assert received(0, ids("a")).result() == ids("more")
    assert isinstance(other, Play)
    other(0, ids("a")).result()
    assert "opens two episodes of a problem with different prompts" in other.episodes[0].failed


def test_records_are_the_same_wherever_they_were_made() -> None:
    class Text(str):
        """A text of a user's class, which other processes may not have."""

    (record,) = portable([Played(((Text("tool"), Text("4")),), score=1.0, environment=object())])
    assert record == Played((("tool", "4"),), score=1.0)
    assert [type(part) for part in record.turns[0]] == [str, str]


def test_a_rank_may_be_silent_for_as_long_as_its_environment_may_take() -> None:
    """A tool that does not give the interpreter back holds up the signs of life of its rank."""
    slow = ["environment.name=calculator", "environment.deadline=600"]
    assert patience(load_config(TrainConfig, [], slow)) > 600
    assert patience(load_config(TrainConfig, [], ["environment.name=calculator"])) == 300
    assert patience(load_config(TrainConfig, [], ["device_deadline=20"])) == 20


def test_a_machine_with_another_environment_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    tools = []\n")
    config = load_config(TrainConfig, [], [f"environment.name={file}:Mine"])
    begin = Begin(config, Plan(1, 1, False), {}, 1, environment_digest(config.environment))
    demand_same_environment(begin, Ranks(1, 2))
    file.write_text("class Mine:\n    tools = [len]\n")
    with pytest.raises(SettingsError, match=r"its files differ between rank 0 and rank 1; give every machine the same"):
        demand_same_environment(begin, Ranks(1, 2))


def test_rewards_that_read_environments_are_refused() -> None:
    def mine(completions: list[str], environments: list[object]) -> list[float]:
        return [float(len(environments)) for _ in completions]

    setup: Any = SimpleNamespace(rewards=[Reward("mine", mine, 1.0, None, None)], shown=True, config=EvalConfig())
    with pytest.raises(SettingsError, match=r"reward mine reads environments, and of 2 processes each keeps those"):
        begin(setup, Ranks(0, 2))
