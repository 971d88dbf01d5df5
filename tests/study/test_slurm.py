"""Jobs of SLURM: submitted once, found again, requeued, lost, cancelled and stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from slimrl.errors import SettingsError
from slimrl.machine.signals import PREEMPTED
from slimrl.study import on_slurm
from slimrl.study.launcher import Job, Room, Running, Slots
from slimrl.study.on_slurm import SlurmLauncher
from tests.study.waiting import end_of, until

FAKE = Path(__file__).with_name("fake_slurm.py")
RUN = """\
#!/bin/bash
# stands for the Python that trains; its last argument is the settings file, which holds what to do
echo "$@" >> "$FAKE_SLURM/trained"
trap 'echo stopping; exit 75' TERM
{ read -r first; read -r later; } < "${@: -1}"
echo "a line of the run, threads $OMP_NUM_THREADS"
[ "$(wc -l < "$FAKE_SLURM/trained")" -gt 1 ] && exit "$later"
[ "$first" = endless ] && while :; do sleep 0.05; done
exit "$first"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Commands of a SLURM in small on the path; called, it runs one of them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sinfo", "sbatch", "squeue", "scontrol", "scancel", "lose"):
        (programs / name).write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    (programs / "python").write_text(RUN)
    for program in programs.iterdir():
        program.chmod(0o755)
    (tmp_path / "slurm").mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "slurm"))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(on_slurm, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(on_slurm, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))

    def call(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return call


def job(folder: Path, first: str, later: str = "0") -> Job:
    settings = folder / "settings" / "base-0.yaml"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(f"{first}\n{later}\n")
    return Job(settings, folder / "logs" / "base-0.txt")


def start(work: Job, **options: str) -> Running:
    return SlurmLauncher("main", Slots(1, 2, 1.0), options=options).start(work, 0)


def calls(folder: Path, command: str) -> list[str]:
    return [line for line in (folder / "slurm" / "calls").read_text().splitlines() if line.startswith(command)]


def trained(folder: Path) -> int:
    path = folder / "slurm" / "trained"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("code", [0, 2, 4])
@pytest.mark.usefixtures("slurm")
def test_a_job_ends_with_the_code_of_its_run(code: int, tmp_path: Path) -> None:
    work = job(tmp_path, f"{code}")
    assert end_of(start(work, time="04:00:00")) == code
    assert work.last_words() == "a line of the run, threads 2"
    (submitted,) = calls(tmp_path, "sbatch")
    for option in ("--partition=main", "--cpus-per-task=2", "--time=04:00:00", f"--chdir={Path.cwd()}", "--requeue"):
        assert option in submitted.split()
    assert (tmp_path / "slurm" / "trained").read_text().split()[:5] == ["-m", "slimrl", "train", "--resume", "--quiet"]


@pytest.mark.usefixtures("slurm")
def test_a_job_that_is_in_the_queue_is_found_by_another_process(tmp_path: Path) -> None:
    work = job(tmp_path, "endless")
    start(work)
    again = start(work)
    assert again.poll() is None
    assert len(calls(tmp_path, "sbatch")) == 1
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    start(job(elsewhere, "0"))
    assert len(calls(tmp_path, "sbatch")) == 2, "the same name in another study is another job"
    again.stop()


def test_a_job_whose_time_is_over_waits_in_the_queue_again(tmp_path: Path, slurm: Callable[..., str]) -> None:
    running = start(job(tmp_path, "endless", later="0"))
    until(lambda: trained(tmp_path) == 1)
    time.sleep(0.3)
    slurm("scancel", "--batch", "--signal=TERM", "1")  # as SLURM sends it before the end of the time
    assert end_of(running) == 0
    assert calls(tmp_path, "scontrol requeue") == ["scontrol requeue 1"]
    assert trained(tmp_path) == 2
    assert len(calls(tmp_path, "sbatch")) == 1


def test_a_job_that_its_user_cancels_is_not_requeued(tmp_path: Path, slurm: Callable[..., str]) -> None:
    running = start(job(tmp_path, "endless"))
    until(lambda: trained(tmp_path) == 1)
    time.sleep(0.3)
    slurm("scancel", "1")
    assert end_of(running) == 143
    assert not calls(tmp_path, "scontrol requeue")


def test_a_job_that_is_lost_with_its_node_was_interrupted(tmp_path: Path, slurm: Callable[..., str]) -> None:
    work = job(tmp_path, "endless", later="0")
    running = start(work)
    until(lambda: trained(tmp_path) == 1)
    slurm("lose", "1")
    assert end_of(running) == PREEMPTED
    assert end_of(start(work)) == 0, "the next job"
    assert len(calls(tmp_path, "sbatch")) == 2


def test_a_job_that_slurm_killed_for_what_it_did_has_failed(tmp_path: Path, slurm: Callable[..., str]) -> None:
    running = start(job(tmp_path, "endless"))
    until(lambda: trained(tmp_path) == 1)
    slurm("lose", "1")
    path = tmp_path / "slurm" / "1.job"
    path.write_text(path.read_text().replace("NODE_FAIL", "OUT_OF_MEMORY"))
    assert end_of(running) == 1


def test_a_job_that_goes_back_too_often_was_interrupted(
    tmp_path: Path, slurm: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "20")
    running = start(job(tmp_path, "endless"))
    until(lambda: trained(tmp_path) == 1)
    time.sleep(0.3)
    slurm("scancel", "--batch", "--signal=TERM", "1")
    assert end_of(running) == PREEMPTED
    assert not calls(tmp_path, "scontrol requeue")


@pytest.mark.parametrize(
    ("state", "code", "outcome"),
    [
        ("COMPLETED", "0:0", 0),
        ("FAILED", "2:0", 2),
        ("FAILED", "0:9", 1),
        ("PENDING", "0:0", None),
        ("TIMEOUT", "0:15", 75),
    ],
)
def test_a_job_whose_code_cannot_be_seen_is_asked_of_slurm(
    state: str, code: str, outcome: int | None, tmp_path: Path, slurm: Callable[..., str]
) -> None:
    """As on a file server that shows new files late."""
    work = job(tmp_path, "endless")
    running = start(work)
    until(lambda: trained(tmp_path) == 1)
    slurm("lose", "1")
    until(lambda: not slurm("squeue"))
    path = tmp_path / "slurm" / "1.job"
    path.write_text(path.read_text().replace("NODE_FAIL", f"{state} ExitCode={code}"))
    assert running.poll() == outcome


@pytest.mark.usefixtures("slurm")
def test_a_job_that_never_began_has_no_words(tmp_path: Path) -> None:
    assert Job(tmp_path / "a.yaml", tmp_path / "none.txt").last_words() == "it said nothing"


@pytest.mark.usefixtures("slurm")
def test_the_reason_of_a_job_that_waits_is_told(tmp_path: Path) -> None:
    hold = tmp_path / "slurm" / "hold"
    hold.write_text("Priority")
    running = start(job(tmp_path, "0"))
    assert running.poll() is None
    assert running.waits_for() == "Priority"
    for reason in ("PartitionTimeLimit", "QOSMaxCpuPerJobLimit", "JobHeldUser"):
        hold.write_text(reason)
        remedy = "which does not pass by itself; correct --on, or ask the administrators of the cluster"
        assert running.waits_for() == f"{reason}, {remedy}"
    hold.unlink()
    assert running.waits_for() == ""
    assert end_of(running) == 0
    assert running.waits_for() == ""


@pytest.mark.usefixtures("slurm")
def test_a_limit_on_jobs_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher, refuse = SlurmLauncher("main", Slots(1, 2, 1.0), options={}), tmp_path / "slurm" / "refuse"
    assert end_of(launcher.start(job(tmp_path, "0"), 0)) == 0
    refuse.write_text("sbatch: error: QOSMaxSubmitJobPerUserLimit")
    sleeping = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: refuse.unlink(missing_ok=True))
    monkeypatch.setattr(on_slurm, "time", sleeping)
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    assert end_of(launcher.start(job(elsewhere, "0"), 0)) == 0
    assert len(calls(tmp_path, "sbatch")) == 3


@pytest.mark.usefixtures("slurm")
def test_a_study_that_stops_ends_its_job_for_good(tmp_path: Path) -> None:
    work = job(tmp_path, "endless")
    running = start(work)
    until(lambda: trained(tmp_path) == 1)
    time.sleep(0.3)
    running.stop()
    assert end_of(running) == 143
    assert not calls(tmp_path, "scontrol requeue")
    assert "stopping" in work.log.read_text(), "the run was told, and could write a checkpoint"


@pytest.mark.usefixtures("slurm")
def test_the_room_of_a_partition() -> None:
    assert on_slurm.room("") == Room(6, 3, 4), "of the default partition"


@pytest.mark.usefixtures("slurm")
def test_what_slurm_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="sbatch failed: sbatch: error: invalid partition specified: none"):
        SlurmLauncher("none", Slots(1, 1, 1.0), options={}).start(job(tmp_path, "0"), 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="needs sinfo, which is not on this machine"):
        on_slurm.room("")
