"""What the state machine of a staged rollout is told: the target, the EnvoyFilter in place, the Pods, the annotations. Pure data.

Invariant: times are ages and durations, measured by a clock that is never set, so a clock that is set cannot make an old reading
a new one.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from autowasm.api.status import MAX_STAGED, RolloutVariant
from autowasm.controller.pods.runstate import RunState
from autowasm.controller.rollout.selection import Candidate

UNREADABLE: Final = frozenset({RunState.STATS_UNREACHABLE, RunState.UNKNOWN})
"""Nothing can be said of the target in this Pod: `onUnknown` decides."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Requests, and those with a status of 500 or more."""

    requests: int = 0
    failures: int = 0

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(self.requests + other.requests, self.failures + other.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodObservation:
    """A Pod with a sidecar that the selector matches, with the filter of the target or without."""

    candidate: Candidate
    downloaded: bool | None = None
    """Whether it downloaded the target's module; None: unknown (ADR 23), also if Envoy had it in its cache."""
    run: RunState | None = None
    """None: not read."""
    age: float = math.inf
    """Seconds since `run` was read."""
    figures: Figures = Figures()
    """Since the step began."""
    before: Figures = Figures()
    """Until the Pod got the target, as far as its proxy has counted."""
    message: str = ""
    """What the statistics say, as a clause whose subject is Envoy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """All that `advance` looks at besides its own state."""

    target: RolloutVariant | None
    """What the spec asks for, with its generation; None while its module is not stored."""
    base: RolloutVariant | None = None
    """The variant of the EnvoyFilter in place for all proxies; None: there is no filter."""
    is_readable: bool = True
    """False: there is an EnvoyFilter in place, but it has no variant that can be read."""
    found: frozenset[str] = frozenset()
    """Digests of the variants that can be rendered: of the spec, read from the EnvoyFilter, or remembered."""
    is_published: bool = False
    """Whether the EnvoyFilter in place is the one of the state, `placement(state)`."""
    pods: tuple[PodObservation, ...] | None = None
    """All Pods with a sidecar that the selector matches; None: not listed yet."""
    elapsed: float | None = None
    """Seconds since this leader's last observation; None: it is its first one."""
    watched: float = 0.0
    """Seconds for which this leader has counted the requests of the step's Pods. A new leader begins again."""
    capacity: int = MAX_STAGED
    """How many Pods the EnvoyFilter can name (`api.staged.capacity`)."""
    command: str = ""
    """The rollout annotation."""
    refresh: str = ""
    """The refresh annotation."""


_COMMAND: Final = re.compile(
    r"(?P<verb>[a-z]+)(?:@(?P<generation>[0-9]{1,18}))?(?:\s.*)?\Z", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Command:
    """A value of the rollout annotation: `VERB`, `VERB@GENERATION`, and after a blank anything that makes it new."""

    verb: str
    generation: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Command | None":
        """None for a text without a verb."""
        found = _COMMAND.match(text)
        if found is None:
            return None
        generation = found["generation"]
        return cls(found["verb"], int(generation) if generation else None)


def by_uid(pods: tuple[PodObservation, ...]) -> Mapping[str, PodObservation]:
    """The observations by the Pods' uids."""
    return {one.candidate.uid: one for one in pods}
