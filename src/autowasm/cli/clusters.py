"""The cluster of `wasmc explain` and `wasmc plan`: the API server, found by kubectl's rules, and wasmer's settings in it.

wasmer's own parser reads the arguments and environment of wasmer's Pods.
Invariants: nothing is written to the API server; settings that cannot be read (an older wasmer's flag, a reference to another
variable) are unknown, never an error.
"""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from autowasm.cli import wasmerflags
from autowasm.cli.interrupts import waits_for
from autowasm.cli.wasmerflags import pod_namespace
from autowasm.errors import AutoWasmError, UsageError
from autowasm.explain.facts import ServerFact
from autowasm.explain.gather import keys_of_all
from autowasm.explain.objects import Pod
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import ApiError
from autowasm.limits import KubeLimits
from autowasm.net.pools import Pools
from autowasm.registry.dockerconfig import home_of
from autowasm.settings import EnvoyFetch

_DEADLINE: Final = 15.0
"""Seconds of one call of an interactive command."""
_IN_CLUSTER: Final = "KUBERNETES_SERVICE_HOST"


def kubeconfig(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Path | None:
    """--kubeconfig, $KUBECONFIG (several, separated by colons), ~/.kube/config; None: the Pod's ServiceAccount.

    Raises UsageError, with the searched places, if none of them exists.
    """
    if arguments.kubeconfig is not None:
        given: Path = arguments.kubeconfig
        if not given.exists():
            raise UsageError(f"--kubeconfig {given}: no such file")
        return given
    if environment.get("KUBECONFIG"):
        return Path(environment["KUBECONFIG"])
    home = home_of(environment)
    searched = "no home directory: HOME is not set"
    if home is not None:
        path = home / ".kube" / "config"
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            searched = f"{path} (absent)"
        except OSError as error:
            searched = f"{path} ({error.strerror})"
        else:
            return path
    if _IN_CLUSTER in environment:
        return None
    raise UsageError(
        f"no cluster is configured: KUBECONFIG is not set; {searched}; and wasmc does not run in a Pod. Use --kubeconfig, or plan --offline"
    )


def namespace(arguments: argparse.Namespace, environment: Mapping[str, str]) -> str:
    """The namespace of -n, else that of the context, else `default`."""
    if arguments.namespace:
        return str(arguments.namespace)
    path = kubeconfig(arguments, environment)
    try:
        if path is None:
            return pod_namespace() or "default"
        return _of_context(path, arguments.context) or "default"
    except (OSError, yaml.YAMLError, AttributeError, TypeError):
        return "default"  # the client reports the error in the file


def _of_context(path: Path, wanted: str | None) -> str:
    """The context's namespace. As in kubectl, the first file with a value wins."""
    contexts: dict[str, Any] = {}
    current = wanted
    for part in str(path).split(os.pathsep):
        file = Path(part)
        if not file.exists():
            continue
        document = yaml.safe_load(file.read_text()) or {}
        current = current or document.get("current-context")
        for one in document.get("contexts") or ():
            contexts.setdefault(one["name"], one.get("context") or {})
    return str(contexts.get(current or "", {}).get("namespace") or "")


@asynccontextmanager
async def connected(arguments: argparse.Namespace, *, pools: Pools) -> AsyncIterator[KubeClient]:
    """A client of the API server. Raises UsageError without a configuration."""
    async with KubeClient(
        kubeconfig=kubeconfig(arguments, os.environ),
        context=arguments.context,
        pools=pools,
        user_agent=f"wasmc/{metadata.version('autowasm')}",
        limits=KubeLimits(call_timeout=_DEADLINE),
    ) as client:
        with waits_for("the API server"):
            yield client


def names(arguments: argparse.Namespace, *, timeout: float) -> list[str]:
    """The names of the AutoWasms of the namespace, for completion; none if they cannot be read within `timeout` seconds."""

    async def read() -> list[str]:
        async with asyncio.timeout(timeout):
            with Pools(transfers=1) as pools:
                async with connected(arguments, pools=pools) as client:
                    keys, _ = await keys_of_all(client, namespace(arguments, os.environ))
        return [key.name for key in keys]

    try:
        return asyncio.run(read())
    except (AutoWasmError, ApiError, OSError, ValueError, TimeoutError):
        return []


def envoy(arguments: argparse.Namespace) -> EnvoyFetch:
    """The Service of wasmer from the flags; the arguments of its Pods take precedence."""
    return EnvoyFetch(
        service_name=arguments.service_name,
        service_namespace=arguments.service_namespace,
        service_port=arguments.service_port,
        cluster_domain=arguments.cluster_domain,
    )


_MODE = "controller"


class _Unreadable(Exception):
    """The arguments belong to another version of wasmer."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=False, **options)

    def error(self, message: str) -> NoReturn:
        raise _Unreadable(message)


def server_of(pod: Pod) -> ServerFact | None:
    """Settings from the container that runs `wasmer controller`; None if there is none, or they cannot be read."""
    for container in pod.spec.containers:
        words = [*(container.command or ()), *(container.args or ())]
        if _MODE not in words:
            continue
        parser = _Parser()
        wasmerflags.declare(parser, _MODE)
        variables = {one.name: one.value for one in container.env or () if one.value}
        try:
            arguments = parser.parse_args(words[words.index(_MODE) + 1 :])
            arguments.mode = _MODE
            settings = wasmerflags.settings_from(
                arguments, environment=variables, pod_namespace=lambda: pod.metadata.namespace
            )
        except (_Unreadable, UsageError):
            return None
        if settings.cluster is not None:
            return ServerFact(known=True, envoy=settings.envoy, cluster=settings.cluster)
    return None
