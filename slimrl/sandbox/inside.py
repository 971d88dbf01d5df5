"""The child process of a sandbox: it shuts itself in, and then runs the program. The rest of the package is not imported here.

    caller -> [outer process ->] keeper -> program

The keeper waits for the program and writes down how it ended; it holds the only end of the pipe that the caller believes. Under
`namespaces` an outer process makes the namespaces of which the keeper is the first process, so that all others end with it; under
`bubblewrap` bwrap has done so. Each of them is killed by the kernel with the process that started it. No import here takes long.
"""

import _signal as signal
import _sitebuiltins
import builtins
import ctypes
import os
import resource
import runpy
import select
import struct
import sys
from collections.abc import Mapping

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
KEPT_FLAGS = 2 | 4 | 8 | 1024 | 2048 | 4096
"""Flags of a mount that a bind of it may not drop: statvfs and mount have the same numbers for all but the last."""
ST_RELATIME, MS_RELATIME, MNT_DETACH = 4096, 1 << 21, 2
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
SPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 4, 22, 24, 36
PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER, CAPABILITIES = 38, 2, 64
NUMBER_OF_PIVOT_ROOT, NUMBER_OF_CAPSET = {"x86_64": (155, 126)}.get(os.uname().machine, (41, 91))
SCRATCH = "/scratch"
"""Folder of the program's files where it has a root of its own."""
NOBODY = 65534
"""User as whom the program of a sandbox runs that root started."""
MIB = 2**20
FILES = 64
INODES = 4096
OWN_PID = struct.pack("=I", 0x50494421)
"""As in `slimrl/sandbox/filter.py`."""

Request = Mapping[str, bytes]


def main() -> None:
    """Arguments: number of the pipe for the end, number of an open /proc or -1, process number of the caller."""
    status, proc, caller = map(int, sys.argv[1:4])
    request = read_request()
    if request["isolation"] == b"limits":
        _limits(request, status, proc, caller)
    else:
        _die_with(caller if request["isolation"] == b"namespaces" else 0)
        try:
            if request["isolation"] == b"namespaces":
                _enter_namespaces(request, proc)
            kept = _start(request, status, proc)
        except Exception as error:
            _report(status, f"error {error}")
        else:
            _report(status, _end(kept))
    os._exit(0)


def read_request() -> Request:
    """The fields of the request, from the file that is standard input: `name length`, a line end, and so many bytes each."""
    found, data = {}, b""
    while part := os.read(0, MIB):
        data += part
    while data:
        head, _, data = data.partition(b"\n")
        name, _, size = head.rpartition(b" ")
        found[name.decode()], data = data[: int(size)], data[int(size) :]
    return found


# ------------------------------------------------------------------------------------------------ the kernel's own words

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    """A function of the C library; raises OSError, which names it."""
    found = getattr(_libc, name, None)
    if found is None:
        raise OSError(f"{name}: there is no such call")
    result: int = found(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _prctl(*arguments: int) -> None:
    _call("prctl", *(ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:5]))


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    texts = [os.fsencode(text) or None for text in (source, target, kind)]
    _call("mount", *texts, ctypes.c_ulong(flags), os.fsencode(data) or None)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process with the thread that started it; 0: whoever that was, it is there still."""
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if parent and os.getppid() != parent:
        os._exit(1)


# ------------------------------------------------------------------------------------------------ namespaces


def _enter_namespaces(request: Request, proc: int) -> None:
    """Go on as the first process in namespaces of its own, which sees nothing but the folders of the request, read-only."""
    try:
        if os.geteuid():
            raise PermissionError
        _call("unshare", SPACES)
    except OSError:
        _new_user(proc, SPACES)
    alive, held = os.pipe()
    if child := os.fork():
        os.waitpid(child, 0)
        os._exit(0)
    _die_with(0)
    os.close(held)
    if select.select([alive], [], [], 0)[0]:  # the parent, whose number is none of this namespace, has ended already
        os._exit(1)
    _call("sethostname", b"sandbox", 7)
    _mount("", "/", "", MS_REC | MS_PRIVATE)
    base = request["base"].decode()
    _mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0755")
    os.chdir(base)
    os.mkdir("old")
    _call("syscall", ctypes.c_long(NUMBER_OF_PIVOT_ROOT), b".", b"old")
    os.chdir("/")
    for line in _lines(request, "binds"):
        _bind(line)
    for line in _lines(request, "hidden"):
        _mount("tmpfs", line, "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k,mode=0755")
    for line in _lines(request, "links"):
        target, _, name = line.partition("\t")
        os.symlink(target, name)
    os.mkdir(SCRATCH)
    _call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    _mount("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _lines(request: Request, name: str) -> list[str]:
    return os.fsdecode(request[name]).split("\n") if request[name] else []


def _bind(path: str) -> None:
    """Show a folder or a file of the old root at the same place, read-only; devices can be written to."""
    source = f"/old{path}"
    is_folder = os.path.isdir(source)
    os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
    if not is_folder:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, path, "", MS_BIND)
    if path.startswith("/dev/"):
        return
    flags = os.statvfs(path).f_flag & KEPT_FLAGS
    flags = flags & ~ST_RELATIME | (MS_RELATIME if flags & ST_RELATIME else 0)
    _mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | flags)


def _new_user(proc: int, more: int = 0) -> None:
    """Go on in a user namespace, whose only user is this one, and which has all rights over what it makes and none else."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER | more)
    for name, text in (("setgroups", "deny"), ("gid_map", f"1000 {group} 1"), ("uid_map", f"1000 {user} 1")):
        file = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(file, text.encode())
        os.close(file)


# ------------------------------------------------------------------------------------------------ the program


def _start(request: Request, status: int, proc: int) -> int:
    """Start the program's process; its number."""
    own = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        _die_with(own)
        if request["isolation"] != b"limits":
            _shut_in(request, proc)
        _write_files(request)
        _die_with(own)  # again, since the kernel forgets it where a process changes its user
        _limit(request)
    except BaseException as error:
        _report(status, f"error {error}")
        os._exit(0)
    os.closerange(3, FILES + 1000)
    _run(request)
    raise SystemExit(0)


def _shut_in(request: Request, proc: int) -> None:
    """A user of its own, the scratch folder, and no rights."""
    counted = os.geteuid() != 0
    if not counted and request["user"] == b"nobody":
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _prctl(PR_SET_DUMPABLE, 1)  # or the files of /proc/self stay root's
    _new_user(proc, CLONE_NEWNS)
    size = int(request["scratch"]) * MIB
    options = f"size={size},nr_inodes={INODES},mode=0700"
    _mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    os.chdir(SCRATCH)


def _write_files(request: Request) -> None:
    for name, data in request.items():
        if name.startswith("file:"):
            path = name.removeprefix("file:")
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            while data:
                data = data[os.write(file, data) :]
            os.close(file)
    file = os.open(".stdin", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.unlink(".stdin")
    data = request["stdin"]
    while data:
        data = data[os.write(file, data) :]
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, 0)


def _limit(request: Request) -> None:
    """Limits of the process, no rights, and the filter of system calls, which also keeps the limits from being raised."""
    is_weak = request["isolation"] == b"limits"
    memory, seconds, tasks = (int(request[name]) for name in ("memory", "cpu_seconds", "tasks"))
    limits = {"CORE": 0, "NOFILE": FILES, "FSIZE": int(request["scratch"]) * MIB, "MEMLOCK": 0, "MSGQUEUE": 0, "AS": memory * MIB}
    limits |= {"NPROC": tasks} if tasks else {}
    try:
        for name, most in limits.items():
            _set_limit(name, most, most, may_fail=is_weak)  # some systems have no limit of addresses
        _set_limit("CPU", seconds, seconds + 1, may_fail=False)
    except (ValueError, OSError) as error:
        raise OSError(f"setrlimit: {error}") from None
    if not request["filter"]:
        return
    try:
        for capability in range(CAPABILITIES):
            _prctl(PR_CAPBSET_DROP, capability)
    except OSError:  # not one that this kernel has, or no right to drop it, and then none to gain it
        pass
    header, none = (ctypes.create_string_buffer(data) for data in (struct.pack("=Ii", 0x20080522, 0), bytes(24)))
    _call("syscall", ctypes.c_long(NUMBER_OF_CAPSET), header, none)
    _prctl(PR_SET_DUMPABLE, 0)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    code = ctypes.create_string_buffer(request["filter"].replace(OWN_PID, struct.pack("=I", os.getpid())))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(request["filter"]) // 8, ctypes.addressof(code)))
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _set_limit(name: str, soft: int, hard: int, *, may_fail: bool) -> None:
    """Lower a limit; one that is lower already stays."""
    kind = getattr(resource, f"RLIMIT_{name}", None)
    if kind is None:
        return
    most = resource.getrlimit(kind)[1]
    soft, hard = (one if most == resource.RLIM_INFINITY else min(one, most) for one in (soft, hard))
    try:
        resource.setrlimit(kind, (soft, hard))
    except (ValueError, OSError):
        if not may_fail:
            raise


def _run(request: Request) -> None:
    """The program as `python program.py` runs it."""
    path = os.path.join(os.getcwd(), "program.py")
    own = os.path.dirname(__file__)
    sys.path[:] = [os.getcwd(), *(place for place in sys.path if place and place != own)]
    sys.argv = ["program.py"]
    sys.modules.pop("inside", None)
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, ""))
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != path:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        raise SystemExit(1) from None


# ------------------------------------------------------------------------------------------------ its end


def _end(child: int) -> str:
    """Wait for the program, and for whatever else it left to the first process of a namespace; how the program ended."""
    while True:
        found, code, usage = os.wait4(-1, 0)
        if found == child:
            return _told(code, usage.ru_utime + usage.ru_stime)


def _told(code: int, seconds: float) -> str:
    if os.WIFSIGNALED(code):
        return f"signal {os.WTERMSIG(code)} {seconds:.3f}"
    return f"exit {os.WEXITSTATUS(code)} {seconds:.3f}"


def _report(status: int, text: str) -> None:
    os.write(status, f"{text}\n".encode())


def _limits(request: Request, status: int, proc: int, caller: int) -> None:
    """Without namespaces: the keeper outlives the caller for as long as it takes to end the program and remove its files."""
    folder = os.fsdecode(request["folder"])
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    try:
        os.chdir(folder)
        try:
            _prctl(PR_SET_CHILD_SUBREAPER, 1)
        except OSError:
            pass
        child = _start(request, status, proc)
    except Exception as error:
        _report(status, f"error {error}")
        return
    found, code, usage = 0, 0, None
    pause = 0.001
    while not found and not stopped and os.getppid() == caller:
        found, code, usage = os.wait4(child, os.WNOHANG)
        if not found:
            select.select([], [], [], pause)
            pause = min(0.02, pause * 1.5)
    _end_all(child)
    if found and usage is not None:
        _report(status, _told(code, usage.ru_utime + usage.ru_stime))
    if os.getppid() != caller:
        os.chdir("/")
        _remove(folder)


def _end_all(child: int) -> None:
    """Kill the program and all that descends from it, which the system has made children of this process."""
    listed = f"/proc/self/task/{os.getpid()}/children"
    left = [child]
    while left:
        for one in left:
            try:
                os.kill(one, signal.SIGKILL)
                os.waitpid(one, 0)
            except OSError:
                pass
        try:
            with open(listed) as file:
                left = [int(number) for number in file.read().split()]
        except OSError:
            return


def _remove(folder: str) -> None:
    """A folder and all in it; links are not followed."""
    try:
        os.chmod(folder, 0o700)
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
            else:
                os.unlink(entry.path)
        os.rmdir(folder)
    except OSError:
        pass
