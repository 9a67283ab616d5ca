"""A wall clock that jumps on command, inside a process that is started with this folder on PYTHONPATH.

The system's clock is everybody's, and time namespaces leave it out. Not the monotonic clock, which no jump reaches in
reality either, nor what C libraries read (certificates). Invariant: the first look after a jump sees it. `clocks.py` writes the file.
"""

import datetime
import os
import time
from pathlib import Path
from typing import Any

_FILE = Path(os.environ["AUTOWASM_TEST_CLOCK"])
_time, _time_ns, _datetime = time.time, time.time_ns, datetime.datetime


def _shift() -> int:
    """Seconds."""
    return int(_FILE.read_text())


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _datetime)


class _Datetime(_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return _datetime.now(tz) + datetime.timedelta(seconds=_shift())


time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + _shift() * 1_000_000_000
datetime.datetime = _Datetime  # type: ignore[misc]
