"""The filter of `examples/filter-with-tests`, for tests of the commands that run one."""

from pathlib import Path

from tests.parts import wat

FOLDER = Path(__file__).parents[3] / "examples/filter-with-tests"


def module() -> bytes:
    """Its module."""
    return wat.compile_file(FOLDER / "gate.wat")
