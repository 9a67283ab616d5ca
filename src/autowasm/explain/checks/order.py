"""Step Order: other filters on the same listeners, and their order.

istiod sorts EnvoyFilters by priority, at equal priority those of the root namespace first, then by creation time, then by name.
It applies them in this order, so among those that insert a filter at the front, the last one has the first filter.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from autowasm.api.patches import TUNNEL
from autowasm.api.v1alpha1 import Position
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step
from autowasm.explain.objects import EnvoyFilter

_finding: Final = Reporter(Step.ORDER)
_SHOWN: Final = 8
_RELATIVE: Final = frozenset({"INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST", "ADD"})


def filters(facts: Facts) -> Iterator[Finding]:
    """All HTTP filters of EnvoyFilters on the same ports, in the order in which requests pass them."""
    if facts.autowasm is None or not facts.has_read("envoyfilters"):
        return
    others = [one for one in facts.envoyfilters if _beside(one, facts)]
    if not others:
        return
    own = [one for one in facts.envoyfilters if (one.where == str(facts.key))]
    mine = own[0] if own else EnvoyFilter()
    ranked = sorted([*others, mine], key=lambda each: _rank(each, mine, facts))
    # A filter that is inserted at the front precedes those that were inserted there earlier.
    first = [one for one in ranked if _is_first(one, mine, facts)]
    rest = [one for one in ranked if not _is_first(one, mine, facts)]
    ordered = [*reversed(first), *rest]
    names = ["this one" if one is mine else one.where for one in ordered]
    line = " > ".join(names[:_SHOWN]) + (" > …" if len(names) > _SHOWN else "")
    what = f"order of the filters on the same ports, first to last: {line}"
    yield _finding(Level.NOTE, "Order", facts.envoyfilter_name, what)
    priority = facts.autowasm.spec.filter.priority or 0
    neighbours = first if mine in first else rest
    same = [one.where for one in others if one in neighbours and one.spec.priority == priority]
    if same:
        what = f"has the same priority ({priority}) as {', '.join(same[:3])}: their order depends on their creation times"
        remedy = "set spec.filter.priority if the order matters: an EnvoyFilter that is recreated moves to the end"
        yield _finding(
            Level.WARNING, "OrderByAge", facts.name, what, remedy, field="spec.filter.priority"
        )


def plugins(facts: Facts) -> Iterator[Finding]:
    """WasmPlugins: istiod adds them to the chain before it applies EnvoyFilters."""
    for plugin in facts.wasmplugins:
        selector = plugin.spec.selector
        if not _reaches(
            plugin.metadata.namespace, (selector and selector.match_labels) or {}, facts
        ):
            continue
        what = (
            f"is on the same Pods (phase {plugin.spec.phase or 'unspecified'}): istiod adds it to the chain before it applies "
            f"EnvoyFilters, so requests pass it {_relation(facts)}"
        )
        yield Finding(
            level=Level.NOTE,
            step=Step.ORDER,
            check="WasmPlugin",
            object=f"WasmPlugin {plugin.where}",
            what=what,
        )


def _relation(facts: Facts) -> str:
    if facts.autowasm is not None and facts.autowasm.spec.filter.position is Position.FIRST:
        return "after this filter, which is the first one"
    return "before this filter, which is next to the router"


def _is_first(one: EnvoyFilter, mine: EnvoyFilter, facts: Facts) -> bool:
    if one is mine:
        autowasm = facts.autowasm
        return autowasm is not None and autowasm.spec.filter.position is Position.FIRST
    operations = [
        (patch.get("patch") or {}).get("operation")
        for patch in one.spec.config_patches or ()
        if patch.get("applyTo") == "HTTP_FILTER"
        and ((patch.get("match") or {}).get("listener") or {}).get("name") != TUNNEL
    ]
    return bool(operations) and all(each == "INSERT_FIRST" for each in operations)


def _beside(other: EnvoyFilter, facts: Facts) -> bool:
    """Whether the resource adds an HTTP filter to a listener that has ours, in a Pod that ours selects."""
    autowasm = facts.autowasm
    if autowasm is None or other.where == str(facts.key):
        return False
    selector = other.spec.workload_selector
    labels = (selector.labels if selector else None) or {}
    if not _reaches(other.metadata.namespace, labels, facts):
        return False
    ports, context = autowasm.spec.filter.apply_ports, autowasm.spec.filter.context.value
    return any(_same_listener(patch, ports, context) for patch in other.spec.config_patches or ())


def _same_listener(patch: Mapping[str, Any], ports: tuple[int, ...] | None, context: str) -> bool:
    if patch.get("applyTo") != "HTTP_FILTER":
        return False
    if (patch.get("patch") or {}).get("operation") not in _RELATIVE:
        return False
    match = patch.get("match") or {}
    if match.get("context", "ANY") not in {"ANY", context}:
        return False
    listener = match.get("listener") or {}
    if listener.get("name") == TUNNEL:
        return False  # the tunnel's listener never has our filter
    chain = listener.get("filterChain") or {}
    port = listener.get("portNumber") or chain.get("destinationPort")
    return port is None or ports is None or port in ports


def _reaches(namespace: str, labels: Mapping[str, str], facts: Facts) -> bool:
    """Whether a resource of this namespace with this selector applies to one of the Pods."""
    if namespace not in {facts.root_namespace, *(pod.metadata.namespace for pod in facts.pods)}:
        return False
    return any(
        labels.items() <= pod.labels.items()
        and namespace in {facts.root_namespace, pod.metadata.namespace}
        for pod in facts.pods
    )


def _rank(one: EnvoyFilter, mine: EnvoyFilter, facts: Facts) -> tuple[int, bool, str, str]:
    if one is mine and facts.autowasm is not None:
        priority = facts.autowasm.spec.filter.priority or 0
        namespace, name = facts.key
    else:
        priority, namespace, name = one.spec.priority, one.metadata.namespace, one.metadata.name
    age = one.metadata.creation_timestamp or "9999"  # not created yet: the youngest
    return (priority, namespace != facts.root_namespace, age, name)


CHECKS: Final[tuple[Check, ...]] = (filters, plugins)
