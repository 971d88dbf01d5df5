"""A disk that is full for a run on two devices: rank 0 alone writes, and the other rank is neither left nor out of step."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.errors import DiskError
from slimrl.machine.signals import Stop
from slimrl.parallel.team import team
from slimrl.runs.checkpoints import checkpoints
from slimrl.runs.files import HashedFile
from slimrl.train import train
from tests.forks import ranks_fork as ranks_fork
from tests.quick import quick_runs as quick_runs
from tests.session.test_full_disk import fill
from tests.session.test_resume import EVERYTHING, FullDisk, content

DIVIDED = ("devices=2", "checkpoint.every=1", "steps=4")
"""A checkpoint holds what the other rank sends for it."""


def run_on_two(output: Path, name: str, *settings: str, resume: bool = False) -> None:
    """A run with a rank beside this process, as the command line starts it."""
    given = [f"output={output}", f"name={name}", *EVERYTHING, *DIVIDED, *settings]
    config, stop = load_config(TrainConfig, [], given), Stop()
    with team(config, stop) as ranks:
        assert ranks.size == 2
        train(config, Display(quiet=True), stop=stop, resume=resume)
    assert json.loads((output / name / "run.json").read_text())["ranks"] == 2


@pytest.mark.usefixtures("ranks_fork")
@pytest.mark.parametrize(
    ("room", "divided"),
    [
        (20_000_000, ("parallel=fsdp",)),
        (40_000_000, ("optimizer.sharded=true", "algorithm.baseline=critic", "algorithm.scale_rewards=none")),
    ],
    ids=["layers", "critic"],
)
def test_a_full_disk_loses_no_checkpoint_of_two_ranks_and_ends_a_run_in_one_sentence(
    room: int, divided: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on_two(tmp_path, "whole", *divided)
    disk = FullDisk(tmp_path / "a", room, refusals=2)
    with monkeypatch.context() as patch:
        patch.setattr(HashedFile, "write", lambda file, data: disk.take(file, data))
        fill("model", patch)
        again = rf"free space .*slimrl train --resume {tmp_path}/a continues after step 4$"
        with pytest.raises(DiskError, match=again):
            run_on_two(tmp_path, "a", *divided)
    assert disk.safe == [1, 1], "in the second checkpoint and in the next, and the first stays"
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "failed"
    assert checkpoints(tmp_path / "a" / "checkpoints")[0].step == 4
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("Fork")]
    run_on_two(tmp_path, "a", *divided, resume=True)
    assert content(tmp_path / "a") == content(tmp_path / "whole")
