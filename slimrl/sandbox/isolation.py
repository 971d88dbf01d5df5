"""The isolations that a machine may have, each as a command that starts the child, and which of them works, found by trying."""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from slimrl.config.sandbox import SandboxConfig
from slimrl.sandbox import inside
from slimrl.sandbox.filter import ARCHITECTURES, call_filter
from slimrl.terms import Isolated

OPTIONS = ("-S", "-s", "-P", "-B", "-X", "utf8")
"""Of Python: no packages but the standard library, and nothing from the environment but what is given."""
THREADS = 32
"""Of a program with one process."""
COUNTED_BY_NAMESPACE = (5, 14)
"""Kernel from which a limit of processes counts those of the namespace, and not all that the user has anywhere."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
SHARED = ("/etc/ld.so.cache", "/usr/share/zoneinfo", "/lib64", "/usr/lib64")
"""What Python reads besides its library, where it is there: the places of shared libraries, and time zones."""
LINKS = ("/lib", "/lib32", "/lib64", "/usr/lib64")
_LOOK = """
import os, sys
for place in sys.path:
    for name in os.listdir(place) if place.endswith("lib-dynload") else ():
        try:
            __import__(name.partition(".")[0])
        except BaseException:
            pass
print(*sys.path, sep="\\n")
with open("/proc/self/maps") as maps:
    for line in maps:
        path = line.rstrip().partition("/")
        if path[1] and ".so" in path[2]:
            print(os.path.dirname("/" + path[2]))
"""


@dataclass(frozen=True)
class Way:
    """An isolation, and the user as whom a program runs in it."""

    isolation: Isolated
    user: Literal["own", "nobody"] = "own"
    """`nobody`: root gives up all rights before."""

    @property
    def tasks(self) -> bool:
        """True where the number of processes is limited: the kernel limits none of root's."""
        if self.isolation == "limits" or (os.geteuid() == 0 and self.user == "own"):
            return False
        return tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= COUNTED_BY_NAMESPACE

    def fields(self, config: SandboxConfig) -> dict[str, bytes]:
        """The part of a request that says how it is isolated and limited."""
        # there are several only where they are counted
        weak, several = self.isolation == "limits", config.processes > 1
        machine = platform.machine()
        filtered = sys.platform == "linux" and machine in ARCHITECTURES
        calls = b""
        if filtered:
            calls = call_filter(machine, processes=several, threads=weak or self.tasks, signals=several)
        texts: Mapping[str, object] = {
            "isolation": self.isolation,
            "user": self.user,
            "memory": config.memory,
            "cpu_seconds": config.cpu_seconds,
            "scratch": config.scratch,
            "tasks": (config.processes if several else THREADS) if self.tasks else 0,
            "base": tempfile.gettempdir(),
        }
        found = {name: os.fsencode(str(value)) for name, value in texts.items()} | {"filter": calls}
        if self.isolation == "namespaces":
            seen = visible()
            found |= {name: "\n".join(lines).encode() for name, lines in seen._asdict().items()}
        return found

    def command(self, status: int, proc: int) -> list[str]:
        """The command that starts the child, given the numbers of its open files."""
        place = str(Path(inside.__file__).parent)
        start = f"import sys; sys.path.append({place!r}); import inside; inside.main()"
        python = [executable(), *OPTIONS, "-c", start, str(status), str(proc), str(os.getpid())]
        return [*_bubblewrap(self, place), *python] if self.isolation == "bubblewrap" else python


def _bubblewrap(way: Way, place: str) -> list[str]:
    seen = visible()
    found = [
        shutil.which("bwrap") or "bwrap",
        "--die-with-parent",
        "--new-session",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
    ]
    found += ["--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox", "--cap-drop", "ALL"]
    if way.user == "nobody":
        found += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        found += ["--unshare-user", "--uid", "1000", "--gid", "1000"]  # its root could not be mapped once more
    shown = (*seen.binds, place, executable())
    for folder in sorted({str(above) for path in shown for above in Path(path).parents} - {"/"}):
        found += ["--dir", folder]  # bwrap's own are closed to other users where those of the source are
    for path in shown:
        found += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    for path in seen.hidden:
        found += ["--tmpfs", path, "--remount-ro", path]
    for line in seen.links:
        found += ["--symlink", *line.split("\t")]
    return [*found, "--dir", inside.SCRATCH, "--remount-ro", "/", "--"]


@lru_cache(maxsize=1)
def executable() -> str:
    """Python itself, and not the link to it of a virtual environment."""
    return os.path.realpath(sys.executable)


def environment(home: str) -> dict[str, str]:
    """All variables of a program. Its hashes are the same in every run, so that the order of a set is."""
    return {"HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", "PATH": "", "PYTHONHASHSEED": "0"}


class Visible(NamedTuple):
    """The part of the file system that a program sees, read-only."""

    binds: tuple[str, ...]
    hidden: tuple[str, ...]
    """Folders in it that are shown empty: packages."""
    links: tuple[str, ...]
    """Target and name, with a tab between."""


@lru_cache(maxsize=1)
def visible() -> Visible:
    """Python's library and the folders of shared libraries from which it loads any of its modules."""
    asked = subprocess.run(
        [executable(), *OPTIONS, "-c", _LOOK],
        env=environment("/"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    paths = {path for path in asked.stdout.splitlines() if path.startswith("/")} | {*SHARED, *DEVICES}
    paths = {kept for path in paths for kept in (path, os.path.realpath(path)) if os.path.exists(path)}
    links = tuple(f"{os.readlink(name)}\t{name}" for name in LINKS if os.path.islink(name))
    linked = {line.partition("\t")[2] for line in links}
    kept: list[str] = []
    for path in sorted(paths):
        if not any(path == above or path.startswith(f"{above}/") for above in (*kept, *linked)):
            kept.append(path)
    library = sysconfig.get_path("stdlib")
    hidden = (
        f"{place}/{name}"
        for place in {library, os.path.realpath(library)}
        for name in ("site-packages", "dist-packages")
    )
    return Visible(tuple(kept), tuple(path for path in hidden if os.path.isdir(path)), links)


def installed(isolation: Isolated) -> str:
    """Why an isolation cannot be tried at all; empty where it can."""
    if isolation == "limits":
        return "" if hasattr(os, "fork") else "it needs a system with fork"
    if sys.platform != "linux":
        return "it needs Linux"
    if platform.machine() not in ARCHITECTURES:
        return f"there is no filter of system calls for {platform.machine()}"
    return "bwrap is not installed" if isolation == "bubblewrap" and not shutil.which("bwrap") else ""


def ways(isolation: Isolated) -> list[Way]:
    """The ways of an isolation, the better first."""
    root = os.geteuid() == 0 and isolation != "limits"
    return [Way(isolation, "nobody"), Way(isolation)] if root else [Way(isolation)]
