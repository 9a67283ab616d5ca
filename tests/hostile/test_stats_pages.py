"""Malicious pages of statistics: the owner of a Pod controls the answers of its port 15090."""

import pytest

from autowasm.controller.pods.envoystats import parse_in_steps
from autowasm.controller.pods.podmatching import in_steps
from autowasm.limits import StatsLimits
from tests.hostile.looptime import longest_iteration

LIMIT = 0.05
"""Seconds of processor time. A usual page takes a millisecond."""
SIZE = StatsLimits().page_bytes

PAGES = {
    "empty lines": b"\n",
    "plug-ins": b"envoy_wasm_%d_vm_reload 1\n",
    "one word": b"a",
    "one name": b"envoy_wasm_",
    "braces": b"envoy_wasm_x{}}}}}}}}}}} ",
    "words in a label": b'istio_requests_total{reporter="destination",' + b"a" * 7900 + b"} 1\n",
    "escapes": b'istio_requests_total{reporter="destination",x="' + b'\\"a=' * 1900 + b"} 1\n",
    "many labels": b'istio_requests_total{reporter="destination",' + b'a="",' * 1500 + b"} 1\n",
    "requests": b'istio_requests_total{reporter="destination",response_code="%d"} 1\n',
}


def page(unit: bytes) -> bytes:
    """A page of repeated units, as long as the reader accepts."""
    if b"%d" not in unit:
        return (unit * (SIZE // len(unit) + 1))[:SIZE]
    return b"".join(unit % number for number in range(SIZE // len(unit)))[:SIZE]


@pytest.mark.parametrize("name", PAGES)
async def test_page_of_the_largest_size_does_not_hold_the_loop(name: str) -> None:
    content = page(PAGES[name])

    async def work() -> None:
        await in_steps(parse_in_steps(content))

    assert await longest_iteration(work, below=LIMIT) < LIMIT
