"""Resolves a source from this machine, for `wasmc explain` and `wasmc plan`. Needs no cluster.

Invariants: wasmer's own code checks the module; a failure is a fact with the reason that the AutoWasm's status would have;
nothing is kept on disk.
"""

import argparse
import os
import sys
from typing import Final

from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.image import ImageSource
from autowasm.artifacts.object import HttpObjectSource
from autowasm.artifacts.pullsecrets import PullAccess
from autowasm.artifacts.source import ModuleSource
from autowasm.cli import registries
from autowasm.cli.options import offered
from autowasm.digest import sha256_of
from autowasm.errors import WASMC, AutoWasmError
from autowasm.explain.facts import SourceFact
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.net.proxy import EnvironmentProxies
from autowasm.net.session import ObjectSession
from autowasm.net.urls import redact
from autowasm.registry.credentials import Credential
from autowasm.settings import Outgoing
from autowasm.wasm.module import inspect_module

_OWN: Final = "your own login, if any"


async def resolve(
    autowasm: AutoWasm,
    access: PullAccess,
    given: Credential | None,
    arguments: argparse.Namespace,
    *,
    pools: Pools,
    fetch: bool,
) -> SourceFact:
    """Resolve the source; with `fetch` also download and check the module. Only a download tests an object's URL.

    The login is `given` (from the command line), else the AutoWasm's, else docker's.
    """
    limits = Limits()
    reference = autowasm.image
    credential = given or access.credential
    login = (
        _OWN if credential is not access.credential or credential is None else "spec.secret's login"
    )
    try:
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
                return await _resolve(source, autowasm, PullAccess(), arguments, pools, fetch=fetch)
        async with registries.connected(
            reference, credential, arguments, limits=limits, pools=pools
        ) as connection:
            shown = PullAccess(connection.credential, access.secret_uid)
            images = ImageSource(connection.client, limits=limits, pools=pools)
            found = await _resolve(images, autowasm, shown, arguments, pools, fetch=fetch)
            return SourceFact(pinned=found.pinned, login=login, record=found.record)
    except AutoWasmError as error:
        return SourceFact(
            kind=type(error).__name__,
            reason=error.reason,
            problem=str(error),
            login=login if reference is not None else "",
        )


async def _resolve(
    source: ModuleSource,
    autowasm: AutoWasm,
    access: PullAccess,
    arguments: argparse.Namespace,
    pools: Pools,
    *,
    fetch: bool,
) -> SourceFact:
    """Resolve, and with `fetch` download and check. Raises AutoWasmError."""
    where, limits = autowasm.spec.filter.source, Limits()
    pinned = await source.resolve(where, credential=access.credential)
    if not fetch:
        return SourceFact(pinned=pinned.image or redact(pinned.url))
    async with registries.workdir(None, pools=pools) as workdir:
        target = workdir / "module"
        pinned = await source.fetch(
            pinned,
            target,
            workdir=workdir,
            credential=access.credential,
            on_bytes=lambda _count: None,
        )
        info = await pools.parsing.run(
            inspect_module,
            target,
            limits=limits,
            **offered(arguments),
        )
        if info.unchecked and not arguments.quiet:
            print(f"wasmc: warning: {where}: {info.unchecked}", file=sys.stderr)
        size = (await pools.disk.run(target.stat)).st_size
        sha256 = pinned.sha256
        if sha256 is None:
            sha256 = await pools.disk.run(sha256_of, target)
    record = pinned.record(
        where, sha256=sha256, size=size, abi=info.abi, secret_uid=access.secret_uid
    )
    return SourceFact(pinned=record.origin, record=record)
