"""Checks a decoded document of the API server or a YAML file, and converts it to a valid AutoWasm.

The checks repeat those of the CRD's schema and add those that no schema can express: the CRD in a cluster may be older than
wasmer, and standalone mode has none. AUTOWASM has the words for the messages: allowed values, names of other APIs, and fields that
are not supported. Invariants: every refusal is a SpecError that names all wrong fields, as a user writes their paths, with the value
found and the allowed ones; AUTOWASM has a form for fields of the schema only, and advice for other fields only (a test compares them).
Not a YAML reader (see `manifests/reader.py`).
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Struct

from autowasm.api import pluginconfig, rolloutsteps
from autowasm.api.v1alpha1 import (
    API_VERSION,
    KIND,
    AutoWasm,
    EnvVar,
    Metadata,
    Rollout,
    Source,
    Spec,
)
from autowasm.digest import sha256_hex
from autowasm.errors import SpecError
from autowasm.manifests import fielderrors, structs
from autowasm.manifests.fielderrors import Vocabulary
from autowasm.manifests.structs import Misfit
from autowasm.net.urls import check_port
from autowasm.reference import ImageReference
from autowasm.text import INVISIBLE
from autowasm.units import parse_duration

_FILTER: Final = "spec.filter"
IMAGE: Final = f"{_FILTER}.source.registry.image"
OBJECT_URL: Final = f"{_FILTER}.source.object.url"
_IMAGE_FORM: Final = "an image reference such as registry.example/team/filter:v1"
_URL_FORM: Final = "an http or https URL"
_LABELS: Final = (
    "a mapping of labels such as app: details; {} selects every workload of the namespace"
)
_SELECTOR: Final = "a mapping with matchLabels"
_STEPS: Final = 'a list of steps such as [1, "10%", "50%"]'
_DURATION: Final = "a duration with its unit, such as 5m"
_IN_STEPS: Final = "use spec.rollout, which has steps"
_PRIORITY: Final = "use spec.filter.position and spec.filter.priority for the order of filters"


def _meant_by(path: str, value: object) -> str:
    """The field to which a value belongs: `url` of a WasmPlugin is an image unless it is an http URL."""
    if path != OBJECT_URL or not isinstance(value, str):
        return path
    scheme, has_scheme, _ = value.partition("://")
    is_image = scheme in {"oci", "docker"} if has_scheme else not value.startswith((".", "/"))
    return IMAGE if is_image and value else path


AUTOWASM: Final = Vocabulary(
    expected={
        "apiVersion": "wasm.tcm.io/v1alpha1",
        "kind": "AutoWasm",
        "metadata": "a mapping with the name of the AutoWasm",
        "metadata.name": "the name of the AutoWasm",
        "spec": "a mapping with filter and selector",
        "spec.filter": "a mapping with source",
        "spec.selector": _SELECTOR,
        "spec.selector.matchLabels": _LABELS,
        "spec.selector.matchLabels[*]": 'a string; "" is an empty label value',
        "spec.secret": "the name of a Secret in the AutoWasm's namespace",
        f"{_FILTER}.source": "a mapping with registry (and its image) or object (and its url)",
        f"{_FILTER}.source.registry": "a mapping with image",
        f"{_FILTER}.source.registry.image": _IMAGE_FORM,
        f"{_FILTER}.source.object": "a mapping with url",
        f"{_FILTER}.source.object.url": _URL_FORM,
        f"{_FILTER}.applyPorts": "a list of ports such as [9080]",
        f"{_FILTER}.applyPorts[]": "the number of a port, from 1 to 65535",
        f"{_FILTER}.rootID": "a string, the root id of the module",
        f"{_FILTER}.vmID": "a string, the id of the Wasm VM",
        f"{_FILTER}.sha256": "the sha256 of the module, 64 lower-case hexadecimal digits in quotes",
        f"{_FILTER}.env": "a list such as [{name: LEVEL, value: debug}]",
        f"{_FILTER}.env[]": "a mapping with name and value",
        f"{_FILTER}.env[].name": "the name of the variable",
        f"{_FILTER}.env[].value": "a string",
        f"{_FILTER}.allowOnHeadersStopIteration": "true or false",
        f"{_FILTER}.priority": "a whole number (lower numbers run first)",
        f"{_FILTER}.refreshInterval": _DURATION,
        "spec.rollout": "a mapping with steps, or {} for the default steps",
        "spec.rollout.steps": _STEPS,
        "spec.rollout.steps[]": 'a whole number of Pods such as 1, or a percentage such as "10%"',
        "spec.rollout.pause": "a duration with its unit, such as 30s",
        "spec.rollout.deadline": "a duration with its unit, such as 10m",
        "spec.rollout.maxFailureRatio": "a number from 0 to 1, such as 0.01 for 1%",
    },
    meant={
        "spec.image": f"{_FILTER}.source.registry.image",
        "spec.url": f"{_FILTER}.source.object.url",
        f"{_FILTER}.image": f"{_FILTER}.source.registry.image",
        f"{_FILTER}.url": f"{_FILTER}.source.object.url",
        f"{_FILTER}.source.image": f"{_FILTER}.source.registry.image",
        f"{_FILTER}.source.url": f"{_FILTER}.source.object.url",
        f"{_FILTER}.source.oci": f"{_FILTER}.source.registry",
        f"{_FILTER}.source.http": f"{_FILTER}.source.object",
        f"{_FILTER}.source.https": f"{_FILTER}.source.object",
        f"{_FILTER}.source.remote": f"{_FILTER}.source.object",
        f"{_FILTER}.source.registry.url": f"{_FILTER}.source.registry.image",
        f"{_FILTER}.source.registry.ref": f"{_FILTER}.source.registry.image",
        f"{_FILTER}.source.object.uri": f"{_FILTER}.source.object.url",
        f"{_FILTER}.ports": f"{_FILTER}.applyPorts",
        f"{_FILTER}.port": f"{_FILTER}.applyPorts",
        f"{_FILTER}.config": f"{_FILTER}.pluginConfig",
        f"{_FILTER}.configuration": f"{_FILTER}.pluginConfig",
        f"{_FILTER}.pluginName": f"{_FILTER}.rootID",
        f"{_FILTER}.imagePullPolicy": f"{_FILTER}.pullPolicy",
        f"{_FILTER}.failurePolicy": f"{_FILTER}.failStrategy",
        "spec.imagePullSecret": "spec.secret",
        "spec.pullSecret": "spec.secret",
        "spec.workloadSelector": "spec.selector",
        "spec.pluginName": f"{_FILTER}.rootID",
        "spec.imagePullPolicy": f"{_FILTER}.pullPolicy",
        f"{_FILTER}.imagePullSecret": "spec.secret",
        "spec.selector.labels": "spec.selector.matchLabels",
        "spec.selector.*": "spec.selector.matchLabels",
    },
    meant_by=_meant_by,
    formats=frozenset(
        {
            "apiVersion",
            "kind",
            f"{_FILTER}.source.registry.image",
            f"{_FILTER}.source.object.url",
            f"{_FILTER}.sha256",
            f"{_FILTER}.refreshInterval",
            "spec.rollout.pause",
            "spec.rollout.deadline",
        }
    ),
    unsupported={
        "matchExpressions": "use spec.selector.matchLabels, and one AutoWasm for each set of labels",
        "spec.vmConfig": "write its env as spec.filter.env",
        "spec.filter.vmConfig": "write its env as spec.filter.env",
        "spec.targetRef": "select Pods with spec.selector.matchLabels",
        "spec.targetRefs": "select Pods with spec.selector.matchLabels",
        "spec.filter.targetRefs": "select Pods with spec.selector.matchLabels",
        "spec.imagePullSecrets": "use spec.secret, the name of one Secret",
        "spec.filter.imagePullSecrets": "use spec.secret, the name of one Secret",
        "spec.strategy": _IN_STEPS,
        "spec.updateStrategy": _IN_STEPS,
        "spec.replicas": "the Pods are those that spec.selector selects",
        "spec.template": "an AutoWasm has no Pods of its own; spec.selector selects running ones",
        "spec.configPatches": "wasmer writes the EnvoyFilter from spec.filter",
        "spec.phase": _PRIORITY,
        "spec.filter.phase": _PRIORITY,
        "spec.match": "use spec.filter.context and spec.filter.applyPorts",
        "spec.filter.match": "use spec.filter.context and spec.filter.applyPorts",
        "spec.type": "AutoWasm inserts HTTP filters",
        "spec.filter.type": "AutoWasm inserts HTTP filters",
        "spec.namespace": "the Pods and the Secret are in the AutoWasm's own namespace, metadata.namespace",
        "spec.selector.matchNames": "select Pods with spec.selector.matchLabels",
        "namespaceSelector": "an AutoWasm selects Pods of its own namespace; create one in each namespace",
        "spec.filter.env[].valueFrom": "write the value itself, or put it into pluginConfig",
        "spec.filter.source.registry.tag": "write the tag into image: host/name:tag",
        "spec.filter.source.registry.digest": "write the digest into image: host/name@sha256:...",
        "spec.filter.source.registry.secret": "use spec.secret, the name of a Secret",
        "spec.filter.source.object.secret": "objects are public; use a registry for a module that needs a login",
        "spec.filter.source.object.sha256": "use spec.filter.sha256",
        "spec.filter.source.local": "push the module to a registry, or serve it over http",
        "spec.filter.source.file": "push the module to a registry, or serve it over http",
        "spec.filter.source.configMap": "push the module to a registry, or serve it over http",
    },
)


_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?\Z")
_LABEL_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_PORTS = 100
_MAX_ID_LENGTH = 256
_MAX_URL_LENGTH = 2048
_MAX_ENV, _MAX_ENV_NAME_LENGTH, _MAX_ENV_VALUE_LENGTH = 256, 256, 2048  # as in Istio's WasmPlugin
_MIN_INTERVAL = 30.0
_MAX_INTERVAL_LENGTH = 64
_MIN_ROLLOUT_TIME = 1.0
_MAX_QUOTED = 80
_SHA256_LENGTH = 64
_MAX_NAME_LENGTH = 253
_MAX_COPIED = 4096
"""Characters of a wrong value that are searched for the marks of a template."""
_LABEL_FORM = "at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
_MAX_LABELS = 256
"""As in Istio's EnvoyFilter: the labels become its workloadSelector."""


def _wrong_values(spec: Spec) -> Iterator[SpecError]:
    """The values that are not allowed, in the order of the fields."""
    yield from _wrong_source(spec.filter.source)
    yield from _wrong_ports(spec.filter.apply_ports)
    yield from _raised(_check_text, "spec.filter.rootID", spec.filter.root_id)
    yield from _raised(_check_text, "spec.filter.vmID", spec.filter.vm_id)
    if spec.filter.sha256 is not None:
        yield from _raised(_check_sha256, spec.filter.sha256)
    yield from _wrong_env(spec.filter.env)
    yield from _raised(_check_config, spec)
    priority = spec.filter.priority
    if priority is not None and not -(2**31) <= priority < 2**31:
        problem = f"must fit in 32 bits, from -2147483648 to 2147483647, not {str(priority)[:40]}"
        yield SpecError("spec.filter.priority", problem)
    yield from _raised(_check_interval, spec.filter.refresh_interval)
    yield from _raised(_check_secret, spec.secret)
    yield from _wrong_labels(spec.selector.match_labels)
    if spec.rollout is not None:
        yield from wrong_rollout(spec.rollout)


def _check_config(spec: Spec) -> None:
    pluginconfig.check(spec.filter, is_staged=spec.rollout is not None)


def _raised(check_: Callable[..., None], *arguments: Any) -> Iterator[SpecError]:
    """The SpecError raised by a check, or None."""
    try:
        check_(*arguments)
    except SpecError as error:
        yield error


def _refuse_value_error(path: str, parse: Callable[[str], object], value: str) -> None:
    try:
        parse(value)
    except ValueError as error:
        raise SpecError(path, str(error)) from error


def _wrong_source(source: Source) -> Iterator[SpecError]:
    if source.registry is not None and source.object is not None:
        problem = "set exactly one of registry and object, not both: remove one"
        yield SpecError("spec.filter.source", problem)
    if source.registry is None and source.object is None:
        problem = "set exactly one of registry and object: registry with image, or object with url"
        yield SpecError("spec.filter.source", problem)
    if source.registry is not None:
        yield from _raised(
            _refuse_value_error,
            "spec.filter.source.registry.image",
            ImageReference.parse,
            source.registry.image,
        )
    if source.object is not None:
        path = "spec.filter.source.object.url"
        yield from _raised(_refuse_value_error, path, _parse_url, source.object.url)


def _parse_url(url: str) -> None:
    """Raises ValueError. The message has no part of the URL after the host: a query may hold a signature."""
    if len(url) > _MAX_URL_LENGTH:
        raise ValueError(
            f"longer than {_MAX_URL_LENGTH} characters: {len(url)}; use a shorter URL, such as one without a query"
        )
    if _CONTROL.search(url) or " " in url or "\\" in url:
        raise ValueError("spaces, backslashes and control characters must be percent-encoded")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        found = f"not {parts.scheme[:40]}://" if "://" in url else "the URL has no scheme"
        raise ValueError(f"must begin with http:// or https://: {found}{_instead_of_url(url)}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "must not contain a user name or password: objects are public; remove the part before '@'"
        )
    if not parts.hostname:
        raise ValueError("has no host; use https://HOST/PATH")
    if parts.fragment:
        raise ValueError("must not have a fragment (#...); remove it, or write # as %23")
    check_port(parts)


def _instead_of_url(text: str) -> str:
    """The field for a module whose address is not an http URL."""
    if text.startswith(("file:", ".", "/")):
        return "; push the module to a registry, or serve it over http"
    if AUTOWASM.meant_by is not None and AUTOWASM.meant_by(OBJECT_URL, text) == IMAGE:
        return f"; write an image as {IMAGE}"
    return ""


def _wrong_ports(ports: tuple[int, ...] | None) -> Iterator[SpecError]:
    if ports is None:
        return
    path = "spec.filter.applyPorts"
    if not ports:
        yield SpecError(path, "list at least one port, or omit the field to select every port")
    if len(ports) > _MAX_PORTS:
        problem = f"more than {_MAX_PORTS} ports: {len(ports)}; omit the field to select every port"
        yield SpecError(path, problem)
        return
    for index, port in enumerate(ports):
        if not 1 <= port <= 65535:
            yield SpecError(f"{path}[{index}]", f"must be from 1 to 65535, not {str(port)[:40]}")
        elif port in ports[:index]:
            yield SpecError(f"{path}[{index}]", f"duplicate port {port}; remove one")


def _check_text(path: str, value: str | None) -> None:
    if value is None:
        return
    if len(value) > _MAX_ID_LENGTH:
        raise SpecError(path, f"longer than {_MAX_ID_LENGTH} characters: {len(value)}; shorten it")
    if _CONTROL.search(value):
        raise SpecError(path, f"must not contain control characters: {_quoted(value)}")
    _check_unicode(path, value)


def _quoted(value: str) -> str:
    return repr(value if len(value) <= _MAX_QUOTED else value[: _MAX_QUOTED - 1] + "…")


def _check_unicode(path: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise pluginconfig.half_a_pair(path) from error


def _wrong_env(env: tuple[EnvVar, ...]) -> Iterator[SpecError]:
    path = "spec.filter.env"
    if len(env) > _MAX_ENV:
        yield SpecError(
            path, f"more than {_MAX_ENV} variables: {len(env)}; use pluginConfig for more"
        )
        return
    seen: set[str] = set()
    for index, variable in enumerate(env):
        yield from _raised(_check_variable, f"{path}[{index}]", variable)
        if variable.name in seen:
            problem = f"duplicate variable {variable.name[:_MAX_QUOTED]}; remove one"
            yield SpecError(f"{path}[{index}].name", problem)
        seen.add(variable.name)


def _check_variable(at: str, variable: EnvVar) -> None:
    name, value = variable.name, variable.value
    if not name or len(name) > _MAX_ENV_NAME_LENGTH:
        problem = f"must have 1 to {_MAX_ENV_NAME_LENGTH} characters, not {len(name)}"
        raise SpecError(f"{at}.name", problem)
    if "=" in name or _CONTROL.search(name):
        before, separator, _ = name.partition("=")  # the value may be a password
        problem = f"must not contain '=' or control characters: {_quoted(before + separator)}"
        hint = f"; write the part after '=' as {at}.value" if separator else ""
        raise SpecError(f"{at}.name", f"{problem}{hint}")
    if len(value) > _MAX_ENV_VALUE_LENGTH:
        problem = f"longer than {_MAX_ENV_VALUE_LENGTH} characters: {len(value)}; use pluginConfig for a long value"
        raise SpecError(f"{at}.value", problem)
    _check_unicode(f"{at}.name", name)
    _check_unicode(f"{at}.value", value)


def _check_sha256(value: str) -> None:
    try:
        sha256_hex(value)
    except ValueError as error:
        bare = value.removeprefix("sha256:")
        hint = "; remove sha256: at the start" if bare != value else ""
        hint += "; use lower case" if bare != bare.lower() else ""
        hint += f"; it has {len(bare)} characters" if bare and len(bare) != _SHA256_LENGTH else ""
        raise SpecError("spec.filter.sha256", f"{error}{hint}") from error


def _check_interval(interval: str | None) -> None:
    if interval is None:
        return
    path = "spec.filter.refreshInterval"
    if _duration(path, interval) < _MIN_INTERVAL:
        problem = f"must be at least 30s, not {interval}: registries limit the rate of requests"
        raise SpecError(path, problem)


def _duration(path: str, text: str) -> float:
    if len(text) > _MAX_INTERVAL_LENGTH:
        raise SpecError(path, f"longer than {_MAX_INTERVAL_LENGTH} characters")
    _refuse_value_error(path, parse_duration, text)
    return parse_duration(text)


def check_rollout(rollout: Rollout) -> None:
    """Raises SpecError with all errors that `wrong_rollout` returns."""
    errors = list(wrong_rollout(rollout))
    if errors:
        raise SpecError.joined(errors)


def wrong_rollout(rollout: Rollout) -> Iterator[SpecError]:
    """The fields of `spec.rollout` with an invalid value."""
    yield from rolloutsteps.wrong(rollout.steps)
    yield from _raised(_check_rollout_time, "spec.rollout.pause", rollout.pause)
    yield from _raised(_check_rollout_time, "spec.rollout.deadline", rollout.deadline)
    ratio = rollout.max_failure_ratio
    if not math.isfinite(ratio) or not 0 <= ratio <= 1:
        problem = f"must be from 0 to 1, not {ratio}; 1% is 0.01"
        yield SpecError("spec.rollout.maxFailureRatio", problem)


def _check_rollout_time(path: str, text: str) -> None:
    if _duration(path, text) < _MIN_ROLLOUT_TIME:
        raise SpecError(path, f"must be at least 1s, not {text}")


def _check_secret(secret: str | None) -> None:
    if secret is not None and (len(secret) > _MAX_NAME_LENGTH or not _NAME.match(secret)):
        problem = (
            f"must be the name of a Secret in the AutoWasm's namespace: {_name_problem(secret)}"
        )
        raise SpecError("spec.secret", f"{problem}; omit the field for a public image")


def _name_problem(name: str) -> str:
    """The reason why it is not a valid Secret name. The text omits the name, which may be the password itself."""
    if not name:
        return "it is empty"
    if len(name) > _MAX_NAME_LENGTH:
        return f"it has {len(name)} characters, and may have {_MAX_NAME_LENGTH}"
    wrong = next((each for each in name if not _NAME.match(f"a{each}a")), "")
    if wrong:
        return f"it has {wrong!r}, and may have lower-case letters, digits, '-' and '.'"
    return "it must begin and end with a letter or digit"


def _wrong_labels(labels: dict[str, str]) -> Iterator[SpecError]:
    if len(labels) > _MAX_LABELS:
        problem = f"more than {_MAX_LABELS} labels: {len(labels)}"
        yield SpecError("spec.selector.matchLabels", problem)
        return
    for key, value in labels.items():
        path = f"spec.selector.matchLabels[{key[:80]}]"
        prefix, slash, name = key.rpartition("/")
        if slash and (len(prefix) > 253 or not _NAME.match(prefix)):
            problem = f"the part before '/' must be a DNS name in lower case, not {_quoted(prefix)}"
            yield SpecError(path, problem)
        elif not _LABEL_PART.match(name):
            yield SpecError(path, f"not a label key; want NAME or DNS-PREFIX/NAME: {_LABEL_FORM}")
        if value and not _LABEL_PART.match(value):
            yield SpecError(path, f"not a label value: {_quoted(value)}; want {_LABEL_FORM}")


class _Envelope(Struct, rename="camel"):
    """The object around the spec. Unknown fields are ignored here: they are for Kubernetes."""

    metadata: Metadata
    spec: Any = UNSET
    api_version: str = API_VERSION
    kind: str = KIND


# Made here, not at first use: see registry/manifest.py.
_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_SPEC: Final = msgspec.json.Decoder(Spec)


class _Document(Struct, rename="camel", forbid_unknown_fields=True):
    """A whole object, used to find its mistakes."""

    metadata: Metadata
    spec: Spec
    api_version: str = API_VERSION
    kind: str = KIND
    status: Any = UNSET


_SCHEMA: Final = fielderrors.Schema(_Document, AUTOWASM)
FIELDS: Final = _SCHEMA.kinds()
"""The path of every field, and its type."""
_AT_THE_TOP: Final = frozenset(path for path in FIELDS if "." not in path)
_FIELD_NAMES: Final = frozenset(path.rpartition(".")[2] for path in FIELDS if "[" not in path)
_OF_OTHERS: Final = frozenset({"name", "namespace", "labels", "annotations", "uid", "generation"})
"""Fields that other formats have at the top."""


def parse(document: Mapping[str, Any]) -> AutoWasm:
    """Decode and check one object of the API server or of a YAML file.

    Raises SpecError, with all errors in `parts`; the `field` of each is the path of the wrong value, as a user writes it.
    """
    try:
        envelope = structs.convert(document, _ENVELOPE)
        _check_envelope(envelope)
        spec = structs.convert(envelope.spec, _SPEC)
    except (Misfit, UnicodeEncodeError) as error:
        raise _refusal(document, error) from error
    if any(_wrong_values(spec)) or len(_understood(document)) > len(_AT_THE_TOP & document.keys()):
        raise _refusal(document)
    return AutoWasm(metadata=envelope.metadata, spec=spec)


def _check_envelope(envelope: _Envelope) -> None:
    if envelope.api_version != API_VERSION:
        raise SpecError(
            "apiVersion", f"this version supports {API_VERSION}, not {envelope.api_version}"
        )
    if envelope.kind != KIND:
        raise SpecError("kind", f"must be {KIND}, not {envelope.kind}")
    if envelope.spec is None:
        raise SpecError("spec", "is null, or has too many values to be read: shorten pluginConfig")


def _refusal(document: Mapping[str, Any], error: Exception | None = None) -> SpecError:
    """The error with all mistakes of a document: fields, types and values."""
    found = _SCHEMA.find(_understood(document))
    errors = [
        SpecError(each.path, _with_hint(each.problem, _copied(document, each.path)))
        for each in found.errors
    ]
    try:
        spec = msgspec.convert(found.corrected["spec"], _SPEC.type)
        values = list(_wrong_values(spec))
    except (msgspec.ValidationError, UnicodeEncodeError, KeyError, TypeError):
        values = []  # the values that do not fit are already reported
    for each in values:
        path = found.as_written(each.field)
        if not found.is_about(path):
            errors.append(SpecError(path, _with_hint(each.problem, _copied(document, path))))
    return SpecError.joined(errors or [SpecError("object", str(error or "is not an AutoWasm"))])


def _with_hint(problem: str, hint: str) -> str:
    """Two clauses of one sentence; the first may end in a question mark."""
    return (
        f"{problem} ({hint})"
        if hint and problem.endswith("?")
        else "; ".join(filter(None, (problem, hint)))
    )


_PATH_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")
_TEMPLATE: Final = re.compile(r"\{\{|\{%|\$\{|\$\(")
_TYPOGRAPHIC: Final = re.compile("[\u2018-\u201f\u00ab\u00bb]")


def _copied(document: Any, path: str) -> str:
    """The correction of a wrong value that was copied from a template or from formatted text."""
    value = document
    for name, inner in _PATH_STEP.findall(path):
        step = inner or name
        if isinstance(value, list | tuple) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return ""
    if not isinstance(value, str):
        return ""
    head = value[:_MAX_COPIED]
    if _TEMPLATE.search(head):
        return "it has a template expression: render the template first, and use the result"
    if _TYPOGRAPHIC.search(head):
        return "replace the typographic quotes with plain ones"
    found = INVISIBLE.search(head)
    return f"it has the invisible character U+{ord(found[0]):04X}: remove it" if found else ""


def _understood(document: Mapping[Any, Any]) -> dict[Any, Any]:
    """The top-level fields that AutoWasm knows, or that have the name of a field of its spec. All others are for Kubernetes."""
    if document.keys() <= _AT_THE_TOP:
        return dict(document)
    top = sorted(_AT_THE_TOP - document.keys())
    return {
        name: value
        for name, value in document.items()
        if not isinstance(name, str)
        or name in _FIELD_NAMES - _OF_OTHERS
        or fielderrors.similar(name, top) is not None
    }
