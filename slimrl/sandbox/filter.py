"""The filter of system calls (seccomp) that a program in the sandbox cannot take off.

It is a list of what is allowed: files, memory, signals to itself, threads, clocks that are read, waiting. All else is refused: the
network, starting programs, mounting, namespaces, tracing, keys, devices, io_uring, bpf, clocks that are set, and whatever later
kernels add. The kernel runs it as a program of classic BPF on (number, architecture, arguments) of each call.
"""

import errno
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

CALLS = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70 open:2:-1
openat:257:56 close:3:57 close_range:436:436 creat:85:-1 lseek:8:62 stat:4:-1 fstat:5:80 lstat:6:-1 newfstatat:262:79
statx:332:291 access:21:-1 faccessat:269:48 faccessat2:439:439 readlink:89:-1 readlinkat:267:78 getdents:78:-1
getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83:-1 mkdirat:258:34 rmdir:84:-1 unlink:87:-1 unlinkat:263:35
rename:82:-1 renameat:264:38 renameat2:316:276 link:86:-1 linkat:265:37 symlink:88:-1 symlinkat:266:36 chmod:90:-1
fchmod:91:52 fchmodat:268:53 truncate:76:45 ftruncate:77:46 fallocate:285:47 fsync:74:82 fdatasync:75:83 utime:132:-1
utimes:235:-1 utimensat:280:88 futimesat:261:-1 dup:32:23 dup2:33:-1 dup3:292:24 fcntl:72:25 flock:73:32 pipe:22:-1
pipe2:293:59 statfs:137:43 fstatfs:138:44 umask:95:166 sendfile:40:71 copy_file_range:326:285 fadvise64:221:223 mmap:9:222
mprotect:10:226 munmap:11:215 mremap:25:216 madvise:28:233 brk:12:214 msync:26:227 membarrier:324:283 rt_sigaction:13:134
rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigsuspend:130:133 rt_sigtimedwait:128:137
sigaltstack:131:132 pause:34:-1 restart_syscall:219:128 alarm:37:-1 getitimer:36:102 setitimer:38:103 timer_create:222:107
timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109 timer_delete:226:111 exit:60:93 exit_group:231:94
wait4:61:260 waitid:247:95 getpid:39:172 gettid:186:178 getppid:110:173 getuid:102:174 geteuid:107:175 getgid:104:176
getegid:108:177 getgroups:115:158 getresuid:118:148 getresgid:120:150 getpgrp:111:-1 getpgid:121:155 getsid:124:156
uname:63:160 sysinfo:99:179 times:100:153 getrusage:98:165 getrlimit:97:163 setrlimit:160:164 getpriority:140:141
sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120 sched_get_priority_max:146:125
sched_get_priority_min:147:126 set_tid_address:218:96 set_robust_list:273:99 get_robust_list:274:100 arch_prctl:158:-1
rseq:334:293 futex:202:98 getcpu:309:168 getrandom:318:278 capget:125:90 clock_gettime:228:113 clock_getres:229:114
clock_nanosleep:230:115 nanosleep:35:101 gettimeofday:96:169 time:201:-1 poll:7:-1 ppoll:271:73 select:23:-1 pselect6:270:72
epoll_create:213:-1 epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:-1 epoll_pwait:281:22 epoll_pwait2:441:441
eventfd:284:-1 eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87 recvfrom:45:207
shutdown:48:210 getsockname:51:204 getpeername:52:205 getsockopt:55:209 ioctl:16:29 prctl:157:167 prlimit64:302:261
kill:62:129 tgkill:234:131 clone:56:220 fork:57:-1 vfork:58:-1 socketpair:53:199 sendto:44:206 clone3:435:435 openat2:437:437
"""
"""System calls that are allowed, some of them with conditions on their arguments (`_conditions`), each as name:number on
x86-64:number on other machines; -1: there is none.
"""
ARCHITECTURES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2), "riscv64": (0xC00000F3, 2)}
"""By the name of the machine: its number in the kernel (linux/audit.h), and the column of CALLS."""
OWN_PID = 0x50494421
"""Stands for the number of the program's process, which is known only once it runs."""
UNKNOWN_BEHIND = 450
"""Calls above this number are newer than the list: a C library that tries one is told that the kernel does not have it."""

LOAD, AND, IF_EQUAL, IF_ABOVE, RETURN = 0x20, 0x54, 0x15, 0x25, 0x06  # instructions of classic BPF (linux/bpf_common.h)
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # verdicts (linux/seccomp.h)
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # places in seccomp_data
NEW_NAMESPACES = 0x7E020080  # CLONE_NEW*
THREAD = 0x00010000  # CLONE_THREAD


class Condition(NamedTuple):
    """A word of the arguments, masked, must have one of these values."""

    word: int
    """Of 32 bits: twice the argument's place, plus 1 for its upper half."""
    values: Sequence[int]
    mask: int = 0xFFFFFFFF


def _conditions(*, processes: bool, threads: bool, signals: bool) -> dict[str, list[Condition]]:
    """By call, all conditions under which it is allowed.

    Args:
        processes: the program may have more than one process.
        threads: it may have threads.
        signals: it may send signals to others that its namespace has.
    """
    own = [] if signals else [Condition(0, [OWN_PID])]
    clone = [Condition(0, [THREAD] if threads else [], THREAD | NEW_NAMESPACES)]
    return {
        # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: no TIOCSTI, and nothing of devices
        "ioctl": [Condition(2, [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451])],
        "prctl": [Condition(0, [3, 15, 16])],  # PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME
        "prlimit64": [Condition(0, [0])],  # of itself
        "kill": own,
        "tgkill": own,
        "clone": [Condition(0, [0], NEW_NAMESPACES)] if processes else clone,
        "socketpair": [Condition(0, [1]), Condition(2, [1], 0xF)],  # AF_UNIX, SOCK_STREAM: asyncio wakes itself by one
        "sendto": [Condition(8, [0]), Condition(9, [0])],  # without an address
    }


def call_filter(machine: str, *, processes: bool, threads: bool, signals: bool) -> bytes:
    """The filter as instructions of 8 bytes for a machine of ARCHITECTURES; OWN_PID in it is to be replaced.

    Raises KeyError for another machine.
    """
    number, column = ARCHITECTURES[machine]
    rows = [entry.split(":") for entry in CALLS.split()]
    calls = {row[0]: int(row[column]) for row in rows if row[column] != "-1"}
    refused = {"clone3", "openat2"} | (set() if processes else {"fork", "vfork"})
    conditions = _conditions(processes=processes, threads=threads, signals=signals)
    found = [
        (LOAD, 0, 0, ARCHITECTURE),
        (IF_EQUAL, 1, 0, number),
        (RETURN, 0, 0, KILL),  # the 32-bit calls of the same machine
        (LOAD, 0, 0, NUMBER),
        # what the C library has another way for: the arguments of clone3 cannot be looked at
        (IF_EQUAL, 0, 1, calls["clone3"]),
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
        (IF_ABOVE, 0, 1, UNKNOWN_BEHIND),
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
    ]
    for name, call in calls.items():
        if name not in refused:
            block = [*_block(conditions.get(name, []))]
            found += [(IF_EQUAL, 0, len(block), call), *block]
    found.append((RETURN, 0, 0, ERRNO | errno.EPERM))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in found)


def _block(conditions: Sequence[Condition]) -> Iterator[tuple[int, int, int, int]]:
    """The verdict on a call whose number fits."""
    for condition in conditions:
        yield LOAD, 0, 0, ARGUMENTS + 4 * condition.word  # little-endian: the lower half comes first
        yield AND, 0, 0, condition.mask
        for left, value in zip(range(len(condition.values), 0, -1), condition.values, strict=True):
            yield IF_EQUAL, left, 0, value
        yield RETURN, 0, 0, ERRNO | errno.EPERM
    yield RETURN, 0, 0, ALLOW
