"""The slots of a machine, and what a process in one of them gets."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from slimrl.study.launcher import Job, LocalLauncher, Slots, divide


def test_slots_divide_threads_and_keep_what_a_study_began_with() -> None:
    cores = len(os.sched_getaffinity(0))
    assert divide(0, threads=0, gpus=0, gpu_bytes=0) == Slots(cores, 1, 1 / cores)
    assert divide(1, threads=0, gpus=0, gpu_bytes=0) == Slots(1, cores, 1.0)
    assert divide(1, threads=1, gpus=0, gpu_bytes=0) == Slots(1, 1, 1.0)
    assert divide(0, threads=cores, gpus=0, gpu_bytes=0) == Slots(1, cores, 1.0)
    gpus = divide(0, threads=0, gpus=2, gpu_bytes=80 * 2**30)
    assert (gpus.count, gpus.memory_share) == (8, 0.25)
    assert divide(0, threads=0, gpus=1, gpu_bytes=2**34).count == 1
    several = divide(0, threads=0, gpus=8, gpu_bytes=80 * 2**30, devices=4)
    assert (several.count, several.memory_share, several.devices) == (2, 1.0, 4), "each has its GPUs for itself"
    assert divide(4, threads=1, gpus=8, gpu_bytes=80 * 2**30, devices=4).memory_share == 0.5
    one = divide(0, threads=1, gpus=0, gpu_bytes=0, devices=cores)
    assert (one.count, one.threads, one.cpus, one.memory_share) == (1, 1, cores, 1.0)


def test_a_run_gets_its_slots_gpu_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    class Recorded:
        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            seen.append(env)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    launcher = LocalLauncher(Slots(4, 3, 0.5, gpus=2), lock=0)
    for slot in range(3):
        launcher.start(Job(tmp_path / "s.yaml", tmp_path / "logs" / "s.txt"), slot)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in seen] == ["0", "1", "0"]
    wide = LocalLauncher(Slots(2, 3, 1.0, gpus=4, devices=2), lock=0)
    for slot in range(2):
        wide.start(Job(tmp_path / "s.yaml", tmp_path / "logs" / "s.txt"), slot)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in seen[3:]] == ["0,1", "2,3"]
    assert {env["OMP_NUM_THREADS"] for env in seen} == {"3"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    launcher.start(Job(tmp_path / "s.yaml", tmp_path / "logs" / "s.txt"), 1)
    assert seen[-1]["CUDA_VISIBLE_DEVICES"] == "7"
