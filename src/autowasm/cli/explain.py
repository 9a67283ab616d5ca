"""`wasmc explain`: reports errors of a live AutoWasm from its source to its Pods, with remedies.

Invariant: nothing is written, neither to the cluster nor to a registry. The checks are in `explain/checks/`.
"""

import argparse
import asyncio
import json
import os
import shlex
import sys
from typing import Final, TypedDict

import msgspec

from autowasm.api import status
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.api.validation import parse
from autowasm.artifacts.pullsecrets import PullAccess
from autowasm.cli import clusters, findings, registries, sources
from autowasm.cli.clusters import server_of
from autowasm.cli.stdio import is_coloured, width_of
from autowasm.errors import AutoWasmError, SpecError, UsageError
from autowasm.explain import plan
from autowasm.explain.examine import examine
from autowasm.explain.facts import Facts, SourceFact, StartFact
from autowasm.explain.finding import Finding, worst
from autowasm.explain.gather import Gatherer, keys_of_all
from autowasm.kube.client import Document, KubeClient
from autowasm.kube.errors import ApiError
from autowasm.kube.resources import ObjectKey
from autowasm.net.pools import Pools
from autowasm.reasons import Reason
from autowasm.registry.credentials import Credential

_RESOLVE_TIMEOUT = 20.0
"""Seconds to resolve the source. A registry that does not answer in time is also a finding."""


_AT_ONCE: Final = 4
"""AutoWasms that are read at the same time."""

Explained = tuple[Facts, tuple[Finding, ...]]


def run(arguments: argparse.Namespace) -> int:
    """Print the report, return the exit status. Raises AutoWasmError, OSError, KeyboardInterrupt as `pushpull.run`."""
    registries.begin(arguments)
    registries.check_ca_file(arguments)
    key = _key(arguments)
    login = registries.given_login(arguments)
    try:
        if key is None:
            return _all(login, arguments)
        facts = registries.run_to_end(_facts(key, login, arguments))
    except (ApiError, ValueError) as error:
        what = key or "the AutoWasms"
        raise UsageError(f"{what} cannot be read: {error}") from error
    found = examine(facts)
    if arguments.json:
        print(json.dumps(findings.as_json(facts, found), indent=2), flush=True)
    else:
        print(findings.table(facts.name, found, **_look()), flush=True)
    return findings.exit_status(worst(found), arguments)


class _Look(TypedDict):
    width: int
    colour: bool


def _look() -> _Look:
    return _Look(width=width_of(sys.stdout), colour=is_coloured(sys.stdout))


def _key(arguments: argparse.Namespace) -> ObjectKey | None:
    """The AutoWasm of NAME or NAMESPACE/NAME; None for all. Raises UsageError."""
    name: str | None = arguments.name
    if name is None:
        return None
    if arguments.all_namespaces:
        raise UsageError("use either a NAME or --all-namespaces")
    if name.partition("/")[0] in {"aw", "autowasm", "autowasms"} and "/" in name:
        name = name.partition("/")[2]  # as in `kubectl get aw/NAME`
    namespace, slash, bare = name.rpartition("/")
    if not slash:
        return ObjectKey(clusters.namespace(arguments, os.environ), name)
    if not namespace or not bare or "/" in namespace:
        raise UsageError(f"{name[:200]}: must be NAME or NAMESPACE/NAME")
    if arguments.namespace not in {None, namespace}:
        raise UsageError(f"{name}: -n names another namespace, {arguments.namespace}")
    return ObjectKey(namespace, bare)


def _all(login: Credential | None, arguments: argparse.Namespace) -> int:
    """Explain all AutoWasms of the namespace or of the cluster; only their problems are printed."""
    namespace = None if arguments.all_namespaces else clusters.namespace(arguments, os.environ)
    explained, more = registries.run_to_end(_explain_all(namespace, login, arguments))
    if arguments.json:
        answer = [findings.as_json(*one) for one in explained]
        print(json.dumps(answer, indent=2), flush=True)
    else:
        where = f"in namespace {namespace}" if namespace else "in the cluster"
        print(findings.overview(explained, where=where, **_look()), flush=True)
    if more:
        print(f"wasmc: warning: {more} or more AutoWasms were not read; use -n", file=sys.stderr)
    return max((findings.exit_status(worst(found), arguments) for _, found in explained), default=0)


async def _explain_all(
    namespace: str | None, login: Credential | None, arguments: argparse.Namespace
) -> tuple[list[Explained], int]:
    places = asyncio.Semaphore(_AT_ONCE)

    async def explain(key: ObjectKey, client: KubeClient, pools: Pools) -> Explained | None:
        async with places:
            facts = await _facts_of(key, client, login, arguments, pools)
        return (facts, examine(facts)) if facts is not None else None

    with Pools(transfers=_AT_ONCE) as pools:
        async with clusters.connected(arguments, pools=pools) as client:
            keys, more = await keys_of_all(client, namespace)
            found = await asyncio.gather(*(explain(key, client, pools) for key in keys))
    return [one for one in found if one is not None], more


async def _facts(key: ObjectKey, login: Credential | None, arguments: argparse.Namespace) -> Facts:
    with Pools(transfers=1) as pools:
        async with clusters.connected(arguments, pools=pools) as client:
            facts = await _facts_of(key, client, login, arguments, pools)
    if facts is None:
        raise AutoWasmError(
            f"AutoWasm {key} does not exist (kubectl get aw -A lists all), or the cluster has no such kind: "
            "in that case install the CRD of AutoWasm",
            reason=Reason.NOT_FOUND,
        )
    return facts


async def _facts_of(
    key: ObjectKey,
    client: KubeClient,
    login: Credential | None,
    arguments: argparse.Namespace,
    pools: Pools,
) -> Facts | None:
    """The facts of one AutoWasm; None if it does not exist."""
    gatherer = Gatherer(client, key, envoy=clusters.envoy(arguments), server_of=server_of)
    document = await gatherer.autowasm()
    if document is None:
        return None
    discovery = await gatherer.discover()
    base = _base(key, document)
    autowasm = base.autowasm
    if autowasm is not None:
        secret, access = await gatherer.access(autowasm, discovery.server)
        base = msgspec.structs.replace(base, secret=secret)
        if arguments.no_source:
            gatherer.missed("source", "--no-source")
        elif autowasm.image is None and not arguments.fetch:
            gatherer.missed("source", "an object is fetched from this machine only with --fetch")
        else:
            found = await _resolve(autowasm, access, login, arguments, pools)
            base = msgspec.structs.replace(base, source=found)
        if discovery.live is not None:
            wanted = plan.desired_now(autowasm, discovery.live, base.status, discovery.server.envoy)
            base = msgspec.structs.replace(base, desired=wanted)
    return await gatherer.facts(discovery, base)


async def _resolve(
    autowasm: AutoWasm,
    access: PullAccess,
    login: Credential | None,
    arguments: argparse.Namespace,
    pools: Pools,
) -> SourceFact:
    """Resolve the source from this machine, for at most `_RESOLVE_TIMEOUT` seconds unless --fetch is given."""
    try:
        async with asyncio.timeout(None if arguments.fetch else _RESOLVE_TIMEOUT):
            return await sources.resolve(
                autowasm, access, login, arguments, pools=pools, fetch=arguments.fetch
            )
    except TimeoutError:
        problem = f"no answer within {_RESOLVE_TIMEOUT:g} s"
        return SourceFact(kind="SourceUnavailable", reason=Reason.TIMEOUT, problem=problem)


def _base(key: ObjectKey, document: Document) -> Facts:
    reported = status.read(document.get("status"))
    start = _start(key, reported)
    try:
        autowasm = parse(document)
    except SpecError as error:
        return Facts(key=key, document=document, spec_error=error, status=reported, start=start)
    return Facts(key=key, document=document, autowasm=autowasm, status=reported, start=start)


def _start(key: ObjectKey, reported: status.Status) -> StartFact | None:
    """The condition `Starts`, with a command that repeats the start on this machine."""
    condition = reported.condition(status.ConditionType.STARTS)
    if condition is None:
        return None
    show = shlex.join(["kubectl", "get", "autowasm", key.name, "-n", key.namespace, "-o", "yaml"])
    return StartFact(
        status=condition.status,
        reason=condition.reason,
        message=condition.message,
        command=f"{show} | wasmc run -f -",
    )
