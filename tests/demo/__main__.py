"""`python -m tests.demo [--mesh] [--keep]`: a tour on a terminal. Ends its own processes, also on Ctrl-C and SIGTERM."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator

from tests.demo import meshtour, tour
from tests.parts.cache import PartError
from tests.parts.process import ProcessError


@contextlib.contextmanager
def _interrupted_quietly() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the demo properly, without a traceback."""
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nEnded. All processes of the demo have ended.")
        raise SystemExit(130) from None
    except (PartError, ProcessError, TimeoutError) as error:
        raise SystemExit(f"\nThe demo cannot continue: {error}") from None


async def _run(*, mesh: bool, keep: bool) -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await (meshtour if mesh else tour).main(keep=keep)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="make demo", description=(tour.__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--mesh",
        action="store_true",
        help="staged rollouts on a real control plane: kube-apiserver, istiod, sidecars",
    )
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="   %(message)s", stream=sys.stdout)
    with _interrupted_quietly():
        asyncio.run(_run(mesh=arguments.mesh, keep=arguments.keep))
