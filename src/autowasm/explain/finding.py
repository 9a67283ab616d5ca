"""Finding: the result of a check, with its place and a remedy.

Invariants: `what` and `remedy` are sentences without credentials, URL queries and control characters, so they can go to a
terminal and a CI log; a finding states nothing beyond the facts.
"""

import enum
from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct

from autowasm.explain.facts import Facts


class Level(enum.IntEnum):
    """The severity. Only `ERROR` means that requests are, or will be, handled differently from what the AutoWasm specifies."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3


class Step(enum.Enum):
    """The steps from the source to the Pods, in the order of the report."""

    RESOURCE = "AutoWasm"
    SOURCE = "Source"
    MODULE = "Module"
    ENVOYFILTER = "EnvoyFilter"
    ORDER = "Order"
    ROLLOUT = "Rollout"
    PODS = "Pods"
    PORTS = "Ports"
    NETWORK = "Network"


class Finding(Struct, frozen=True, kw_only=True):
    """`check` is CamelCase and stable, for scripts. `object` is `Kind namespace/name`, `field` a path in it."""

    level: Level
    step: Step
    check: str
    object: str
    what: str
    field: str = ""
    remedy: str = ""


Check = Callable[[Facts], Iterator[Finding]]
"""A pure function. Yields nothing if it does not apply."""

NOT_CHECKED: Final = "NotChecked"


def worst(findings: tuple[Finding, ...]) -> Level:
    """The highest level; `OK` without findings."""
    return max((finding.level for finding in findings), default=Level.OK)


class Reporter(Struct, frozen=True):
    """Makes the findings of one step."""

    step: Step

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
        """A Finding of this step."""
        return Finding(
            level=level,
            step=self.step,
            check=check,
            object=object,
            what=what,
            field=field,
            remedy=remedy,
        )
