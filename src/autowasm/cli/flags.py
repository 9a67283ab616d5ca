"""The flags of `wasmer`, their `WASMER_*` environment, and the Settings they make.

Not where a default lives (`settings.py`). Invariant: a flag wins over the environment, the environment over the default,
and a wrong value ends the program with the name of the flag and what would be right.
"""

import argparse
import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autowasm.errors import UsageError
from autowasm.settings import Cluster, EnvoyFetch, FetchLimits, Outgoing, Settings, Standalone
from autowasm.units import format_duration, format_size, parse_duration, parse_size

ENVIRONMENT_PREFIX = "WASMER_"
_DEFAULT = Settings(cache_dir=Path("/var/cache/wasmer"))


def _list(parse: Callable[[str], Any] = str) -> Callable[[str], tuple[Any, ...]]:
    """A value that may hold several, with commas."""

    def read(text: str) -> tuple[Any, ...]:
        return tuple(parse(part.strip()) for part in text.split(",") if part.strip())

    return read


def _cidr(text: str) -> str:
    return str(ipaddress.ip_network(text, strict=False))


def _number(least: int, most: int | None = None) -> Callable[[str], int]:
    wanted = f"a number of at least {least}" if most is None else f"a number from {least} to {most}"

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            raise ValueError(f"must be {wanted}, not {text[:40]!r}")
        number = int(text)
        if number < least or (most is not None and number > most):
            raise ValueError(f"must be {wanted}, not {number}")
        return number

    return read


_positive = _number(1)
_port = _number(1, 65535)


def _listen(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535 or not host:
        raise ValueError("write ADDRESS:PORT, such as [::]:8081 or 127.0.0.1:8081")
    return text


def add_common(parser: argparse.ArgumentParser) -> None:
    """The flags of both modes."""
    place = parser.add_argument_group("cache and ports")
    _flag(place, "--cache-dir", Path, "DIR", "verified modules are kept here", _DEFAULT.cache_dir)
    _flag(place, "--listen", _listen, "ADDRESS", "port that Envoy fetches from", _DEFAULT.listen)
    _flag(place, "--admin-listen", _listen, "ADDRESS", "metrics and health", _DEFAULT.admin_listen)
    _flag(
        place,
        "--disk-budget",
        parse_size,
        "SIZE",
        "the cache may grow to this",
        _DEFAULT.disk_budget,
        shown=format_size(_DEFAULT.disk_budget),
    )
    _duration(
        place, "--blob-grace", "a module stays this long after its last use", _DEFAULT.blob_grace
    )
    _duration(place, "--drain-delay", "between becoming unready and closing", _DEFAULT.drain_delay)
    _duration(
        place,
        "--startup-deadline",
        "ready after this, whatever is still missing",
        _DEFAULT.startup_deadline,
    )
    _add_envoy(parser)
    _add_outgoing(parser)
    work = parser.add_argument_group("work and logs")
    _flag(work, "--workers", _positive, "N", "reconcile workers", _DEFAULT.workers)
    _flag(
        work,
        "--max-concurrent-fetches",
        _positive,
        "N",
        "fetches at one time",
        _DEFAULT.fetch.total,
    )
    _flag(
        work,
        "--allow-import",
        _list(),
        "NAME",
        "a host function (module.name) that your Envoy offers besides the standard ones; repeatable",
        (),
        repeatable=True,
    )
    _flag(
        work,
        "--log-level",
        _choice("debug", "info", "warning", "error"),
        "LEVEL",
        "debug, info, warning or error",
        _DEFAULT.log_level,
    )
    _flag(
        work,
        "--log-format",
        _choice("json", "console"),
        "FORMAT",
        "json or console",
        _DEFAULT.log_format,
    )


def _add_envoy(parser: argparse.ArgumentParser) -> None:
    envoy = parser.add_argument_group("how sidecars reach us (a change is a rollout)")
    default = _DEFAULT.envoy
    _flag(envoy, "--service-name", str, "NAME", "our Service", default.service_name)
    _flag(envoy, "--service-namespace", str, "NAME", "its namespace", default.service_namespace)
    _flag(envoy, "--service-port", _port, "PORT", "its port", default.service_port)
    _flag(envoy, "--cluster-domain", str, "DOMAIN", "the cluster's domain", default.cluster_domain)
    _flag(envoy, "--envoy-cluster", str, "NAME", "Envoy cluster instead of the Service's", None)
    _flag(
        envoy,
        "--envoy-authority",
        str,
        "HOST:PORT",
        "host in the uri instead of the Service's",
        None,
    )
    _duration(envoy, "--envoy-fetch-timeout", "one try of Envoy's fetch", default.timeout)
    _flag(
        envoy,
        "--envoy-fetch-retries",
        _number(0),
        "N",
        "further tries of Envoy's fetch",
        default.retries,
    )


def _add_outgoing(parser: argparse.ArgumentParser) -> None:
    net = parser.add_argument_group("what fetches may reach (repeatable flags also take commas)")
    lists = (
        ("--allow-cidr", _cidr, "CIDR", "open these addresses to fetches (loopback, private)"),
        ("--deny-cidr", _cidr, "CIDR", "close these addresses to fetches; wins"),
        ("--plain-http-registry", str, "HOST[:PORT]", "a registry without TLS"),
        ("--insecure-registry", str, "HOST[:PORT]", "a registry whose certificate is not checked"),
    )
    for name, parse, metavar, text in lists:
        _flag(net, name, _list(parse), metavar, text, (), repeatable=True)
    _flag(net, "--registry-ca-file", Path, "FILE", "further certificate authorities (PEM)", None)


def add_standalone(parser: argparse.ArgumentParser) -> None:
    """The flags of `wasmer standalone`."""
    group = parser.add_argument_group("standalone mode")
    _flag(group, "--config", Path, "DIR", "AutoWasm and Secret documents (*.yaml), watched", None)
    _flag(group, "--envoy-dir", Path, "DIR", "output: envoyfilters/, status/ and lds.yaml", None)
    _flag(
        group,
        "--listener-template",
        Path,
        "FILE",
        "LDS document that the filters are put into (resources: one or more listeners)",
        None,
    )


def add_controller(parser: argparse.ArgumentParser) -> None:
    """The flags of `wasmer controller`."""
    group = parser.add_argument_group("cluster")
    default = Cluster()
    _flag(group, "--kubeconfig", Path, "FILE", "absent: the service account of the Pod", None)
    _flag(
        group,
        "--watch-namespace",
        _list(),
        "NAME",
        "only this namespace; repeatable (default: all)",
        (),
        repeatable=True,
    )
    _flag(
        group,
        "--root-namespace",
        str,
        "NAME",
        "the mesh's root namespace, where selectors reach every namespace",
        default.root_namespace,
    )
    group.add_argument(
        "--allow-mesh-wide",
        action="store_const",
        const="true",
        help="take an empty selector in the root namespace: every workload of the mesh",
    )
    _declare(group, "--allow-mesh-wide", _boolean, default.allow_mesh_wide)


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false", "1", "0"}:
        raise ValueError(f"must be true or false, not {text!r}")
    return text.lower() in {"true", "1"}


def settings_from(
    arguments: argparse.Namespace, *, environment: Mapping[str, str] = os.environ
) -> Settings:
    """The settings that flags and environment make. Raises UsageError."""
    get = _Reader(arguments, environment)
    standalone = None
    if arguments.mode == "standalone":
        standalone = Standalone(
            config_dir=get.required("config"),
            envoy_dir=get.required("envoy_dir"),
            listener_template=get("listener_template"),
        )
    cluster = None
    if arguments.mode == "controller":
        cluster = Cluster(
            kubeconfig=get("kubeconfig"),
            watch_namespaces=get("watch_namespace"),
            root_namespace=get("root_namespace"),
            allow_mesh_wide=get("allow_mesh_wide"),
        )
    ca_file = get("registry_ca_file")
    if ca_file is not None and not ca_file.is_file():
        raise UsageError(f"--registry-ca-file: there is no file {ca_file}")
    return Settings(
        cache_dir=get("cache_dir"),
        listen=get("listen"),
        admin_listen=get("admin_listen"),
        envoy=EnvoyFetch(
            service_name=get("service_name"),
            service_namespace=get("service_namespace"),
            service_port=get("service_port"),
            cluster_domain=get("cluster_domain"),
            cluster_override=get("envoy_cluster"),
            authority_override=get("envoy_authority"),
            timeout=get("envoy_fetch_timeout"),
            retries=get("envoy_fetch_retries"),
        ),
        outgoing=Outgoing(
            allow_cidr=get("allow_cidr"),
            deny_cidr=get("deny_cidr"),
            plain_http=frozenset(get("plain_http_registry")),
            insecure=frozenset(get("insecure_registry")),
            ca_file=ca_file,
        ),
        allow_imports=frozenset(get("allow_import")),
        disk_budget=get("disk_budget"),
        blob_grace=get("blob_grace"),
        drain_delay=get("drain_delay"),
        workers=get("workers"),
        startup_deadline=get("startup_deadline"),
        log_level=get("log_level"),
        log_format=get("log_format"),
        fetch=FetchLimits(total=get("max_concurrent_fetches")),
        standalone=standalone,
        cluster=cluster,
    )


class _Reader:
    """One value after another: flag, environment, default."""

    def __init__(self, arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._environment = environment

    def __call__(self, name: str) -> Any:
        declared: _Declared = self._arguments.declared[name]
        given = getattr(self._arguments, name)
        where = declared.flag
        if given is None:
            variable = ENVIRONMENT_PREFIX + name.upper()
            given = self._environment.get(variable)
            if given is None or given == "":
                return declared.default
            where = variable
        texts: Sequence[str] = given if isinstance(given, list) else [given]
        try:
            values = [declared.parse(text) for text in texts]
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error
        if declared.repeatable:
            return tuple(item for value in values for item in value)
        return values[-1]

    def required(self, name: str) -> Any:
        value = self(name)
        if value is None:
            flag = self._arguments.declared[name].flag
            raise UsageError(f"{flag} is needed (or {ENVIRONMENT_PREFIX}{name.upper()})")
        return value


class _Declared:
    """How one flag is read."""

    def __init__(
        self, flag: str, parse: Callable[[str], Any], default: Any, *, repeatable: bool
    ) -> None:
        self.flag = flag
        self.parse = parse
        self.default = default
        self.repeatable = repeatable


def _choice(*names: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}, not {text!r}")
        return text

    return read


def _duration(group: Any, flag: str, text: str, default: float) -> None:
    _flag(group, flag, parse_duration, "DURATION", text, default, shown=format_duration(default))


def _flag(
    group: Any,
    flag: str,
    parse: Callable[[str], Any],
    metavar: str,
    text: str,
    default: Any,
    *,
    repeatable: bool = False,
    shown: str | None = None,
) -> None:
    """Declare a flag. Values stay text here: the environment is read by the same function, with the same errors."""
    name = flag.removeprefix("--").replace("-", "_")
    if default not in {None, ()}:
        text += f" (default: {shown or default})"
    group.add_argument(
        flag, dest=name, metavar=metavar, help=text, action="append" if repeatable else "store"
    )
    _declare(group, flag, parse, default, repeatable=repeatable)


def _declare(
    group: Any, flag: str, parse: Callable[[str], Any], default: Any, *, repeatable: bool = False
) -> None:
    declared = group.get_default("declared") or {}
    name = flag.removeprefix("--").replace("-", "_")
    declared[name] = _Declared(flag, parse, default, repeatable=repeatable)
    group.set_defaults(declared=declared)
