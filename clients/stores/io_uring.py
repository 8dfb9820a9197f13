"""Check that this process may use io_uring. Without it, the TigerBeetle client ends the process by SIGABRT."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from clients.command.console import Unavailable

IO_URING_SETUP = 425  # the number of the system call, on each processor that the client supports
ENTRIES = 32  # as many as the client asks for
FEATURES_OFFSET = 20  # of `struct io_uring_params`, which has 120 bytes
EXT_ARG = 1 << 8  # a feature that the client needs

_PERMIT = (
    "run the container with seccomp=unconfined or with a profile that allows io_uring_setup, io_uring_enter and "
    "io_uring_register, and set kernel.io_uring_disabled=0 on the host"
)
_KERNEL = "use Linux 5.11 or newer, without a sandbox such as gVisor"
_LIMITS = "raise this process's limits of open files and memory"
_ACTIONS = {
    errno.EPERM: _PERMIT,
    errno.EACCES: _PERMIT,
    errno.ENOSYS: f"{_PERMIT}; {_KERNEL}",
    errno.ENOMEM: "raise the limit of locked memory: `ulimit -l unlimited`, or `ulimits: {memlock: -1}` for a container",
}


class IoUringUnavailable(Unavailable):
    is_temporary = False


def check_io_uring() -> None:
    """Set up a ring, as the client will, and close it. Raises `Unavailable`, which says what to set."""
    if sys.platform != "linux":
        return
    parameters = ctypes.create_string_buffer(120)
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(IO_URING_SETUP, ENTRIES, parameters)
    if ring < 0:
        number = ctypes.get_errno()
        cause = f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"
        raise _unavailable(cause, _ACTIONS.get(number, _LIMITS))
    os.close(ring)
    if not struct.unpack_from("I", parameters, FEATURES_OFFSET)[0] & EXT_ARG:
        raise _unavailable("the kernel is too old", _KERNEL)


def _unavailable(cause: str, action: str) -> Unavailable:
    return IoUringUnavailable(f"the TigerBeetle client cannot use io_uring ({cause}); {action}; then run again")
