"""Landlock: a process gives up all access to files, TCP and other processes' sockets and signals, as far as the kernel supports it.

A second barrier in addition to the seccomp filter. Invariant: a kernel without Landlock, or with an older version of it, is not
an error; the result is the version in force.

Sources: Linux `Documentation/userspace-api/landlock.rst`, `include/uapi/linux/landlock.h`. No library: those on PyPI are
pre-releases.
"""

import ctypes
import errno
import os
from typing import Final

# The same on all architectures.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION

_PATH_BENEATH: Final = 1  # LANDLOCK_RULE_PATH_BENEATH
_READ_FILE: Final = 1 << 2  # LANDLOCK_ACCESS_FS_READ_FILE

_FILES_BY_VERSION: Final = {1: 0x1FFF, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""LANDLOCK_ACCESS_FS_*: thirteen kinds in version 1, then REFER, TRUNCATE and IOCTL_DEV."""
_NETWORK_BY_VERSION: Final = {4: 0b11}
"""LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP."""
_SCOPES_BY_VERSION: Final = {6: 0b11}
"""LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and _SIGNAL."""

_ABSENT: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES})
"""Not built, not enabled at boot, or forbidden by the seccomp profile of the container."""


def handled(version: int) -> tuple[int, ...]:
    """`struct landlock_ruleset_attr` for a version, as its 64-bit fields: files, network, scopes."""
    files = _known(_FILES_BY_VERSION, version)
    network = _known(_NETWORK_BY_VERSION, version)
    scopes = _known(_SCOPES_BY_VERSION, version)
    if scopes:
        return files, network, scopes
    return (files, network) if network else (files,)


class _PathBeneath(ctypes.Structure):
    """`struct landlock_path_beneath_attr`."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def restrict(*, readable: int | None = None) -> int:
    """Restrict this process permanently; `no_new_privs` is set. The open file `readable` can be reopened for reading.

    Returns the version in force, 0 for none. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version: int = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 0:
        return _absent()
    fields = handled(version)
    attributes = (ctypes.c_uint64 * len(fields))(*fields)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    rules: int = libc.syscall(_CREATE_RULESET, attributes, size, 0)
    if rules < 0:
        return _absent()
    try:
        # Accesses that are handled but in no rule are refused.
        if readable is not None:
            rule = _PathBeneath(_READ_FILE, readable)
            if libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), 0):
                return _absent()
        if libc.syscall(_RESTRICT_SELF, rules, 0):
            return _absent()
    finally:
        os.close(rules)
    return version


def _absent() -> int:
    number = ctypes.get_errno()
    if number in _ABSENT:
        return 0
    raise OSError(number, f"landlock: {os.strerror(number)}")


def _known(by_version: dict[int, int], version: int) -> int:
    found = 0
    for since, flags in by_version.items():
        if since <= version:
            found |= flags
    return found
