"""Start a TigerBeetle client, or say in one line why it cannot start."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

import tigerbeetle as tb

from clients.errors import Lasting, Unavailable

IO_URING_SETUP = 425  # the number of the system call, on each processor that the client supports
ENTRIES = 32  # as many as the client asks for
FEATURES_OFFSET = 20  # of `struct io_uring_params`, which has 120 bytes
EXT_ARG = 1 << 8  # a feature that the client needs

_PERMIT = (
    "run the container with seccomp=unconfined or with a profile that allows io_uring_setup, io_uring_enter and "
    "io_uring_register, and set kernel.io_uring_disabled=0 on the host"
)
_KERNEL = "use Linux 5.11 or newer, without a sandbox such as gVisor"
_ACTIONS = {
    errno.EPERM: _PERMIT,
    errno.EACCES: _PERMIT,
    errno.ENOSYS: f"{_PERMIT}; {_KERNEL}",
    errno.ENOMEM: "raise the limit of locked memory: `ulimit -l unlimited`, or `ulimits: {memlock: -1}` for a container",
}


def check_io_uring() -> None:
    """Set up a ring, as the client will, and close it. Raises `Unavailable`, which says what to set.

    Without io_uring, the client ends the process by SIGABRT.
    """
    if sys.platform != "linux":
        return
    parameters = ctypes.create_string_buffer(120)
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(IO_URING_SETUP, ENTRIES, parameters)
    if ring < 0:
        number = ctypes.get_errno()
        cause = f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"
        action = _ACTIONS.get(number, "raise this process's limits of open files and memory")
    else:
        os.close(ring)
        if struct.unpack_from("I", parameters, FEATURES_OFFSET)[0] & EXT_ARG:
            return
        cause, action = "the kernel is too old", _KERNEL
    raise Lasting(f"the TigerBeetle client cannot use io_uring ({cause}); {action}; then run again")


#: Clients that `clients/preconnect.py` has started, by address and cluster id. `open_client` takes them.
early_clients: dict[tuple[str, int], tb.ClientAsync] = {}


def open_client(address: str, cluster: int) -> tb.ClientAsync:
    """Return a client, as `connect` does."""
    return early_clients.pop((address, cluster), None) or connect(address, cluster)


def connect(address: str, cluster: int) -> tb.ClientAsync:
    """Start a TigerBeetle client. Raises `Unavailable` if the address is invalid or the system does not let it start."""
    check_io_uring()
    try:
        return tb.ClientAsync(cluster_id=cluster, replica_addresses=address)
    except (tb.client.InitError, UnicodeEncodeError) as error:
        reason = getattr(error.args[0], "name", "not ASCII")
        if reason in ("UNEXPECTED", "OUT_OF_MEMORY", "SYSTEM_RESOURCES", "NETWORK_SUBSYSTEM"):
            raise Unavailable(
                f"the TigerBeetle client did not start ({reason}); raise this process's limits of memory, threads "
                "and open files, and run again"
            ) from error
        raise Unavailable(
            f"TB_ADDRESS={address!r} is invalid ({reason}); set it to ports or IP:port, separated by commas, "
            "such as 3000 or 127.0.0.1:3000; host names are not accepted"
        ) from error
