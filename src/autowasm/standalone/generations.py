"""`metadata.generation` for objects in files, as an API server would count it. Pure."""

from collections.abc import Mapping
from typing import Any


def next_generation(previous: Mapping[str, Any] | None, spec: object) -> int:
    """1 for a new object; else that of `previous` (the object as last written), one more if the spec is another."""
    if previous is None:
        return 1
    generation = (previous.get("metadata") or {}).get("generation")
    if not isinstance(generation, int) or generation < 1:
        return 1
    return generation if previous.get("spec") == spec else generation + 1
