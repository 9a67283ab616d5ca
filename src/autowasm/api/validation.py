"""What the values of a spec may be. The CRD says the same where a schema can; this says it again, and the rest.

Why again: the CRD in a cluster may be older than we are, and standalone mode has none. Invariant: every refusal names
the field and says what would be right.
"""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from autowasm.api import pluginconfig
from autowasm.api.v1alpha1 import EnvVar, Source, Spec
from autowasm.digest import sha256_hex
from autowasm.errors import SpecError
from autowasm.net.urls import check_port
from autowasm.reference import ImageReference
from autowasm.units import parse_duration

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?\Z")
_LABEL_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PORTS_MOST = 100
_ID_LONGEST = 256
_URL_LONGEST = 2048
_ENV_MOST, _ENV_NAME_LONGEST, _ENV_VALUE_LONGEST = 256, 256, 2048  # as in Istio's WasmPlugin
_INTERVAL_SHORTEST = 30.0
_INTERVAL_LONGEST = 64
_LABELS_MOST = 256
"""As in Istio's EnvoyFilter, whose workloadSelector they become."""


def check(spec: Spec) -> None:
    """Raises SpecError for the first value that is not allowed, in the order of the fields."""
    _check_source(spec.filter.source)
    _check_ports(spec.filter.apply_ports)
    _check_text("spec.filter.rootID", spec.filter.root_id)
    _check_text("spec.filter.vmID", spec.filter.vm_id)
    if spec.filter.sha256 is not None:
        _refuse_value_error("spec.filter.sha256", sha256_hex, spec.filter.sha256)
    _check_env(spec.filter.env)
    pluginconfig.check(spec.filter)
    if spec.filter.priority is not None and not -(2**31) <= spec.filter.priority < 2**31:
        raise SpecError("spec.filter.priority", "must fit in 32 bits")
    _check_interval(spec.filter.refresh_interval)
    if spec.secret is not None and (len(spec.secret) > 253 or not _NAME.match(spec.secret)):
        raise SpecError("spec.secret", "must be the name of a Secret in the AutoWasm's namespace")
    _check_labels(spec.selector.match_labels)


def _refuse_value_error(path: str, parse: Callable[[str], object], value: str) -> None:
    try:
        parse(value)
    except ValueError as error:
        raise SpecError(path, str(error)) from error


def _check_source(source: Source) -> None:
    if (source.registry is None) == (source.object is None):
        raise SpecError("spec.filter.source", "exactly one of registry, object")
    if source.registry is not None:
        _refuse_value_error(
            "spec.filter.source.registry.image", ImageReference.parse, source.registry.image
        )
    if source.object is not None:
        _refuse_value_error("spec.filter.source.object.url", _parse_url, source.object.url)


def _parse_url(url: str) -> None:
    """Raises ValueError. The message shows no part behind the host: a query may hold a signature."""
    if len(url) > _URL_LONGEST:
        raise ValueError(f"longer than {_URL_LONGEST} characters")
    if _CONTROL.search(url) or " " in url or "\\" in url:
        raise ValueError("spaces, backslashes and control characters must be percent-encoded")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must begin with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user name or password: objects are public")
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
        raise SpecError(path, "name at least one port, or leave the field out for every port")
    if len(ports) > _PORTS_MOST:
        raise SpecError(path, f"more than {_PORTS_MOST} ports")
    for index, port in enumerate(ports):
        if not 1 <= port <= 65535:
            raise SpecError(f"{path}[{index}]", f"must be from 1 to 65535, not {port}")
        if port in ports[:index]:
            raise SpecError(f"{path}[{index}]", f"{port} is there already")


def _check_text(path: str, value: str | None) -> None:
    if value is None:
        return
    if len(value) > _ID_LONGEST:
        raise SpecError(path, f"longer than {_ID_LONGEST} characters")
    if _CONTROL.search(value):
        raise SpecError(path, "must not hold control characters")
    _check_unicode(path, value)


def _check_unicode(path: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise pluginconfig.half_a_pair(path) from error


def _check_env(env: tuple[EnvVar, ...]) -> None:
    path = "spec.filter.env"
    if len(env) > _ENV_MOST:
        raise SpecError(path, f"more than {_ENV_MOST} variables")
    seen: set[str] = set()
    for index, variable in enumerate(env):
        at = f"{path}[{index}]"
        if not variable.name or len(variable.name) > _ENV_NAME_LONGEST:
            raise SpecError(f"{at}.name", f"must have 1 to {_ENV_NAME_LONGEST} characters")
        if "=" in variable.name or _CONTROL.search(variable.name):
            raise SpecError(f"{at}.name", "must not hold '=' or control characters")
        if len(variable.value) > _ENV_VALUE_LONGEST:
            raise SpecError(f"{at}.value", f"longer than {_ENV_VALUE_LONGEST} characters")
        _check_unicode(f"{at}.name", variable.name)
        _check_unicode(f"{at}.value", variable.value)
        if variable.name in seen:
            raise SpecError(f"{at}.name", f"{variable.name} is there already")
        seen.add(variable.name)


def _check_interval(interval: str | None) -> None:
    if interval is None:
        return
    path = "spec.filter.refreshInterval"
    if len(interval) > _INTERVAL_LONGEST:
        raise SpecError(path, f"longer than {_INTERVAL_LONGEST} characters")
    _refuse_value_error(path, parse_duration, interval)
    if parse_duration(interval) < _INTERVAL_SHORTEST:
        raise SpecError(path, "must be at least 30s: registries limit how often they are asked")


def _check_labels(labels: dict[str, str]) -> None:
    if len(labels) > _LABELS_MOST:
        raise SpecError("spec.selector.matchLabels", f"more than {_LABELS_MOST} labels")
    for key, value in labels.items():
        path = f"spec.selector.matchLabels[{key[:80]}]"
        prefix, slash, name = key.rpartition("/")
        if slash and (len(prefix) > 253 or not _NAME.match(prefix)):
            raise SpecError(path, "the part before '/' must be a DNS name")
        if not _LABEL_PART.match(name):
            raise SpecError(path, "not a label key")
        if value and not _LABEL_PART.match(value):
            raise SpecError(path, f"not a label value: {value[:80]!r}")
