"""Programs end, whatever they do, within their limits, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.sandbox import SandboxConfig
from slimrl.errors import SettingsError
from slimrl.sandbox import Outcome, Sandbox, SandboxError, running, working
from slimrl.sandbox.filter import ARCHITECTURES, OWN_PID, call_filter
from slimrl.sandbox.inside import OWN_PID as PATCHED

STRONG = ("bubblewrap", "namespaces")
ALL = (*STRONG, "limits")
SMALL = {"seconds": 3.0, "cpu_seconds": 1, "memory": 128, "scratch": 2, "output": 16, "workers": 4}
MARK = "import time; mark = 'slimrl-left-behind'\n"


def made(isolation: str, **settings: Any) -> Sandbox:
    way, reason = working(isolation)  # type: ignore[arg-type]
    if way is None:
        pytest.skip(f"{isolation} does not work here: {reason}")
    return Sandbox(SandboxConfig.model_validate({"isolation": isolation, **SMALL, **settings}))


PROGRAMS: dict[str, tuple[dict[str, int], str]] = {
    "a gigabyte of output": ({}, "import os\nwhile True: os.write(1, b'x' * 65536)"),
    "a gigabyte of errors": ({}, "import os\nwhile True: os.write(2, b'x' * 65536)"),
    "endless loop": ({}, "while True: pass"),
    "signals ignored": ({}, "import signal\nfor s in range(1, 65):\n try: signal.signal(s, signal.SIG_IGN)\n except (OSError, ValueError): pass\nwhile True: pass"),
    "sleep": ({}, "import time\ntime.sleep(1000)"),
    "closed output": ({}, "import os, time\nos.close(1); os.close(2); time.sleep(1000)"),
    "all closed": ({}, "import os, time\nos.closerange(0, 1000); time.sleep(1000)"),
    "stopped": ({}, "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"),
    "memory": ({}, "x = []\nwhile True: x.append(bytearray(1 << 20))"),
    "memory at once": ({}, "x = bytearray(1 << 34)"),
    "shared memory": ({}, "import mmap\nx = []\nwhile True:\n m = mmap.mmap(-1, 1 << 20); m.write(b'x' * (1 << 20)); x.append(m)"),
    "stack": ({}, "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return [*map(lambda _: f(), [0])]\nf()"),
    "threads": ({}, "import threading, time\nthreading.stack_size(65536)\nfor n in range(10**5): threading.Thread(target=time.sleep, args=[100]).start()"),
    "fork": ({}, "import os\nwhile True: os.fork()"),
    "fork bomb": ({"processes": 8}, "import os\nwhile True:\n try: os.fork()\n except OSError: pass"),
    "child that keeps the pipe": ({"processes": 4}, MARK + "import os\nif os.fork() == 0: time.sleep(1000)\nprint('done')"),
    "daemon": ({"processes": 4}, MARK + "import os\nif os.fork() == 0:\n try: os.setsid()\n except OSError: pass\n if os.fork() == 0: time.sleep(1000)\n os._exit(0)\nprint('done')"),
    "children without end": ({"processes": 4}, "import os\nfor _ in range(10**9):\n p = os.fork()\n if p == 0: os._exit(0)\n os.waitpid(p, 0)"),
    "disk": ({}, "f = open('big', 'wb')\nwhile True: f.write(b'x' * 65536)"),
    "disk in pieces": ({}, "for n in range(10**9): open(f'f{n}', 'wb').write(b'x' * 65536)"),
    "files without end": ({}, "for n in range(10**9): open(f'f{n}', 'w')"),
    "folders without end": ({}, "import os\nfor n in range(10**9): os.mkdir('d'); os.chdir('d')"),
    "descriptors": ({}, "x = []\nwhile True: x.append(open('/dev/zero'))"),
    "pipes": ({}, "import os\nx = []\nwhile True: x.append(os.pipe())"),
    "locks": ({}, "import ctypes\nlibc = ctypes.CDLL(None)\nb = ctypes.create_string_buffer(1 << 24)\nassert libc.mlock(b, 1 << 24) == 0"),
}  # fmt: skip
ENDS = {
    "a gigabyte of output": "output", "a gigabyte of errors": "output", "endless loop": "time", "signals ignored": "time", "sleep": "time",
    "closed output": "time", "all closed": "time", "stopped": "time", "memory": "memory", "memory at once": "memory",
}  # fmt: skip


@pytest.fixture(scope="module", params=ALL)
def ended(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        yield from _ended(request)


def _ended(request: Any) -> Iterator[dict[str, Outcome]]:
    counts = {s.get("processes", 1) for s, _ in PROGRAMS.values() if request.param != "limits" or not s}
    boxes = {count: made(request.param, processes=count) for count in counts}
    started = {
        n: boxes[s.get("processes", 1)].start(c) for n, (s, c) in PROGRAMS.items() if s.get("processes", 1) in counts
    }
    yield {name: future.result(timeout=100) for name, future in started.items()}
    for box in boxes.values():
        box.close()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends(ended: dict[str, Outcome], name: str) -> None:
    if name not in ended:
        pytest.skip("limits has one process a program")
    outcome = ended[name]
    assert len(outcome.stdout) + len(outcome.stderr) <= 2 * 16 * 1024
    if name in ENDS:
        assert outcome.ended_by == ENDS[name], outcome
    elif name in ("child that keeps the pipe", "daemon"):
        assert outcome.stdout == "done\n", outcome
        assert outcome.exit_code == 0
    else:
        assert outcome.exit_code != 0, outcome


def test_nothing_is_left(ended: dict[str, Outcome]) -> None:
    assert ended
    wait_until(lambda: children(os.getpid()) == [], "no process")
    assert not list(Path(tempfile.gettempdir()).glob("slimrl-sandbox-*"))


def children(caller: int) -> list[str]:
    """The processes of sandboxes that a process has started, all of which have its number as their last argument."""
    return [line for line in commands("inside.main()") if line.rstrip().endswith(f" {caller}")]


def commands(part: str) -> list[str]:
    """The processes of the machine that have this in their command."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if part in line and f"/{os.getpid()}/" not in str(place):
            found.append(line)
    return found


CALLER = """
import sys
from slimrl.config.sandbox import SandboxConfig
from slimrl.sandbox import Sandbox
sandbox = Sandbox(SandboxConfig(isolation=sys.argv[1], processes=int(sys.argv[2]), seconds=1000.0, cpu_seconds=1000))
print("ready", flush=True)
sandbox.run(f'several = {sys.argv[2]} > 1' + '''
import os, signal, time
for s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)
if several: os.fork()
open("file", "w").write("x")
while True: time.sleep(1)
''')
"""


@pytest.mark.parametrize("isolation", ALL)
def test_nothing_outlives_a_caller_that_is_killed(isolation: str, tmp_path: Path) -> None:
    made(isolation)
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, isolation, "1" if isolation == "limits" else "4"],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    assert caller.stdout is not None
    with caller.stdout:
        assert caller.stdout.readline() == "ready\n"
    mark = f"inside.main() {{}} {caller.pid}"
    wait_until(lambda: any(line.rstrip().endswith(f" {caller.pid}") for line in commands("inside.main()")), mark)
    time.sleep(0.3)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    wait_until(lambda: not children(caller.pid), mark)
    wait_until(lambda: list(tmp_path.iterdir()) == [], "an empty folder")


def wait_until(is_true: Any, what: str) -> None:
    end = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.mark.parametrize("isolation", ALL)
def test_a_program_has_its_files_its_input_and_nothing_else(isolation: str) -> None:
    with made(isolation, output=512) as sandbox:
        program = "import sys, os, helper\nfrom b.c import x\nprint(sys.stdin.read(), open('a.txt').read(), helper.y, x, sorted(os.listdir()))"
        files = {"a.txt": "é", "helper.py": "y = 2", "b/c.py": "x = 3"}
        assert (
            sandbox.run(program, files, "ä" * 10**5).stdout
            == "ä" * 10**5 + " é 2 3 ['a.txt', 'b', 'helper.py', 'program.py']\n"
        )
        program = "import os; print(sorted(os.environ.keys() - {'PWD', 'LC_CTYPE'}), hash('a'))"
        first, second = sandbox.run(program), sandbox.run(program)
        assert first.stdout.startswith("['HOME', 'LANG', 'PATH', 'PYTHONHASHSEED', 'TMPDIR'] ")
        assert first.stdout == second.stdout
        for name in ("../x", "/x", "a//b", "", "program.py", "a/../../b", "a\nb"):
            with pytest.raises(ValueError, match="cannot have the name"):
                sandbox.run("", {name: ""})


@pytest.mark.parametrize("isolation", ALL)
def test_a_program_ends_as_under_python(isolation: str) -> None:
    cases = {
        "exit(3)": (3, ""), "raise SystemExit('bye')": (1, "bye"), "import os; os._exit(4)": (4, ""), "1/0": (1, "ZeroDivisionError: division by zero"),
        "x = (": (1, "SyntaxError: '(' was never closed"), "import os; os.abort()": (-6, ""), "raise KeyboardInterrupt": (1, "KeyboardInterrupt"),
        "import atexit; atexit.register(print, 1)": (0, ""), "import threading; threading.Thread(target=print, args=[1]).start()": (0, ""),
        "import asyncio\nasync def f(): await asyncio.sleep(0)\nasyncio.run(f())": (0, ""), "import ssl, sqlite3, zlib, lzma, decimal": (0, ""),
        "assert __name__ == '__main__'; import __main__; assert __main__.__file__.endswith('program.py')": (0, ""),
    }  # fmt: skip
    with made(isolation, memory=512) as sandbox:
        for program, (code, last) in cases.items():
            outcome = sandbox.run(program)
            assert outcome.exit_code == code, (program, outcome)
            assert (outcome.stderr.strip().splitlines() or [""])[-1] == last
            assert "inside.py" not in outcome.stderr
        assert sandbox.run("1/0").stderr.splitlines()[1].endswith('program.py", line 1, in <module>')
        assert sandbox.run("print(1)").printed == "1\n"
        assert sandbox.run("print(1); 1/0").printed.endswith("The program ended with exit code 1.")


def test_auto_takes_the_strongest_and_asks_for_a_weaker_one(monkeypatch: pytest.MonkeyPatch) -> None:
    best = next((one for one in STRONG if working(one)[0]), None)  # type: ignore[arg-type]
    if best:
        assert Sandbox(SandboxConfig()).way.isolation == best
    monkeypatch.setattr(running, "working", lambda one: (None, f"{one} is broken"))
    with pytest.raises(SettingsError, match=r"bubblewrap is broken.*or set sandbox\.isolation=limits"):
        Sandbox(SandboxConfig())
    with pytest.raises(
        SettingsError, match=r"sandbox\.isolation=namespaces does not work here \(namespaces is broken\)"
    ):
        Sandbox(SandboxConfig(isolation="namespaces"))


def test_processes_that_nothing_counts_are_refused() -> None:
    made("limits")
    with pytest.raises(SettingsError, match=r"sandbox\.processes=2: with limits nothing here counts"):
        made("limits", processes=2)


def test_a_sandbox_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = made("namespaces")
    monkeypatch.setattr(sandbox, "_fields", sandbox._fields | {"base": b"/nowhere"})
    with pytest.raises(SandboxError, match="mount: No such file"):
        sandbox.run("print(1)")


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_filters_are_programs(machine: str) -> None:
    filters = [
        call_filter(machine, processes=p, threads=t, signals=s)
        for p in (False, True)
        for t in (False, True)
        for s in (False, True)
    ]
    assert len({*filters}) > 3
    assert all(len(one) % 8 == 0 and len(one) // 8 < 4096 for one in filters)
    assert OWN_PID.to_bytes(4, "little") == PATCHED
    assert filters[0].count(PATCHED) == 2
