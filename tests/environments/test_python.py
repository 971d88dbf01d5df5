"""The built-in environment `python`: programs of a policy run in the sandbox."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from math import inf

import pytest

from slimrl.config.environment import EnvironmentConfig
from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.environments import Environment, maker
from slimrl.errors import SettingsError
from slimrl.preflight.environment import in_environment
from slimrl.preflight.prompting import prepare_model
from slimrl.rewards.custom import load_function
from slimrl.sandbox import Outcome, SandboxError, working


def played(**arguments: object) -> Environment:
    return maker(EnvironmentConfig(name="python", arguments=arguments), lambda name, _: load_function(name))()


def said(environment: Environment, text: str) -> str:
    messages, over = environment.step(text)
    assert not over
    return messages[0]["content"]


@pytest.mark.skipif(not any(working(way)[0] for way in ("bubblewrap", "namespaces")), reason="no isolation works here")
def test_programs_are_run_and_what_they_print_is_read() -> None:
    environment = played(cpu_seconds=1)
    assert said(environment, "<python>print(6 * 7)</python>") == "42\n"
    assert said(environment, "Let me see.\n<python>\n```python\nprint({1: 2})\n```\n</python>") == "{1: 2}\n"
    assert said(environment, '<tool_call>{"name": "python", "arguments": {"code": "x"}}</tool_call>').endswith(
        "NameError: name 'x' is not defined\nThe program ended with exit code 1."
    )
    assert said(environment, "<python>while True: pass</python>") == "The program was ended by its limit of time."
    assert environment.step("#### 42") == ([], True)


def test_limits_are_those_of_the_sandbox() -> None:
    with pytest.raises(SettingsError, match=r"environment\.name=python: environment\.arguments\.cpu_second: "):
        played(cpu_second=1)


def test_programs_run_in_turn_and_have_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than cores do not take each other's time, and those that wait are not late."""
    running, most = [0], [0]

    def run(*_: object) -> Outcome:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1
        return Outcome("1\n", "", 0, "")

    monkeypatch.setattr("slimrl.sandbox.Sandbox.run", run)
    environments = [played(workers=1, cpu_seconds=3) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert [*threads.map(lambda one: said(one, "<python>1</python>"), environments)] == ["1\n"] * 8
    assert most == [1]
    config = load_config(TrainConfig, [], ["environment.name=python"])
    rules, _, _ = in_environment(config, *prepare_model(config)[:2])
    assert rules is not None
    assert rules.deadline == inf
    with pytest.raises(SettingsError, match=r"environment\.deadline=5 has no effect on environment\.name=python"):
        load_config(TrainConfig, [], ["environment.name=python", "environment.deadline=5"])


def test_a_sandbox_that_fails_is_no_answer_to_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise SandboxError("the sandbox has ended")

    monkeypatch.setattr("slimrl.sandbox.Sandbox.run", fails)
    with pytest.raises(SandboxError):
        played(cpu_seconds=2).step("<python>1</python>")
