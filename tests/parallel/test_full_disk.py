"""A disk that is full for a run on two devices: rank 0 alone writes, and the other rank is neither left nor out of step."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from slimrl.errors import DiskError
from slimrl.runs.checkpoints import checkpoints
from slimrl.runs.files import HashedFile
from tests.forks import ranks_fork as ranks_fork
from tests.quick import quick_runs as quick_runs
from tests.session.test_full_disk import fill
from tests.session.test_resume import FullDisk, content, run

DIVIDED = ("devices=2", "optimizer.sharded=true", "checkpoint.every=1", "steps=4")
"""A checkpoint holds what the other rank sends for it."""


@pytest.mark.usefixtures("ranks_fork")
def test_a_full_disk_loses_no_checkpoint_of_two_ranks_and_ends_a_run_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "whole", *DIVIDED)
    disk = FullDisk(tmp_path / "a", 20_000_000, refusals=2)
    with monkeypatch.context() as patch:
        patch.setattr(HashedFile, "write", lambda file, data: disk.take(file, data))
        fill("model", patch)
        again = rf"free space .*slimrl train --resume {tmp_path}/a continues after step 4$"
        with pytest.raises(DiskError, match=again):
            run(tmp_path, "a", *DIVIDED)
    assert disk.safe == [1, 1], "in the second checkpoint and in the next, and the first stays"
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "failed"
    assert checkpoints(tmp_path / "a" / "checkpoints")[0].step == 4
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("Fork")]
    run(tmp_path, "a", *DIVIDED, resume=True)
    assert content(tmp_path / "a") == content(tmp_path / "whole")
