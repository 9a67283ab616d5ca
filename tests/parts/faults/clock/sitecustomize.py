"""A clock that a test sets, inside a process that is started with this folder on PYTHONPATH.

All processes share the system's clock, and time namespaces exclude the wall clock. Two things can be set, each by a file that
`clocks.py` or `virtualtime.py` writes: the wall clock jumps in either direction, while the monotonic clock continues as in
reality; or time passes at once, on both clocks. C libraries (certificates, `select`) are not affected: a wait that has begun
keeps its length. Invariant: the first read after a change returns the changed time.
"""

import ctypes
import datetime
import gc
import mmap
import os
import struct
import time
from pathlib import Path

_JUMPED = os.environ.get("AUTOWASM_TEST_CLOCK")
_PASSED = os.environ.get("AUTOWASM_TEST_PASSED")
_time, _time_ns, _datetime_now = time.time, time.time_ns, datetime.datetime.now
_monotonic, _monotonic_ns = time.monotonic, time.monotonic_ns


def _map(file: str) -> mmap.mmap:
    with Path(file).open("rb") as opened:
        return mmap.mmap(opened.fileno(), 8, access=mmap.ACCESS_READ)


_memory = _map(_PASSED) if _PASSED else struct.pack("q", 0)


def _passed() -> int:
    """Nanoseconds."""
    passed: int = struct.unpack_from("q", _memory)[0]
    return passed


def _shift() -> int:
    """Nanoseconds, of the wall clock."""
    jumped = int(Path(_JUMPED).read_text()) if _JUMPED else 0
    return jumped * 1_000_000_000 + _passed()


def _now(_: type, tz: datetime.tzinfo | None = None) -> datetime.datetime:
    return _datetime_now(tz) + datetime.timedelta(microseconds=_shift() // 1000)


# msgspec treats a subclass as another type, and the class accepts no new attributes, so its dictionary is changed.
(_attributes,) = gc.get_referents(datetime.datetime.__dict__)
_attributes["now"] = classmethod(_now)
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
time.time = lambda: _time() + _shift() / 1e9
time.time_ns = lambda: _time_ns() + _shift()
if _PASSED:
    time.monotonic = lambda: _monotonic() + _passed() / 1e9
    time.monotonic_ns = lambda: _monotonic_ns() + _passed()
