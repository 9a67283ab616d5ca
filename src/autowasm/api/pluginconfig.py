"""What `spec.filter.pluginConfig` may be, and how much of an EnvoyFilter it and the environment fill.

Not the form in which a module gets it (`envoyfilter.py`). Invariants: the walk ends at the first value too many, so its time
is bounded whatever the author wrote; a path is put together only for a refusal; what passes makes an EnvoyFilter that
etcd takes, for every port has a copy of it.
"""

import math
from typing import Any, Final

import msgspec
from msgspec import UNSET

from autowasm.api.v1alpha1 import Filter
from autowasm.errors import SpecError

_PATH: Final = "spec.filter.pluginConfig"
_INTEGER_MOST: Final = 2**53
"""A Struct's numbers are doubles: larger integers would reach the module changed."""
_DEPTH: Final = 64
"""protobuf's JSON readers stop at a nesting of 100; ours is inside a few levels already."""
_VALUES_MOST: Final = 10_000
"""Reading, rendering and comparing this many takes some 10 ms of the loop; a string is one value of any length."""
_COPIED_MOST: Final = 20_000
"""Values and variables in all patches: an EnvoyFilter of more would be cut when it is read (`KubeLimits.object_values`)."""
_RENDERED_MOST: Final = 1024 * 1024
"""Bytes of configuration and environment in all patches; etcd refuses objects above 1.5 MiB."""
_ESCAPED: Final = 5
"""Bytes more for each of `<>&`: the API server stores them as escapes of six."""

_Steps = tuple[str | int, ...]


def check(filter_: Filter) -> None:
    """Raises SpecError for the first value of `pluginConfig` that is not allowed, and if there is too much of it."""
    config: Any = filter_.plugin_config
    config_size, walk = 0, _Walk()
    if isinstance(config, dict | str):
        walk.check(config, ())
        config_size = _stored_size(config)
    elif config is not UNSET:
        raise SpecError(_PATH, f"must be an object or a string, not {_json_name(config)}")
    patches = max(1, len(filter_.apply_ports or ()))
    values = walk.passed + len(filter_.env)
    if values * patches > _COPIED_MOST and patches > 1:
        raise SpecError(
            _PATH if walk.passed * 2 >= values else "spec.filter.env",
            f"{values} values of pluginConfig and env, once for each of {patches} ports: the EnvoyFilter has room "
            f"for {_COPIED_MOST}; give the module one string of JSON, or name fewer applyPorts",
        )
    size = config_size + _stored_size({each.name: each.value for each in filter_.env})
    if size * patches > _RENDERED_MOST:
        raise SpecError(
            _PATH if config_size * 2 >= size else "spec.filter.env",
            f"{size} bytes of pluginConfig and env, once for each of {patches} ports: the EnvoyFilter has room "
            f"for {_RENDERED_MOST}; shorten them, or name fewer applyPorts",
        )


class _Walk:
    """Counts what it passes."""

    def __init__(self) -> None:
        self._left = _VALUES_MOST

    @property
    def passed(self) -> int:
        """Values seen so far."""
        return _VALUES_MOST - self._left

    def check(self, value: Any, steps: _Steps) -> None:
        self._left -= 1
        if self._left < 0:
            raise SpecError(
                _PATH,
                f"more than {_VALUES_MOST} values: give the module one string of JSON instead",
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


def _stored_size(value: Any) -> int:
    """Bytes of JSON as the API server hands it to etcd."""
    text = msgspec.json.encode(value)
    return len(text) + _ESCAPED * sum(text.count(each) for each in b"<>&")


def half_a_pair(path: str) -> SpecError:
    """YAML can spell half of a surrogate pair, which no JSON or YAML file can hold as UTF-8."""
    return SpecError(path, "holds half of a surrogate pair, which is no character")


def _path(steps: _Steps) -> str:
    return _PATH + "".join(
        f"[{step}]" if isinstance(step, int) else f".{step[:80]}" for step in steps
    )


def _check_scalar(value: Any, steps: _Steps) -> None:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int) and abs(value) > _INTEGER_MOST:
        raise SpecError(
            _path(steps), "integers beyond 2^53 would reach the module changed: use a string"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(_path(steps), "must be a finite number")
    if not isinstance(value, int | float):
        raise SpecError(_path(steps), f"must be JSON, not {_json_name(value)}")


def _json_name(value: object) -> str:
    names = {list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
