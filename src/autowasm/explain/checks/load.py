"""Link Pods: which of them have fetched the module, and why the others have not, as the controller tells it (ADR 0023).

Not the proof (`controller/pods/loadreport.py`): nobody but the controller sees who asked. Invariant: what it could not know is a note,
never an error, and a status that is not of the spec as it is now is called so.
"""

from collections.abc import Iterator
from typing import Final

from msgspec import UNSET

from autowasm.api.status import ConditionType, MissingPod, Pods
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Link, Voice

_say: Final = Voice(Link.PODS)
_NAMED: Final = 3
_FIELD: Final = "status.pods"
_REMEDIES: Final = {
    "Refused": "wasmer's log has `blob not filled` with the module's digest; once it can be had, such sidecars are given it again",
    "NeverAsked": "is the proxy connected to istiod (istioctl proxy-status), and does it reach wasmer? See Network below; else restart the Pod",
    "NotReady": "kubectl describe pod; a proxy that cannot fetch its module stays unready for up to minutes at its start",
    "SharedAddress": "on the host's network Pods cannot be told apart: see the proxy's own log and envoy_wasm_* metrics",
    "Unattributed": "source addresses are hidden on the way to wasmer (SNAT, a gateway between clusters): see the proxy's envoy_wasm_* metrics",
    "NotKnown": "a proxy that has the module in its own cache (24 h) does not ask; to be sure, restart the Pod",
}
_LEVELS: Final = {"Refused": Level.ERROR, "NeverAsked": Level.WARNING, "NotReady": Level.WARNING}


def loaded(facts: Facts) -> Iterator[Finding]:
    """How many sidecars fetched the published module; a finding for each reason why others did not."""
    told = facts.status.pods
    if facts.planned or facts.record is None or told is UNSET or not told.matched:
        return
    condition = facts.status.condition(ConditionType.LOADED)
    if told.fetched is UNSET or condition is None:
        what = "says nothing of who fetched the module: wasmer has just published it, or is of a version that does not tell"
        yield _say(Level.NOTE, "LoadNotTold", facts.name, what, field=_FIELD)
        return
    if _is_old(facts, condition.observed_generation):
        what = "tells who fetched the module of an earlier spec; of this one nothing is known yet"
        yield _say(Level.NOTE, "LoadNotTold", facts.name, what, field=_FIELD)
        return
    since = f" (as of {told.time})" if told.time else ""
    what = f"{told.fetched} of {told.injected} sidecars fetched the module{since}"
    if told.fetched >= told.matched:
        yield _say(Level.OK, "Loaded", facts.name, what, field=_FIELD)
        return
    yield _say(Level.NOTE, "Loaded", facts.name, what + _unnamed(told), field=_FIELD)
    by_reason: dict[str, list[MissingPod]] = {}
    for pod in told.missing:
        by_reason.setdefault(pod.reason, []).append(pod)
    by_reason.pop("NotInjected", None)  # `pods.injected` says which, and why
    for reason, pods in by_reason.items():
        yield _missing(reason, pods)


def _is_old(facts: Facts, observed: int) -> bool:
    generation = facts.document.get("metadata", {}).get("generation")
    return isinstance(generation, int) and observed < generation


def _unnamed(told: Pods) -> str:
    """The status names ten at most."""
    fetched = told.fetched if told.fetched is not UNSET else 0
    more = told.matched - fetched - len(told.missing)
    return f"; {more} more that did not are not named in the status" if more > 0 else ""


def _missing(reason: str, pods: list[MissingPod]) -> Finding:
    names = ", ".join(f"{pod.namespace}/{pod.name}" for pod in pods[:_NAMED])
    more = f" and {len(pods) - _NAMED} more" if len(pods) > _NAMED else ""
    return _say(
        _LEVELS.get(reason, Level.NOTE),
        f"Load{reason}",
        f"{'Pod' if len(pods) == 1 else 'Pods'} {names}{more}",
        pods[0].message or f"is not known to have fetched the module: {reason}",
        _REMEDIES.get(reason, ""),
    )


CHECKS: Final[tuple[Check, ...]] = (loaded,)
