"""Finding: one thing that is right or wrong, where, and what to do about it.

Not how it is shown (`cli/findings.py`). Invariants: `what` and `remedy` are sentences without credentials, URL queries or
control characters, so they can go to a terminal and a CI log; a check says nothing that the facts do not show.
"""

import enum
from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct

from autowasm.explain.facts import Facts


class Level(enum.IntEnum):
    """How bad. Only `ERROR` means that requests are, or will be, handled otherwise than the AutoWasm asks for."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3


class Step(enum.Enum):
    """A step of the way from the source to the Pods, in the order in which they are told."""

    RESOURCE = "AutoWasm"
    SOURCE = "Source"
    MODULE = "Module"
    ENVOYFILTER = "EnvoyFilter"
    ORDER = "Order"
    PODS = "Pods"
    PORTS = "Ports"
    NETWORK = "Network"


class Finding(Struct, frozen=True, kw_only=True):
    """`check` is CamelCase and stable: scripts go by it. `object` is `Kind namespace/name`, `field` a path in it."""

    level: Level
    link: Step
    check: str
    object: str
    what: str
    field: str = ""
    remedy: str = ""


Check = Callable[[Facts], Iterator[Finding]]
"""Pure. Yields nothing where it does not apply."""

NOT_CHECKED: Final = "NotChecked"


def worst(findings: tuple[Finding, ...]) -> Level:
    """`OK` if there is none."""
    return max((finding.level for finding in findings), default=Level.OK)


class Reporter(Struct, frozen=True):
    """Says findings of one link."""

    link: Step

    def __call__(
        self,
        level: Level,
        check: str,
        object: str,
        what: str,
        remedy: str = "",
        *,
        field: str = "",
    ) -> Finding:
        """Words for `Finding`."""
        return Finding(
            level=level,
            link=self.link,
            check=check,
            object=object,
            what=what,
            field=field,
            remedy=remedy,
        )
