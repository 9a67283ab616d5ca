"""A real `wasmer standalone` and a hostile origin."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.origin import Origin
from tests.parts import envoy as envoys
from tests.parts import wasmer
from tests.parts.wasmer import Wasmer


@pytest.fixture
async def hosts() -> AsyncIterator[list[Origin]]:
    """Four origins: a host gets at most four fetches at a time, and the tests need eight at once."""
    async with Origin() as one, Origin() as two, Origin() as three, Origin() as four:
        yield [one, two, three, four]


@pytest.fixture
async def server(tmp_path: Path, hosts: list[Origin]) -> AsyncIterator[Wasmer]:
    """Ready, with nothing to do."""
    async with wasmer.standalone(
        tmp_path,
        template=envoys.listeners_yaml([1], cluster="web"),
        plain_http=[host.host for host in hosts],
        fork=False,
    ) as running:
        yield running


def autowasm(name: str, *, namespace: str, **source: Any) -> dict[str, Any]:
    """An AutoWasm of `image=…` or `url=…`."""
    given = {"registry": {"image": source["image"]}} if "image" in source else {"object": source}
    return {
        "apiVersion": "wasm.tcm.io/v1alpha1",
        "kind": "AutoWasm",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"filter": {"source": given}, "selector": {"matchLabels": {"app": "a"}}},
    }
