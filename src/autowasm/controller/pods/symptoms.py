"""Symptoms: that proxies of an EnvoyFilter could not get its module, and will not ask again by themselves (ADR 17).

* errors: a sidecar's last answer from any replica was an error, and it has not come back for longer than its retries are apart;
* outage: nobody served for longer than retries bridge, and meanwhile a matched Pod started or the EnvoyFilter changed, and that
  Pod has not downloaded the module since. Who was refused a connection leaves no trace, so this is inferred: from the Lease, which
  says until when some replica lived, and from how long each replica has been up.

What a replica saw is lost with it, so a replica that leads later may not know of downloads that its predecessor knew: what the
EnvoyFilter and the status say counts, too. What cannot be known: whether a proxy that never asked here has the module in its
own cache. It is left alone.

Not the healing (`healing.py`). Invariant: nothing here waits or changes anything; a look at a large mesh is made in steps, after
each of which the loop may do something else.
"""

import enum
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from msgspec import UNSET

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import status as statuses
from autowasm.controller.pods.seen import Seen, epoch
from autowasm.kube.pods import Pod
from autowasm.kube.resources import ObjectKey
from autowasm.settings import HealingSettings

Document = Mapping[str, Any]
_STEP: Final = 500
"""Addresses or Pods in one step: at most some tenths of a millisecond, unless a status has to be read for each."""


@runtime_checkable
class Mesh(Protocol):
    """What is published, and to whom."""

    def keys(self) -> frozenset[ObjectKey]:
        """All AutoWasms."""

    def document(self, key: ObjectKey) -> Document | None:
        """The AutoWasm."""

    def envoyfilter(self, key: ObjectKey) -> Document | None:
        """The live EnvoyFilter that is ours."""

    def sidecars(self) -> Iterable[Pod]:
        """Pods that have one and have not ended. Pods may come and go while it is iterated."""

    def selects(self, key: ObjectKey, pod: Pod) -> bool:
        """Whether the AutoWasm's selector matches the Pod."""


@dataclass(frozen=True, slots=True)
class Outage:
    """Nobody served; wall-clock seconds since the epoch."""

    begin: float
    end: float


@dataclass(slots=True)
class Answers:
    """What one address got, from all replicas: ages in seconds; infinity: never."""

    downloaded: float = float("inf")
    refused: float = float("inf")

    @property
    def is_open(self) -> bool:
        """The last answer was an error."""
        return self.refused < self.downloaded


@dataclass(frozen=True, slots=True)
class Sidecars:
    """Of one look. `pods`: each once."""

    pods: list[Pod]
    by_address: Mapping[str, Pod]


class Verdict(enum.Enum):
    """Whether to heal."""

    NOTHING = enum.auto()
    TOO_YOUNG = enum.auto()
    """There may be enough in a while."""
    ENOUGH = enum.auto()


class Symptoms:
    """Looks at one object at a time. `wall`: seconds since the epoch."""

    def __init__(self, mesh: Mesh, settings: HealingSettings, wall: Callable[[], float]) -> None:
        self._mesh = mesh
        self._settings = settings
        self._wall = wall

    def of_errors(
        self,
        key: ObjectKey,
        live: Document,
        sidecars: Sidecars,
        seen: Mapping[str, Answers],
        *,
        healed: float,
    ) -> Generator[None, None, Verdict]:
        """A sidecar of this object got an error last, and has stopped asking. `seen` by address.

        `healed`: when we healed it last, seconds since the epoch.
        """
        verdict = Verdict.NOTHING
        for step, (address, one) in enumerate(seen.items()):
            if step % _STEP == _STEP - 1:
                yield
            if not one.is_open:
                continue
            pod = sidecars.by_address.get(address)
            if pod is None or not self._mesh.selects(key, pod):
                continue
            at = self._wall() - one.refused
            if at < pod.started or at < healed or _was_healed_after(at, live):
                continue  # another Pod had the address then; or it was healed since
            if self._is_known_to_have_it(key, live, pod, since=at):
                continue
            if one.refused >= self._settings.given_up:
                return Verdict.ENOUGH
            verdict = Verdict.TOO_YOUNG
        return verdict

    def of_outage(
        self,
        key: ObjectKey,
        live: Document,
        sidecars: Sidecars,
        seen: Mapping[str, Answers],
        *,
        outage: Outage,
    ) -> Generator[None, None, bool]:
        """A sidecar of this object wanted the module while nobody served, and has not had it since."""
        since_end = self._wall() - outage.end
        if since_end < self._settings.settle or _was_healed_after(outage.end, live):
            return False
        at = changed_at(live)
        changed = _is_within(at, outage)
        for step, pod in enumerate(sidecars.pods):
            if step % _STEP == _STEP - 1:
                yield
            if not changed and not _is_within(pod.started, outage):
                continue
            if not self._mesh.selects(key, pod):
                continue
            # Of several addresses a proxy asks from one.
            answers = (seen.get(address, Answers()) for address in pod.addresses)
            if any(one.downloaded <= since_end for one in answers):
                continue
            if not self._is_known_to_have_it(key, live, pod, since=at if changed else pod.started):
                return True
        return False

    def _is_known_to_have_it(
        self, key: ObjectKey, live: Document, pod: Pod, *, since: float
    ) -> bool:
        """The status says so, of a later time."""
        record, document = envoyfilters.record_of(dict(live)), self._mesh.document(key) or {}
        status = statuses.read(document.get("status"))
        if record is None or status.pods is UNSET or epoch(status.pods.time) < since:
            return False
        said = Seen()
        for _ in said.believe(status, record.sha256, [pod]):
            pass  # of one Pod there is one step
        return pod.uid in said.fetched


def _is_within(moment: float, outage: Outage) -> bool:
    """`moment` may have been cut to its second, as all times of the API are (`metav1.Time`)."""
    return math.floor(outage.begin) <= moment <= outage.end


def changed_at(live: Document) -> float:
    """When the EnvoyFilter changed last: seconds since the epoch; 0 if it cannot be known."""
    metadata = live.get("metadata") or {}
    times = [one.get("time") for one in metadata.get("managedFields") or ()]
    times.append(metadata.get("creationTimestamp"))
    return max((epoch(text) for text in times if isinstance(text, str)), default=0.0)


def _was_healed_after(moment: float, live: Document) -> bool:
    """Whether its proxies were given the module once more since then, as the EnvoyFilter itself says."""
    counts = (envoyfilters.heal_count_of(live, one) for one in envoyfilters.digests_of(live))
    return changed_at(live) > moment and any(counts)
