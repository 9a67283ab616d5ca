"""`wasmc plan`: the EnvoyFilters that wasmer would write for the AutoWasms of a file, and their effect.

Invariants: nothing is written; a file that cannot be parsed to its end is refused as a whole. The checks are in
`explain/checks/`.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import UNSET

from autowasm.api import pluginconfig, status
from autowasm.api.envoyfilter import render
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.api.validation import parse
from autowasm.artifacts.pullsecrets import PullAccess
from autowasm.cli import clusters, findings, registries, sources, stdio
from autowasm.cli.clusters import server_of
from autowasm.cli.judging import judged
from autowasm.cli.options import offered
from autowasm.cli.stdio import is_coloured, is_stdin, width_of
from autowasm.controller.sourcepolicy import PolicyFile
from autowasm.errors import SpecError, UsageError
from autowasm.explain import plan as plans
from autowasm.explain.examine import examine
from autowasm.explain.facts import Facts, ServerFact, StartFact
from autowasm.explain.finding import Finding, worst
from autowasm.explain.gather import Discovery, Gatherer
from autowasm.explain.plan import Plan, with_any_rollout
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import ApiError
from autowasm.kube.resources import ObjectKey
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.preflight.verdicts import plugin_of
from autowasm.reasons import Reason
from autowasm.registry.credentials import Credential
from autowasm.sandbox.plugin import Plugin
from autowasm.standalone import documents

_PODS_NAMED: Final = 5
_DIFF_COLOURS: Final = {"+": "32", "-": "31", "@": "36"}
_ACTIONS: Final = {
    "create": "would be created",
    "replace": "would be changed",
    "unchanged": "would not be changed",
    "refused": "would not be written: see the findings below",
    "unknown": "cannot be planned: the module of the source is not known",
}
_CLUSTER: Final = (
    "envoyfilter",
    "envoyfilters",
    "pods",
    "services",
    "namespaces",
    "networkpolicies",
    "wasmer service",
    "wasmer pods",
    "wasmer endpoints",
    "mesh",
)

Planned = tuple[Facts, Plan, tuple[Finding, ...]]


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """An AutoWasm of the file; `problem`: an error of the file about it, such as a duplicate."""

    key: ObjectKey
    document: dict[str, Any]
    problem: SpecError | None


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, return the exit status. Raises AutoWasmError, OSError, KeyboardInterrupt as `pushpull.run`."""
    registries.begin(arguments)
    registries.check_ca_file(arguments)
    arguments.file = _given_file(arguments)
    if is_stdin(arguments.file) and arguments.password_stdin:
        raise UsageError(
            f"-f {arguments.file} and --password-stdin: only one can be read from standard input"
        )
    login = registries.given_login(arguments)
    desired = _read(arguments)
    try:
        planned = registries.run_to_end(_plan_all(desired, login, arguments))
    except (ApiError, ValueError) as error:
        raise UsageError(
            f"the cluster cannot be queried: {error}; use --offline to plan without a cluster"
        ) from error
    if arguments.json:
        answer = [plan_json(*one) for one in planned]
        print(json.dumps(answer, indent=2), flush=True)
    else:
        width, colour = width_of(sys.stdout), is_coloured(sys.stdout)
        texts = [plan_text(*one, width=width, colour=colour) for one in planned]
        print("\n\n".join(texts), flush=True)
    return max(findings.exit_status(worst(found), arguments) for _, _, found in planned)


def _given_file(arguments: argparse.Namespace) -> Path:
    """The file or folder, with -f or without. Raises UsageError."""
    given: list[Path] = [each for each in (arguments.file, arguments.path) if each is not None]
    if len(given) > 1:
        raise UsageError(f"-f {given[0]} and {given[1]}: give one file or folder")
    if not given:
        raise UsageError("no file is given: wasmc plan -f FILE|DIR")
    return given[0]


def _read(arguments: argparse.Namespace) -> list[PlannedObject]:
    """The AutoWasms of the file, or of the files of a folder, as `wasmer standalone` reads them. Raises UsageError."""
    files = stdio.manifest_files(arguments.file)
    parsed = [(file, _parsed(file)) for file in files]
    problems = [f"-f {file}: {'; '.join(one.problems)}" for file, one in parsed if one.broken]
    if problems:
        raise UsageError("; ".join(problems))
    if not any(one.autowasms for _, one in parsed):
        more = "".join(f"; {problem}" for _, one in parsed for problem in one.problems)
        what = "file contains" if files == [arguments.file] else "files of the folder contain"
        raise UsageError(f"-f {arguments.file}: the {what} no AutoWasm{more}")
    default = clusters.namespace(arguments, os.environ) if not arguments.offline else "default"
    result: dict[ObjectKey, PlannedObject] = {}
    places: dict[ObjectKey, Path] = {}
    for file, one in parsed:
        for problem in one.problems:
            print(f"wasmc: warning: -f {file}: {problem}", file=sys.stderr)
        for found, document in one.autowasms:
            metadata = document["metadata"]
            namespace = metadata.get("namespace") or arguments.namespace or default
            placed = {**document, "metadata": {**metadata, "namespace": namespace}}
            key = ObjectKey(namespace, found.name)
            twice = documents.duplicate(key, [places[key], file]) if key in places else None
            places.setdefault(key, file)
            result[key] = PlannedObject(key, placed, twice)
    return list(result.values())


def _parsed(path: Path) -> documents.Parsed:
    limits = Limits()
    content = stdio.manifest_content(path, most=documents.file_bytes(limits))
    return documents.parse(content, limits=limits)


async def _plan_all(
    desired: list[PlannedObject],
    login: Credential | None,
    arguments: argparse.Namespace,
) -> list[Planned]:
    with Pools(transfers=1) as pools:
        policy = PolicyFile(arguments.policy_file, limits=Limits(), pools=pools)
        await policy.load()
        planner = _Planner(login, arguments, pools, policy)
        if arguments.offline:
            return [await planner.plan(each, None) for each in desired]
        async with clusters.connected(arguments, pools=pools) as client:
            return [await planner.plan(each, client) for each in desired]


@dataclass(frozen=True, slots=True)
class _Planner:
    login: Credential | None
    arguments: argparse.Namespace
    pools: Pools
    policy: PolicyFile

    async def plan(self, desired: PlannedObject, client: KubeClient | None) -> Planned:
        """Plan one AutoWasm; `client` None: offline."""
        key = desired.key
        gatherer, live = None, None
        envoy = clusters.envoy(self.arguments)
        discovery = Discovery(ServerFact(envoy=envoy), None, None, ())
        if client is not None:
            gatherer = Gatherer(client, key, envoy=envoy, server_of=server_of)
            live = await gatherer.autowasm()
            discovery = await gatherer.discover()
            desired = replace(desired, document=pluginconfig.document_as_stored(desired.document))
        base = _base(desired, live, self.policy)
        autowasm, plan = base.autowasm, Plan(action="unknown")
        if autowasm is not None:
            access = PullAccess()
            if gatherer is not None:
                secret, access = await gatherer.access(autowasm, discovery.server)
                base = msgspec.structs.replace(base, secret=secret)
            started = _Start(autowasm, key, discovery.server, self.arguments, self.pools)
            found = await sources.resolve(
                autowasm,
                access,
                self.login,
                self.arguments,
                pools=self.pools,
                fetch=True,
                use=started.judge,
            )
            kept = plans.record_kept(autowasm, discovery.live, base.status)
            plan = plans.make(
                with_any_rollout(autowasm) if base.unknown_rollout else autowasm,
                document=base.document,
                live=discovery.live,
                record=kept or found.record,
                envoy=discovery.server.envoy,
            )
            is_planned = kept is None or kept.sha256 == started.sha256
            base = msgspec.structs.replace(
                base,
                source=found,
                desired=plan.after,
                start=started.fact if is_planned else None,
            )
        if gatherer is not None:
            facts = await gatherer.facts(discovery, base)
        else:
            unread = dict.fromkeys(_CLUSTER, "--offline")
            facts = msgspec.structs.replace(base, server=discovery.server, unread=unread)
        return facts, plan, examine(facts)


class _Start:
    """The verdict on the fetched module, with the plugin that Envoy would get."""

    def __init__(
        self,
        autowasm: AutoWasm,
        key: ObjectKey,
        server: ServerFact,
        arguments: argparse.Namespace,
        pools: Pools,
    ) -> None:
        self._autowasm = autowasm
        self._key = key
        self._envoy = server.envoy
        self._arguments = arguments
        self._pools = pools
        self.sha256 = ""
        self.fact: StartFact | None = None

    async def judge(self, record: Record, module: Path) -> None:
        """Run the module."""
        self.sha256 = record.sha256
        plugin = plugin_of(render(self._autowasm, record, self._envoy))
        status, reason, message = await self._pools.parsing.run(
            _judge, module, plugin, self._arguments
        )
        command = shlex.join(
            ["wasmc", "run", "-f", str(self._arguments.file), "--name", self._key.name]
        )
        self.fact = StartFact(status=status, reason=reason, message=message, command=command)


def _judge(module: Path, plugin: Plugin, arguments: argparse.Namespace) -> tuple[str, Reason, str]:
    return judged(module.read_bytes(), plugin, offered(arguments))


def _base(desired: PlannedObject, live: Mapping[str, Any] | None, policy: PolicyFile) -> Facts:
    """The document as the API server would return it after an apply, with the live object's uid, generation and status.

    The AutoWasm has the policy's rollout if it has none of its own.
    """
    key, document = desired.key, desired.document
    merged = document
    if live is not None:
        own = live.get("metadata") or {}
        changed = live.get("spec") != document.get("spec")
        metadata = {
            **document["metadata"],
            "uid": own.get("uid", ""),
            "generation": int(own.get("generation", 0)) + changed,
        }
        merged = {**document, "metadata": metadata, "status": live.get("status")}
    reported = status.read(merged.get("status"))
    try:
        if desired.problem is not None:
            raise desired.problem
        autowasm: AutoWasm = policy.with_rollout(parse(merged))
        policy.check(autowasm)
    except SpecError as error:
        return Facts(key=key, planned=True, document=merged, spec_error=error, status=reported)
    return Facts(
        key=key,
        planned=True,
        document=merged,
        autowasm=autowasm,
        status=reported,
        unknown_rollout=policy.policy is None and _has_default_rollout(desired.document, live),
    )


def _has_default_rollout(document: Mapping[str, Any], live: Mapping[str, Any] | None) -> bool:
    """Whether wasmer rolls out the live object in steps that neither the live nor the new object requests."""
    specs = [(one or {}).get("spec") or {} for one in (document, live)]
    is_staged = status.read((live or {}).get("status")).rollout is not UNSET
    return is_staged and all(one.get("rollout") is None for one in specs)


def plan_text(
    facts: Facts, plan: Plan, found: Sequence[Finding], *, width: int, colour: bool
) -> str:
    """The action on the EnvoyFilter, the diff, the Pods, the findings."""
    fit = stdio.fitted(width, least=findings.MIN_WIDTH, most=findings.MAX_WIDTH)
    lines = findings.wrapped(f"{facts.envoyfilter_name} {_ACTIONS[plan.action]}", fit, "")
    if plan.diff:
        lines += ["", *(_diff_line(line, colour=colour) for line in plan.diff.splitlines())]
    lines += ["", _pods(facts), ""]
    return "\n".join(lines) + "\n" + findings.table(facts.name, found, width=width, colour=colour)


def _pods(facts: Facts) -> str:
    if "pods" in facts.unread:
        return "Pods: not checked"
    if not facts.pods:
        return "Pods: none"
    lines = [f"Pods: {len(facts.pods)}, {len(facts.injected)} of them with a proxy"]
    lines += [
        f"  {pod.where}  {'injected' if pod.proxy else 'not injected'}"
        for pod in facts.pods[:_PODS_NAMED]
    ]
    if (more := len(facts.pods) - _PODS_NAMED) > 0:
        lines.append(f"  and {more} more")
    return "\n".join(lines)


def _diff_line(line: str, *, colour: bool) -> str:
    # Our YAML writer has already escaped unprintable characters.
    code = _DIFF_COLOURS.get(line[:1]) if colour else None
    return f"\x1b[{code}m{line}\x1b[0m" if code else line


def plan_json(facts: Facts, plan: Plan, found: Sequence[Finding]) -> Mapping[str, Any]:
    """`findings.as_json` with the plan."""
    names = [
        {
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "injected": bool(pod.proxy),
        }
        for pod in facts.pods[:100]
    ]
    return {
        **findings.as_json(facts, found),
        "action": plan.action,
        "envoyFilter": plan.after,
        "live": plan.before,
        "diff": plan.diff,
        "podNames": names,
    }
