"""Real filters from real toolchains: the modules of `tests/assets/filters/`, and how the answer of `echo` is read.

`tests/assets/filters/README.md` describes each filter; it is the same in each toolchain. `build` blocks for seconds
to a minute if the cache lacks the module; in an event loop use `asyncio.to_thread`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.parts import toolchains, wire
from tests.parts.wire import Answer

_POLL_SECONDS = 0.05
_T = TypeVar("_T")

TOOLCHAINS: Mapping[str, toolchains.Toolchain] = {
    one.name: one for one in (toolchains.C_WITH_ZIG, toolchains.GO, toolchains.ASSEMBLYSCRIPT)
}

_FIRST = b"configuration "
"""The beginning of each answer of `echo`; a service behind it answers differently."""


def build(name: str, *, toolchain: str = "c") -> Path:
    """The module of the filter `name`, such as `echo`. Raises PartError.

    C makes modules of 30 KB, which Envoy loads at once. A module from Go has 2 MB: Envoy needs a second to compile it, and
    several seconds on a busy machine.
    """
    return TOOLCHAINS[toolchain].build(name)


def every() -> Iterator[tuple[str, str]]:
    """Each filter with each toolchain that it is written for: (name, toolchain)."""
    for toolchain in TOOLCHAINS.values():
        for name in toolchain.filters():
            yield name, toolchain.name


@dataclass(frozen=True, slots=True)
class Echo:
    """The input of the filter `echo` from Envoy, byte for byte."""

    configuration: bytes
    vm_configuration: bytes
    plugin_name: str
    root_id: str
    vm_id: str
    environment: Mapping[str, str]

    @classmethod
    def parse(cls, body: bytes) -> "Echo":
        """Parse the body of the filter's answer: lines of a name and hexadecimal bytes. Raises ValueError."""
        values: dict[str, bytes] = {}
        environment: dict[str, str] = {}
        for line in body.decode("ascii").splitlines():
            name, _, digits = line.partition(" ")
            value = bytes.fromhex(digits)
            if name == "environment":
                key, _, text = value.decode().partition("=")
                environment[key] = text
            else:
                values[name] = value
        try:
            return cls(
                configuration=values["configuration"],
                vm_configuration=values["vm-configuration"],
                plugin_name=values["plugin_name"].decode(),
                root_id=values["plugin_root_id"].decode(),
                vm_id=values["plugin_vm_id"].decode(),
                environment=environment,
            )
        except KeyError as error:
            raise ValueError(f"the answer of echo lacks {error}") from error


async def ask_echo(host: str, *, plugin: str = "any") -> Echo | None:
    """The input of the filter `echo` behind `host` (`address:port`); None if no such filter answers.

    `plugin` is the name of one plugin, for a listener with several of them. Raises OSError without a complete answer.
    """
    answer = await wire.get(f"http://{host}/", headers={"x-echo": plugin})
    is_echo = answer.status == 200 and answer.body.startswith(_FIRST)
    return Echo.parse(answer.body) if is_echo else None


async def until_echo(
    host: str, wanted: Callable[[Echo], bool], *, plugin: str = "any", timeout: float = 90
) -> Echo:
    """The result of `ask_echo`, once it is as wanted. Raises TimeoutError with the last answer or error."""

    async def ask() -> Echo:
        echo = await ask_echo(host, plugin=plugin)
        if echo is None:
            raise ConnectionError("no filter echo answered")
        return echo

    return await _until(ask, wanted, what=f"echo at {host}", timeout=timeout)


async def until_answer(
    host: str, wanted: Callable[[Answer], bool], *, path: str = "", timeout: float = 90
) -> Answer:
    """The first answer to GET /`path` that is as wanted. Raises TimeoutError with the last answer or error.

    A module from Go needs the time: on a busy machine Envoy takes seconds to compile it.
    """
    url = f"http://{host}/{path}"
    return await _until(lambda: wire.get(url), wanted, what=f"GET {url}", timeout=timeout)


async def _until(
    ask: Callable[[], Awaitable[_T]],
    wanted: Callable[[_T], bool],
    *,
    what: str,
    timeout: float,
) -> _T:
    last: object = None
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    last = answer = await ask()
                    if wanted(answer):
                        return answer
                except OSError as error:  # an old filter chain closes its connections
                    last = error
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as error:
        raise TimeoutError(
            f"{what} is not as wanted after {timeout:g} s; last: {last!r}"
        ) from error
