"""Python imports this at the start of a traced process: it records which files of autowasm run a function.

Records the main thread, which is the event loop's, or every thread if AUTOWASM_CODEPATHS_THREADS is set. SIGUSR1 clears
the record. SIGUSR2 writes it to the file that AUTOWASM_CODEPATHS names; so does the end of the process. Invariant: code
that runs while a module is imported does not count.
"""

import atexit
import inspect
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

_OUT = Path(os.environ["AUTOWASM_CODEPATHS"])
_PART = f"{os.sep}src{os.sep}autowasm{os.sep}"

_codes: set[Any] = set()


def _profile(frame: FrameType, event: str, _: object) -> None:
    code = frame.f_code
    if event == "call" and code not in _codes and _PART in code.co_filename and not _imports(frame):
        _codes.add(code)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module or the body of a class is being executed."""
    while frame is not None:
        if _PART in frame.f_code.co_filename and not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return True
        frame = frame.f_back
    return False


def _files() -> list[str]:
    ran = {code.co_filename for code in tuple(_codes)}
    return sorted(name.partition(_PART)[2] for name in ran)


def _write(*_: object) -> None:
    half = _OUT.with_suffix(".half")
    half.write_text("\n".join(_files()))
    half.replace(_OUT)


def _forget(*_: object) -> None:
    _codes.clear()


signal.signal(signal.SIGUSR1, _forget)
signal.signal(signal.SIGUSR2, _write)
atexit.register(_write)
sys.setprofile(_profile)
if os.environ.get("AUTOWASM_CODEPATHS_THREADS"):
    threading.setprofile(_profile)
