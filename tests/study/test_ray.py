"""Runs on a cluster of Ray with two nodes, where Ray is installed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slimrl.errors import SettingsError
from slimrl.machine.signals import PREEMPTED
from slimrl.study.launcher import Job, Room, Slots
from slimrl.study.on_ray import RayLauncher, room, run_here
from tests.study.waiting import end_of


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=2)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def job(folder: Path, *lines: str) -> Job:
    settings = folder / "settings.yaml"
    settings.write_text("\n".join(lines) + "\n")
    return Job(settings, folder / "logs" / "a.txt")


def test_without_ray_or_a_cluster_a_sentence_says_so() -> None:
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(SettingsError, match="needs the package ray; pip install"):
            room("")
    else:
        with pytest.raises(SettingsError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 "):
            room("127.0.0.1:1")


def test_a_run_ends_with_its_exit_code_and_says_its_words(tmp_path: Path, cluster: Any) -> None:
    launcher = RayLauncher(cluster.address, Slots(1, 1, 1.0))
    assert room(cluster.address) == Room(3, 0, 2)
    work = job(tmp_path, "no_such_setting: 1")
    assert end_of(launcher.start(work, 0)) == 2
    assert "no_such_setting" in work.last_words()
    missing = Job(tmp_path / "none.yaml", tmp_path / "logs" / "b.txt")
    assert end_of(launcher.start(missing, 0)) == 1
    assert "give --output a folder that every node of the cluster has" in missing.last_words()


def test_a_run_that_is_stopped_is_told(tmp_path: Path, cluster: Any) -> None:
    work = job(tmp_path, "steps: 100000", f"output: {tmp_path}", "name: long", "rollout: {problems: 2, group_size: 2}")
    running = RayLauncher(cluster.address, Slots(1, 1, 1.0)).start(work, 0)
    while not (tmp_path / "long" / "metrics.jsonl").exists():
        assert running.poll() is None
        time.sleep(0.1)
    running.stop()
    assert "stopped by SIGTERM" in work.log.read_text()


def test_a_run_whose_node_dies_was_interrupted(tmp_path: Path, cluster: Any) -> None:
    node = cluster.add_node(num_cpus=4)
    work = job(tmp_path, "steps: 100000", f"output: {tmp_path}", "name: long", "rollout: {problems: 2, group_size: 2}")
    running = RayLauncher(cluster.address, Slots(1, 4, 1.0)).start(work, 0)
    while not (tmp_path / "long" / "metrics.jsonl").exists():
        assert running.poll() is None
        time.sleep(0.1)
    process = int((tmp_path / "long" / "lock").read_text())
    cluster.remove_node(node, allow_graceful=False)
    assert end_of(running) == PREEMPTED
    while Path(f"/proc/{process}").exists():
        time.sleep(0.05)


def test_the_process_of_a_task_has_the_threads_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text('#!/bin/bash\necho "$OMP_NUM_THREADS $PWD"\nexit 3\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    work = job(tmp_path, "steps: 1")
    assert run_here(str(work.settings), str(tmp_path / "log"), os.path.realpath(tmp_path), 5) == 3
    assert (tmp_path / "log").read_text().split() == ["5", os.path.realpath(tmp_path)]
