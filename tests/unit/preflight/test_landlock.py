"""What each version of Landlock is asked for. The real kernel is in tests/hostile/test_isolation.py."""

import pytest

from autowasm.preflight.landlock import handled

TCP = 0b11
SCOPES = 0b11


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        (1, (0x1FFF,)),
        (2, (0x3FFF,)),
        (3, (0x7FFF,)),
        (4, (0x7FFF, TCP)),
        (5, (0xFFFF, TCP)),
        (6, (0xFFFF, TCP, SCOPES)),
        (7, (0xFFFF, TCP, SCOPES)),
        (99, (0xFFFF, TCP, SCOPES)),
    ],
)
def test_a_version_is_asked_for_all_that_it_knows_and_no_more(
    version: int, fields: tuple[int, ...]
) -> None:
    # A kernel refuses unknown bits (EINVAL), and fields that it does not know unless they are 0 (E2BIG).
    assert handled(version) == fields
