"""`python pin.py [--cpu N] [--cgroup DIRECTORY] -- PROGRAM ARGUMENT...`: becomes PROGRAM, on that processor and in that group.

Not imported.
"""

import argparse
import contextlib
import os
import resource
from pathlib import Path


def main() -> None:
    """Replace this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--cgroup", type=Path)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if arguments.cpu is not None and (os.cpu_count() or 1) > arguments.cpu:
        with contextlib.suppress(OSError):  # a container need not have the first processor
            os.sched_setaffinity(0, {arguments.cpu})
    if arguments.cgroup:
        (arguments.cgroup / "cgroup.procs").write_text(str(os.getpid()))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.execv(arguments.command[0], arguments.command)


if __name__ == "__main__":
    main()
