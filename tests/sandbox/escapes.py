"""Programs that try to leave the sandbox. Each prints ESCAPED, or the secret, where it succeeds."""

HEADER = """
import ctypes, json, os, resource, signal, socket, struct, sys, threading, time
w = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
name = w["name"]
def call(x86, arm, *arguments):
    number = ctypes.c_long(x86 if os.uname().machine == "x86_64" else arm)
    return libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
def done(result):
    if result >= 0:
        print("ESCAPED", result, flush=True)
    else:
        raise OSError(ctypes.get_errno(), "refused")
print("tried", flush=True)
"""
"""Comes before each; `w` is the world outside: places, ports, numbers of processes."""

HARMLESS: dict[str, str] = {
    # the network
    "tcp": 's = socket.create_connection(("127.0.0.1", w["port"]), 2); s.sendall(name.encode()); print("ESCAPED")',
    "tcp6": 's = socket.socket(socket.AF_INET6); s.bind(("::", 0)); print("ESCAPED")',
    "udp": 's = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(name.encode(), ("127.0.0.1", w["udp"])); print("ESCAPED")',
    "listen": 's = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(); print("ESCAPED")',
    "unix socket": 's = socket.socket(socket.AF_UNIX); s.connect(w["unix"]); s.sendall(name.encode()); print("ESCAPED")',
    "abstract socket": 's = socket.socket(socket.AF_UNIX); s.connect("\\0" + w["abstract"]); s.sendall(name.encode()); print("ESCAPED")',
    "netlink": 's = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); s.bind((0, 0)); print("ESCAPED")',
    "datagram pair": 'a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(name.encode(), w["datagram"]); print("ESCAPED")',
    "socket call": "done(call(41, 198, 2, 1, 0))",
    # files
    "passwd": 'print("ESCAPED", open("/etc/passwd").read())',
    "file outside": 'print(open(w["secret"]).read())',
    "home": 'print("ESCAPED") if {*os.listdir(w["home"])} & {*w["home_names"]} else None',
    "host name": 'print("ESCAPED", open("/etc/hostname").read() or "empty")',
    "write outside": 'open(os.path.join(w["outside"], name), "w").write("x"); print("ESCAPED")',
    "temporary folder": 'os.makedirs("/tmp", exist_ok=True); open("/tmp/" + w["unique"] + name, "w"); print("ESCAPED")',
    "dots": 'print(open("../" * 20 + w["secret"].lstrip("/")).read())',
    "symbolic link": 'os.symlink(w["secret"], "link"); print(open("link").read())',
    "link to a folder": 'os.symlink(w["outside"], "folder"); open("folder/" + name, "w").write("x"); print("ESCAPED")',
    "hard link": 'os.link(w["secret"], "hard"); print(open("hard").read())',
    "rename outside": 'open("mine", "w").write("x"); os.replace("mine", os.path.join(w["outside"], name)); print("ESCAPED")',
    "remove outside": 'os.unlink(w["precious"]); print("ESCAPED")',
    "inherited descriptor": """
for number in range(3, 1024):
    try:
        os.lseek(number, 0, 0)
        print(os.read(number, 1000).decode("utf-8", "replace"))
    except OSError:
        pass
for number in range(3, 1024):
    try:
        print(os.listdir(number), os.readlink("precious", dir_fd=number), "ESCAPED")
    except OSError:
        pass
""",
    "working folder of another process": 'print("ESCAPED", os.listdir(f"/proc/{w[\'victim\']}/cwd"))',
    "root of another process": 'print(open(f"/proc/{w[\'victim\']}/root" + w["secret"]).read())',
    "devices": 'print("ESCAPED", os.listdir("/dev/pts"), os.listdir("/dev/shm"), os.listdir("/sys"))',
    "shared memory file": 'open("/dev/shm/" + w["unique"], "w").write("x"); os.unlink("/dev/shm/" + w["unique"]); print("ESCAPED")',
    "file by handle": """
buffer = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
mount = ctypes.c_int()
done(call(303, 264, -100, b"/", buffer, ctypes.byref(mount), 0))
""",
    # other processes
    "environment of the parent": 'print("ESCAPED") if "=" in open(f"/proc/{w[\'parent\']}/environ").read() else None',
    "own environment": 'print("ESCAPED") if any("SLIMRL" in key or key == "USER" for key in os.environ) or w["token"] in str(os.environ) else None',
    "environment at the start": """
data = open("/proc/self/environ").read()
print(data)
""",
    "list of processes": 'print("ESCAPED", [p for p in os.listdir("/proc") if p.isdigit()])',
    "kill of a process": 'os.kill(w["victim"], signal.SIGKILL); print("ESCAPED")',
    "kill of the parent": 'os.kill(os.getppid(), signal.SIGTERM); os.kill(w["bystander"], signal.SIGTERM); print("ESCAPED")',
    "ptrace": "done(call(101, 117, 16, w['victim'], 0, 0))",
    "memory of another process": """
local = ctypes.create_string_buffer(8)
done(call(310, 270, w["victim"], struct.pack("=QQ", ctypes.addressof(local), 8), 1, struct.pack("=QQ", 4096, 8), 1, 0))
""",
    "descriptor of another process": "done(call(434, 434, w['victim'], 0))",
    "priority of another process": "os.setpriority(os.PRIO_PROCESS, w['victim'], 5); print('ESCAPED')",
    "limit of another process": "resource.prlimit(w['victim'], resource.RLIMIT_NOFILE, (64, 64)); print('ESCAPED')",
    "shared memory segment": "done(libc.shmget(w['shm'], 0, 0o600))",
    "message queue": "done(libc.msgget(w['shm'] + 1, 0o1600))",
    "other interpreter": """
for path in ("/bin/sh", "/bin/bash", w["python"], sys.executable):
    try:
        os.execv(path, [path, "-c", "print('ESCAPED')" if "python" in path else "echo ESCAPED"])
    except OSError as error:
        print(error)
""",
    "subprocess": 'import subprocess; print(subprocess.run([w["python"], "-c", "print(\'ESCA\' + \'PED\')"], capture_output=True, text=True).stdout)',
    "shell": 'print("ESCAPED") if os.system("true") == 0 else None',
    # the kernel
    "io_uring": "done(call(425, 425, 4, ctypes.create_string_buffer(120)))",
    "userfaultfd": "done(call(323, 282, 1))",
    "bpf": "done(call(321, 280, 0, struct.pack('=IIII', 2, 4, 4, 1) + bytes(100), 72))",
    "perf_event_open": "done(call(298, 241, struct.pack('=IIQQQQQ', 1, 64, 1, 0, 0, 0, 1) + bytes(60), 0, -1, -1, 0))",
    "keyctl": "done(call(250, 219, 0, -3, 1))",
    "add_key": "done(call(248, 217, b'user', b'slimrl-escape', b'x', 1, -3))",
    "memory file": "done(call(319, 279, b'x', 0))",
    "user namespace": "done(libc.unshare(0x10000000))",
    "seccomp of its own": "done(call(157, 167, 38, 1, 0, 0, 0)); print('ESCAPED') if libc.prctl(22, 1) == 0 else None",
    "fanotify": "done(call(300, 262, 0, 0))",
    "inotify": "done(libc.inotify_init1(0))",
}
"""Those that a control runs outside of the sandbox too."""

HARMFUL: dict[str, str] = {
    "mount": "done(libc.mount(b'tmpfs', b'/scratch', b'tmpfs', 0, None))",
    "bind mount": "done(libc.mount(b'/usr', b'/scratch', None, 4096, None))",
    "unmount": "done(libc.umount2(b'/scratch', 2))",
    "new mount calls": "done(call(428, 428, -100, b'/', 1)); done(call(430, 430, b'tmpfs', 0))",
    "mount namespace": "done(libc.unshare(0x20000))",
    "network namespace": "done(libc.unshare(0x40000000))",
    "join a namespace": "done(libc.setns(os.open('/', os.O_RDONLY), 0))",
    "chroot": "os.mkdir('r'); os.chroot('r'); print('ESCAPED')",
    "pivot_root": "done(call(155, 41, b'.', b'.'))",
    "setuid": "os.setuid(0); print('ESCAPED')",
    "setgroups": "os.setgroups([0]); print('ESCAPED')",
    "capabilities": "done(call(126, 91, ctypes.create_string_buffer(struct.pack('=Ii', 0x20080522, 0)), ctypes.create_string_buffer(b'\\xff' * 24)))",
    "setuid file": "open('s', 'w'); os.chown('s', 0, 0); os.chmod('s', 0o4755); print('ESCAPED')",
    "device file": "os.mknod('disk', 0o60600, os.makedev(8, 0)); print('ESCAPED')",
    "memory device": "print('ESCAPED', open('/dev/mem', 'rb').read(1)); print('ESCAPED', open('/dev/kmsg', 'rb').read(1))",
    "raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print('ESCAPED')",
    "packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); print('ESCAPED')",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, time.time() + 0.0); print('ESCAPED')",
    "clock adjusted": "done(call(159, 171, ctypes.create_string_buffer(struct.pack('=Q', 1) + bytes(400))))",
    "sysctl": "open('/proc/sys/kernel/hostname', 'w').write(w['unique']); print('ESCAPED')",
    "host name set": "socket.sethostname(w['unique']); print('ESCAPED')",
    "terminal input": "import fcntl\nfor n in (0, 1, 2):\n    try:\n        fcntl.ioctl(n, 0x5412, b'x'); print('ESCAPED')\n    except OSError as e:\n        print(e)\n",
    "terminal": "os.open('/dev/tty', os.O_RDWR); print('ESCAPED')",
    "kernel module": "done(call(175, 105, b'x', 1, b''))",
    "reboot": "done(call(169, 142, 0xfee1dead, 672274793, 0, 0))",
    "swap": "done(call(168, 225, b'/none'))",
    "personality": "done(call(135, 92, 0x0040000))",
    "32-bit calls": """
import mmap
assert os.uname().machine == "x86_64"
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # getpid by int 0x80
number = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print("ESCAPED", number)
""",
    "core file": "os.abort()",
    "limits raised": "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2); print('ESCAPED')",
    "dumpable again": "done(libc.prctl(4, 1))",
    "parent-death signal off": "done(libc.prctl(1, 0))",
    "new session": "done(libc.setsid())",
}
"""Those that could change the machine if nothing stopped them."""
