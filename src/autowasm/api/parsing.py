"""From a decoded document of the API server or a YAML file to a valid AutoWasm.

The checks repeat those of the CRD's schema and add those that no schema can express: the CRD in a cluster may be older than
wasmer, and standalone mode has none. Invariant: every refusal is a SpecError that names the field, as a user writes its path,
and the allowed values.
Not a YAML reader (see `manifests/reader.py`).
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Struct

from autowasm.api import pluginconfig, rolloutsteps
from autowasm.api.v1alpha1 import (
    API_VERSION,
    KIND,
    AutoWasm,
    EnvVar,
    FailStrategy,
    Metadata,
    OnUnknown,
    PatchContext,
    PullPolicy,
    Rollout,
    Source,
    Spec,
)
from autowasm.digest import sha256_hex
from autowasm.errors import SpecError
from autowasm.manifests import conversion
from autowasm.manifests.conversion import Misfit
from autowasm.net.urls import check_port
from autowasm.reference import ImageReference
from autowasm.units import parse_duration

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
_MAX_LABELS = 256
"""As in Istio's EnvoyFilter: the labels become its workloadSelector."""


def check(spec: Spec) -> None:
    """Raises SpecError for the first value that is not allowed, in the order of the fields."""
    _check_source(spec.filter.source)
    _check_ports(spec.filter.apply_ports)
    _check_text("spec.filter.rootID", spec.filter.root_id)
    _check_text("spec.filter.vmID", spec.filter.vm_id)
    if spec.filter.sha256 is not None:
        _refuse_value_error("spec.filter.sha256", sha256_hex, spec.filter.sha256)
    _check_env(spec.filter.env)
    pluginconfig.check(spec.filter, is_staged=spec.rollout is not None)
    if spec.filter.priority is not None and not -(2**31) <= spec.filter.priority < 2**31:
        raise SpecError("spec.filter.priority", "must fit in 32 bits")
    _check_interval(spec.filter.refresh_interval)
    if spec.secret is not None and (len(spec.secret) > 253 or not _NAME.match(spec.secret)):
        raise SpecError("spec.secret", "must be the name of a Secret in the AutoWasm's namespace")
    _check_labels(spec.selector.match_labels)
    if spec.rollout is not None:
        check_rollout(spec.rollout)


def _refuse_value_error(path: str, parse: Callable[[str], object], value: str) -> None:
    try:
        parse(value)
    except ValueError as error:
        raise SpecError(path, str(error)) from error


def _check_source(source: Source) -> None:
    if (source.registry is None) == (source.object is None):
        raise SpecError("spec.filter.source", "set exactly one of registry and object")
    if source.registry is not None:
        _refuse_value_error(
            "spec.filter.source.registry.image", ImageReference.parse, source.registry.image
        )
    if source.object is not None:
        _refuse_value_error("spec.filter.source.object.url", _parse_url, source.object.url)


def _parse_url(url: str) -> None:
    """Raises ValueError. The message has no part of the URL after the host: a query may hold a signature."""
    if len(url) > _MAX_URL_LENGTH:
        raise ValueError(f"longer than {_MAX_URL_LENGTH} characters")
    if _CONTROL.search(url) or " " in url or "\\" in url:
        raise ValueError("spaces, backslashes and control characters must be percent-encoded")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must begin with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password: objects are public")
    if not parts.hostname:
        raise ValueError("has no host")
    if parts.fragment:
        raise ValueError("must not have a fragment (#...)")
    check_port(parts)


def _check_ports(ports: tuple[int, ...] | None) -> None:
    if ports is None:
        return
    path = "spec.filter.applyPorts"
    if not ports:
        raise SpecError(path, "list at least one port, or omit the field to select every port")
    if len(ports) > _MAX_PORTS:
        raise SpecError(path, f"more than {_MAX_PORTS} ports")
    for index, port in enumerate(ports):
        if not 1 <= port <= 65535:
            raise SpecError(f"{path}[{index}]", f"must be from 1 to 65535, not {port}")
        if port in ports[:index]:
            raise SpecError(f"{path}[{index}]", f"duplicate port {port}")


def _check_text(path: str, value: str | None) -> None:
    if value is None:
        return
    if len(value) > _MAX_ID_LENGTH:
        raise SpecError(path, f"longer than {_MAX_ID_LENGTH} characters")
    if _CONTROL.search(value):
        raise SpecError(path, "must not contain control characters")
    _check_unicode(path, value)


def _check_unicode(path: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise pluginconfig.half_a_pair(path) from error


def _check_env(env: tuple[EnvVar, ...]) -> None:
    path = "spec.filter.env"
    if len(env) > _MAX_ENV:
        raise SpecError(path, f"more than {_MAX_ENV} variables")
    seen: set[str] = set()
    for index, variable in enumerate(env):
        at = f"{path}[{index}]"
        if not variable.name or len(variable.name) > _MAX_ENV_NAME_LENGTH:
            raise SpecError(f"{at}.name", f"must have 1 to {_MAX_ENV_NAME_LENGTH} characters")
        if "=" in variable.name or _CONTROL.search(variable.name):
            raise SpecError(f"{at}.name", "must not contain '=' or control characters")
        if len(variable.value) > _MAX_ENV_VALUE_LENGTH:
            raise SpecError(f"{at}.value", f"longer than {_MAX_ENV_VALUE_LENGTH} characters")
        _check_unicode(f"{at}.name", variable.name)
        _check_unicode(f"{at}.value", variable.value)
        if variable.name in seen:
            raise SpecError(f"{at}.name", f"duplicate variable {variable.name}")
        seen.add(variable.name)


def _check_interval(interval: str | None) -> None:
    if interval is None:
        return
    path = "spec.filter.refreshInterval"
    if _duration(path, interval) < _MIN_INTERVAL:
        raise SpecError(path, "must be at least 30s: registries limit the rate of requests")


def _duration(path: str, text: str) -> float:
    if len(text) > _MAX_INTERVAL_LENGTH:
        raise SpecError(path, f"longer than {_MAX_INTERVAL_LENGTH} characters")
    _refuse_value_error(path, parse_duration, text)
    return parse_duration(text)


def check_rollout(rollout: Rollout) -> None:
    """Raises SpecError for the first field of `spec.rollout` with an invalid value."""
    rolloutsteps.check(rollout.steps)
    for name, text in (("pause", rollout.pause), ("deadline", rollout.deadline)):
        path = f"spec.rollout.{name}"
        if _duration(path, text) < _MIN_ROLLOUT_TIME:
            raise SpecError(path, "must be at least 1s")
    ratio = rollout.max_failure_ratio
    if not math.isfinite(ratio) or not 0 <= ratio <= 1:
        raise SpecError("spec.rollout.maxFailureRatio", f"must be from 0 to 1, not {ratio}")


def _check_labels(labels: dict[str, str]) -> None:
    if len(labels) > _MAX_LABELS:
        raise SpecError("spec.selector.matchLabels", f"more than {_MAX_LABELS} labels")
    for key, value in labels.items():
        path = f"spec.selector.matchLabels[{key[:80]}]"
        prefix, slash, name = key.rpartition("/")
        if slash and (len(prefix) > 253 or not _NAME.match(prefix)):
            raise SpecError(path, "the part before '/' must be a DNS name")
        if not _LABEL_PART.match(name):
            raise SpecError(path, "not a label key")
        if value and not _LABEL_PART.match(value):
            raise SpecError(path, f"not a label value: {value[:80]!r}")


_T = TypeVar("_T")


class _Envelope(Struct, rename="camel"):
    """The object around the spec. Unknown fields are ignored here: they are for Kubernetes."""

    metadata: Metadata
    spec: Any = UNSET
    api_version: str = API_VERSION
    kind: str = KIND


# Made here, not at first use: see registry/manifest.py.
_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_SPEC: Final = msgspec.json.Decoder(Spec)

_NO_CHOICE = re.compile(r"invalid enum value (?P<value>.*)\Z", re.DOTALL)
_CHOICES = {
    "spec.filter.context": PatchContext,
    "spec.filter.failStrategy": FailStrategy,
    "spec.filter.pullPolicy": PullPolicy,
    "spec.rollout.onUnknown": OnUnknown,
}


def parse(document: Mapping[str, Any]) -> AutoWasm:
    """Decode and check one object of the API server or of a YAML file.

    Raises SpecError; its `field` is the path of the wrong value, as a user writes it.
    """
    envelope = _convert(document, _ENVELOPE, "")
    if envelope.api_version != API_VERSION:
        raise SpecError(
            "apiVersion", f"this version supports {API_VERSION}, not {envelope.api_version}"
        )
    if envelope.kind != KIND:
        raise SpecError("kind", f"must be {KIND}, not {envelope.kind}")
    if envelope.spec is UNSET:
        raise SpecError("spec", "is required")
    if envelope.spec is None:
        raise SpecError("spec", "is null, or has too many values to be read: shorten pluginConfig")
    spec = _convert(envelope.spec, _SPEC, "spec")
    check(spec)
    return AutoWasm(metadata=envelope.metadata, spec=spec)


def _convert(value: object, kind: msgspec.json.Decoder[_T], root: str) -> _T:
    """`conversion.convert`; its errors become SpecErrors with the field path as a user writes it."""
    try:
        return conversion.convert(value, kind)
    except UnicodeEncodeError as error:  # a field's name; `check` has the values
        problem = "a field's name contains an unpaired surrogate, which is not a valid character"
        raise SpecError(root or "object", problem) from error
    except Misfit as error:
        path = root + error.path.replace("[...]", "")
        problem = error.problem
        if error.field:
            raise SpecError(_join(path, error.field), problem) from error
        if (no_choice := _NO_CHOICE.match(problem)) and path in _CHOICES:
            allowed = ", ".join(choice.value for choice in _CHOICES[path])
            problem = f"must be one of {allowed}, not {no_choice['value'][:80]}"
        raise SpecError(path.lstrip(".") or "object", problem) from error


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")
