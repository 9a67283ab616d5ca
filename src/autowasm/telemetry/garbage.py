"""Python's garbage collector, told not to hold the loop.

A full collection looks at every container object: with some thousand connections it takes 0.1 s, in the middle of serving
them. What was imported never becomes garbage, and what is thrown away is nearly all found young. Invariant: nothing is
switched off; a full collection still comes, seldom.
"""

import gc
from typing import Final

YOUNG: Final = 5_000
"""Objects after which the youngest are looked at: a third of a millisecond."""
MIDDLE: Final = 10
"""Such looks until those that survived one are looked at: at most 50 000 objects."""
OLD: Final = 200
"""Such looks until all are looked at: after ten million objects that were made and kept."""


def tame() -> None:
    """Call once everything is imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
