"""Published advisories of other controllers, replayed on our readers."""

import gzip
import tracemalloc
from pathlib import Path

import pytest

from autowasm.errors import ContentRejected
from autowasm.settings import MIB, Limits
from autowasm.wasm.archive import extract_module
from tests.unit.wasm.archives import header

EXBIBYTES_8 = b"\x80" + bytes(3) + (2**63 - 1).to_bytes(8, "big")


def refusal(directory: Path, data: bytes) -> tuple[str, int]:
    """The message, and the most memory taken, in bytes."""
    source = directory / "source"
    source.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ContentRejected) as caught:
            extract_module(source, directory / "destination", packing="detect", limits=Limits())
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_header_allocates_nothing(tmp_path: Path, packed: bool) -> None:
    """CVE-2026-53717, GHSA-h7pq-86h8-rp5x (Envoy Gateway): memory taken by the size in a tar header."""
    data = header(b"plugin.wasm", EXBIBYTES_8) + b"\0asm\x01\0\0\0" + bytes(504)
    message, peak = refusal(tmp_path, gzip.compress(data) if packed else data)
    assert message
    assert peak < 8 * MIB


def test_a_gzip_bomb_ends_at_the_budget(tmp_path: Path) -> None:
    """GHSA-cxpq-8v7q-cg56 (Envoy Gateway): a gzip layer unpacked without a limit."""
    bomb = gzip.compress(b"\0asm\x01\0\0\0" + bytes(64 * MIB), compresslevel=1)
    message, peak = refusal(tmp_path, bomb)
    assert message
    assert peak < 48 * MIB
