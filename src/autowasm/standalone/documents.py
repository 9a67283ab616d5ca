"""Documents of config files: from the bytes of one file to the AutoWasms and Secrets in it. Pure.

YAML is read by `autowasm.manifests`, a spec is checked by `api/validation.py`. `wasmc plan` and `wasmer standalone` both use `parse`,
so they agree on every file. Invariants: any bytes result in objects and problems, never in an exception; names and namespaces are
DNS names, so they are safe as file names; no problem quotes a value of a Secret.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from autowasm.api.v1alpha1 import API_VERSION, GROUP, KIND
from autowasm.errors import SpecError
from autowasm.kube.resources import ObjectKey
from autowasm.limits import Limits
from autowasm.manifests import reader
from autowasm.manifests.nodes import Unreadable
from autowasm.manifests.reader import shown
from autowasm.reasons import Reason


def next_generation(previous: Mapping[str, Any] | None, spec: object) -> int:
    """`metadata.generation` as an API server counts it: 1 for a new object, else `previous`'s, plus one if the spec changed."""
    if previous is None:
        return 1
    generation = (previous.get("metadata") or {}).get("generation")
    if not isinstance(generation, int) or generation < 1:
        return 1
    return generation if previous.get("spec") == spec else generation + 1


DEFAULT_NAMESPACE = "default"
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
"""A DNS label (RFC 1123). It has no dot, so `<namespace>.<name>` belongs to one object."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
"""A DNS subdomain (RFC 1123), as Kubernetes checks it."""
_MAX_KEY_LENGTH = 239
"""Characters of namespace and name together: file systems allow names of 255 characters, and a file is named
`.<namespace>.<name>.yaml.<8 digits>` while it is written."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A `kind: Secret` document. Values are never shown."""

    type: str
    data: Mapping[str, bytes] = field(repr=False)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Parsed:
    """Content of one file. `broken`: it could not be read completely, so its objects are not known."""

    autowasms: list[tuple[ObjectKey, dict[str, Any]]] = field(default_factory=list)
    secrets: list[tuple[ObjectKey, Secret]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    broken: bool = False

    def incomplete(self, problem: str) -> None:
        """Mark the file as broken: a document that is not understood may be incomplete."""
        self.broken = True
        self.problems.append(problem)


def parse(content: bytes, *, limits: Limits) -> Parsed:
    """Read every object of a file. If an object is not understood, the whole file is `broken`: it may be incomplete.

    An object may have up to `limits.spec_bytes`, a file up to `file_bytes(limits)`.
    """
    parsed = Parsed()
    try:
        found = reader.read(content, object_bytes=limits.spec_bytes, file_bytes=file_bytes(limits))
    except Unreadable as error:
        parsed.incomplete(str(error))
        return parsed
    parsed.problems += found.remarks
    for manifest in found.objects:
        _take(manifest.value, manifest.where, parsed)
    if not found.objects:
        # Many editors and shells empty a file before they write it, so an empty file deletes nothing.
        parsed.incomplete("the file is empty; to remove an object, delete the file that defines it")
    return parsed


def duplicate(key: ObjectKey, files: Iterable[Path]) -> SpecError:
    """The error of an object that is defined more than once, in `files`: none of the definitions counts."""
    names = " and ".join(dict.fromkeys(str(file) for file in files))
    return SpecError(
        "metadata.name",
        f"{key} is defined more than once, in {names}; remove all but one",
        reason=Reason.DUPLICATE_OBJECT,
    )


def file_bytes(limits: Limits) -> int:
    """Size limit of a file: a few objects of the maximum size, many of the usual size."""
    return limits.spec_bytes * 8


_CONVERTIBLE: Final = frozenset({"WasmPlugin", "TrafficExtension", "EnvoyExtensionPolicy"})
"""Kinds of other projects (`convert/dispatch.py`). Only EnvoyFilters with remote Wasm can be converted."""


def _take(document: dict[str, Any], where: str, parsed: Parsed) -> None:
    kind, version = document["kind"], str(document.get("apiVersion", ""))
    if kind == "Secret" and version == "v1":
        _take_secret(document, where, parsed)
    elif kind == KIND and version == API_VERSION:
        key = _key(document, where, parsed)
        if key is not None:
            parsed.autowasms.append((key, document))
    elif version.partition("/")[0] == GROUP or kind.lower() == KIND.lower():
        found = f"of {shown(version)}" if version else "without apiVersion"
        parsed.incomplete(
            f"{where}: this version supports {KIND} of {API_VERSION}, not {shown(kind)} {found}"
        )
    elif version:
        remedy = "; `wasmc convert -f FILE` makes AutoWasms of it" if kind in _CONVERTIBLE else ""
        parsed.problems.append(
            f"{where}: kind {shown(kind)} ({shown(version)}) is not supported by wasmer{remedy}"
        )
    else:
        parsed.incomplete(f"{where}: apiVersion is missing, and kind is {shown(kind)}")


def _key(document: dict[str, Any], where: str, parsed: Parsed) -> ObjectKey | None:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or metadata.get("name") is None:
        parsed.incomplete(f"{where}: metadata.name is missing")
        return None
    name, namespace = metadata["name"], metadata.get("namespace") or DEFAULT_NAMESPACE
    wrong = len(parsed.problems)
    if not isinstance(name, str) or not _NAME.match(name):
        parsed.incomplete(
            f"{where}: metadata.name must be a DNS name in lower case, not {shown(name)}"
        )
    if not isinstance(namespace, str) or not _NAMESPACE.match(namespace):
        parsed.incomplete(
            f"{where}: metadata.namespace must be a DNS label in lower case, not {shown(namespace)}"
        )
    if len(parsed.problems) > wrong:
        return None
    if len(namespace) + len(name) > _MAX_KEY_LENGTH:
        parsed.incomplete(
            f"{where}: metadata.name and namespace together are longer than {_MAX_KEY_LENGTH} characters: "
            "the name of their file would be too long"
        )
    else:
        return ObjectKey(namespace, name)
    return None


def _take_secret(document: dict[str, Any], where: str, parsed: Parsed) -> None:
    key = _key(document, where, parsed)
    if key is None:
        return
    encoded, plain = document.get("data") or {}, document.get("stringData") or {}
    for part, values in (("data", encoded), ("stringData", plain)):
        if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
            # A number would differ from the password as written: 0123 is 83.
            parsed.incomplete(f"{where}: every value under {part} must be text; put it in quotes")
            return
    try:
        # As Kubernetes does it: line ends in base64 are ignored.
        data = {
            name: base64.b64decode(re.sub(r"[\r\n]", "", value), validate=True)
            for name, value in encoded.items()
        }
    except (binascii.Error, ValueError):
        parsed.incomplete(
            f"{where}: a value under data is not base64; use stringData for plain text"
        )
        return
    data.update({name: value.encode() for name, value in plain.items()})
    written = (document.get("metadata") or {}).get("annotations")
    pairs = written.items() if isinstance(written, dict) else ()
    annotations = {str(name): value for name, value in pairs if isinstance(value, str)}
    kind = str(document.get("type") or "Opaque")
    parsed.secrets.append((key, Secret(kind, data, annotations)))
