"""What is told to stop does, at a moment at which nothing is lost; told again, at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from slimrl.machine.signals import INTERRUPTED, PREEMPTED, Stop, Stopped
from tests.conftest import ROOT
from tests.forks import command
from tests.session.test_resume import EVERYTHING, content, run


def test_a_signal_waits_for_the_next_moment_and_the_first_cause_stays() -> None:
    stop = Stop()
    with stop.on_signals():
        stop.defer()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM") as caught:
            stop.check()
    assert caught.value.exit_code == PREEMPTED
    stop.ask("something else", 1)
    with pytest.raises(Stopped, match="SIGTERM"):
        stop.check()


def test_before_there_is_anything_to_lose_a_signal_stops_at_once() -> None:
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)
    with stop.on_signals(), pytest.raises(Stopped, match="SIGINT") as caught:
        signal.raise_signal(signal.SIGINT)
    assert caught.value.exit_code == INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is before


STUCK = """
import ctypes, sys, threading, time
from slimrl.machine import signals
from slimrl.machine.signals import Stop
signals.REPEATED_SECONDS = 0.2
stop = Stop()
def listen(overhear):
    told = False
    while True:
        overhear()
        if stop.is_signalled and not told:
            told = True
            print(stop.asked.cause, flush=True)
        time.sleep(0.02)
with stop.on_signals(), stop.overheard() as overhear:
    stop.defer()
    threading.Thread(target=listen, args=(overhear,), daemon=True).start()
    print("ready", flush=True)
    if sys.argv[1] == "stuck":
        pause = ctypes.CDLL(None).pthread_mutex_lock  # twice, as a call that does not return
        mutex = ctypes.create_string_buffer(64)
        pause(mutex), pause(mutex)
    time.sleep(0.5)
    print("alive", flush=True)
"""


@contextmanager
def signalled(state: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """The program STUCK once it has been sent SIGTERM, and what it prints then."""
    with subprocess.Popen([sys.executable, "-c", STUCK, state], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        yield process, process.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex that is all zeros, as of glibc")
def test_another_thread_hears_what_a_thread_in_a_call_cannot() -> None:
    """The first signal asks to stop, the second ends the process; one alone does not, however often it is looked for."""
    with signalled("stuck") as (process, printed):
        assert printed.readline() == "SIGTERM\n"
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == INTERRUPTED


def test_a_signal_that_two_threads_hear_is_one() -> None:
    with signalled("free") as (process, printed):
        assert printed.read() == "SIGTERM\nalive\n"
        assert process.wait(30) == 0


def test_a_guest_handles_what_the_program_leaves_to_python_and_a_second_ctrl_c_is_pythons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slimrl.machine.signals.ECHO_SECONDS", -1.0)
    own = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop = Stop()
    try:
        with stop.on_free_signals():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            stop.defer()
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, own)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(Stopped, match="SIGINT"):
        stop.check()


def test_a_guest_in_another_thread_handles_no_signals() -> None:
    def enter() -> None:
        with Stop().on_free_signals():
            found.append(signal.getsignal(signal.SIGINT))

    found: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_time_is_over_when_it_is() -> None:
    stop = Stop()
    stop.after(0)
    stop.check()
    stop.after(1e-9)
    with pytest.raises(Stopped, match=r"max_time, before there was .* raise max_time, which is over before") as caught:
        stop.check()
    assert caught.value.exit_code == PREEMPTED


TWICE = """
import os, signal, time
from slimrl.machine.signals import Stop
stop = Stop()
with stop.on_signals():
    stop.defer()
    stop.after(1e-9)
    try:
        stop.check()  # max_time is no signal
    except BaseException:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("once", flush=True)
    time.sleep(1.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_a_second_signal_ends_the_process_and_an_echo_does_not() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], check=False, capture_output=True, text=True)
    ended = done.returncode, done.stdout, done.stderr
    said = "ended at once by a second SIGTERM; what was not written yet is lost\n"
    assert ended == (PREEMPTED, "once\n", said)


@pytest.mark.parametrize("where", ["closed", "nobody reads", "full"])
def test_a_second_signal_ends_the_process_where_nobody_can_be_told(where: str) -> None:
    reading, writing = os.pipe()
    if where == "full":
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, bytes(4096))
        os.set_blocking(writing, True)
    else:
        os.close(reading)
    program = TWICE if where != "closed" else "import os\nos.close(2)\n" + TWICE
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, stdout=subprocess.PIPE, stderr=writing, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (PREEMPTED, "once\n")
    os.close(writing)
    if where == "full":
        os.close(reading)


def test_the_command_line_stops_says_how_to_go_on_and_goes_on(tmp_path: Path) -> None:
    """As a scheduler does it: SIGTERM, 75, and the run goes on, here by its folder."""
    run(tmp_path / "whole", "a")
    first = command("train", "--resume", *EVERYTHING, f"output={tmp_path}", "name=a", folder=ROOT)
    while not (tmp_path / "a" / "metrics.jsonl").is_file() and first.running:
        time.sleep(0.01)
    first.send(signal.SIGTERM)
    code, _, said = first.ended()
    assert code == PREEMPTED
    assert f"resume with slimrl train --resume {tmp_path}/a" in " ".join(said.split())
    assert "Traceback" not in said
    _, out, said = command("train", "--resume", str(tmp_path / "a"), "--json", folder=ROOT).ended()
    assert "resuming after step" in said
    assert json.loads(out)["steps"] == 5
    assert content(tmp_path / "a") == content(tmp_path / "whole" / "a")


def test_mistakes_with_resume_are_one_sentence(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from slimrl.cli import cli
    from slimrl.errors import SettingsError

    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["train", *arguments])
        assert isinstance(result.exception, SettingsError)
        return str(result.exception)

    assert refused("--force") == "--force has no effect without --resume; remove it"
    assert "has no config.yaml; give runs/NAME" in refused("--resume", str(tmp_path))
    assert "holds no interrupted run of slimrl train" in refused("--resume", f"output={tmp_path}")
    assert "--resume needs to know which run" in refused("--resume", "@lora")
    assert "max_time: '3 hours' is not a time like 3h50m" in refused("max_time=3 hours")


SCRIPT = ROOT / "recipes" / "slurm.sh"


@pytest.mark.parametrize(
    ("code", "told", "state", "restarts", "requeued"),
    [
        (75, True, "RUNNING", 0, True),
        (75, True, "RUNNING", 20, True),
        (75, False, "RUNNING", 19, True),  # max_time, or a lost rank
        (75, False, "RUNNING", 20, False),
        (75, True, "CANCELLED", 0, False),
        (
            75,
            True,
            "COMPLETING",
            0,
            False,
        ),  # so SLURM 22.05 calls a job that was cancelled until its processes have ended
        (137, False, "RUNNING", 19, True),
        (137, False, "RUNNING", 20, False),
        (137, True, "RUNNING", 19, True),  # killed while it writes its checkpoint
        (137, True, "RUNNING", 20, False),
        (137, False, "CANCELLED", 0, False),
        (130, False, "RUNNING", 0, False),
        (0, False, "RUNNING", 0, False),
        (4, True, "RUNNING", 0, False),
        (74, True, "RUNNING", 0, False),
    ],
)
def test_the_slurm_script_passes_the_word_on_and_requeues(
    code: int, told: bool, state: str, restarts: int, requeued: bool, tmp_path: Path
) -> None:
    end = "kill -KILL $$" if code == 137 else f"exit {code}"
    programs = {
        "slimrl": f"""\
            #!/bin/bash
            echo "$@" > {tmp_path}/called
            trap 'sleep 0.3; {end}' TERM
            {"" if told else end}
            for i in $(seq 600); do sleep 0.1; done""",
        "scontrol": f"""\
            #!/bin/bash
            [ "$1" = show ] && echo "JobId=17 JobState={state} Reason=None" || echo "$@" > {tmp_path}/requeued""",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(textwrap.dedent(text) + "\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    environment["SLURM_RESTART_COUNT"] = str(restarts)
    command = ["bash", str(SCRIPT), "mine", "a.yaml", "steps=3"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as job:
        while not (tmp_path / "called").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        if told:
            job.send_signal(signal.SIGTERM)
        _, said = job.communicate()
    assert job.returncode == code
    assert (tmp_path / "called").read_text().split() == ["train", "--resume", "name=mine", "a.yaml", "steps=3"]
    assert (tmp_path / "requeued").exists() == requeued
    assert ("the job has been requeued 20 times and ends" in said) == (restarts == 20 and not requeued)
    if requeued:
        assert (tmp_path / "requeued").read_text().split() == ["requeue", "17"]


NODES = ROOT / "recipes" / "slurm-nodes.sh"
SRUN = """\
#!/bin/bash
# two processes on two nodes
[ "$1" = --cpus-per-task=4 ] && shift
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_NTASKS=2 SLURM_LOCALID=0 "$@" &
  echo $! >> pids
done
wait
code=$(cat codes | sort -n | tail -n 1)
exit "$code"
"""
RANK = """\
#!/bin/bash
echo "$RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT: $@" >> called
set -- $ENDS # of the ranks
[ "$RANK" = 0 ] || shift
told=75
[ "$1" != kill ] || told=137
trap 'echo $told >> codes; exit $told' TERM
[ "$1" = none ] || [ "$1" = kill ] || { echo "$1" >> codes; exit "$1"; }
for i in $(seq 600); do sleep 0.1; done
"""
SCONTROL = """\
#!/bin/bash
case "$1 $2" in
  "show hostnames") printf 'first\\nsecond\\n' ;;
  "show job") echo "JobId=17 JobState=$STATE Reason=None" ;;
  *) echo "$@" > requeued ;;
esac
"""


SCANCEL = """\
#!/bin/bash
# the signal goes to all processes of a step
for pid in $(cat pids); do kill -TERM "$pid"; pkill -TERM -P "$pid"; done
"""


@pytest.mark.parametrize(
    ("ends", "state", "restarts", "requeued"),
    [
        ("none none", "RUNNING", 0, True),
        ("none none", "RUNNING", 20, True),
        ("kill none", "RUNNING", 19, True),  # memory kills the first one while it writes its checkpoint
        ("kill none", "RUNNING", 20, False),
        ("none none", "COMPLETING", 0, False),
        ("137 75", "RUNNING", 3, True),
        ("75 137", "RUNNING", 19, True),
        ("75 137", "RUNNING", 20, False),
        ("137 75", "RUNNING", 20, False),
        ("75 2", "RUNNING", 20, False),
        ("3 75", "RUNNING", 0, False),
        ("4 75", "RUNNING", 0, False),
        ("74 75", "RUNNING", 0, False),
        ("3 3", "RUNNING", 0, False),
        ("0 0", "RUNNING", 0, False),
        ("130 75", "RUNNING", 0, False),
    ],
)
def test_the_script_for_several_nodes_starts_ranks_and_requeues(
    ends: str, state: str, restarts: int, requeued: bool, tmp_path: Path
) -> None:
    """What the first process ends with decides: others lose it, and end with 75 whatever its reason was."""
    programs = {"srun": SRUN, "slimrl": RANK, "scontrol": SCONTROL, "scancel": SCANCEL}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    own = {
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "x",
        "SLURM_JOB_NUM_NODES": "2",
        "ENDS": ends,
        "STATE": state,
    }
    environment = {
        **os.environ,
        **own,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    (tmp_path / ".slimrl-17").symlink_to("/dev/full")  # as on storage that is full
    called = tmp_path / "called"
    with subprocess.Popen(["bash", str(NODES), "mine", "a.yaml", "steps=3"], env=environment, cwd=tmp_path) as job:
        while job.poll() is None and (not called.exists() or called.read_text().count("\n") < 2):
            time.sleep(0.01)
        if ends.endswith("none"):
            time.sleep(0.2)
            job.send_signal(signal.SIGTERM)
    first = ends.split()[0]
    assert job.returncode == {"none": 75, "kill": 137}.get(first, int(first) if first.isdigit() else None)
    assert sorted(called.read_text().splitlines()) == [
        f"{rank} of 2, 0 of 1 at first:20017: train --resume name=mine a.yaml steps=3" for rank in (0, 1)
    ]
    assert (tmp_path / "requeued").exists() == requeued
    assert [*tmp_path.glob(".slimrl-*")] == []
