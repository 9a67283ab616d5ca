"""The module of an AutoWasm's source, fetched on this machine as wasmer would fetch it.

Invariants: a login is sent only to the registry of the image; the module is on disk only while the caller uses it.
"""

import argparse
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.image import ImageSource
from autowasm.artifacts.object import HttpObjectSource
from autowasm.artifacts.source import ModuleSource
from autowasm.cli import registries
from autowasm.cli.options import offered
from autowasm.digest import sha256_of
from autowasm.errors import WASMC
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.net.proxy import EnvironmentProxies
from autowasm.net.session import ObjectSession
from autowasm.registry.credentials import Credential
from autowasm.settings import Outgoing
from autowasm.wasm.module import inspect_module


@dataclass(frozen=True, slots=True)
class OpenSource:
    """The source of an AutoWasm, with the login for it."""

    autowasm: AutoWasm
    source: ModuleSource
    credential: Credential | None


@asynccontextmanager
async def opened(
    autowasm: AutoWasm,
    credential: Credential | None,
    arguments: argparse.Namespace,
    *,
    pools: Pools,
) -> AsyncIterator[OpenSource]:
    """The source, with `credential`, or else with docker's. Raises AutoWasmError, like all functions below."""
    limits, reference = Limits(), autowasm.image
    if reference is None:
        outgoing = Outgoing(ca_file=arguments.ca_file, advice=WASMC)
        async with ObjectSession(
            outgoing=outgoing,
            limits=limits,
            pools=pools,
            policy=None,
            proxies=EnvironmentProxies.read(os.environ),
        ) as session:
            source = HttpObjectSource(session, limits=limits, pools=pools)
            yield OpenSource(autowasm, source, None)
        return
    async with registries.connected(
        reference, credential, arguments, limits=limits, pools=pools
    ) as connection:
        images = ImageSource(connection.client, limits=limits, pools=pools)
        yield OpenSource(autowasm, images, connection.credential)


@asynccontextmanager
async def fetched(
    opened: OpenSource, arguments: argparse.Namespace, *, secret_uid: str = "", pools: Pools
) -> AsyncIterator[tuple[Record, Path]]:
    """The checked module of the source, and the content to which the source resolved."""
    where = opened.autowasm.spec.filter.source
    pinned = await opened.source.resolve(where, credential=opened.credential)
    async with registries.workdir(None, pools=pools) as workdir:
        target = workdir / "module"
        pinned = await opened.source.fetch(
            pinned,
            target,
            workdir=workdir,
            credential=opened.credential,
            on_bytes=lambda _count: None,
        )
        info = await pools.parsing.run(
            inspect_module,
            target,
            limits=Limits(),
            **offered(arguments),
        )
        if info.unchecked and not arguments.quiet:
            print(f"wasmc: warning: {where}: {info.unchecked}", file=sys.stderr)
        size = (await pools.disk.run(target.stat)).st_size
        sha256 = pinned.sha256
        if sha256 is None:
            sha256 = await pools.disk.run(sha256_of, target)
        record = pinned.record(where, sha256=sha256, size=size, abi=info.abi, secret_uid=secret_uid)
        yield record, target
