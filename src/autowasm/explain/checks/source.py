"""Steps Source and Module: the login works, the tag still names the published module, Envoy can run it, and it starts with its configuration."""

from collections.abc import Iterator
from typing import Final

from autowasm.api.status import ConditionType
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step
from autowasm.reasons import Reason

_finding: Final = Reporter(Step.SOURCE)
_module_finding: Final = Reporter(Step.MODULE)
_IMAGE: Final = "spec.filter.source.registry.image"
_URL: Final = "spec.filter.source.object.url"
_REMEDIES: Final = {
    "SourceNotFound": "push the image (wasmc push), or correct its name in the spec (check the name with wasmc inspect)",
    "SourceDenied": "add a login with read permission to the Secret of spec.secret (for this command: docker login HOST); many registries "
    "return this error also for an image that does not exist",
    "SourceUnavailable": "this is the result on this machine; wasmer's may differ (DNS, firewall, --registry-proxy): see the AutoWasm's status",
    "ContentRejected": "push a module that Envoy can run: wasmc inspect reports the problem of this one",
    "AddressBlocked": "use another address, or change the address policy",
}
_OBJECT_REMEDIES: Final = _REMEDIES | {
    "SourceNotFound": "upload the object, or correct the URL",
    "SourceDenied": "objects are fetched without a login: use a public URL in the spec, or one with a valid signature",
    "SourceUnavailable": "this is the result on this machine; wasmer's may differ (DNS, firewall, no proxy): see the AutoWasm's status",
}
_SECRET_REMEDIES: Final = {
    "SecretNotFound": "kubectl create secret docker-registry NAME --docker-server=HOST …, or remove spec.secret for a public image",
    "SecretInvalid": "recreate the Secret with the right type and content: kubectl create secret docker-registry",
    "SecretNoLogin": "add a login for this host to the Secret (kubectl create secret docker-registry --docker-server=HOST)",
}
_CONTENT: Final = frozenset({"ContentRejected"})
_START_LEVELS: Final = {"True": Level.OK, "False": Level.ERROR}
_START_REMEDIES: Final[dict[str, str]] = {
    Reason.CONFIGURATION_REFUSED: "correct the configuration",
    Reason.START_FAILED: "push a module that starts, or give it the environment that it needs (spec.filter.env)",
    Reason.FIRST_REQUEST_FAILED: "check whether the filter expects headers that a plain request lacks",
    Reason.FIRST_REQUEST_HELD: "check whether the filter waits for an event that never comes",
    Reason.CALLOUT_NEEDED: "make sure that the cluster exists in each sidecar (--call CLUSTER=FILE answers the call)",
    Reason.DEPENDS_ON_ENVOY: "compare with a real sidecar (--property PATH=VALUE sets a property that the filter requests)",
    Reason.PREFLIGHT_UNAVAILABLE: "see the log of wasmer",
}


def secret(facts: Facts) -> Iterator[Finding]:
    """`spec.secret` exists, has the right type, and has a login for the image's host."""
    if facts.autowasm is None or facts.autowasm.spec.secret is None:
        return
    name = f"Secret {facts.key.namespace}/{facts.autowasm.spec.secret}"
    if facts.autowasm.image is None:
        what = "is not used: objects are fetched without a login"
        yield _finding(
            Level.NOTE, "SecretUnused", name, what, "remove spec.secret", field="spec.secret"
        )
        return
    found = facts.secret
    if found is None:
        return
    if not found.reason:
        what = f"has a login for {facts.autowasm.image.host}"
        yield _finding(Level.OK, "Secret", name, what, field="spec.secret")
        return
    # Without a login for the host, wasmer pulls anonymously, which is right for a public image.
    level = Level.WARNING if found.reason == "SecretNoLogin" else Level.ERROR
    remedy = _SECRET_REMEDIES.get(found.reason, "correct the Secret")
    yield _finding(level, found.reason, name, found.problem, remedy, field="spec.secret")


def reachable(facts: Facts) -> Iterator[Finding]:
    """This machine can resolve the source."""
    found = facts.source
    if found is None or facts.autowasm is None:
        return
    field = _IMAGE if facts.autowasm.image is not None else _URL
    login = f" with {found.login}" if found.login else ""
    if not found.problem:
        what = f"resolves to {found.pinned} (from this machine{login})"
        yield _finding(Level.OK, "Source", facts.name, what, field=field)
        return
    if found.kind in _CONTENT:
        return
    # wasmer may reach a host that this machine does not; if it fails too, its status is the error.
    unreachable = found.kind == "SourceUnavailable" and not facts.planned
    level = Level.WARNING if unreachable else Level.ERROR
    what = f"from this machine{login}: {found.problem}"
    remedies = _REMEDIES if facts.autowasm.image is not None else _OBJECT_REMEDIES
    remedy = remedies.get(found.kind, "correct the cause that the message names")
    yield _finding(level, found.reason, facts.name, what, remedy, field=field)


def moved(facts: Facts) -> Iterator[Finding]:
    """The tag names another image than the published one."""
    found, record, autowasm = facts.source, facts.record, facts.autowasm
    if found is None or record is None or autowasm is None or not found.pinned:
        return
    if record.image and found.pinned != record.image:
        here, there = found.pinned.rpartition("@")[2][:19], record.image.rpartition("@")[2][:19]
        what = f"the tag now names {here}, but {there} is published: a moved tag alone does not start a rollout"
        remedy = "to publish the new image: annotate the AutoWasm with wasm.tcm.io/refresh: <any new value>, or name the image by digest"
        yield _finding(Level.NOTE, "TagMoved", facts.name, what, remedy, field=_IMAGE)


def pinned_module(facts: Facts) -> Iterator[Finding]:
    """`spec.filter.sha256` is the digest of the source's module."""
    record = facts.source.record if facts.source is not None else None
    record = record or facts.record
    wanted = facts.autowasm.spec.filter.sha256 if facts.autowasm is not None else None
    if wanted is not None and record is not None and record.sha256 != wanted:
        what = f"specifies {wanted[:12]}…, but the module of the source is {record.sha256[:12]}…"
        remedy = "correct the digest (wasmc inspect shows it), or the source"
        yield _module_finding(
            Level.ERROR,
            "DigestMismatch",
            facts.name,
            what,
            remedy,
            field="spec.filter.sha256",
        )


def module(facts: Facts) -> Iterator[Finding]:
    """The module was fetched, and Envoy can run it."""
    found = facts.source
    if found is not None and found.kind in _CONTENT:
        what, remedy = f"refused: {found.problem}", _REMEDIES["ContentRejected"]
        yield _module_finding(Level.ERROR, found.reason, facts.name, what, remedy)
        return
    record = found.record if found is not None and found.record is not None else facts.record
    fetched = facts.status.condition(ConditionType.FETCHED)
    where = "status.conditions[Fetched]"
    if not facts.planned and fetched is not None and fetched.status != "True":
        level = Level.ERROR if fetched.status == "False" else Level.NOTE
        what = f"{fetched.reason}: {fetched.message}"
        remedy = (
            "correct the cause that the message names"
            if level is Level.ERROR
            else "wait, or correct the cause in the AutoWasm's status"
        )
        yield _module_finding(level, fetched.reason, facts.name, what, remedy, field=where)
    elif record is not None:
        what = (
            f"sha256:{record.sha256[:12]} ({record.size} bytes, ABI {record.abi}) passed the checks"
        )
        what += "" if facts.planned else " and is stored by wasmer"
        yield _module_finding(Level.OK, "Module", facts.name, what)


def starts(facts: Facts) -> Iterator[Finding]:
    """The module starts, by the verdict of this machine or of the status."""
    start = facts.start
    if start is None:
        return
    level = _START_LEVELS.get(start.status, Level.WARNING)
    field = "" if facts.planned else "status.conditions[Starts]"
    if level is Level.OK:
        yield _module_finding(level, "Starts", facts.name, start.message, field=field)
        return
    advice = _START_REMEDIES.get(start.reason, "test the filter in a sidecar before you rely on it")
    what = f"{start.reason}: {start.message}"
    yield _module_finding(
        level, "Starts", facts.name, what, f"{advice}; to reproduce: {start.command}", field=field
    )


CHECKS: Final[tuple[Check, ...]] = (secret, reachable, moved, pinned_module, module, starts)
