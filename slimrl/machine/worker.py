"""A child process that answers requests and may be killed at any moment.

A time-out inside a process is not reliable: a long integer power never looks at a signal. A pool of concurrent.futures
would not do either: one worker that dies fails every request that waits, workers outlive a parent that is killed, and
multiprocessing imports the main script again, with its torch, in each of them.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from functools import cached_property
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import IO, Any
from uuid import uuid4

from slimrl.errors import SlimError
from slimrl.machine.processes import MARK, Guard, die_with_the_parent, kill_marked

GIB = 2**30
READY = "ready"
POLL_SECONDS = 0.1  # interval at which a silent child is checked for having ended; mostly its pipe tells at once
LOAD_SECONDS = 120.0  # for Python, and for whatever `load` imports
DRAIN_SECONDS = 1.0
STACK_BYTES = 1 << 21  # of a thread that answers a request beside others; it counts as memory
OUTPUT_BYTES = 1 << 16  # shown of what workers print, in all
ROOT = str(Path(__file__).resolve().parents[2])

Answer = Callable[[Any], Iterable[object]]  # answers a request with replies, sent one by one


class LoadTimeoutError(RuntimeError):
    """The child takes longer than LOAD_SECONDS to load."""


class Worker:
    """A child process that is asked one request at a time, and started again after it has ended.

    Args:
        load: called in the child; returns the function that answers requests. Sent by pickle, so a function of a module.
        memory: bytes of data that the child may hold.
        output: called in a thread of its own with what the child, and the processes that it starts, print.
        guard: kills the child's process group when this process is killed.
        at_once: requests are answered in threads, so that replies come in any order and must say what they answer.

    The child leads a process group: Ctrl-C does not reach it, and `kill` ends it with all that it started; on Linux also what has
    a session of its own, unless its environment is its own too. It ignores SIGINT and SIGTERM, and does not outlive this process,
    however that ends; on Linux not even the thread that started it. Its working directory and import path are those of the
    moment at which this object was made.
    """

    def __init__(
        self,
        load: Callable[[], Answer],
        *,
        memory: int,
        output: Callable[[bytes], object],
        guard: Guard | None = None,
        at_once: bool = False,
    ) -> None:
        self.starts = 0
        """Number of children that were started."""
        self._load, self._output, self._guard = load, output, guard
        path = [*map(str, sys.path), ROOT]
        self._code = (
            f"import sys; sys.path[:] = {path}; from slimrl.machine.worker import serve; serve({memory}, {at_once})"
        )
        self._folder = os.getcwd()
        self._child: _Child | None = None

    @property
    def pid(self) -> int:
        """Process id of the child; 0 if there is none."""
        return child.process.pid if (child := self._own_child()) else 0

    def start(self) -> None:
        """Start the child, unless it runs. Raises OSError if the system refuses."""
        if (child := self._own_child()) and child.ended:
            self.end()
        if not self._own_child():
            self._child = _Child(self._code, self._folder, self._load, self._output, self._guard)
            self.starts += 1

    def ask(self, request: object) -> None:
        """Send a request to the child that was started, after it has loaded.

        Raises EOFError or OSError if the child has ended, the exception of `load`, or LoadTimeoutError; the last two again
        at every request, until `end`.
        """
        child = self._running()
        if isinstance(child.greeting, Exception):
            raise child.greeting
        child.connection.send(request)

    def reply(self, seconds: float) -> Any:
        """The next reply to the request.

        Raises TimeoutError after `seconds`, EOFError or OSError if the child has ended, or the exception of the answer,
        which has no further replies.
        """
        if isinstance(reply := self._running().receive(seconds), Exception):
            raise reply
        return reply

    def kill(self) -> None:
        """Kill the child and what it started. Any thread may call this; requests then raise EOFError or OSError."""
        if child := self._own_child():
            child.kill()

    def end(self) -> str:
        """Kill the child and what it started, wait for it, and return how it ended, in words."""
        child, self._child = self._own_child(), None  # first: its id may soon be another's, which must not be killed
        return child.end() if child else ""

    def _own_child(self) -> "_Child | None":
        """The child; None in a fork of the process that started it, to which the pipe belongs."""
        child = self._child  # read once: another thread may end it
        return child if child and child.parent == os.getpid() else None

    def _running(self) -> "_Child":
        if child := self._own_child():
            return child
        raise EOFError


class _Child:
    """One process and the pipe to it."""

    def __init__(
        self, code: str, folder: str, load: Callable[[], Answer], output: Callable[[bytes], object], guard: Guard | None
    ) -> None:
        self.parent = os.getpid()
        self.connection, theirs = Pipe()
        self._mark = uuid4().hex
        with theirs:
            command = [sys.executable, "-c", code]
            self.process = Popen(
                command,
                stdin=theirs.fileno(),
                stdout=PIPE,
                stderr=STDOUT,
                process_group=0,
                cwd=folder,
                env=os.environ | {MARK: self._mark},
            )
        self._guard = guard
        if guard is not None:
            guard.watch(self.process.pid)
        self._drain = threading.Thread(target=_drain, args=[self.process.stdout, output], daemon=True)
        self._drain.start()
        with contextlib.suppress(OSError):  # a child that has ended already is noticed by the first request
            self.connection.send(load)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @cached_property
    def greeting(self) -> object:
        """READY, or the exception that kept the child from loading. Raises EOFError or OSError if it has ended."""
        try:
            return self.receive(LOAD_SECONDS)
        except TimeoutError:
            return LoadTimeoutError()

    def receive(self, seconds: float) -> object:
        end = time.monotonic() + seconds
        while not self.connection.poll(max(0.0, min(POLL_SECONDS, end - time.monotonic()))):
            # a process that the child left behind may keep the pipe open
            if self.ended and not self.connection.poll():
                raise EOFError
            if time.monotonic() >= end:
                raise TimeoutError
        received: object = self.connection.recv()
        return received

    def kill(self) -> None:
        kill_marked(self.process.pid, self._mark)

    def end(self) -> str:
        self.kill()
        code = self.process.wait()
        # the last output is shown; a pipe that some process holds open is not waited for
        self._drain.join(DRAIN_SECONDS)
        if self._guard is not None:
            self._guard.forget(self.process.pid)
        self.connection.close()
        if code == -signal.SIGKILL:
            return "signal 9 (as when memory runs out)"
        return f"exit code {code}" if code >= 0 else f"signal {-code}"


class Output:
    """Passes on what workers print, up to OUTPUT_BYTES.

    Args:
        show: called with the text.
        what: whatever prints, in the plural, for the sentence on what is not shown.
    """

    def __init__(self, show: Callable[[str], object], what: str) -> None:
        self._show, self._what = show, what
        self._left, self._lock = OUTPUT_BYTES, threading.Lock()

    def write(self, data: bytes) -> None:
        """Show these bytes, or what may still be shown of them."""
        with self._lock:
            kept, self._left = data[: self._left], max(0, self._left - len(data))
            if kept:
                self._show(kept.decode("utf-8", "replace"))
            if kept and not self._left:
                self._show(f"\n(what {self._what} print from here on is not shown)\n")


def _drain(pipe: IO[bytes], output: Callable[[bytes], object]) -> None:
    """Read until no process writes any more."""
    with pipe:
        while data := os.read(pipe.fileno(), 1 << 16):
            output(data)


def serve(memory: int, at_once: bool) -> None:
    """The child's own main: load, then answer requests, until standard input, which is the pipe, closes."""
    _ignore_stop_signals()
    die_with_the_parent()
    _limit_memory(memory)
    sys.stdout = sys.stderr  # which is written line by line, so nothing is lost when the process is killed
    own, connection, sending = os.getpid(), Connection(os.dup(0)), threading.Lock()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nothing that an answer runs may read the requests
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                requests.put(connection.recv_bytes())
        finally:
            os._exit(0)  # the parent is gone, perhaps during an answer that never returns

    def send(reply: object) -> None:
        if os.getpid() != own:  # a process that an answer forked and that came back from it: only one may reply
            os._exit(0)
        with sending:
            connection.send(reply)

    def reply_to(request: object) -> None:
        try:
            for reply in answer(request):
                send(reply)
        except Exception as error:
            send(_portable(error))

    threading.stack_size(STACK_BYTES if at_once else 0)
    threading.Thread(target=listen, daemon=True).start()
    try:
        answer: Answer = ForkingPickler.loads(requests.get())()
    except Exception as error:
        send(_portable(error))
        threading.Event().wait()
    send(READY)
    while True:
        request = ForkingPickler.loads(requests.get())
        if at_once:
            _start_thread(reply_to, request)
        else:
            reply_to(request)


def _start_thread(function: Callable[[object], object], argument: object) -> None:
    """Call a function in a thread, as soon as there is memory for a further one."""
    while True:
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=function, args=[argument], daemon=True).start()
            return
        time.sleep(POLL_SECONDS)


def _portable(error: Exception) -> Exception:
    """An error for the user as it is; any other is a fault of SlimRL, with the traceback, which pickle would lose."""
    if isinstance(error, SlimError):
        return error
    return RuntimeError("in a worker process:\n" + "".join(traceback.format_exception(error)))


def _limit_memory(size: int) -> None:
    """Bytes of data, not of addresses: libraries for GPUs reserve far more addresses than they fill."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _ignore_stop_signals() -> None:
    """Schedulers send SIGTERM to every process of a job; the parent decides what still has to be answered."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which programs that an answer runs would inherit
    # processes that an answer forks can be stopped as usual
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
