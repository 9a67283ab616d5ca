"""parse(): from a document, as the API server or a YAML file gives it, to a valid AutoWasm.

Not a YAML reader. Invariant: every refusal is a SpecError whose `field` is the path as a user writes it.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Struct

from autowasm.api import validation
from autowasm.api.v1alpha1 import (
    API_VERSION,
    KIND,
    AutoWasm,
    FailStrategy,
    Metadata,
    PatchContext,
    PullPolicy,
    Spec,
)
from autowasm.errors import SpecError

_T = TypeVar("_T")


class _Envelope(Struct, rename="camel"):
    """What is around the spec; unknown fields here are Kubernetes' business."""

    metadata: Metadata
    spec: Any = UNSET
    api_version: str = API_VERSION
    kind: str = KIND


# Made here, not at first use: see registry/manifest.py.
_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_SPEC: Final = msgspec.json.Decoder(Spec)

_AT = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`\Z")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_NO_CHOICE = re.compile(r"Invalid enum value (?P<value>.*)\Z", re.DOTALL)
_CHOICES = {
    "spec.filter.context": PatchContext,
    "spec.filter.failStrategy": FailStrategy,
    "spec.filter.pullPolicy": PullPolicy,
}


def parse(document: Mapping[str, Any]) -> AutoWasm:
    """Read one object as the API server or a YAML file gives it.

    Raises SpecError whose `field` is the path to what is wrong, as a user writes it.
    """
    envelope = _convert(document, _ENVELOPE, "")
    if envelope.api_version != API_VERSION:
        raise SpecError(
            "apiVersion", f"this version reads {API_VERSION}, not {envelope.api_version}"
        )
    if envelope.kind != KIND:
        raise SpecError("kind", f"must be {KIND}, not {envelope.kind}")
    if envelope.spec is UNSET:
        raise SpecError("spec", "is required")
    if envelope.spec is None:
        raise SpecError(
            "spec", "is null, or holds so many values that it is not read: shorten pluginConfig"
        )
    spec = _convert(envelope.spec, _SPEC, "spec")
    validation.check(spec)
    return AutoWasm(metadata=envelope.metadata, spec=spec)


def _convert(value: object, kind: msgspec.json.Decoder[_T], root: str) -> _T:
    """`msgspec.convert`, with its complaints turned into SpecError with our kind of field path."""
    try:
        return msgspec.convert(value, kind.type, strict=True)
    except UnicodeEncodeError as error:  # a field's name; values are looked at by `validation`
        problem = "a field's name holds half of a surrogate pair, which is no character"
        raise SpecError(root or "object", problem) from error
    except msgspec.ValidationError as error:
        text = str(error)
    at = _AT.search(text)
    path = root + (at["path"].replace("[...]", "") if at else "")
    problem = _AT.sub("", text)
    if at and at["key"]:
        raise SpecError(
            path.lstrip(".") or "object", "every key must be a string: put it in quotes"
        )
    if unknown := _UNKNOWN.match(problem):
        raise SpecError(_join(path, unknown["name"]), "unknown field; check the spelling")
    if missing := _MISSING.match(problem):
        raise SpecError(_join(path, missing["name"]), "is required")
    if (no_choice := _NO_CHOICE.match(problem)) and path in _CHOICES:
        allowed = ", ".join(choice.value for choice in _CHOICES[path])
        raise SpecError(path, f"must be one of {allowed}, not {no_choice['value'][:80]}")
    raise SpecError(path.lstrip(".") or "object", problem[:1].lower() + problem[1:])


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")
