"""A system that blocks io_uring: the command says so, instead of dying by SIGABRT with the TigerBeetle client."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import sys
from collections.abc import Callable
from functools import partial

import pytest

from ..conftest import ROOT, World, completed, free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has io_uring")

LIBC = ctypes.CDLL(None)
PR_CAPBSET_DROP, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 24, 22, 38
CAP_IPC_LOCK = 14
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000


def refuse(error: int) -> None:
    """Install a seccomp filter that answers io_uring's three system calls with the error."""
    instructions = [
        (0x20, 0, 0, 0),  # load the system call's number
        (0x35, 0, 2, 425),  # less than 425: allow
        (0x25, 1, 0, 427),  # more than 427: allow
        (0x06, 0, 0, RET_ERRNO | error),
        (0x06, 0, 0, RET_ALLOW),
    ]
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(buffer))
    assert LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert LIBC.prctl(PR_SET_SECCOMP, 2, filter_, 0, 0) == 0


def lock_no_memory() -> None:
    if os.geteuid() == 0:
        LIBC.prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0)  # root could lock memory nevertheless
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))


PERMIT = ("seccomp=unconfined", "kernel.io_uring_disabled=0")
EXAMPLE = "create_account.py u"  # starts the client before the slow imports
CASES: dict[str, tuple[str, Callable[[], None], tuple[str, ...]]] = {
    "EPERM": (EXAMPLE, partial(refuse, errno.EPERM), PERMIT),
    "EACCES": (EXAMPLE, partial(refuse, errno.EACCES), PERMIT),
    "ENOSYS": (EXAMPLE, partial(refuse, errno.ENOSYS), (*PERMIT, "Linux 5.11", "gVisor")),
    "ENOMEM": (EXAMPLE, lock_no_memory, ("ulimit -l", "memlock: -1")),
    "EPERM in a worker": ("-m operations worker", partial(refuse, errno.EPERM), PERMIT),
}


@pytest.mark.parametrize("case", CASES)
def test_blocked_io_uring_is_named_with_what_to_set(embedded_world: World, case: str) -> None:
    command, block, words = CASES[case]
    done = completed(
        [sys.executable, *command.split()],
        env=embedded_world.environ() | {"TB_ADDRESS": "3000", "RESONATE_URL": f"http://127.0.0.1:{free_port()}"},
        cwd=ROOT,
        preexec_fn=block,
    )
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    for word in ("io_uring", case.split(maxsplit=1)[0], *words):
        assert word in line
