"""Values of wasmer's options, from flags and environment, and the functions that read them.

Invariants: a flag overrides the environment, and the environment the default; the same function reads both, so an invalid value
gives the same message. The table of options is in `wasmerflags.py`.
"""

import argparse
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autowasm.cli.options import Option, items, whole
from autowasm.errors import UsageError
from autowasm.net.hosts import split_port
from autowasm.net.proxy import Proxy
from autowasm.net.urls import check_port
from autowasm.reference import check_host
from autowasm.units import format_duration, parse_duration


def duration(flag: str, text: str, default: float) -> Option:
    """An Option in seconds, written as `30s`."""
    return Option(flag, "DURATION", text, parse_duration, default, format_duration(default))


class Values:
    """Values from flags and environment, by the Option's name."""

    def __init__(
        self,
        options: Sequence[Option],
        arguments: argparse.Namespace,
        environment: Mapping[str, str],
    ) -> None:
        self._options = {option.name: option for option in options}
        self._arguments = arguments
        self._environment = environment

    def __call__(self, name: str) -> Any:
        """The value. Raises UsageError with the flag's or the variable's name."""
        option = self._options[name]
        given, where = getattr(self._arguments, name), option.flag
        if given is None:
            given, where = self._environment.get(option.variable) or None, option.variable
        if given is None:
            return option.default
        try:
            return _read(option, given)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error

    def required(self, name: str) -> Any:
        """The value. Raises UsageError if there is none."""
        value = self(name)
        if value is None:
            option = self._options[name]
            raise UsageError(f"{option.flag} is required (or {option.variable})")
        return value


def _read(option: Option, given: str | list[str]) -> Any:
    texts = given if isinstance(given, list) else [given]
    if option.repeatable:
        return tuple(option.read(item) for text in texts for item in items(text))
    return option.read(texts[-1])


def boolean(text: str) -> bool:
    """`true` or `false`. Raises ValueError, like all readers below."""
    if text.lower() not in {"true", "false", "1", "0"}:
        raise ValueError(f"must be true or false, not {text!r}")
    return text.lower() in {"true", "1"}


def choice(*names: str) -> Callable[[str], str]:
    """One of `names`."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}, not {text!r}")
        return text

    return read


def cidr(text: str) -> str:
    """A network; a bare address has the full prefix length."""
    return str(ipaddress.ip_network(text, strict=False))


def private_host(text: str) -> str:
    """`HOST[:PORT]` or `*.DOMAIN[:PORT]`; missing brackets of an IPv6 address are added."""
    host, port_ = split_port(text)
    if host.count(":") > 1 and not host.startswith("["):
        return f"[{ipaddress.IPv6Address(host)}]"
    name = host.removeprefix("*").removeprefix(".")
    odd = "://" in text or any(c.isspace() or c in "/@?#" for c in text)
    if odd or not name or "*" in name or (port_ and not 0 < int(port_) < 65536):
        raise ValueError(
            f"must be HOST[:PORT] or *.DOMAIN[:PORT], not {text[:80]!r}; use --allow-cidr for all hosts of a network"
        )
    return text


def ca_file(text: str) -> tuple[str, Path]:
    """`[HOST=]FILE`: the host, empty for all, and the file, which must exist."""
    host, equals, name = text.rpartition("=")
    if "/" in host:  # a path with an equals sign in it
        host, equals, name = "", "", text
    if host:
        registry_host(host)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if equals and not host:
        raise ValueError("must be HOST=FILE or FILE")
    return host, path


def registry_host(text: str) -> str:
    """`HOST[:PORT]` as at the start of an image reference."""
    if "/" in text or "@" in text:
        raise ValueError(f"must be HOST or HOST:PORT without scheme and path, not {text[:80]!r}")
    check_host(text, shown=repr(text[:80]))
    return text


def proxy_url(text: str) -> str:
    """A proxy's URL. Raises UsageError; its message omits the URL, which may hold a password."""
    Proxy.parse(text)
    return text


def peer_url(text: str) -> str:
    """`http://HOST:PORT`, without a path."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme != "http" or not parts.hostname or parts.username is not None:
        raise ValueError(f"must be http://HOST:PORT, not {text[:80]!r}")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"must be http://HOST:PORT without a path, not {text[:80]!r}")
    check_port(parts)
    return f"http://{parts.netloc}"


def listen_address(text: str) -> str:
    """`ADDRESS:PORT`; port 0 means any free port."""
    host, _, number = text.rpartition(":")
    try:
        whole(number, least=0, most=65535)
    except ValueError as error:
        raise ValueError("must be ADDRESS:PORT, such as [::]:8081 or 127.0.0.1:8081") from error
    if not host:
        raise ValueError("must be ADDRESS:PORT, such as [::]:8081 or 127.0.0.1:8081")
    return text
