"""SourcePolicy: where the AutoWasms of a namespace may get modules from, as the operator's file says. Pure.

Not the file (`policyfile.py`) and not the address policy (`net/addresspolicy.py`), which holds beside it. Invariants: with a
policy, a namespace that no rule names may get nothing; exactly one rule counts for a namespace: the one that names it, else
the matching pattern with the most letters, else `*`; a refusal says which rule it comes from.
"""

import fnmatch
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from autowasm.api.v1alpha1 import AutoWasm
from autowasm.errors import SpecError, UsageError
from autowasm.manifests import nodes
from autowasm.net.hosts import matches_host, split_port
from autowasm.reference import ImageReference
from autowasm.registry.credentials import normalize_host

REASON: Final = "PolicyDenied"


class Rule(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One entry of `namespaces`. A list that is absent allows everything, an empty one nothing."""

    registries: tuple[str, ...] | None = None
    """`HOST[:PORT][/PREFIX]`; a prefix ends between two parts of a repository's name."""
    objects: tuple[str, ...] | None = None
    """`HOST[:PORT]`, of the URL and of every redirect."""
    digest_required: bool = False
    """Images by `@sha256:`, or `spec.filter.sha256`; objects by `spec.filter.sha256`."""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    namespaces: dict[str, Rule]


_FILE: Final = msgspec.json.Decoder(_File)


@dataclass(frozen=True)
class SourcePolicy:
    """The rules by namespace or pattern (`team-*`, `*`)."""

    rules: tuple[tuple[str, Rule], ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read YAML or JSON. Raises UsageError that says what is wrong with it."""
        try:
            nodes.check_keys(data.decode())
            file = msgspec.yaml.decode(data, type=_FILE.type)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise UsageError(f"--policy-file: {error}") from error
        policy = cls(tuple(file.namespaces.items()))
        policy._check_entries()
        return policy

    @cached_property
    def _exact(self) -> dict[str, Rule]:
        return dict(self.rules)

    @cached_property
    def _patterns(self) -> list[tuple[str, Rule]]:
        """Those that say most first."""
        patterns = [(name, rule) for name, rule in self.rules if set(name) & set("*?[")]
        return sorted(patterns, key=lambda one: (-sum(c not in "*?[]" for c in one[0]), one[0]))

    def rule_for(self, namespace: str) -> tuple[str, Rule] | None:
        """The rule that counts, with the name or pattern under which it stands."""
        if namespace in self._exact:
            return namespace, self._exact[namespace]
        matching = (one for one in self._patterns if fnmatch.fnmatchcase(namespace, one[0]))
        return next(matching, None)

    def object_hosts(self, namespace: str) -> tuple[str, ...] | None:
        """Hosts on which objects, and what they redirect to, may be; None: any."""
        found = self.rule_for(namespace)
        return found[1].objects if found is not None else ()

    def check(self, autowasm: AutoWasm) -> None:
        """Raises SpecError (`PolicyDenied`) if the namespace's rule forbids the source."""
        namespace = autowasm.metadata.namespace
        found = self.rule_for(namespace)
        if found is None:
            raise _denied(
                "", f"no rule names namespace {namespace}", "name it, or add a rule for `*`"
            )
        name, rule = found
        spec = autowasm.spec.filter
        if autowasm.image is not None:
            _check_image(name, rule, autowasm.image, pinned=spec.sha256 is not None)
        elif spec.source.object is not None:
            _check_object(name, rule, spec.source.object.url, pinned=spec.sha256 is not None)

    def _check_entries(self) -> None:
        for name, rule in self.rules:
            for entry in (*(rule.registries or ()), *(rule.objects or ())):
                if not entry or "://" in entry or any(c.isspace() or c in "@?#" for c in entry):
                    raise UsageError(
                        f"--policy-file: namespaces[{name!r}]: {entry!r} is not HOST[:PORT][/PREFIX]"
                    )
                _, port = split_port(entry.partition("/")[0])
                if port and not 1 <= int(port[:9]) <= 65535:
                    raise UsageError(
                        f"--policy-file: namespaces[{name!r}]: the port of {entry!r} must be from 1 to 65535"
                    )
            if any("/" in entry for entry in rule.objects or ()):
                raise UsageError(
                    f"--policy-file: namespaces[{name!r}].objects: hosts only, without a path"
                )


def _check_image(name: str, rule: Rule, image: ImageReference, *, pinned: bool) -> None:
    if rule.registries is not None and not any(_covers(entry, image) for entry in rule.registries):
        raise _denied(
            ".registry.image",
            f"rule {name!r} allows images from {_listed(rule.registries)}, not from {image.name}",
            "use one of these",
        )
    if rule.digest_required and not (image.is_pinned or pinned):
        raise _denied(
            ".registry.image",
            f"rule {name!r} requires a digest",
            "write the image as NAME@sha256:…, or set spec.filter.sha256",
        )


def _check_object(name: str, rule: Rule, url: str, *, pinned: bool) -> None:
    host = urlsplit(url).netloc.rpartition("@")[2].lower()
    if rule.objects is not None and not any(matches_host(entry, host) for entry in rule.objects):
        raise _denied(
            ".object.url",
            f"rule {name!r} allows objects from {_listed(rule.objects)}, not from {host}",
            "use one of these",
        )
    if rule.digest_required and not pinned:
        raise _denied(".object.url", f"rule {name!r} requires a digest", "set spec.filter.sha256")


def _covers(entry: str, image: ImageReference) -> bool:
    host, _, prefix = entry.partition("/")
    prefix = prefix.strip("/")
    if not matches_host(normalize_host(host), normalize_host(image.host)):
        return False
    return not prefix or f"{image.repository}/".startswith(f"{prefix}/")


def _listed(entries: tuple[str, ...]) -> str:
    return ", ".join(entries) or "nowhere"


def _denied(field: str, problem: str, remedy: str) -> SpecError:
    return SpecError(
        f"spec.filter.source{field}",
        f"the operator's policy (wasmer --policy-file): {problem}; {remedy}, or ask whoever runs wasmer",
        reason=REASON,
    )
