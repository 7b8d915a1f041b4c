"""What a hostile program tries. Each attempt prints ESCAPED if it got through; the host must not notice any of them."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import pytest

from herd import sandbox
from herd.sandbox import Limits, Sandbox

pytestmark = pytest.mark.slow

PRELUDE = """
import ctypes, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def escaped(): print("ESCAPED", flush=True)
def syscall(*words): return libc.syscall(*[ctypes.c_long(w) if isinstance(w, int) else w for w in words])
"""
QUIET = Limits(wall_seconds=3, cpu_seconds=2, memory_bytes=256 << 20, num_processes=16)

ATTEMPTS = {
    "read a secret of the host": "open({secret!r}).read(); escaped()",
    "read shadow": "open('/etc/shadow').read(); escaped()",
    "list the host's root user": "os.path.exists(os.path.expanduser('~root/.bashrc')) and escaped()",
    "write to the system": "open('/usr/owned', 'w'); escaped()",
    "write to the root": "open('/owned', 'w'); escaped()",
    "write to etc": "open('/etc/passwd', 'a'); escaped()",
    "remount writable": "libc.mount(b'none', b'/', None, 32 | 0x1000, None) == 0 and escaped()",
    "mount a file system": "libc.mount(b'x', b'/box', b'tmpfs', 0, None) == 0 and escaped()",
    "unmount": "libc.umount2(b'/box', 2) == 0 and escaped()",
    "chroot": "os.chroot('/box'); escaped()",
    "a user namespace": "libc.unshare(0x10000000) == 0 and escaped()",
    "a user namespace by clone": "pid = syscall(56, 0x10000011, 0, 0, 0, 0)\npid or os._exit(0)\npid > 0 and escaped()",
    "clone3": "syscall(435, 0, 0) == -1 and ctypes.get_errno() == 38 or escaped()",
    "join a namespace": "libc.setns(os.open('/proc/self/ns/mnt', 0), 0) == 0 and escaped()",
    "TCP": "socket.create_connection(('127.0.0.1', {port}), 1); escaped()",
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53)); escaped()",
    "DNS": "socket.getaddrinfo('example.com', 80); escaped()",
    "IPv6": "socket.socket(socket.AF_INET6); escaped()",
    "raw packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW); escaped()",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); escaped()",
    "vsock": "socket.socket(40, socket.SOCK_STREAM); escaped()",
    "AF_ALG": "socket.socket(38, socket.SOCK_SEQPACKET); escaped()",
    "a UNIX socket by path": "socket.socket(socket.AF_UNIX).connect({unix!r}); escaped()",
    "an abstract socket": "socket.socket(socket.AF_UNIX).connect(chr(0) + {abstract!r}); escaped()",
    "a signal to the parent": "os.kill({pid}, 0); escaped()",
    "a signal to process 1": "os.kill(1, signal.SIGKILL)  # a dead supervisor cannot answer: the test fails by that",
    "trace process 1": "libc.ptrace(16, 1, 0, 0) == 0 and escaped()",
    "memory of process 1": "open('/proc/1/mem', 'rb').read(1); escaped()",
    "read memory across": "syscall(310, 1, 0, 0, 0, 0, 0) >= 0 and escaped()",
    "environment of process 1": "open('/proc/1/environ').read() and escaped()",
    "root of process 1": "os.path.exists(os.path.join('/proc/1', 'root') + {secret!r}) and escaped()",
    "fds of process 1": "os.listdir('/proc/1/fd'); escaped()",
    "sysrq": "open('/proc/sysrq-trigger', 'w').write('h'); escaped()",
    "a kernel setting": "open('/proc/sys/kernel/hostname', 'w').write('x'); escaped()",
    "the core pattern": "open('/proc/sys/kernel/core_pattern', 'w').write('|/x'); escaped()",
    "kernel memory": "open('/proc/kcore', 'rb').read(1); escaped()",
    "sysfs": "os.listdir('/sys') and escaped()",
    "a disk": "os.mknod('/box/vda', 0o60600, os.makedev(254, 0)); escaped()",
    "devices": "set(os.listdir('/dev')) - {{'null','zero','full','random','urandom','shm'}} and escaped()",
    "io_uring": "syscall(425, 8, ctypes.create_string_buffer(256)) >= 0 and escaped()",
    "bpf": "syscall(321, 0, 0, 0) >= 0 and escaped()",
    "perf": "syscall(298, 0, 0, -1, -1, 0) >= 0 and escaped()",
    "a keyring": "syscall(250, 0, -3, 1) >= 0 and escaped()",
    "open by handle": "(syscall(304, -100, 0, 0) >= 0 or ctypes.get_errno() != 1) and escaped()",
    "the other ABI": "syscall(0x40000000 + 39) > 0 and escaped()",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, 0); escaped()",
    "the host's name": "socket.sethostname('owned'); escaped()",
    "become root": "os.setuid(0); escaped()",
    "a setuid program": "os.spawnv(os.P_WAIT, '/usr/bin/su', ['su', '-c', 'true']) == 0 and escaped()",
    "type into the terminal": "import fcntl; fcntl.ioctl(0, 0x5412, b'x'); escaped()",
    "the terminal": "open('/dev/tty'); escaped()",
    "inherited descriptors": "[f for f in map(int, os.listdir('/proc/self/fd')) if f > 3] and escaped()",
    "inherited environment": "'HERD_SECRET' in os.environ and escaped()",
    "memfd": "os.memfd_create('x'); escaped()",
    "System V memory": "libc.shmget(0, 4096, 0o1600) >= 0 and escaped()",
    "raise a limit": "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6)); escaped()",
    "limits of another process": "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (0, 0)); escaped()",
    "capabilities": "int([l for l in open('/proc/self/status') if l[:6] == 'CapEff'][0][8:], 16) and escaped()",
}  # fmt: skip


@pytest.fixture(scope="module")
def box():
    if (strongest := sandbox.strongest()) != "full":
        pytest.skip(f"the strongest level here is `{strongest}`: {sandbox.available()}")
    with Sandbox() as one:
        yield one


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """What the attempts go for: a file, listening sockets, a process, all of them really there."""
    os.environ["HERD_SECRET"] = "x"
    folder = tmp_path_factory.mktemp("host")
    (folder / "secret").write_text("secret")
    tcp, unix, abstract = socket.create_server(("127.0.0.1", 0)), *(socket.socket(socket.AF_UNIX) for _ in range(2))
    name = f"herd-attack-{os.getpid()}"
    unix.bind(str(folder / "s"))
    abstract.bind("\0" + name)
    for one in (unix, abstract):
        one.listen()
    yield {"secret": str(folder / "secret"), "port": tcp.getsockname()[1], "unix": str(folder / "s"), "abstract": name,
           "pid": os.getpid()}  # fmt: skip
    for one in (tcp, unix, abstract):
        one.close()


def test_there_are_at_least_forty_attempts():
    assert len(ATTEMPTS) >= 40


@pytest.mark.parametrize("name", ATTEMPTS)
def test_no_attempt_escapes(name, box, host):
    result = box.run(PRELUDE + ATTEMPTS[name].format(**host), limits=QUIET)
    assert "ESCAPED" not in result.stdout
    assert "SyntaxError" not in result.stderr and "NameError" not in result.stderr
    assert box.run("print('well')").stdout == "well\n"


HOGS = {
    "a fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {"time", "cpu"}),
    "memory": ("x = []\nwhile True: x.append(bytearray(10**7))", {"ended", "memory"}),
    "memory of many": (
        "import os, time, mmap\nfor _ in range(6):\n    if os.fork() == 0: break\n"
        "m = mmap.mmap(-1, 90 << 20)\nfor i in range(0, len(m), 4096): m[i] = 1\ntime.sleep(2)",
        {"memory"},
    ),
    "two gigabytes of output": ("import os\nfor _ in range(2048): os.write(1, bytes(1 << 20))", {"output"}),
    "a full disk": (
        "for i in range(99): open(f'f{i}', 'wb').write(bytes(10 << 20))",
        {"ended"},
    ),
    "a million files": ("for i in range(10**6): open(f'f{i}', 'w').close()", {"ended", "cpu", "time"}),
    "the processor": ("while True: pass", {"cpu"}),
    "the clock": ("import time; time.sleep(99)", {"time"}),
    "a core": ("import os; os.abort()", {"signal SIGABRT"}),
    "ignoring signals": (
        "import signal, time\nfor s in range(1, 32):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\n"
        "time.sleep(99)",
        {"time"},
    ),
}


@pytest.mark.parametrize("name", HOGS)
def test_no_hog_outlasts_its_limits(name, box):
    code, whys = HOGS[name]
    patience = 20 if whys == {"cpu"} else QUIET.wall_seconds  # a busy machine takes long over two seconds of processor
    result = box.run(code, limits=replace(QUIET, wall_seconds=patience))
    assert result.why in whys and not result.ok
    assert result.seconds < patience + 10
    assert box.run("print('well')").stdout == "well\n"


def test_processes_that_were_left_over_are_gone(box):
    box.run("import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.execvp('sleep', ['sleep', '77.125'])")
    assert not any(b"77.125" in _command(pid) for pid in os.listdir("/proc") if pid.isdigit())


def _command(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
