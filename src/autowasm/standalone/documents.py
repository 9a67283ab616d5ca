"""From the text of one file to the documents in it. Pure.

Not the check of a spec (`api/parsing.py`). Invariant: whatever the text, the outcome is documents and problems, never an
exception; names and namespaces are DNS names, so they are safe as file names.
"""

import base64
import binascii
import itertools
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from autowasm.api.v1alpha1 import API_VERSION, GROUP, KIND
from autowasm.kube.resources import ObjectKey
from autowasm.settings import Limits

DEFAULT_NAMESPACE = "default"
_DOCUMENTS_MOST = 1_000
"""Documents of one file."""
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class Secret:
    """A `kind: Secret` document. Values are never shown."""

    type: str
    data: Mapping[str, bytes] = field(repr=False)


@dataclass(slots=True)
class Parsed:
    """What one file holds. `broken` if it could not be read to its end: what it should define is not known."""

    autowasms: list[tuple[ObjectKey, dict[str, Any]]] = field(default_factory=list)
    secrets: list[tuple[ObjectKey, Secret]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    broken: bool = False

    def incomplete(self, problem: str) -> None:
        """What is not understood may be half of what it will be: the file says nothing for now."""
        self.broken = True
        self.problems.append(problem)


class _Loader(yaml.SafeLoader):
    """Safe, timestamps stay text, keys twice are an error, aliases are not offered (they make bombs)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(
                None, None, "aliases (*name) are not supported", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, Hashable) else id(key))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: str, *, limits: Limits) -> Parsed:
    """Read every document of a file. A syntax error makes the whole file `broken`: what stands after it is unknown."""
    parsed = Parsed()
    if len(text) > limits.spec_bytes * 8:
        parsed.incomplete(f"it is larger than {limits.spec_bytes * 8} characters")
        return parsed
    try:
        documents = list(itertools.islice(_load(text), _DOCUMENTS_MOST + 1))
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        parsed.incomplete(" ".join(str(error).split())[:500] or "not YAML")
        return parsed
    if len(documents) > _DOCUMENTS_MOST:
        parsed.incomplete(f"it holds more than {_DOCUMENTS_MOST} documents")
        return parsed
    for number, document in enumerate(documents, 1):
        _take(document, number, parsed)
    if all(document is None for document in documents):
        # Many editors and shells empty a file before they write it: not a wish to delete.
        parsed.incomplete("it is empty; to delete what it defined, delete the file")
    return parsed


def _load(text: str) -> Iterator[Any]:
    yield from yaml.load_all(text, Loader=_Loader)  # a SafeLoader


def _take(document: Any, number: int, parsed: Parsed) -> None:
    if document is None:
        return
    where = f"document {number}"
    if not isinstance(document, dict):
        parsed.incomplete(f"{where} is not an object")
        return
    kind, version = document.get("kind"), str(document.get("apiVersion"))
    if (kind, version) == ("Secret", "v1"):
        _take_secret(document, where, parsed)
    elif kind == KIND and version == API_VERSION:
        key = _key(document, where, parsed)
        if key is not None:
            parsed.autowasms.append((key, document))
    elif version.partition("/")[0] == GROUP:
        parsed.incomplete(
            f"{where}: this version reads {KIND} of {API_VERSION}, not {kind} of {version}"
        )
    else:
        understood = kind and "apiVersion" in document
        report = parsed.problems.append if understood else parsed.incomplete
        report(f"{where}: kind {kind} ({version}) is not for wasmer")


def _key(document: dict[str, Any], where: str, parsed: Parsed) -> ObjectKey | None:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    namespace = (
        metadata.get("namespace") if isinstance(metadata, dict) else None
    ) or DEFAULT_NAMESPACE
    if not isinstance(name, str) or not _NAME.match(name):
        parsed.incomplete(f"{where}: metadata.name must be a DNS name in lower case, not {name!r}")
        return None
    if not isinstance(namespace, str) or not _NAMESPACE.match(namespace):
        parsed.incomplete(
            f"{where}: metadata.namespace must be a DNS label in lower case, not {namespace!r}"
        )
        return None
    return ObjectKey(namespace, name)


def _take_secret(document: dict[str, Any], where: str, parsed: Parsed) -> None:
    key = _key(document, where, parsed)
    if key is None:
        return
    data: dict[str, bytes] = {}
    try:
        for name, value in (document.get("data") or {}).items():
            data[str(name)] = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError, AttributeError):
        parsed.incomplete(f"{where}: a value under data is not base64; stringData takes plain text")
        return
    plain = document.get("stringData") or {}
    if isinstance(plain, dict):
        data.update({str(name): str(value).encode() for name, value in plain.items()})
    parsed.secrets.append((key, Secret(str(document.get("type") or "Opaque"), data)))
