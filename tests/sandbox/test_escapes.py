"""Programs that try to leave the sandbox, each of which is stopped under every isolation that works here, seen from outside."""

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.sandbox import SandboxConfig
from slimrl.sandbox import Outcome, Sandbox, working
from tests.sandbox.escapes import HARMFUL, HARMLESS, HEADER

ISOLATIONS = ("bubblewrap", "namespaces")
ESCAPES = HARMLESS | HARMFUL
UNSEEN = {"own environment", "environment at the start", "tcp6", "user namespace", "perf_event_open", "bpf", "keyctl", "add_key",
          "io_uring", "userfaultfd", "fanotify", "host name", "devices", "file by handle", "shell", "message queue", "listen",
          "ptrace", "memory of another process", "descriptor of another process", "kill of the parent"}  # fmt: skip
"""Attempts that a machine or a container may refuse by itself, or that would harm the tests, so that a control proves nothing."""


class World:
    """What lies outside: files, servers, processes, and what has come through to them."""

    def __init__(self, folder: Path) -> None:
        self.heard: list[bytes] = []
        self.token, self.unique = os.urandom(8).hex(), f"slimrl-{os.urandom(8).hex()}"
        self.outside = folder / "outside"
        self.outside.mkdir()
        self.secret, self.precious = self.outside / "secret", self.outside / "precious"
        self.secret.write_text(self.token)
        self.precious.write_text("x")
        self.victims = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
        self.servers = []
        for kind, address in (
            (socket.AF_INET, ("127.0.0.1", 0)),
            (socket.AF_UNIX, str(folder / "unix")),
            (socket.AF_UNIX, f"\0{self.token}"),
        ):
            server = socket.socket(kind)
            server.bind(address)
            server.listen()
            self.servers.append(server)
            threading.Thread(target=self._hear, args=[server], daemon=True).start()
        self.datagrams = [socket.socket(kind, socket.SOCK_DGRAM) for kind in (socket.AF_INET, socket.AF_UNIX)]
        self.datagrams[0].bind(("127.0.0.1", 0))
        self.datagrams[1].bind(str(folder / "datagram"))
        for one in self.datagrams:
            one.settimeout(0.05)
        self.left_open = os.open(self.secret, os.O_RDONLY)
        os.set_inheritable(self.left_open, True)  # noqa: FBT003
        self.shm = 0x51000000 | int(self.token[:5], 16)
        libc = ctypes.CDLL(None)
        self.segment = libc.shmget(self.shm, 4096, 0o1600)
        self.queue = libc.msgget(self.shm + 1, 0o1600)
        self.libc = libc

    def _hear(self, server: socket.socket) -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with peer:
                self.heard.append(peer.recv(100))

    def told(self, name: str) -> str:
        return json.dumps({
            "name": name, "token": self.token, "unique": self.unique, "secret": str(self.secret),
            "outside": str(self.outside), "precious": str(self.precious), "home": str(Path.home()),
            "home_names": sorted({*os.listdir(Path.home())} - {*Path(os.path.realpath(sys.executable)).parts}),
            "parent": os.getpid(),
            "victim": self.victims[0].pid, "bystander": self.victims[1].pid, "port": self.servers[0].getsockname()[1],
            "udp": self.datagrams[0].getsockname()[1], "unix": self.servers[1].getsockname(), "abstract": self.token,
            "datagram": self.datagrams[1].getsockname(), "shm": self.shm, "python": os.path.realpath(sys.executable),
        })  # fmt: skip

    def hear_datagrams(self) -> None:
        for one in self.datagrams:
            try:
                while True:
                    self.heard.append(one.recv(100))
            except TimeoutError:
                pass

    def close(self) -> None:
        for one in (*self.servers, *self.datagrams):
            one.close()
        for victim in self.victims:
            victim.kill()
            victim.wait()
        os.close(self.left_open)
        self.libc.shmctl(self.segment, 0, None)
        self.libc.msgctl(self.queue, 0, None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()


@pytest.fixture(scope="module", params=ISOLATIONS)
def tried(request: Any, world: World) -> Iterator[tuple[World, dict[str, Outcome]]]:
    """All programs, side by side, under one isolation."""
    way, reason = working(request.param)
    if way is None:
        pytest.skip(f"{request.param} does not work here: {reason}")
    os.environ["SLIMRL_SECRET"] = world.token
    with Sandbox(SandboxConfig(isolation=request.param, workers=4)) as sandbox:
        assert sandbox.way == way
        started = {name: sandbox.start(HEADER + code, stdin=world.told(name)) for name, code in ESCAPES.items()}
        outcomes = {name: future.result() for name, future in started.items()}
    del os.environ["SLIMRL_SECRET"]
    world.hear_datagrams()
    yield world, outcomes


def test_there_are_fifty() -> None:
    assert len(ESCAPES) >= 50


@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_is_stopped(tried: tuple[World, dict[str, Outcome]], name: str) -> None:
    world, outcomes = tried
    outcome = outcomes[name]
    shown = outcome.stdout + outcome.stderr
    assert outcome.stdout.startswith("tried\n"), shown  # the attempt was made, and not kept back by something else
    assert "SyntaxError" not in shown
    assert "NameError" not in shown
    assert "ESCAPED" not in outcome.stdout, shown
    assert world.token not in shown
    assert name.encode() not in world.heard
    assert not (world.outside / name).exists()
    assert not Path(f"/tmp/{world.unique}{name}").exists()
    assert all(victim.poll() is None for victim in world.victims)
    assert {path.name for path in world.outside.iterdir()} == {"secret", "precious"}


def test_the_machine_is_as_before(tried: tuple[World, dict[str, Outcome]]) -> None:
    world, _ = tried
    assert world.unique not in socket.gethostname()
    assert world.heard == []
    assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[1] == "/scratch"]
    assert not Path("core").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the attempts are Linux's")
@pytest.mark.parametrize("name", sorted(HARMLESS.keys() - UNSEEN))
def test_the_attempt_succeeds_outside_of_a_sandbox(tmp_path: Path, name: str) -> None:
    """So that the table above proves something."""
    world = World(tmp_path)
    try:
        run = subprocess.run(
            [sys.executable, "-c", HEADER + HARMLESS[name]],
            input=world.told(name), capture_output=True, text=True, cwd=tmp_path, pass_fds=[world.left_open], timeout=60,
            env=os.environ | {"SLIMRL_SECRET": world.token}, check=False,
        )  # fmt: skip
        assert "ESCAPED" in run.stdout or world.token in run.stdout, run.stdout + run.stderr
    finally:
        world.close()
        Path(f"/tmp/{world.unique}{name}").unlink(missing_ok=True)
