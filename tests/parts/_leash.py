"""`python _leash.py PROGRAM ARGUMENT...`: become PROGRAM, which then dies with the process that started this one.

Tests put it before the command that they start; it imports no code of ours. Without it, a test run that is killed (or that
pytest-timeout ends with `os._exit`) leaves its registries and proxies behind. Only Linux supports this; elsewhere
PROGRAM just runs.
"""

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """SIGKILL for this process when its parent ends."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Replace this process by the program named on the command line."""
    parent = int(sys.argv[1])
    command = sys.argv[2:]
    die_with_parent()
    if os.getppid() != parent:
        # The parent ended before the death signal was set.
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
