"""Programs as they are run: the process that is started for each, and how it ends."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import IO, Literal, Self

from slimrl.config.sandbox import SandboxConfig
from slimrl.errors import SettingsError, SlimError
from slimrl.machine.threads import cores
from slimrl.sandbox import inside
from slimrl.sandbox.isolation import Way, environment, installed, ways
from slimrl.terms import Isolated

EndedBy = Literal["", "time", "memory", "output"]
GRACE_SECONDS = 5.0
"""For the keeper of `limits` to end a program and remove its files, before it is killed itself."""
TRIAL = """
import os, socket
assert not os.path.exists("/etc/passwd") and not os.path.exists("/proc/self"), "files are seen"
open("own", "w").close()
try:
    open("/outside", "w")
except OSError:
    pass
else:
    raise AssertionError("files can be written")
try:
    socket.socket()
except OSError:
    print("shut in")
"""
"""A program by which an isolation is tried."""


class SandboxError(SlimError):
    """The sandbox itself failed, so that nothing is known of the program."""


@dataclass(frozen=True)
class Outcome:
    """The end of a program.

    Example: Outcome(stdout="42\\n", stderr="", exit_code=0, ended_by="")
    """

    stdout: str
    """At most `sandbox.output` KiB, with `stderr`; bytes that are not UTF-8 are replaced."""
    stderr: str
    exit_code: int
    """As Python gives it; minus the number of the signal that ended the process."""
    ended_by: EndedBy = ""
    """The limit that ended it; empty where it ended by itself."""
    seconds: float = 0.0
    """Of computing; 0 where a limit of the caller's ended it."""

    @property
    def printed(self) -> str:
        """The text that the program printed; where it has not ended well, also its last errors, and a sentence that says so."""
        if not self.exit_code and not self.ended_by:
            return self.stdout
        why = f"The program was ended by its limit of {self.ended_by}." if self.ended_by else ""
        if not why:
            why = f"The program ended with exit code {self.exit_code}."
        return "\n".join(part for part in (self.stdout.rstrip(), self.stderr.rstrip()[-2000:], why) if part)


class Sandbox:
    """Runs programs, each in a process of its own, which is ended with all that it started when `run` returns.

    Raises SettingsError, where it is made, if the isolation of the settings does not work on this machine.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self.way = chosen(config)
        if config.processes > 1 and not self.way.tasks:
            raise SettingsError(
                f"sandbox.processes={config.processes}: with {self.way.isolation} nothing here counts the processes of a "
                "program; set sandbox.processes=1"
            )
        self._fields = self.way.fields(config)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()
        """Of `_pool`."""

    def run(self, program: str, files: Mapping[str, str] | None = None, stdin: str = "") -> Outcome:
        """Run a Python program, with these files (by relative name) beside it, and wait for its end.

        Raises ValueError for a name of a file that leads out of the folder, and SandboxError if the sandbox itself failed.
        """
        return _run(self.way, self._fields, self.config, {"program.py": program, **_checked(files or {})}, stdin)

    def start(self, program: str, files: Mapping[str, str] | None = None, stdin: str = "") -> Future[Outcome]:
        """As `run`, in turn with others that were started, `sandbox.workers` of them at a time. Any thread may call it."""
        with self._lock:
            if self._pool is None:
                workers = cores() if self.config.workers == "auto" else self.config.workers
                self._pool = ThreadPoolExecutor(workers, "sandbox")
            return self._pool.submit(self.run, program, files, stdin)

    def close(self) -> None:
        """Wait for the programs that run, and forget those that wait."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def chosen(config: SandboxConfig) -> Way:
    """The way of the settings; raises SettingsError where it does not work, or under `auto` none that guarantees anything."""
    wanted: tuple[Isolated, ...] = ("bubblewrap", "namespaces") if config.isolation == "auto" else (config.isolation,)
    reasons = []
    for isolation in wanted:
        way, reason = working(isolation)
        if way is not None:
            return way
        reasons.append(f"{isolation}: {reason}")
    if config.isolation == "auto":
        raise SettingsError(
            f"sandbox.isolation=auto finds no isolation that works here ({'; '.join(reasons)}); install bubblewrap, or allow "
            "user namespaces, or set sandbox.isolation=limits, which guarantees nothing about files and the network"
        )
    raise SettingsError(
        f"sandbox.isolation={config.isolation} does not work here ({reasons[0].partition(': ')[2]}); set another, as auto does"
    )


@lru_cache(maxsize=8)
def working(isolation: Isolated) -> tuple[Way | None, str]:
    """The better way of an isolation that works on this machine, or why none does; each is tried once."""
    reason = installed(isolation)
    for way in [] if reason else ways(isolation):
        config = SandboxConfig(isolation=isolation)
        program = 'print("shut in")' if isolation == "limits" else TRIAL
        try:
            outcome = _run(way, way.fields(config), config, {"program.py": program}, "")
        except (OSError, SandboxError, subprocess.SubprocessError) as error:
            reason = str(error)
            continue
        if outcome.stdout == "shut in\n":
            return way, ""
        reason = (outcome.stderr.strip().splitlines() or [outcome.ended_by or "it lets too much through"])[-1]
    return None, reason


def _checked(files: Mapping[str, str]) -> Mapping[str, str]:
    for name in files:
        parts = name.split("/")
        if name.startswith("program.py") or not name.isprintable() or {"", ".", ".."} & {*parts}:
            raise ValueError(f"a file of a program cannot have the name {name!r}; give a relative one")
    return files


def _run(way: Way, fields: Mapping[str, bytes], config: SandboxConfig, files: Mapping[str, str], stdin: str) -> Outcome:
    texts = {f"file:{name}": text for name, text in files.items()} | {"stdin": stdin}
    request = {**fields, **{name: text.encode("utf-8", "surrogatepass") for name, text in texts.items()}}
    with contextlib.ExitStack() as stack:
        home = inside.SCRATCH
        if way.isolation == "limits":
            home = tempfile.mkdtemp(prefix="slimrl-sandbox-")
            stack.callback(inside.remove, home)
            request["folder"] = os.fsencode(home)
        file = stack.enter_context(tempfile.TemporaryFile())
        for name, data in request.items():
            file.write(f"{name} {len(data)}\n".encode() + data)
        file.seek(0)
        status, reported = os.pipe()
        stack.callback(os.close, status)
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY) if os.path.isdir("/proc/self") else -1
        try:
            kept = [reported, *([proc] if proc >= 0 else [])]
            child = subprocess.Popen(
                way.command(reported, proc),
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(home),
                cwd="/",
                pass_fds=kept,
                start_new_session=True,
            )
        finally:
            os.close(reported)
            if proc >= 0:
                os.close(proc)
        stack.callback(_kill, child, gently=way.isolation == "limits")
        return _Watch(child, status, config).outcome()


def _kill(child: subprocess.Popen[bytes], *, gently: bool) -> None:
    """End the child, with which the kernel ends all that it started; the keeper of `limits` does that itself."""
    if gently:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


class _Watch:
    """Reads what a program prints, up to the limit, until its end is reported or its time is over; never for longer."""

    def __init__(self, child: subprocess.Popen[bytes], status: int, config: SandboxConfig) -> None:
        assert child.stdout is not None
        assert child.stderr is not None
        self._pipes: dict[int, IO[bytes]] = {pipe.fileno(): pipe for pipe in (child.stdout, child.stderr)}
        self._printed = {number: bytearray() for number in self._pipes}
        self._status = status
        self._most = config.output * 1024
        self._cpu_seconds = config.cpu_seconds
        self._until = time.monotonic() + config.seconds
        self._poll = select.poll()
        for number in (*self._pipes, status):
            os.set_blocking(number, False)
            self._poll.register(number, select.POLLIN)

    def outcome(self) -> Outcome:
        """The end of the program; raises SandboxError where there was none."""
        ended_by, told = self._ended()
        out, err = (bytes(data[: self._most]).decode("utf-8", "replace") for data in self._printed.values())
        if ended_by:
            return Outcome(out, err, -int(signal.SIGKILL), ended_by)
        kind, _, rest = told.partition(" ")
        if kind == "error" or not told:
            last = (err.strip().splitlines() or ["its process ended before the program began"])[-1]
            raise SandboxError(f"the sandbox failed: {rest or last}")
        number, _, seconds = rest.partition(" ")
        code = int(number) if kind == "exit" else -int(number)
        killed = code == -int(signal.SIGKILL) and float(seconds) >= self._cpu_seconds  # it ignored the first signal
        if killed or code == -int(signal.SIGXCPU):
            ended_by = "time"
        elif code == 1 and (err.rstrip().splitlines() or [""])[-1].startswith("MemoryError"):
            ended_by = "memory"
        return Outcome(out, err, code, ended_by, float(seconds))

    def _ended(self) -> tuple[EndedBy, str]:
        """The limit that the program ran into, or the report on its end."""
        while (left := self._until - time.monotonic()) > 0:
            ready = [number for number, _ in self._poll.poll(left * 1000)]
            for number in ready:
                if number != self._status:
                    self._read(number)
            if self._size > self._most:
                return "output", ""
            if self._status in ready:
                told = os.read(self._status, 4096).decode("utf-8", "replace").partition("\n")[0]
                for number in self._pipes:  # what is still in the pipes; nobody is waited for who holds them open
                    while self._size <= self._most and self._read(number):
                        pass
                return ("output", "") if self._size > self._most else ("", told)
        return "time", ""

    @property
    def _size(self) -> int:
        return sum(map(len, self._printed.values()))

    def _read(self, number: int) -> bool:
        """Read once; False where there was nothing."""
        try:
            data = os.read(number, 1 << 16)
        except BlockingIOError:
            return False
        if data:
            self._printed[number] += data
        else:
            with contextlib.suppress(KeyError):
                self._poll.unregister(number)
        return bool(data)
