"""`resource.py`, `source.py`, `envoyfilter.py`, `order.py`: the AutoWasm, its module, its EnvoyFilter and the other filters beside it."""

import copy
from typing import Any

import pytest

from autowasm.api.validation import parse
from autowasm.errors import SpecError
from autowasm.explain.checks import envoyfilter, order, resource, source
from autowasm.explain.examine import examine
from autowasm.explain.facts import SecretFact, ServerFact, SourceFact
from autowasm.explain.finding import Level
from autowasm.explain.objects import EnvoyFilter, WasmPlugin
from autowasm.kube.resources import ObjectKey
from autowasm.settings import Cluster
from tests.parts.explained import RECORD, autowasm, decoded, facts, findings_of, pod


def test_healthy_autowasm_has_no_warning() -> None:
    assert max(finding.level for finding in examine(facts())) is Level.NOTE


def test_unread_objects_are_one_note_for_each_reason() -> None:
    unread = {"pods": "RBAC", "services": "RBAC", "mesh": "timeout"}
    notes = [one.what for one in examine(facts(unread=unread)) if one.check == "NotChecked"]
    assert sorted(notes) == ["not checked: mesh: timeout", "not checked: pods, services: RBAC"]


def test_invalid_spec_names_the_field() -> None:
    error = SpecError("spec.filter.applyPorts[0]", "must be from 1 to 65535")
    given = facts(autowasm=None, spec_error=error)
    assert findings_of(resource.valid, given)["InvalidSpec"].field == "spec.filter.applyPorts[0]"
    assert all(one.check for one in examine(given))
    assert findings_of(resource.valid, facts())["InvalidSpec"].level is Level.OK


def test_namespace_that_wasmer_does_not_follow() -> None:
    other = ServerFact(known=True, cluster=Cluster(watch_namespaces=("x",)))
    assert findings_of(resource.watched, facts(server=other))["NotWatched"].level is Level.ERROR
    own = ServerFact(known=True, cluster=Cluster(watch_namespaces=("team",)))
    assert not findings_of(resource.watched, facts(server=own))


def test_mesh_wide_selector() -> None:
    document = autowasm()
    document["spec"]["selector"]["matchLabels"] = {}
    key = ObjectKey("istio-system", "test")
    document["metadata"]["namespace"] = "istio-system"
    given = facts(document, key=key)
    assert findings_of(resource.mesh_wide, given)["MeshWideNotAllowed"].level is Level.ERROR
    allowed = ServerFact(known=True, cluster=Cluster(allow_mesh_wide=True))
    told = findings_of(resource.mesh_wide, facts(document, key=key, server=allowed))
    assert told["MeshWide"].level is Level.NOTE
    assert not findings_of(resource.mesh_wide, facts())


def test_status_that_is_absent_old_or_bad() -> None:
    document = autowasm()
    del document["status"]
    assert findings_of(resource.handled, facts(document))["NotHandled"].level is Level.ERROR
    document = autowasm()
    document["metadata"]["generation"] = 2
    assert findings_of(resource.handled, facts(document))["NotHandled"].level is Level.WARNING
    assert not findings_of(resource.handled, facts())
    document = autowasm()
    document["status"]["phase"] = "Degraded"
    document["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "reason": "PolicyDenied"}
    ]
    found = findings_of(resource.phase, facts(document))["PolicyDenied"]
    assert found.level is Level.ERROR
    assert "policy" in found.remedy


def test_pending_phase_is_a_warning_with_the_advice_to_wait() -> None:
    document = autowasm()
    document["status"] |= {"phase": "Pending", "message": "waits for its turn"}
    found = findings_of(resource.phase, facts(document))["Phase"]
    assert (found.level, found.what) == (Level.WARNING, "Pending: waits for its turn")
    assert "wait" in found.remedy


def test_conditions_beside_the_usual_are_errors_while_they_are_true() -> None:
    document = autowasm()
    document["status"]["conditions"] += [
        {"type": "Mutated", "status": "True", "reason": "Mutated", "message": "reverted 3 times"},
        {"type": "SourceNotFound", "status": "True", "reason": "NoTag"},
        {"type": "Other", "status": "False", "reason": "Fine"},
    ]
    found = findings_of(resource.other_conditions, facts(document))
    assert sorted(found) == ["Mutated", "SourceNotFound"]
    assert found["Mutated"].level is Level.ERROR
    assert found["Mutated"].what == "reverted 3 times"
    assert found["Mutated"].field == "status.conditions[Mutated]"
    assert found["SourceNotFound"].what == "NoTag"


def test_being_deleted() -> None:
    document = autowasm()
    document["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert findings_of(resource.deleted, facts(document))["BeingDeleted"].level is Level.WARNING
    assert not findings_of(resource.deleted, facts())


@pytest.mark.parametrize(
    ("reason", "level"),
    [
        ("SecretNotFound", Level.ERROR),
        ("SecretInvalid", Level.ERROR),
        ("SecretNoLogin", Level.WARNING),
        ("", Level.OK),
    ],
)
def test_secret(reason: str, level: Level) -> None:
    document = autowasm()
    document["spec"]["secret"] = "pull"
    given = facts(document, secret=SecretFact(reason=reason, problem="x" if reason else ""))
    (found,) = findings_of(source.secret, given).values()
    assert (found.level, found.field) == (level, "spec.secret")


def test_a_secret_of_an_object_is_not_used() -> None:
    document = autowasm()
    document["spec"]["filter"]["source"] = {"object": {"url": "https://s.example/m.wasm"}}
    document["spec"]["secret"] = "pull"
    found = findings_of(source.secret, facts(document))["SecretUnused"]
    assert (found.level, found.remedy) == (Level.NOTE, "remove spec.secret")


@pytest.mark.parametrize(
    ("kind", "planned", "level"),
    [
        ("SourceNotFound", False, Level.ERROR),
        ("SourceDenied", False, Level.ERROR),
        ("SourceUnavailable", False, Level.WARNING),
        ("SourceUnavailable", True, Level.ERROR),
    ],
)
def test_source_that_fails_from_this_machine_is_reported_as_such(
    kind: str, planned: bool, level: Level
) -> None:
    fact = SourceFact(kind=kind, reason="Because", problem="no")
    found = findings_of(source.reachable, facts(source=fact, planned=planned))["Because"]
    assert found.level is level
    assert found.what.startswith("from this machine")


def test_no_login_is_advised_for_an_object() -> None:
    document = autowasm()
    document["spec"]["filter"]["source"] = {"object": {"url": "https://s.example/m.wasm?sig=x"}}
    fact = SourceFact(kind="SourceDenied", reason="Unauthorized", problem="no")
    found = findings_of(source.reachable, facts(document, source=fact))["Unauthorized"]
    assert "signature" in found.remedy
    assert "spec.secret" not in found.remedy


def test_tag_that_moved() -> None:
    moved = facts(source=SourceFact(pinned=f"registry.example/team/filter@sha256:{'c' * 64}"))
    assert findings_of(source.moved, moved)["TagMoved"].level is Level.NOTE
    assert not findings_of(source.moved, facts(source=SourceFact(pinned=RECORD.image)))


def test_refused_module_and_wrong_digest() -> None:
    refused = SourceFact(kind="ContentRejected", reason="NotWasm", problem="not a module")
    assert findings_of(source.module, facts(source=refused))["NotWasm"].level is Level.ERROR
    assert not findings_of(source.reachable, facts(source=refused))
    assert findings_of(source.module, facts())["Module"].level is Level.OK
    document = autowasm(sha256="d" * 64)
    assert findings_of(source.pinned_module, facts(document))["DigestMismatch"].level is Level.ERROR
    assert not findings_of(source.pinned_module, facts(autowasm(sha256="a" * 64)))


def _live(**metadata: Any) -> dict[str, Any]:
    live = copy.deepcopy(dict(facts().live or {}))
    live["metadata"] |= metadata
    return live


def test_envoyfilter_present_foreign_terminating_or_missing() -> None:
    assert findings_of(envoyfilter.present, facts())["EnvoyFilter"].level is Level.OK
    assert (
        findings_of(envoyfilter.present, facts(live=None))["EnvoyFilterMissing"].level
        is Level.ERROR
    )
    assert not findings_of(envoyfilter.present, facts(live=None, planned=True))
    assert not findings_of(envoyfilter.present, facts(live=None, unread={"envoyfilter": "RBAC"}))
    foreign = facts(live=_live(ownerReferences=[], labels={}))
    assert findings_of(envoyfilter.present, foreign)["EnvoyFilterConflict"].level is Level.ERROR
    going = facts(live=_live(deletionTimestamp="2026-01-01T00:00:00Z"))
    assert findings_of(envoyfilter.present, going)["EnvoyFilterTerminating"].level is Level.ERROR


@pytest.mark.parametrize(("planned", "level"), [(False, Level.WARNING), (True, Level.NOTE)])
def test_envoyfilter_of_an_earlier_autowasm_is_taken_over(planned: bool, level: Level) -> None:
    live = _live()
    live["metadata"]["ownerReferences"][0]["uid"] = "u0"
    found = findings_of(envoyfilter.present, facts(live=live, planned=planned))[
        "EnvoyFilterAdopted"
    ]
    assert found.level is level
    assert "with another uid" in found.what


def test_envoyfilter_without_its_label_is_edited() -> None:
    found = findings_of(envoyfilter.present, facts(live=_live(labels={})))["EnvoyFilterEdited"]
    assert (found.level, found.field) == (Level.WARNING, "metadata.labels")
    assert not findings_of(envoyfilter.edited, facts(live=_live(labels={}))), (
        "no path of the spec differs"
    )


def test_envoyfilter_without_its_record_is_edited() -> None:
    live = _live()
    del live["metadata"]["annotations"]["wasm.tcm.io/record"]
    found = findings_of(envoyfilter.edited, facts(live=live))["EnvoyFilterEdited"]
    assert (found.level, found.field) == (
        Level.WARNING,
        "metadata.annotations[wasm.tcm.io/record]",
    )


def test_envoyfilter_edited_by_hand_names_the_path() -> None:
    assert not findings_of(envoyfilter.edited, facts())
    live = _live()
    live["spec"]["configPatches"][0]["match"]["context"] = "ANY"
    found = findings_of(envoyfilter.edited, facts(live=live))["EnvoyFilterEdited"]
    assert (found.level, found.field) == (Level.WARNING, "spec.configPatches[0].match.context")
    unknown = facts(live=live, server=ServerFact())
    assert findings_of(envoyfilter.edited, unknown)["EnvoyFilterEdited"].level is Level.NOTE


def test_annotation_of_ours_that_was_edited_is_named() -> None:
    name = "envoyfilter.istio.io/referenced-services"
    live = _live()
    live["metadata"]["annotations"][name] = "default/other"
    found = findings_of(envoyfilter.edited, facts(live=live))["EnvoyFilterEdited"]
    assert found.field == f"metadata.annotations[{name}]"


def test_revision_that_is_not_the_pods() -> None:
    live = _live(labels={"istio.io/rev": "canary"})
    status = {"sidecar.istio.io/status": '{"revision":"stable"}'}
    pods = (pod(annotations=status),)
    assert "OtherRevision" in findings_of(envoyfilter.revision, facts(live=live, pods=pods))
    same = {"sidecar.istio.io/status": '{"revision":"canary"}'}
    assert not findings_of(envoyfilter.revision, facts(live=live, pods=(pod(annotations=same),)))


def _filter(
    name: str,
    *,
    namespace: str = "team",
    priority: int = 0,
    port: int = 9080,
    operation: str = "INSERT_BEFORE",
) -> EnvoyFilter:
    patch = {
        "applyTo": "HTTP_FILTER",
        "match": {"context": "SIDECAR_INBOUND", "listener": {"portNumber": port}},
        "patch": {"operation": operation},
    }
    return decoded(
        EnvoyFilter,
        {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "creationTimestamp": f"2026-01-01T00:00:0{len(name)}Z",
            },
            "spec": {"configPatches": [patch], "priority": priority},
        },
    )


def test_order_is_priority_then_age() -> None:
    own, late, first = _filter("test"), _filter("laters"), _filter("x", priority=-5)
    found = findings_of(order.filters, facts(envoyfilters=(late, own, first)))
    assert "team/x > this one > team/laters" in found["Order"].what
    assert found["OrderByAge"].level is Level.WARNING
    assert "team/laters" in found["OrderByAge"].what


def test_of_filters_that_are_first_the_one_that_istiod_inserts_last_is_first() -> None:
    first = parse(autowasm(applyPorts=[9080], position="First", priority=1))
    others = (
        _filter("one", priority=0, operation="INSERT_FIRST"),
        _filter("two", priority=2, operation="INSERT_FIRST"),
        _filter("router", priority=1),
    )
    known = facts(autowasm=first, envoyfilters=(_filter("test", priority=1), *others))
    found = findings_of(order.filters, known)
    assert "team/two > this one > team/one > team/router" in found["Order"].what
    assert "OrderByAge" not in found, "the one before the router is elsewhere"


def test_filters_elsewhere_are_not_in_the_order() -> None:
    others = (_filter("a", port=1), _filter("b", namespace="other"), _filter("test"))
    assert not findings_of(order.filters, facts(envoyfilters=others))
    assert findings_of(order.filters, facts(envoyfilters=(_filter("c", namespace="istio-system"),)))


@pytest.mark.parametrize(
    ("listener", "beside"),
    [
        ({"name": "main_internal", "filterChain": {"destinationPort": 9080}}, True),
        ({"name": "main_internal", "filterChain": {"destinationPort": 1}}, False),
        ({"name": "connect_terminate"}, False),
        ({}, True),
    ],
)
def test_filters_in_the_tunnel_or_on_other_ports_of_it_are_not_in_the_order(
    listener: dict[str, Any], beside: bool
) -> None:
    other = _filter("a")
    for patch in other.spec.config_patches or ():
        patch["match"]["listener"] = listener
    assert bool(findings_of(order.filters, facts(envoyfilters=(other,)))) is beside


@pytest.mark.parametrize(
    "change",
    [
        {"applyTo": "NETWORK_FILTER"},
        {"patch": {"operation": "MERGE"}},
        {"match": {"context": "GATEWAY"}},
    ],
)
def test_patches_that_put_no_filter_on_the_same_listener_are_not_in_the_order(
    change: dict[str, Any],
) -> None:
    other = _filter("a")
    assert findings_of(order.filters, facts(envoyfilters=(other,)))
    for patch in other.spec.config_patches or ():
        patch |= change
    assert not findings_of(order.filters, facts(envoyfilters=(other,)))


def test_wasmplugins_on_the_same_pods() -> None:
    meta = {"name": "p", "namespace": "team"}
    plugin = decoded(WasmPlugin, {"metadata": meta, "spec": {"phase": "AUTHN"}})
    assert (
        findings_of(order.plugins, facts(wasmplugins=(plugin,)))["WasmPlugin"].level is Level.NOTE
    )
    selector = {"matchLabels": {"app": "other"}}
    other = decoded(WasmPlugin, {"metadata": meta, "spec": {"selector": selector}})
    assert not findings_of(order.plugins, facts(wasmplugins=(other,)))


def test_parsed_sample_is_valid() -> None:
    assert parse(autowasm()).metadata.name == "test"
