"""A fork server that compiles normally, but whose children that run a module do what the configuration names (`children.py`).

`python -m tests.fakes.lyingchildren`. It simulates modules that took over their child.
"""

from collections.abc import Sequence

from autowasm.limits import PreflightLimits
from autowasm.preflight import child, forkserver, isolation, messages
from autowasm.preflight.messages import COMPILE, RUN, Request
from tests.fakes import children


def _lie(channel: int, descriptors: Sequence[int], limits: isolation.Rlimits) -> None:
    isolation.isolate(limits)
    request = messages.read_frame(channel, most=PreflightLimits().request_bytes)
    name = Request.from_json(request).plugin.configuration or b""
    getattr(children, name.decode())(channel, descriptors)


if __name__ == "__main__":
    forkserver.run({COMPILE: child.prepare()[COMPILE], RUN: _lie})
