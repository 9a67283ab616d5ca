"""Which other clients could fetch a module: read from the bytes that they would get."""

import gzip
from pathlib import Path

import pytest
import zstandard

from autowasm.cli.compat import _open_last, of_file
from autowasm.limits import Limits
from autowasm.registry.layouts import ENVOY_GATEWAY, ISTIO, KWCTL
from tests.parts import wat
from tests.unit.wasm.archives import tar

MODULE = wat.header_filter("world")
LIMITS = Limits()


@pytest.mark.parametrize(
    ("content", "member", "mesh", "why"),
    [
        (MODULE, "", True, ""),
        (gzip.compress(MODULE), "", True, ""),
        (tar({"a.wasm": MODULE, "README": b"x"}), "a.wasm", True, ""),
        (tar({"README": b"x" * 9, "a.wasm": MODULE}), "a.wasm", False, "first entry"),
        (tar({"README": b"", "a.wasm": MODULE}), "a.wasm", False, "first entry"),
        (zstandard.compress(MODULE), "", False, "not zstd"),
        (zstandard.compress(tar({"a.wasm": MODULE})), "a.wasm", False, "not zstd"),
        (b"\0" * 100 + tar({"a.wasm": MODULE}), "a.wasm", False, "first entry"),
    ],
    ids=["bare", "gzip", "first", "second", "behind an empty one", "zstd", "zstd tar", "damaged"],
)
def test_istio_and_envoy_gateway_read_a_file_behind_a_url(
    content: bytes, member: str, mesh: bool, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    found = of_file(file, member=member, limits=LIMITS)
    for client in (ISTIO, ENVOY_GATEWAY):
        assert found[client].reads is mesh
        assert why in found[client].why
    assert found[KWCTL].reads is (content == MODULE)


@pytest.mark.parametrize(
    ("content", "is_gzip", "plugin"),
    [
        (tar({"plugin.wasm": MODULE}), False, None),
        (gzip.compress(tar({"plugin.wasm": MODULE})), True, True),
        (gzip.compress(tar({"plugin.wasm": b"no module at all"})), True, False),
        (gzip.compress(tar({"other.wasm": MODULE})), True, None),
        (gzip.compress(b"no tar archive" * 100), True, None),
        (gzip.compress(tar({"plugin.wasm": MODULE}))[:80], True, None),
    ],
    ids=["not gzip", "plugin", "no module", "other name", "no tar", "cut off"],
)
def test_last_layer_is_opened_as_a_client_opens_it(
    content: bytes, is_gzip: bool, plugin: bool | None, tmp_path: Path
) -> None:
    file = tmp_path / "layer"
    file.write_bytes(content)
    found = _open_last(file, limits=LIMITS)
    assert (found.is_gzip, found.plugin) == (is_gzip, plugin)
