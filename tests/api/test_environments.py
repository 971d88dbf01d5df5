"""Classes of a Python program are environments as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import slimrl
from slimrl.api.environments import read_environment
from slimrl.config.environment import EnvironmentConfig
from slimrl.environments.guess import Guess
from slimrl.preflight.environment import environment_digest
from slimrl.rewards.custom import offering
from slimrl.runs.reader import read_metrics, way_to_resume

SMALL = {"steps": 1, "rollout": {"problems": 2, "group_size": 2, "max_new_tokens": 24}}
SMALL |= {"evaluation": {"problems": 2, "harder_problems": 0, "greedy": False}, "quiet": True}


def twice(times: int = 2) -> type:
    class Twice:
        """Asks again; only this function knows it."""

        def __init__(self) -> None:
            self.left = times

        def step(self, _text: str) -> Any:
            self.left -= 1
            return [{"role": "user", "content": "Again."}], self.left == 0

    return Twice


def test_a_class_that_only_this_program_has_plays(tmp_path: Path) -> None:
    kind = twice()
    settings = {**SMALL, "output": tmp_path}
    run = slimrl.train(environment={"name": kind, "turns": 3}, name="a", **settings)
    assert read_metrics(run.path)[0]["turns/mean"] > 1
    assert (run.path / "config.yaml").read_text().startswith("# The environment is a class of the Python program")
    assert way_to_resume(run.path) == f'slimrl.train(resume="{run.path}", environment=Class)'
    assert {row.turns for row in slimrl.evaluate(run.path, environment=kind, limit=2, quiet=True).test.rows} <= {1, 2}
    with pytest.raises(
        slimrl.SettingsError, match=r"environment\.name: '__main__:Twice' is a class of the Python program"
    ):
        slimrl.evaluate(run.path, limit=1, quiet=True)


def test_another_class_of_that_name_is_another_environment() -> None:
    class Twice:
        def step(self, text: str) -> Any:
            return [], len(text) >= 0

    config = EnvironmentConfig(name="__main__:Twice")
    digests = []
    for kind in (twice(), twice(), Twice):
        with offering({"__main__:Twice": kind}):
            digests.append(environment_digest(config))
    assert digests[0] == digests[1] != digests[2]


def test_a_class_of_a_module_goes_by_its_name() -> None:
    assert read_environment(Guess).settings == {"name": "slimrl.environments.guess:Guess"}
    assert read_environment("calculator").settings == {"name": "calculator"}
    assert read_environment(None).settings == {}
    with pytest.raises(slimrl.SettingsError, match="Guess is neither a name nor a class; arguments of a class"):
        read_environment(Guess())  # type: ignore[arg-type]


def test_a_class_of_a_program_has_no_processes() -> None:
    with pytest.raises(slimrl.SettingsError, match="classes of a Python program run in the process of the run"):
        slimrl.train(environment={"name": twice(), "workers": 1}, quiet=True, steps=1)
    with pytest.raises(slimrl.SettingsError, match="devices=2: other processes cannot load __main__:Twice"):
        slimrl.train(environment=twice(), devices=2, quiet=True, steps=1)
