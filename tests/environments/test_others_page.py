"""The examples of docs/others-environments.md do what the page says."""

from __future__ import annotations

import re
from pathlib import Path

from slimrl.config.environment import EnvironmentConfig
from slimrl.environments import maker
from slimrl.rewards.custom import load_function
from tests.conftest import ROOT
from tests.environments.test_trl import PROBLEM
from tests.environments.test_verifiers import Load, episode
from tests.environments.test_verifiers import load as load

VERIFIERS, TRL = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "others-environments.md").read_text(encoding="utf-8"), re.DOTALL
)


def test_the_example_of_verifiers(load: Load) -> None:
    played, prompt = episode(load(VERIFIERS, turns=2), 0)
    assert prompt == [{"role": "user", "content": "What is 1 + 1?"}]
    assert played.step("2") == ([{"role": "user", "content": "And twice as much as 2?"}], False)
    assert played.step("5")[1]
    assert played.score() == 0.5


def test_the_example_of_trl(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text(TRL)
    shop = maker(EnvironmentConfig(name=f"{file}:Shop"), load_function)()
    assert "You have 20 coins." in str(shop.reset(PROBLEM))  # type: ignore[attr-defined]
    assert shop.step("<buy>7</buy>") == ([{"role": "tool", "content": "13 coins are left."}], False)
    assert shop.step("Enough.") == ([], True)
