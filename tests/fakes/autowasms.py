"""AutoWasm documents for tests: valid unless a test changes them."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from autowasm.api import validation
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.digest import Sha256Hex

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"
IMAGE = "registry.example/team/filter:v1"
URL = "https://objects.example/filter.wasm"


def sample(name: str) -> dict[str, Any]:
    """One of the reference documents."""
    document: dict[str, Any] = yaml.safe_load((SAMPLES / name).read_text())
    return document


def document(
    *,
    name: str = "test",
    namespace: str = "default",
    image: str = IMAGE,
    generation: int = 1,
    metadata: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    **filter_: Any,
) -> dict[str, Any]:
    """An AutoWasm; `filter_` goes into `spec.filter`, and replaces the registry source if it has a `source`."""
    return copy.deepcopy(
        {
            "apiVersion": "wasm.tcm.io/v1alpha1",
            "kind": "AutoWasm",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "generation": generation,
                **(metadata or {}),
            },
            "spec": {
                "filter": {"source": {"registry": {"image": image}}, **filter_},
                "selector": {"matchLabels": {"app": "details"}},
                **(spec or {}),
            },
        }
    )


def autowasm(**fields: Any) -> AutoWasm:
    """The same, parsed."""
    return validation.parse(document(**fields))


def digest(character: str) -> Sha256Hex:
    """Sixty-four times the same digit."""
    return Sha256Hex(character * 64)


def record(
    *,
    image: str = IMAGE,
    sha256: str = "a" * 64,
    manifest: str = "1" * 64,
    size: int = 1234,
    **fields: Any,
) -> Record:
    """The record of an image source that resolved to `manifest`."""
    repository = image.partition("@")[0].rpartition(":")[0]
    values: dict[str, Any] = {
        "source": f"registry:{image}",
        "sha256": Sha256Hex(sha256),
        "size": size,
        "abi": "0.2.1",
        "image": f"{repository}@sha256:{manifest}",
    }
    return Record(**{**values, **fields})
