"""`spec.filter.pluginConfig`: allowed values, the text that the filter receives, and its size in the EnvoyFilter.

Invariants: the check ends at the first value over the limit, so its time is bounded; a path is built only for a refusal; an
accepted value fits into the EnvoyFilter that etcd stores, which has a copy for each patch.
Not Envoy's PluginConfig message (see `envoyfilter.py`).
"""

import json
import math
from typing import Any, Final

import msgspec
from msgspec import UNSET

from autowasm.api.patches import copies
from autowasm.api.v1alpha1 import Filter
from autowasm.errors import SpecError

_PATH: Final = "spec.filter.pluginConfig"
_DEPTH: Final = 64
"""JSON parsers in filters refuse a nesting of about 100 (serde_json: 128)."""
_MAX_VALUES: Final = 10_000
"""Reading, rendering and comparing this many hold the loop for about 10 ms; a string of any length is one value."""
_MAX_VARIABLES: Final = 20_000
"""Environment variables in all patches: an EnvoyFilter with more values is truncated when read (`KubeLimits.object_values`)."""
_MAX_RENDERED: Final = 1024 * 1024
"""Bytes of configuration and environment in all patches; etcd refuses objects above 1.5 MiB."""
_GO_EXPONENT: Final = 1e21
"""From this value on Go's encoding/json, like Python, writes a float64 with an exponent."""
_ESCAPED: Final = {"<": 5, ">": 5, "&": 5, "\u2028": 3, "\u2029": 3, "\b": 4, "\f": 4}
"""Additional bytes for each: the API server stores escapes of six bytes (Go's encoding/json; `\\b` and `\\f` before 1.22)."""

_Steps = tuple[str | int, ...]


def check(filter_: Filter, *, is_staged: bool = False) -> None:
    """Raises SpecError for the first value of `pluginConfig` that is not allowed, and if it is too large.

    `is_staged`: during a rollout, the EnvoyFilter also has the filter that is being replaced, which may be as large.
    """
    config: Any = filter_.plugin_config
    config_size = 0
    if isinstance(config, dict | str):
        _Walk().check(config, ())
        config_size = _stored_size(as_text(config))
    elif config is not UNSET:
        hint = "remove the field" if config is None else "write other JSON as a string"
        raise SpecError(_PATH, f"must be an object or a string, not {_json_name(config)}; {hint}")
    patches = copies(filter_) * (2 if is_staged else 1)
    copied = _copied(filter_, is_staged=is_staged)
    if len(filter_.env) * patches > _MAX_VARIABLES:
        raise SpecError(
            "spec.filter.env",
            f"{len(filter_.env)} variables{copied}: the EnvoyFilter can hold at most {_MAX_VARIABLES}; "
            "use fewer variables or fewer applyPorts",
        )
    size = config_size + sum(
        _stored_size(each.name) + _stored_size(each.value) + 2 for each in filter_.env
    )
    if size * patches > _MAX_RENDERED:
        raise SpecError(
            _PATH if config_size * 2 >= size else "spec.filter.env",
            f"{size} bytes of pluginConfig and env{copied}: the EnvoyFilter can hold at most {_MAX_RENDERED}; "
            "shorten them or use fewer applyPorts",
        )


def _copied(filter_: Filter, *, is_staged: bool) -> str:
    staged = ", twice during a rollout" if is_staged else ""
    ports = len(filter_.apply_ports or ())
    if not ports:
        return staged
    often = "once" if copies(filter_) == ports else "twice"
    if ports == 1:
        return f", {often} for the port{staged}"
    return f", {often} for each of {ports} ports{staged}"


def as_text(config: dict[str, Any] | str) -> str:
    """The bytes that the filter receives, as text: a string unchanged, an object as JSON with its keys in their order.

    Integers keep all digits. A number without a fraction is written without one, as the API server does (Go's
    encoding/json), so a file and the object made from it give the same text.
    """
    if isinstance(config, str):
        return config
    return json.dumps(_plain(config), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _GO_EXPONENT:
        return int(value)
    return value


def as_stored(config: Any) -> Any:
    """The value as the API server returns it: the keys of every object are sorted (Go's encoding/json)."""
    if isinstance(config, dict):
        return {name: as_stored(config[name]) for name in sorted(config)}
    if isinstance(config, list):
        return [as_stored(member) for member in config]
    return config


def document_as_stored(document: dict[str, Any]) -> dict[str, Any]:
    """An AutoWasm with `pluginConfig` as the API server returns it: the filter gets the keys in that order."""
    spec = document.get("spec")
    filter_ = spec.get("filter") if isinstance(spec, dict) else None
    if not isinstance(filter_, dict) or "pluginConfig" not in filter_:
        return document
    stored = {**filter_, "pluginConfig": as_stored(filter_["pluginConfig"])}
    return {**document, "spec": {**document["spec"], "filter": stored}}


class _Walk:
    """Checks nested values and counts them."""

    def __init__(self) -> None:
        self._left = _MAX_VALUES

    def check(self, value: Any, steps: _Steps) -> None:
        self._left -= 1
        if self._left < 0:
            raise SpecError(
                _PATH,
                f"more than {_MAX_VALUES} values: write pluginConfig as one string of JSON instead",
            )
        if len(steps) > _DEPTH:
            raise SpecError(_path(steps), f"nested deeper than {_DEPTH} levels")
        if isinstance(value, dict):
            for name, member in value.items():
                if not isinstance(name, str):
                    raise SpecError(
                        _path(steps),
                        f"the key {str(name)[:80]!r} must be a string: put it in quotes",
                    )
                _check_text(name, steps)
                self.check(member, (*steps, name))
        elif isinstance(value, list):
            for index, member in enumerate(value):
                self.check(member, (*steps, index))
        elif isinstance(value, str):
            _check_text(value, steps)
        else:
            _check_scalar(value, steps)


def _check_text(value: str, steps: _Steps) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise half_a_pair(_path(steps)) from error


def _stored_size(text: str) -> int:
    """Bytes of `text` in the JSON that the API server stores in etcd."""
    more = sum(bytes_ * text.count(each) for each, bytes_ in _ESCAPED.items())
    return len(msgspec.json.encode(text)) + more


def half_a_pair(path: str) -> SpecError:
    """The refusal of half a surrogate pair: YAML escapes can express it, UTF-8 cannot."""
    return SpecError(path, "contains an unpaired surrogate, which is not a valid character")


def _path(steps: _Steps) -> str:
    return _PATH + "".join(
        f"[{step}]" if isinstance(step, int) else f".{step[:80]}" for step in steps
    )


def _check_scalar(value: Any, steps: _Steps) -> None:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(_path(steps), "must be a finite number")
    if not isinstance(value, int | float):
        raise SpecError(_path(steps), f"must be JSON, not {_json_name(value)}")


def _json_name(value: object) -> str:
    names = {list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
