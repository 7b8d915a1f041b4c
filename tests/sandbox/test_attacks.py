"""What a hostile program tries. Each attempt prints ESCAPED if it got through; the host must not notice any of them.

Each is made outside first, with the rights of whoever runs the tests, in namespaces of its own where it would change
something: an attempt that does not get through even there shows nothing, and is skipped by name.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from herd import sandbox
from herd.sandbox import LAYERS, Limits, Sandbox, Session

pytestmark = pytest.mark.slow

PRELUDE = """
import ctypes, os, resource, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
def escaped(): print("ESCAPED", flush=True)
def syscall(*words): return libc.syscall(*[ctypes.c_long(w) if isinstance(w, int) else w for w in words])
def reached(*words): return syscall(*words) >= 0 or ctypes.get_errno() not in (1, 38)
"""
OUTSIDE = """
import ctypes, os, sys
if os.geteuid() == 0:  # mounts, names and IPC of its own, so that nothing of the machine's is changed
    libc = ctypes.CDLL(None)
    if libc.unshare(0x0C020000) or libc.mount(b"none", b"/", None, ctypes.c_ulong(0x44000), None):
        sys.exit("no namespaces of its own")
"""
QUIET = Limits(wall_seconds=3, cpu_seconds=2, memory_bytes=256 << 20, num_processes=16)

ATTEMPTS = {
    "read a secret of the host": "open({secret!r}).read(); escaped()",
    "read it by its process's root": "open('/proc/self/root' + {secret!r}).read(); escaped()",
    "read it by going up": "open('../' * 20 + {secret!r}).read(); escaped()",
    "link it": "os.link({secret!r}, 'linked'); open('linked').read(); escaped()",
    "read shadow": "open('/etc/shadow').read(); escaped()",
    "list the host's root user": "os.listdir(os.path.expanduser('~root')); escaped()",
    "write to the system": "open('/usr/owned', 'w'); os.remove('/usr/owned'); escaped()",
    "write to the root": "open('/owned', 'w'); os.remove('/owned'); escaped()",
    "write to etc": "open('/etc/passwd', 'a'); escaped()",
    "remount writable": "libc.mount(b'none', b'/', None, ctypes.c_ulong(32 | 0x1000), None) == 0 and escaped()",
    "mount a file system": "libc.mount(b'x', b'/usr', b'tmpfs', ctypes.c_ulong(0), None) == 0 and escaped()",
    "unmount": "libc.umount2(b'/proc', 2) == 0 and escaped()",
    "chroot": "os.chroot('.'); escaped()",
    "the new mount calls": "(reached({fsopen}, b'tmpfs', 0) or reached({open_tree}, -100, b'/', 1)) and escaped()",
    "a user namespace": "libc.unshare(0x10000000) == 0 and escaped()",
    "a user namespace by clone": "pid = syscall({clone}, 0x10000011, 0, 0, 0, 0)\npid or os._exit(0)\n"
    "pid > 0 and escaped()",
    "clone3": "syscall({clone3}, 0, 0) == -1 and ctypes.get_errno() == 38 or escaped()",
    "join a namespace": "libc.setns(os.open('/proc/self/ns/uts', 0), 0) == 0 and escaped()",
    "TCP": "socket.create_connection(('127.0.0.1', {port}), 1); escaped()",
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53)); escaped()",
    "names of hosts": "socket.getaddrinfo('localhost', 80); escaped()",
    "IPv6": "socket.socket(socket.AF_INET6); escaped()",
    "raw packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW); escaped()",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); escaped()",
    "vsock": "socket.socket(40, socket.SOCK_STREAM); escaped()",
    "AF_ALG": "socket.socket(38, socket.SOCK_SEQPACKET); escaped()",
    "a UNIX socket by path": "socket.socket(socket.AF_UNIX).connect({unix!r}); escaped()",
    "an abstract socket": "socket.socket(socket.AF_UNIX).connect(chr(0) + {abstract!r}); escaped()",
    "a signal to the house": "os.kill({pid}, 0); escaped()",
    "a signal by pidfd": "syscall({pidfd_send_signal}, syscall({pidfd_open}, parent, 0), 0, 0, 0) == 0 and escaped()",
    "trace its parent": "libc.ptrace(0x4206, parent, 0, 0) == 0 and escaped()",
    "memory of its parent": "open(f'/proc/{{parent}}/mem', 'rb'); escaped()",
    "read memory across": "syscall({process_vm_readv}, parent, 0, 0, 0, 0, 0) >= 0 and escaped()",
    "environment of its parent": "open(f'/proc/{{parent}}/environ').read(); escaped()",
    "root of its parent": "os.path.exists(f'/proc/{{parent}}/root' + {secret!r}) and escaped()",
    "descriptors of its parent": "os.readlink(f'/proc/{{parent}}/fd/0'); escaped()",
    "limits of its parent": "resource.prlimit(parent, resource.RLIMIT_CORE, "
    "resource.prlimit(parent, resource.RLIMIT_CORE)); escaped()",
    "processors of its parent": "os.sched_setaffinity(parent, os.sched_getaffinity(parent)); escaped()",
    "sysrq": "open('/proc/sysrq-trigger', 'w').write('h'); escaped()",
    "a kernel setting": "name = '/proc/sys/kernel/hostname'\nold = open(name).read()\n"
    "with open(name, 'w') as file: file.write(old)\nescaped()",
    "the core pattern": "open('/proc/sys/kernel/core_pattern', 'r+'); escaped()",
    "spared when memory is short": "open('/proc/self/oom_score_adj', 'w').write('-1'); escaped()",
    "kernel memory": "open('/proc/kcore', 'rb').read(1); escaped()",
    "kernel messages": "syscall({syslog}, 10, 0, 0) >= 0 and escaped()",
    "a kernel module": "reached({init_module}, 0, 0, 0) and escaped()",
    "sysfs": "os.listdir('/sys') and escaped()",
    "a disk": "os.mknod('vda', 0o60600, os.makedev(254, 0)); escaped()",
    "devices": "set(os.listdir('/dev')) - {{'null','zero','full','random','urandom','shm'}} and escaped()",
    "io_uring": "syscall({io_uring_setup}, 8, ctypes.create_string_buffer(256)) >= 0 and escaped()",
    "bpf": "reached({bpf}, 0, 0, 0) and escaped()",
    "perf": "reached({perf_event_open}, 0, 0, -1, -1, 0) and escaped()",
    "fanotify": "reached({fanotify_init}, 0, 0) and escaped()",
    "userfaultfd": "syscall({userfaultfd}, 0) >= 0 and escaped()",
    "a keyring": "syscall({keyctl}, 0, -3, 1) >= 0 and escaped()",
    "open by handle": "reached({open_by_handle_at}, -100, 0, 0) and escaped()",
    "no random addresses": "syscall({personality}, 0x0040000) >= 0 and escaped()",
    "the other ABI": "syscall(0x40000000 + 39); escaped()",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time()); escaped()",
    "the host's name": "socket.sethostname('owned'); escaped()",
    "become root": "os.setuid(0); escaped()",
    "a setuid program": "os.spawnv(os.P_WAIT, '/usr/bin/su', ['su', '-c', 'true']) == 0 and escaped()",
    "type into the terminal": "import fcntl\ntry: fcntl.ioctl(0, 0x5412, b'x')\n"
    "except OSError as error: error.errno == 25 and escaped()",
    "the terminal": "try: open('/dev/tty'); escaped()\n"
    "except OSError as error: error.errno == 6 and escaped()",
    "inherited descriptors": "[f for f in map(int, os.listdir('/proc/self/fd')) if f > 3] and escaped()",
    "inherited environment": "'HERD_SECRET' in os.environ and escaped()",
    "a timer that wakes the frozen": "event = ctypes.create_string_buffer(64)\n"
    "event[8] = signal.SIGCONT\nreached({timer_create}, 1, event, ctypes.create_string_buffer(8)) and escaped()",
    "a pipe that wakes the frozen": "import fcntl\nfcntl.fcntl(os.pipe()[0], 10, signal.SIGCONT); escaped()",
    "memfd": "os.memfd_create('x'); escaped()",
    "System V memory": "libc.shmget(0, 4096, 0o1600) >= 0 and escaped()",
    "raise a limit": "soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)\n"
    "resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard + 1)); escaped()",
    "capabilities": "int([l for l in open('/proc/self/status') if l[:6] == 'CapEff'][0][8:], 16) and escaped()",
}  # fmt: skip

LETS = {"namespaces": {"spared when memory is short"}, "landlock": {"become root"}}
"""What the table in docs/sandbox.md does not promise; root stays root at `landlock`, without any of its rights."""

CALLS = {  # x86-64, arm64
    "fsopen": (430, 430), "open_tree": (428, 428), "clone": (56, 220), "clone3": (435, 435),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "process_vm_readv": (310, 270), "syslog": (103, 116),
    "init_module": (175, 105), "io_uring_setup": (425, 425), "bpf": (321, 280), "perf_event_open": (298, 241),
    "fanotify_init": (300, 262), "userfaultfd": (323, 282), "keyctl": (250, 219), "open_by_handle_at": (304, 265),
    "personality": (135, 92), "timer_create": (222, 107),
}  # fmt: skip


def at(level):
    if any(sandbox.available()[layer] for layer in LAYERS[level]):
        pytest.skip(f"`{level}` is not available here: {sandbox.available()}")
    return level


@pytest.fixture(scope="module")
def box():
    with Sandbox(at("full")) as one:
        yield one


@pytest.fixture(scope="module", params=["namespaces", "landlock"])
def weaker(request):
    with Sandbox(at(request.param)) as one:
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
    numbers = {call: pair[platform.machine() == "aarch64"] for call, pair in CALLS.items()}
    yield {"secret": str(folder / "secret"), "port": tcp.getsockname()[1], "unix": str(folder / "s"), "abstract": name,
           "pid": os.getpid(), **numbers}  # fmt: skip
    for one in (tcp, unix, abstract):
        one.close()


def test_there_are_at_least_forty_attempts():
    assert len(ATTEMPTS) >= 40


@pytest.fixture(scope="module")
def gets_through(host, tmp_path_factory):
    """What each attempt comes to outside: whether it got through, and else what it said."""
    told = {}
    handle = os.open(os.devnull, os.O_RDONLY)

    def outside(name):
        if name not in told:
            folder = tmp_path_factory.mktemp("outside")
            command = [sys.executable, "-c", OUTSIDE + PRELUDE + ATTEMPTS[name].format(**host)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                                  pass_fds=[handle], timeout=60)  # fmt: skip
            told[name] = "ESCAPED" in done.stdout, done.stderr[-200:]
        return told[name]

    yield outside
    os.close(handle)


def attempted(name, box, host, gets_through):
    """Whether an attempt gets through in a box; skipped where it shows nothing."""
    through, said = gets_through(name)
    if not through:
        pytest.skip(f"not even outside: {said}")
    result = box.run(PRELUDE + ATTEMPTS[name].format(**host), limits=QUIET)
    assert "SyntaxError" not in result.stderr and "NameError" not in result.stderr
    assert box.run("print('well')").stdout == "well\n"
    return "ESCAPED" in result.stdout


@pytest.mark.parametrize("name", ATTEMPTS)
def test_no_attempt_escapes(name, box, host, gets_through):
    assert not attempted(name, box, host, gets_through)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_weaker_levels_stop_what_they_promise(name, weaker, host, gets_through):
    assert attempted(name, weaker, host, gets_through) <= (name in LETS[weaker.level])


@pytest.mark.parametrize("level", ["full", "namespaces"])
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP", "SIGTERM", "SIGSEGV"])
def test_process_1_outlives_its_programs_signals(number, level):
    code = f"import os, signal\ntry: os.kill(1, signal.{number})\nexcept PermissionError: pass\nprint('after')"
    assert sandbox.run(code, level=at(level), limits=QUIET).stdout == "after\n"


SWAPS = """
import os
os.makedirs('real', exist_ok=True)
open('real/secret', 'w').write('own')
if os.fork() == 0:
    while True:
        os.rename('real', 'kept'); os.symlink({folder!r}, 'real')
        os.remove('real'); os.rename('kept', 'real')
        try: os.symlink({folder!r} + '/secret', 'file')
        except OSError: os.remove('file')
"""


@pytest.mark.parametrize("level", ["full", "landlock"])
def test_files_that_are_swapped_for_links_bring_nothing_of_the_host(level, host):
    code = SWAPS.format(folder=os.path.dirname(host["secret"]))
    results = []
    with Sandbox(at(level)) as box:
        results += [box.run(code, limits=QUIET) for _ in range(20)]
    with Session(level, limits=QUIET) as session:
        session.run(code)
        results += [session.run("1", files={"real/given": b"given"}) for _ in range(40)]
    returned = [data for result in results for data in result.files.values()]
    assert b"own" in returned and b"secret" not in returned
    assert not os.path.exists(os.path.join(os.path.dirname(host["secret"]), "given"))


HOGS = {
    "a fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {"time", "cpu", "memory"}),
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
