"""Step Pods: the selector matches Pods, they have a supported proxy, istiod sees them, and they fetched the module.

The controller's status reports which Pods fetched it (ADR 0023, `controller/pods/loadreport.py`): only wasmer knows the
downloads. Invariant: a Pod that the status does not cover is a note, never an error; a status of an older spec is reported as
such.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import UNSET

from autowasm.api.status import ConditionType, MissingPod, Pods
from autowasm.api.v1alpha1 import FailStrategy, PatchContext
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step
from autowasm.explain.objects import Pod

_finding: Final = Reporter(Step.PODS)
_NAMED: Final = 5
_LABELS: Final = "spec.selector.matchLabels"
_RELOADS: Final = (1, 25)
"""The first Istio version whose Envoy (1.33) knows `failurePolicy`; older ones silently ignore the field."""
_FLOOR: Final = (1, 8)
"""Oldest Istio version that wasmer supports (docs/install.md)."""


def matched(facts: Facts) -> Iterator[Finding]:
    """The selector matches at least one Pod."""
    if facts.autowasm is None or "pods" in facts.unread:
        return
    if facts.pods:
        count = len(facts.pods)
        what = f"matches {count}{'+' if facts.cut.keys() & {'pods', 'namespaces'} else ''} Pods, {len(facts.injected)} of them with a proxy"
        yield _finding(Level.OK, "Pods", facts.name, what, field=_LABELS)
        return
    where = (
        ""
        if facts.key.namespace == facts.root_namespace
        else f" in namespace {facts.key.namespace}"
    )
    what = f"matches no Pod{where}" + _nearest(facts)
    remedy = "correct the labels (kubectl get pods --show-labels), or move the AutoWasm to the Pods' namespace"
    yield _finding(Level.WARNING, "NoPod", facts.name, what, remedy, field=_LABELS)


def _nearest(facts: Facts) -> str:
    """The labels of the selector that no Pod of the namespace has, for the message."""
    wanted = facts.autowasm.spec.selector.match_labels if facts.autowasm is not None else {}
    if not facts.neighbours:
        return "; no Pod runs there" if facts.has_read("neighbours") else ""
    described = []
    for key, value in sorted(wanted.items()):
        values = sorted({pod.labels[key] for pod in facts.neighbours if key in pod.labels})
        if value in values:
            continue
        has = f"the Pods have {', '.join(values[:3])}" if values else "no Pod has that label"
        described.append(f"{key}={value}: {has}")
    return f" ({'; '.join(described[:3])})" if described else " (no Pod has all of the labels)"


def injected(facts: Facts) -> Iterator[Finding]:
    """Pods without a proxy get no filter."""
    without = [pod for pod in facts.pods if pod.proxy is None]
    if not without:
        return
    level = Level.ERROR if len(without) == len(facts.pods) else Level.WARNING
    by_reason: dict[str, list[Pod]] = {}
    for pod in without:
        by_reason.setdefault(_why_not_injected(pod, facts), []).append(pod)
    for reason, pods in by_reason.items():
        what = f"{len(pods)} of {len(facts.pods)} matched Pods have no istio-proxy and therefore no filter: {reason}"
        remedy = "enable sidecar injection, then restart the Pods (kubectl rollout restart)"
        yield _finding(level, "NotInjected", _names(pods), what, remedy, field="spec.containers")


def _why_not_injected(pod: Pod, facts: Facts) -> str:
    value = pod.labels.get("sidecar.istio.io/inject") or pod.annotations.get(
        "sidecar.istio.io/inject"
    )
    if value == "false":
        return "sidecar.istio.io/inject is false"
    if pod.spec.host_network:
        return "they use the host network, where Istio does not inject sidecars"
    if "ambient.istio.io/redirection" in pod.annotations:
        return "they are in ambient mode, where ztunnel runs no HTTP filters"
    namespace = facts.namespaces.get(pod.metadata.namespace)
    if namespace is None:
        return f"the reason is unknown: namespace {pod.metadata.namespace} could not be read"
    if namespace.labels.get("istio-injection") == "disabled":
        return f"namespace {pod.metadata.namespace} has istio-injection=disabled"
    if namespace.labels.get("istio-injection") == "enabled" or "istio.io/rev" in namespace.labels:
        return "the namespace enables injection; they may have started before that, or while the webhook was unavailable"
    if value == "true":
        return "they request injection; they may have started while the webhook was unavailable"
    return f"namespace {pod.metadata.namespace} does not enable injection (label istio-injection=enabled or istio.io/rev)"


def ready(facts: Facts) -> Iterator[Finding]:
    """Pods that are not ready: one reason is a proxy that cannot fetch its module at start."""
    unready = [pod for pod in facts.injected if not pod.is_ready]
    if unready:
        what = f"{len(unready)} of {len(facts.injected)} Pods with a proxy are not ready"
        remedy = "kubectl describe pod; a starting proxy that cannot fetch its module stays unready for up to several minutes"
        yield _finding(
            Level.WARNING, "NotReady", _names(unready), what, remedy, field="status.conditions"
        )


def context(facts: Facts) -> Iterator[Finding]:
    """Gateways have no sidecar listeners, and sidecars have no gateway listeners."""
    if facts.autowasm is None:
        return
    wants_gateway = facts.autowasm.spec.filter.context is PatchContext.GATEWAY
    wrong = [pod for pod in facts.injected if pod.is_gateway is not wants_gateway]
    if not wrong:
        return
    level = Level.ERROR if len(wrong) == len(facts.injected) else Level.WARNING
    kind, wanted = ("sidecars", "SIDECAR_INBOUND") if wants_gateway else ("gateways", "GATEWAY")
    what = f"{len(wrong)} of the matched Pods are {kind}, where context {facts.autowasm.spec.filter.context.value} has no effect"
    remedy = f"set context: {wanted}, or select other Pods"
    yield _finding(level, "WrongContext", _names(wrong), what, remedy, field="spec.filter.context")


def versions(facts: Facts) -> Iterator[Finding]:
    """Fields that an old proxy silently ignores."""
    if facts.autowasm is None:
        return
    old = [pod for pod in facts.injected if pod.version is not None and pod.version < _FLOOR]
    if old:
        what = f"{len(old)} proxies are older than Istio {_FLOOR[0]}.{_FLOOR[1]}, the oldest version that AutoWasm supports"
        yield _finding(Level.WARNING, "OldProxy", _names(old), what, "upgrade the proxies")
    if facts.autowasm.spec.filter.fail_strategy is not FailStrategy.FAIL_RELOAD:
        return
    path = "spec.filter.failStrategy"
    ignoring = [pod for pod in facts.injected if pod.version is not None and pod.version < _RELOADS]
    unknown = [pod for pod in facts.injected if pod.version is None]
    needed = f"Istio {_RELOADS[0]}.{_RELOADS[1]} (Envoy 1.33)"
    if ignoring:
        what = f"FAIL_RELOAD needs {needed}; {len(ignoring)} proxies are older and silently behave as with FAIL_CLOSE"
        remedy = (
            "upgrade the proxies, or choose FAIL_CLOSE or FAIL_OPEN, which every version supports"
        )
        yield _finding(Level.WARNING, "FailStrategy", _names(ignoring), what, remedy, field=path)
    if unknown:
        what = f"not checked: whether {len(unknown)} proxies support FAIL_RELOAD ({needed}): the tag of their image contains no version"
        yield _finding(Level.NOTE, "FailStrategy", _names(unknown), what, field=path)


def discovery(facts: Facts) -> Iterator[Finding]:
    """Istiod sees only namespaces that `discoverySelectors` match."""
    selectors = facts.mesh.discovery_selectors
    if not selectors:
        return
    wanted = {facts.key.namespace, *(pod.metadata.namespace for pod in facts.pods)}
    wanted.add(facts.server.envoy.service_namespace)
    for name in sorted(wanted):
        namespace = facts.namespaces.get(name)
        if namespace is None or any(one.matches(namespace.labels) for one in selectors):
            continue
        what = "istiod ignores this namespace: no entry of meshConfig.discoverySelectors matches its labels"
        what += f" {json.dumps(namespace.labels, sort_keys=True)[:200]}"
        remedy = "add labels that discoverySelectors match to the namespace, or extend discoverySelectors"
        yield _finding(
            Level.ERROR, "NotDiscovered", f"Namespace {name}", what, remedy, field="metadata.labels"
        )


def root_namespace(facts: Facts) -> Iterator[Finding]:
    """The root namespace in wasmer's flags is the mesh's."""
    reported, real = facts.server.cluster.root_namespace, facts.mesh.root_namespace
    if real and facts.server.known and reported != real:
        what = f"the mesh's root namespace is {real}, but wasmer uses {reported} (--root-namespace): the Pods that wasmer counts and refuses differ from those that Istio selects"
        remedy = f"start wasmer with --root-namespace {real}"
        name = f"ConfigMap {reported}/istio"
        yield _finding(Level.WARNING, "RootNamespace", name, what, remedy, field="rootNamespace")


def _names(pods: Sequence[Pod]) -> str:
    named = ", ".join(pod.where for pod in pods[:_NAMED])
    more = f" and {len(pods) - _NAMED} more" if len(pods) > _NAMED else ""
    return f"Pod {named}{more}"


_NAMED_MISSING: Final = 3
_FIELD: Final = "status.pods"
_REMEDIES: Final = {
    "Refused": "search wasmer's log for `on-demand fetch failed` with the module's digest; wasmer resends the module to these sidecars when it is available",
    "NeverAsked": "check that the proxy is connected to istiod (istioctl proxy-status) and reaches wasmer (see Network below); otherwise restart the Pod",
    "NotReady": "kubectl describe pod; a starting proxy that cannot fetch its module stays unready for up to several minutes",
    "SharedAddress": "Pods on the host network share the address of their node and cannot be distinguished: check the proxy's own log and envoy_wasm_* metrics",
    "Unattributed": "source addresses are hidden on the way to wasmer (SNAT, a gateway between clusters): check the proxy's envoy_wasm_* metrics",
    "NotKnown": "a proxy that has the module in its own cache (24 h) does not fetch it again; to be sure, restart the Pod",
}
_LEVELS: Final = {"Refused": Level.ERROR, "NeverAsked": Level.WARNING, "NotReady": Level.WARNING}


def loaded(facts: Facts) -> Iterator[Finding]:
    """How many sidecars fetched the published module, and a finding for each reason why others did not."""
    reported = facts.status.pods
    if facts.planned or facts.record is None or reported is UNSET or not reported.matched:
        return
    condition = facts.status.condition(ConditionType.LOADED)
    if reported.fetched is UNSET or condition is None:
        what = "the status does not report which Pods fetched the module: wasmer has just published it, or its version does not report this"
        yield _finding(Level.NOTE, "LoadNotTold", facts.name, what, field=_FIELD)
        return
    if _is_old(facts, condition.observed_generation):
        what = "the status reports which Pods fetched the module of an earlier spec; for the current spec nothing is known yet"
        yield _finding(Level.NOTE, "LoadNotTold", facts.name, what, field=_FIELD)
        return
    since = f" (as of {reported.time})" if reported.time else ""
    what = f"{reported.fetched} of {reported.injected} sidecars fetched the module{since}"
    if reported.fetched >= reported.matched:
        yield _finding(Level.OK, "Loaded", facts.name, what, field=_FIELD)
        return
    yield _finding(Level.NOTE, "Loaded", facts.name, what + _unnamed(reported), field=_FIELD)
    by_reason: dict[str, list[MissingPod]] = {}
    for pod in reported.missing:
        by_reason.setdefault(pod.reason, []).append(pod)
    by_reason.pop("NotInjected", None)  # the check `injected` reports these
    for reason, pods in by_reason.items():
        yield _missing(reason, pods)


def _is_old(facts: Facts, observed: int) -> bool:
    generation = facts.document.get("metadata", {}).get("generation")
    return isinstance(generation, int) and observed < generation


def _unnamed(reported: Pods) -> str:
    """The number of Pods beyond those that the status names (at most ten)."""
    fetched = reported.fetched if reported.fetched is not UNSET else 0
    more = reported.matched - fetched - len(reported.missing)
    return f"; {more} more that did not are not listed in the status" if more > 0 else ""


def _missing(reason: str, pods: list[MissingPod]) -> Finding:
    names = ", ".join(f"{pod.namespace}/{pod.name}" for pod in pods[:_NAMED_MISSING])
    more = f" and {len(pods) - _NAMED_MISSING} more" if len(pods) > _NAMED_MISSING else ""
    return _finding(
        _LEVELS.get(reason, Level.NOTE),
        f"Load{reason}",
        f"{'Pod' if len(pods) == 1 else 'Pods'} {names}{more}",
        pods[0].message or f"is not known to have fetched the module: {reason}",
        _REMEDIES.get(reason, ""),
    )


CHECKS: Final[tuple[Check, ...]] = (
    matched,
    injected,
    ready,
    context,
    versions,
    discovery,
    root_namespace,
    loaded,
)
