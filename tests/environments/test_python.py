"""The built-in environment `python`: programs of a policy run in the sandbox."""

from __future__ import annotations

import pytest

from slimrl.config.environment import EnvironmentConfig
from slimrl.environments import Environment, maker
from slimrl.errors import SettingsError
from slimrl.rewards.custom import load_function
from slimrl.sandbox import SandboxError, working


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


def test_a_sandbox_that_fails_is_no_answer_to_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise SandboxError("the sandbox has ended")

    monkeypatch.setattr("slimrl.sandbox.Sandbox.run", fails)
    with pytest.raises(SandboxError):
        played(cpu_seconds=2).step("<python>1</python>")
