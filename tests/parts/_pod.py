"""`python _pod.py SPECIFICATION.json`: become a program that is as confined as in a Pod with the restricted security context.

Not imported: tests put it before the command that they start, like `_leash.py`. Not a container: the program shares the
machine's network and processes. It runs with a numeric user ID other than 0, has no capabilities and cannot gain any, and
every file system is read-only except the volumes in the specification. A user namespace makes this possible with and
without root; outside of it, the program has the user of the tests, so it can read programs under a private home folder.

The specification: `user`, `group`, `volumes` [{`source`, `target`, `writable`}], `command`, and optionally `inotify`, the number of
inotify instances that it may have: without this, all programs count against one limit of the machine's user.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path

# linux/sched.h, linux/mount.h, linux/prctl.h
_CLONE_NEWNS, _CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY = 1
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
# Linux 5.12 and later; the same number on every architecture.
_SYS_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Replace this process by the program of the specification."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    user, group = os.getuid(), os.getgid()
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "user and mount namespaces")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"{settings['group']} {group} 1")
    Path("/proc/self/uid_map").write_text(f"{settings['user']} {user} 1")
    if "inotify" in settings:
        Path("/proc/sys/user/max_inotify_instances").write_text(str(settings["inotify"]))
    _mount(None, "/", flags=_MS_REC | _MS_PRIVATE)
    # Held open: a mount may hide where another one's source is.
    sources = [os.open(volume["source"], os.O_PATH) for volume in settings["volumes"]]
    targets = [os.path.realpath(volume["target"]) for volume in settings["volumes"]]
    for source, target in zip(sources, targets, strict=True):
        _make(Path(target))
        _mount(f"/proc/self/fd/{source}", target, flags=_MS_BIND)
        os.close(source)
    _set_attributes("/", add=_MOUNT_ATTR_RDONLY, flags=_AT_RECURSIVE)
    for volume, target in zip(settings["volumes"], targets, strict=True):
        if volume["writable"]:
            _set_attributes(target, remove=_MOUNT_ATTR_RDONLY)
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    with contextlib.suppress(AttributeError, OSError):
        _libc.prctl(
            _PR_SET_PDEATHSIG, signal.SIGKILL
        )  # set again as in `_leash.py`, in case the calls above cleared it
    os.chdir(Path.cwd())  # the folder may be in one of the volumes, which are mounted over it
    # This drops the remaining capabilities, as the user is not 0.
    os.execv(settings["command"][0], settings["command"])


def _make(target: Path) -> None:
    """Create a mount point in a new file system, which is mounted on the nearest existing parent folder."""
    if target.is_dir():
        return
    above = next(parent for parent in target.parents if parent.is_dir())
    _mount("tmpfs", str(above), kind="tmpfs")
    target.mkdir(parents=True)


def _mount(source: str | None, target: str, *, kind: str | None = None, flags: int = 0) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), None), f"mount on {target}")


def _set_attributes(target: str, *, add: int = 0, remove: int = 0, flags: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(add, remove, 0, 0)
    done = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(target.encode()),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(done, f"mount attributes of {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        sys.exit(
            f"{what}: {os.strerror(number)}. Needed are Linux 5.12 and the right to make user namespaces "
            "(sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns; in a "
            "container its seccomp profile)."
        )


if __name__ == "__main__":
    main()
