"""`wasmc tags`, `digest`, `copy` and `delete`: the contents of a registry, without reading the modules.

Invariant: only `copy` and `delete` change a registry, and `delete` only after confirmation.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from autowasm.cli import registries
from autowasm.cli.stdio import Progress
from autowasm.digest import Digest
from autowasm.errors import UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.copying import Copier, Endpoint
from autowasm.registry.credentials import Credential

_Work = Callable[[ImageReference, Credential | None, argparse.Namespace], Coroutine[Any, Any, int]]


def run(arguments: argparse.Namespace) -> int:
    """Run one of the commands, return the exit status. Raises AutoWasmError, OSError, KeyboardInterrupt as `pushpull.run`."""
    registries.begin(arguments)
    reference = registries.parse_reference(arguments.reference)
    registries.check_ca_file(arguments)
    if arguments.command == "delete":
        _check_deletion(reference, arguments)
    login = registries.given_login(arguments)
    return registries.run_to_end(_COMMANDS[arguments.command](reference, login, arguments))


@asynccontextmanager
async def _connected(
    reference: ImageReference, login: Credential | None, arguments: argparse.Namespace
) -> AsyncIterator[registries.RegistryConnection]:
    with Pools(transfers=1) as pools:
        async with registries.connected(
            reference, login, arguments, limits=Limits(), pools=pools
        ) as connection:
            yield connection


async def _tags(
    reference: ImageReference, login: Credential | None, arguments: argparse.Namespace
) -> int:
    async with _connected(reference, login, arguments) as connection:
        tags = await connection.client.list_tags(reference, credential=connection.credential)
    if arguments.json:
        _print_json({"repository": reference.name, "tags": tags})
    elif tags:
        print("\n".join(tags), flush=True)
    return 0


async def _digest(
    reference: ImageReference, login: Credential | None, arguments: argparse.Namespace
) -> int:
    async with _connected(reference, login, arguments) as connection:
        client, credential = connection.client, connection.credential
        digest = await client.head(reference, credential=credential)
        if digest is None:  # the registry announces none
            answer = await client.get_manifest(reference, credential=credential)
            digest = Digest.of(answer.data)
    if arguments.json:
        _print_json({"reference": str(reference), "digest": str(digest)})
    else:
        print(digest, flush=True)
    return 0


async def _copy(
    reference: ImageReference, login: Credential | None, arguments: argparse.Namespace
) -> int:
    target = _destination(reference, arguments)
    limits = Limits()
    limits = dataclasses.replace(limits, layer_bytes=limits.image_bytes)
    with Pools(transfers=1) as pools:
        async with (
            registries.connected(reference, None, arguments, limits=limits, pools=pools) as source,
            registries.connected(
                target, login, arguments, limits=limits, pools=pools
            ) as destination,
            registries.workdir(None, pools=pools) as workdir,
        ):
            quiet = arguments.quiet or arguments.json
            with Progress("Copying", total=None, stream=sys.stderr, quiet=quiet) as progress:
                digest = await Copier(
                    Endpoint(source.client, reference, source.credential),
                    Endpoint(destination.client, target, destination.credential),
                    workdir=workdir,
                    limits=limits,
                    pools=pools,
                    on_bytes=progress.advance,
                ).copy()
    if arguments.json:
        _print_json({"source": str(reference), "destination": str(target), "digest": str(digest)})
    elif arguments.quiet:
        print(digest, flush=True)
    else:
        print(f"Copied {reference} to {target}\nDigest: {digest}", flush=True)
    return 0


def _destination(source: ImageReference, arguments: argparse.Namespace) -> ImageReference:
    """The reference to write. Without a tag or digest, it gets those of the source."""
    text: str = arguments.destination
    target = registries.parse_reference(text)
    if target.digest is not None and target.digest != source.digest:
        raise UsageError(
            f"{target}: copy to a tag, or to the digest of the source; a digest cannot be chosen"
        )
    is_bare = target.digest is None and ":" not in text.rpartition("/")[2]
    if is_bare and source.digest is not None and source.tag is None:
        return target.pinned(source.digest)
    return dataclasses.replace(target, tag=source.tag) if is_bare else target


def _check_deletion(reference: ImageReference, arguments: argparse.Namespace) -> None:
    """Ask, or raise UsageError: a deletion cannot be undone."""
    text: str = arguments.reference
    if "@" not in text and ":" not in text.rpartition("/")[2]:
        raise UsageError(
            f"{text}: name the tag or the digest to delete: {text}:TAG or {text}@DIGEST"
        )
    if arguments.yes:
        return
    if sys.stdin is None or not sys.stdin.isatty() or arguments.password_stdin:
        raise UsageError(
            f"{reference}: --yes is required without a terminal, because a deletion cannot be undone"
        )
    of_all = " and all of its tags" if reference.digest is not None else ""
    print(f"Delete {reference}{of_all}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError("nothing was deleted")


async def _delete(
    reference: ImageReference, login: Credential | None, arguments: argparse.Namespace
) -> int:
    async with _connected(reference, login, arguments) as connection:
        await connection.client.delete(reference, credential=connection.credential)
    if arguments.json:
        _print_json({"deleted": str(reference)})
    elif not arguments.quiet:
        print(f"Deleted {reference}", flush=True)
    return 0


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2), flush=True)


_COMMANDS: Final[dict[str, _Work]] = {
    "tags": _tags,
    "digest": _digest,
    "copy": _copy,
    "delete": _delete,
}
