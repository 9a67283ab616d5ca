"""SourcePolicy: which sources the AutoWasms of a namespace may use, from the operator's policy file.

PolicyFile follows the file. `check_mesh_scope` checks mesh-wide selectors, and `warn_of_refused` reports published modules whose
hosts the address policy refuses (ADR 0031). The address policy (`net/addresspolicy.py`) is separate and also applies. Invariants:
with a policy, a namespace without a rule may use no source; exactly one rule applies to a namespace: the rule with its name, else
the matching pattern with the most literal characters, else `*`; a refusal names its rule.
"""

import asyncio
import contextlib
import fnmatch
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec
import structlog
import watchfiles
from msgspec import Struct

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm, Rollout
from autowasm.api.validation import AUTOWASM
from autowasm.controller import rolloutpolicy
from autowasm.controller.rolloutpolicy import MinimumRollout
from autowasm.errors import AddressBlocked, SpecError, UsageError
from autowasm.limits import Limits
from autowasm.manifests import nodes, structs
from autowasm.manifests.fielderrors import MAX_FIELD_ERRORS, Schema, Vocabulary
from autowasm.manifests.structs import Misfit
from autowasm.net.addresspolicy import AddressPolicy, Purpose
from autowasm.net.hosts import matches_host, names_host, split_port
from autowasm.net.pools import Pool, Pools
from autowasm.net.proxy import Proxy, ProxyRules, written_addresses
from autowasm.reasons import Reason
from autowasm.reference import DOCKER_HUB, ImageReference
from autowasm.registry.credentials import normalize_host
from autowasm.settings import Cluster, Outgoing, PreflightMode, Settings
from autowasm.text import shown, without_secrets


def check_mesh_scope(autowasm: AutoWasm, *, cluster: Cluster) -> None:
    """Raises SpecError (`MeshWideNotAllowed`) for an empty selector in the root namespace, which selects the whole mesh. Pure.

    The result depends on the mesh's root namespace and on the operator's settings, not on the object alone.
    """
    everywhere = (
        autowasm.metadata.namespace == cluster.root_namespace
        and not autowasm.spec.selector.match_labels
    )
    if everywhere and not cluster.allow_mesh_wide:
        raise SpecError(
            "spec.selector.matchLabels",
            f"is empty in the mesh's root namespace ({cluster.root_namespace}), so it selects every workload of the "
            "mesh; add labels, or start wasmer with --allow-mesh-wide",
            reason=Reason.MESH_WIDE_NOT_ALLOWED,
        )


REASON: Final = Reason.POLICY_DENIED


class Rule(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One entry of `namespaces`. An absent list allows everything, an empty list nothing."""

    registries: tuple[str, ...] | None = None
    """`HOST[:PORT][/PREFIX]`; a prefix ends at a `/` of the repository's name."""
    objects: tuple[str, ...] | None = None
    """`HOST[:PORT]` of the URL and of every redirect."""
    digest_required: bool = False
    """Images by `@sha256:`, or `spec.filter.sha256`; objects by `spec.filter.sha256`."""
    preflight: PreflightMode | None = None
    """None: as `--preflight`."""
    allow_preflight_override: bool | None = None
    """Whether the annotation of an AutoWasm may name a weaker mode. None: as `--allow-preflight-override`."""
    rollout: Rollout | None = None
    """The rollout of AutoWasms without `spec.rollout`."""
    minimum_rollout: MinimumRollout | None = None
    """The minimum care of `spec.rollout`."""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    namespaces: dict[str, Rule]


_FILE: Final = msgspec.json.Decoder(_File)
_SCHEMA: Final = Schema(
    _File,
    Vocabulary(
        expected={
            "namespaces": 'a mapping from the names of namespaces, or "*", to rules; {} allows nothing',
            "namespaces[*]": "a mapping with registries, objects, digestRequired or preflight; {} allows every source",
            "namespaces[*].registries": "a list such as [registry.example/team]; [] allows none",
            "namespaces[*].registries[]": "a string, HOST[:PORT][/PREFIX]",
            "namespaces[*].objects": "a list such as [objects.example]; [] allows none",
            "namespaces[*].objects[]": "a string, HOST[:PORT]",
            **{
                path.replace("spec.", "namespaces[*].", 1): words
                for path, words in AUTOWASM.expected.items()
                if path.startswith("spec.rollout")
            },
            "namespaces[*].minimumRollout.firstStep": AUTOWASM.expected["spec.rollout.steps[]"],
            "namespaces[*].minimumRollout.pause": AUTOWASM.expected["spec.rollout.pause"],
            "namespaces[*].minimumRollout.maxFailureRatio": AUTOWASM.expected[
                "spec.rollout.maxFailureRatio"
            ],
        },
        meant={
            "namespaces[*].images": "namespaces[*].registries",
            "namespaces[*].urls": "namespaces[*].objects",
        },
        formats=frozenset(
            {
                "namespaces[*].rollout.pause",
                "namespaces[*].rollout.deadline",
                "namespaces[*].minimumRollout.pause",
            }
        ),
    ),
)


@dataclass(frozen=True)
class SourcePolicy:
    """The rules by namespace or pattern (`team-*`, `*`). Pure."""

    rules: tuple[tuple[str, Rule], ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse YAML or JSON. Raises a UsageError that names all mistakes."""
        try:
            nodes.check_keys(nodes.decoded(data))
            document = msgspec.yaml.decode(data)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise UsageError(f"--policy-file: {error}") from error
        try:
            file = structs.convert(document, _FILE)
        except (Misfit, UnicodeEncodeError) as error:
            found = _SCHEMA.find(document).errors
            told = "; ".join(f"{each.path}: {each.problem}" for each in found) or str(error)
            raise UsageError(f"--policy-file: {told}") from error
        policy = cls(tuple(file.namespaces.items()))
        wrong = [*islice(policy._wrong_entries(), MAX_FIELD_ERRORS)]
        if wrong:
            raise UsageError(f"--policy-file: {'; '.join(wrong)}")
        return policy

    @cached_property
    def _exact(self) -> dict[str, Rule]:
        return dict(self.rules)

    @cached_property
    def _patterns(self) -> list[tuple[str, Rule]]:
        """The patterns, the most specific one first."""
        patterns = [(name, rule) for name, rule in self.rules if set(name) & set("*?[")]
        return sorted(patterns, key=lambda one: (-sum(c not in "*?[]" for c in one[0]), one[0]))

    def rule_for(self, namespace: str) -> tuple[str, Rule] | None:
        """The rule that applies, with its name or pattern."""
        if namespace in self._exact:
            return namespace, self._exact[namespace]
        matching = (one for one in self._patterns if fnmatch.fnmatchcase(namespace, one[0]))
        return next(matching, None)

    def object_hosts(self, namespace: str) -> tuple[str, ...] | None:
        """The hosts that objects and their redirects may use; None: any."""
        found = self.rule_for(namespace)
        return found[1].objects if found is not None else ()

    def check(self, autowasm: AutoWasm) -> None:
        """Raises SpecError (`PolicyDenied`) if the namespace's rule forbids the source."""
        namespace = autowasm.metadata.namespace
        found = self.rule_for(namespace)
        if found is None:
            raise _denied(
                "", f"no rule matches namespace {namespace}", "add a rule for it or for `*`"
            )
        name, rule = found
        rolloutpolicy.check(name, autowasm, rule.minimum_rollout)
        spec = autowasm.spec.filter
        if autowasm.image is not None:
            _check_image(name, rule, autowasm.image, pinned=spec.sha256 is not None)
        elif spec.source.object is not None:
            _check_object(name, rule, spec.source.object.url, pinned=spec.sha256 is not None)

    def _wrong_entries(self) -> Iterator[str]:
        for name, rule in self.rules:
            try:
                rolloutpolicy.check_rule(name, rule.rollout, rule.minimum_rollout)
            except UsageError as error:
                yield str(error).removeprefix("--policy-file: ")
            for field, entries in (("registries", rule.registries), ("objects", rule.objects)):
                for index, entry in enumerate(entries or ()):
                    problem = _entry_problem(entry, may_have_path=field == "registries")
                    if problem:
                        yield f"namespaces[{shown(name)}].{field}[{index}]: {problem}"


def _entry_problem(entry: str, *, may_have_path: bool) -> str:
    """Why an entry of a list is not valid; empty if it is."""
    form = "HOST[:PORT][/PREFIX]" if may_have_path else "HOST[:PORT]"
    name = shown(without_secrets(entry))
    if "://" in entry:
        return f"{name!r} is not {form}; remove the scheme"
    if not entry or any(c.isspace() or c in "@?#" for c in entry):
        return f"{name.rpartition('@')[2]!r} is not {form}"
    _, port = split_port(entry.partition("/")[0])
    if port and not 1 <= int(port[:9]) <= 65535:
        return f"the port of {shown(entry)!r} must be from 1 to 65535"
    if "/" in entry and not may_have_path:
        return f"{shown(entry)!r} must be HOST[:PORT], without a path"
    return ""


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
        f"denied by the operator's policy (wasmer --policy-file): {problem}; {remedy}, or ask the operator of wasmer",
        reason=REASON,
    )


_log = structlog.get_logger(__name__)

_RESCAN_MS = 5_000
"""The interval of checks, for file systems that report no changes."""
_CONFIRM_AFTER = 0.3
"""Seconds until a change is checked again: editors and copying tools write in parts."""
_LOST_PAUSE = 1.0


class PolicyFile:
    """The operator's policy file. Call `load` once, then `run`. Without a file every source is allowed.

    Invariants: an unreadable file at start ends the program, so wasmer never runs without a requested policy; a file that becomes
    unreadable or invalid later leaves the last good policy in force (ADR 7); a change takes effect when two checks show the same
    content, so a partial file is never a policy.
    """

    def __init__(self, path: Path | None, *, limits: Limits, pools: Pools) -> None:
        self._path = path
        self._limit = limits.spec_bytes
        self._disk = pools.disk
        self._content = b""
        self._refused: bytes | None = None
        self._problem = ""
        self.policy: SourcePolicy | None = None

    async def load(self) -> None:
        """Raises UsageError if the file is unreadable or invalid."""
        if self._path is None:
            return
        try:
            self._content = await self._disk.run(_read, self._path, self._limit)
        except OSError as error:
            raise UsageError(
                f"--policy-file {self._path}: cannot be read: {error.strerror or error}"
            ) from error
        self.policy = SourcePolicy.parse(self._content)

    def preflight(self, namespace: str, settings: Settings) -> tuple[PreflightMode, bool]:
        """The mode of pre-flights in a namespace, and whether annotations may weaken it."""
        found = self.policy.rule_for(namespace) if self.policy is not None else None
        mode, may_weaken = settings.preflight, settings.allow_preflight_override
        if found is not None:
            rule = found[1]
            mode = rule.preflight or mode
            if rule.allow_preflight_override is not None:
                may_weaken = rule.allow_preflight_override
        return mode, may_weaken

    def with_rollout(self, autowasm: AutoWasm) -> AutoWasm:
        """The AutoWasm with its namespace's default rollout, if it has none of its own."""
        namespace = autowasm.metadata.namespace
        found = self.policy.rule_for(namespace) if self.policy is not None else None
        if found is None:
            return autowasm
        rule = found[1]
        return rolloutpolicy.with_default(autowasm, rule.rollout, rule.minimum_rollout)

    def check(self, autowasm: AutoWasm) -> None:
        """Raises SpecError (`PolicyDenied`)."""
        if self.policy is not None:
            self.policy.check(autowasm)

    def object_hosts(self, namespace: str) -> tuple[str, ...] | None:
        """Hosts of objects and their redirects; None: any."""
        return self.policy.object_hosts(namespace) if self.policy is not None else None

    async def run(self, changed: Callable[[], None]) -> None:
        """Follow the file forever; call `changed` when another policy is in force."""
        if self._path is None:
            return
        while True:
            try:
                await self._follow(self._path, changed)
            except (OSError, RuntimeError) as error:  # RuntimeError: inotify is unavailable
                self._report(str(error))
                await asyncio.sleep(_LOST_PAUSE)
                await self._reload(self._path, changed)

    async def _follow(self, path: Path, changed: Callable[[], None]) -> None:
        """Watch the directory, not the file: a ConfigMap's file is a symlink to a symlink that is swapped."""
        changes = watchfiles.awatch(
            path.parent, rust_timeout=_RESCAN_MS, yield_on_timeout=True, recursive=False
        )
        async with contextlib.aclosing(changes):
            async for _ in changes:
                await self._reload(path, changed)

    async def _reload(self, path: Path, changed: Callable[[], None]) -> None:
        try:
            content = await self._disk.run(_read, path, self._limit)
            if content in {self._content, self._refused}:
                return
            await asyncio.sleep(_CONFIRM_AFTER)
            if await self._disk.run(_read, path, self._limit) != content:
                return  # still changing: wait for the next check
            policy = SourcePolicy.parse(content)
        except OSError as error:
            self._report(error.strerror or str(error))
            return
        except UsageError as error:
            self._refused = content
            self._report(str(error))
            return
        self._content, self._refused, self._problem, self.policy = content, None, "", policy
        _log.info("policy loaded", rules=len(policy.rules))
        changed()

    def _report(self, problem: str) -> None:
        """Log a problem once."""
        if problem != self._problem:
            _log.error("policy file rejected, the previous policy stays in force", error=problem)
        self._problem = problem


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"larger than {limit} bytes")
    return content


_AT_ONCE: Final = 4
"""Concurrent lookups: half of the names pool, which fetches also use."""

Host = tuple[Purpose, str, int]


async def warn_of_refused(
    records: Iterable[Record],
    *,
    outgoing: Outgoing,
    names: Pool,
    timeout: float,
    resolver: Callable[..., Any] = socket.getaddrinfo,
) -> None:
    """Log one warning for each refused host. `timeout` in seconds, for one lookup; a name without an answer is skipped.

    A published module needs no registry while a replica has it, so an upgrade that lacks the necessary flag would fail only when
    the last cache is lost. Invariants: names are resolved and no connection is made; no published module changes.
    """
    policy = AddressPolicy.of(outgoing)
    proxies = ProxyRules(Proxy.parse(outgoing.proxy) if outgoing.proxy else None, outgoing.no_proxy)
    counts = Counter(host for record in records if (host := _host_of(record, outgoing)) is not None)
    places = asyncio.Semaphore(_AT_ONCE)

    async def addresses(purpose: Purpose, host: str, port: int) -> list[str]:
        if purpose is Purpose.REGISTRY and proxies.proxy_for(host, port) is not None:
            return list(written_addresses(host))
        async with places, asyncio.timeout(timeout):
            found = await names.run(resolver, host, port, type=socket.SOCK_STREAM)
        return [str(address[0]) for *_, address in found]

    async def check(where: Host, modules: int) -> None:
        purpose, host, port = where
        refused: AddressBlocked | None = None
        try:
            for address in await addresses(purpose, host, port):
                try:
                    policy.check(address, purpose=purpose, host=host, port=port)
                except AddressBlocked as error:
                    refused = error
                else:
                    return  # one allowed address is enough
        except (OSError, UnicodeError):  # TimeoutError is an OSError
            return
        if refused is not None:
            _log.warning(
                "another fetch of published modules would be denied",
                host=host,
                port=port,
                modules=modules,
                error=str(refused),
            )

    async with asyncio.TaskGroup() as checks:
        for where, modules in counts.items():
            checks.create_task(check(where, modules), name=f"address of {where[1]}")


def _host_of(record: Record, outgoing: Outgoing) -> Host | None:
    """The host to fetch the module from; None for an invalid record, and for Docker Hub, which is public."""
    try:
        if record.url:
            parts = urlsplit(record.url)
            port = parts.port or (80 if parts.scheme.lower() == "http" else 443)
            return (Purpose.OBJECT, parts.hostname, port) if parts.hostname else None
        host = ImageReference.parse(record.image).host
    except ValueError:
        return None
    if host == DOCKER_HUB:
        return None
    name, port_ = split_port(host)
    default = 80 if names_host(outgoing.plain_http, host) else 443
    return Purpose.REGISTRY, name.strip("[]"), int(port_ or default)
