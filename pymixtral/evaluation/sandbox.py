"""Programs of a model, run where they can do no harm.

A program runs as a process of its own, in new namespaces of the Linux kernel: it has no network, sees
no other process, and its file system has the Python installation, read-only, and a small empty /tmp,
and nothing else. It is no root there, can become none, can make no namespace, and has limits for time,
memory, files and processes. Where the system does not allow all of that, nothing is run. A kernel with a hole can
still be broken out of; run models that you distrust in a virtual machine.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pymixtral.errors import UnsupportedError

SECONDS = 8.0
"""The most time of a program."""

_MAX_OUTPUT = 1 << 16

_LAUNCHER = r"""
import ctypes, os, resource, struct, sys

root, memory, seconds, *folders = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=1)

def must(result, what):
    if result < 0:
        code = ctypes.get_errno()
        os.write(2, f"sandbox: {what}: {os.strerror(code)}\n".encode())
        os._exit(97)

def mount(source, target, kind, flags, data=None):
    encode = lambda text: None if text is None else os.fsencode(text)
    result = libc.mount(encode(source), encode(target), encode(kind), ctypes.c_ulong(flags), encode(data))
    must(result, f"mount {target}")

READ_ONLY, NO_SUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
user, group = os.geteuid(), os.getegid()
# New: mounts, names of the host, IPC, processes, network, cgroups; users, where this one may not do it without.
flags = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000 | 0x02000000
must(libc.unshare(flags if user == 0 else flags | 0x10000000), "unshare")
if user:
    for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {user} 1"), ("gid_map", f"65534 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
mount(None, "/", None, RECURSIVE | PRIVATE)
mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEVICES, "size=16m,nr_inodes=4096,mode=755")
for folder in folders:
    if os.path.islink(folder):
        os.makedirs(os.path.dirname(root + folder), exist_ok=1)
        os.symlink(os.readlink(folder), root + folder)
        continue
    os.makedirs(root + folder, exist_ok=1)
    mount(folder, root + folder, None, BIND | RECURSIVE)
    # mount_setattr: read-only, without set-user-ID and devices, for all mounts below too.
    attributes = (ctypes.c_uint64 * 4)(1 | 2 | 4, 0, 0, 0)
    must(libc.syscall(442, -100, os.fsencode(root + folder), 0x8000, ctypes.byref(attributes), 32), f"protect {folder}")
os.mkdir(root + "/tmp", 0o777)
os.mkdir(root + "/old")
# Of each machine: its number for filters, pivot_root, clone, and what programs may not call: mount, unshare, setns,
# which make namespaces; shmget, semget, msgget, io_uring_setup, whose memory no limit counts; and add_key,
# request_key, keyctl, bpf, perf_event_open, userfaultfd, of which nobody here needs one.
calls = {
    "x86_64": (0xC000003E, 155, 56, (165, 272, 308, 29, 64, 68, 425, 248, 249, 250, 321, 298, 323)),
    "aarch64": (0xC00000B7, 41, 220, (40, 97, 268, 194, 190, 186, 425, 217, 218, 219, 280, 241, 282)),
}.get(os.uname().machine)
if calls is None:
    os.write(2, b"sandbox: an unknown machine\n")
    os._exit(97)
machine, pivot_root, clone, refused = calls
must(libc.syscall(pivot_root, os.fsencode(root), os.fsencode(root + "/old")), "pivot_root")
os.chdir("/")
must(libc.umount2(b"/old", 2), "umount")
os.rmdir("/old")
mount(None, "/", None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEVICES)
mount("tmpfs", "/tmp", "tmpfs", NO_SUID | NO_DEVICES, "size=16m,nr_inodes=1024,mode=777")
os.chdir("/tmp")
nobody = (1 << 30) + os.getpid()
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status) & 255
    os._exit(1 if code == 97 else code)  # 97 is not the program's to say
for limit, most in (
    (resource.RLIMIT_AS, int(memory)),
    (resource.RLIMIT_CPU, int(float(seconds)) + 1),
    (resource.RLIMIT_FSIZE, 1 << 20),
    (resource.RLIMIT_NOFILE, 32),
    (resource.RLIMIT_NPROC, 4),
    (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(limit, (most, most))
if user == 0:  # a user of its own, for whom the number of processes is counted
    os.setgroups([])
    os.setresgid(nobody, nobody, nobody)
    os.setresuid(nobody, nobody, nobody)
must(libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
must(libc.prctl(1, 9, 0, 0, 0), "parent's death")
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, NOT_PERMITTED, NOT_THERE = 0x7FFF0000, 0, 0x50001, 0x50026
lines = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
lines += [(AT_LEAST, 0, 1, 1 << 30), (RETURN, 0, 0, NOT_PERMITTED)]  # x32, the other numbers of x86_64
lines += [(EQUAL, 0, 1, 435), (RETURN, 0, 0, NOT_THERE)]  # clone3, whose flags no filter sees: clone is called then
for call in refused:
    lines += [(EQUAL, 0, 1, call), (RETURN, 0, 0, NOT_PERMITTED)]
lines += [(EQUAL, 0, 3, clone), (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, 0x7E020000), (RETURN, 0, 0, NOT_PERMITTED)]
lines += [(RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
program = struct.pack("HP", len(lines), ctypes.addressof(code))
must(libc.prctl(22, 2, program, 0, 0), "filter of system calls")
os.execve(sys.executable, [sys.executable, "-I", "-S", "-B", "-"], {"PATH": "", "HOME": "/tmp", "LANG": "C.UTF-8"})
"""
"""Runs in a Python of its own, before the program. The numbers are those of the kernel's headers. In
the end execve() leaves no capability to somebody who is not root."""

_PROBE = """
import os, socket
assert os.getuid() != 0 and os.getpid() == 1
assert not any(map(os.path.exists, ("/proc/self", "/etc/passwd", "/home", "/dev", "/old")))
for place in ("/", "/usr", os.path.dirname(os.__file__)):
    try:
        open(os.path.join(place, "probe"), "w")
    except OSError:
        continue
    raise AssertionError(place)
try:
    socket.create_connection(("127.0.0.1", 9), 1)
except OSError:
    pass
else:
    raise AssertionError("network")
try:
    os.setuid(0)
except OSError:
    print("closed")
"""


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: whether it came to its end without an error.
        detail: what it said last, or why it was ended.
    """

    passed: bool
    detail: str


def check() -> None:
    """Check that this system has what the sandbox needs.

    Raises:
        UnsupportedError: if it has not.
    """
    problem = _problem()
    if problem:
        raise UnsupportedError(
            f"expected a system that can lock up programs (Linux 5.12 with user namespaces), found that it cannot "
            f"({problem}): run the task on another machine, or in a virtual one"
        )


def run(program: str, *, seconds: float = SECONDS, memory: int = 1 << 30) -> Outcome:
    """Run a program of Python.

    Args:
        program: its text.
        seconds: the most time.
        memory: the most bytes of memory of a process.

    Returns:
        How it ended. To exit before its end, whatever the exit code, is not to pass.

    Raises:
        UnsupportedError: if this system cannot run it safely; nothing was run.
    """
    check()
    end = secrets.token_hex(16)
    code, output = _launched(f"{program}\nprint('{end}')\n", seconds, memory)
    if code is None:
        return Outcome(False, f"still running after {seconds:g} s")
    if code == 0:
        passed = output.endswith(f"{end}\n")
        return Outcome(passed, "" if passed else "exit before the end")
    if code == 97 and output.startswith("sandbox: "):
        raise UnsupportedError(f"expected to run a program in the sandbox, found an error ({output}): try again")
    lines = output.strip().splitlines()
    return Outcome(False, lines[-1][:200] if lines else f"exit code {code}")


@cache
def _problem() -> str:
    """Why programs cannot be run here; empty if they can."""
    if sys.platform != "linux":
        return f"it is {sys.platform}"
    code, output = _launched(_PROBE, 30.0, 1 << 30)
    if code == 0 and output == "closed\n":
        return ""
    return output.strip().splitlines()[-1].removeprefix("sandbox: ") if output.strip() else f"exit code {code}"


def _folders() -> list[str]:
    """What a Python needs of the file system: the installation, and libraries of the system."""
    wanted = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", os.path.realpath(sys.base_prefix)]
    there = [Path(folder) for folder in dict.fromkeys(wanted) if Path(folder).is_dir()]
    covering = {folder for folder in there if not folder.is_symlink()}
    return [str(folder) for folder in there if covering.isdisjoint(folder.parents)]


def _python() -> str:
    """The interpreter itself, not that of a virtual environment."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for path in (Path(sys.base_prefix, "bin", name), Path(sys.base_prefix, "bin", "python3")):
        if path.exists():
            return os.path.realpath(path)
    return os.path.realpath(sys.executable)


def _launched(program: str, seconds: float, memory: int) -> tuple[int | None, str]:
    """Exit code, None after too long a time, and what was written."""
    with tempfile.TemporaryDirectory(prefix="pymixtral-") as root, tempfile.TemporaryFile() as output:
        command = [_python(), "-I", "-S", "-B", "-c", _LAUNCHER, root, str(memory), str(seconds), *_folders()]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env={}, start_new_session=True, close_fds=True
        ) as process:
            try:
                process.communicate(program.encode("utf-8", "replace"), timeout=seconds)
                code: int | None = process.returncode
            except subprocess.TimeoutExpired:
                code = None
            finally:  # the first process of the namespace ends with its parent, and all others with it
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(max(output.seek(0, os.SEEK_END) - _MAX_OUTPUT, 0))
        return code, output.read().decode("utf-8", "replace")
