"""Resolves the source of an AutoWasm from this machine, for `wasmc explain` and `wasmc plan`.

Invariants: wasmer's own code checks the module; an error is a fact with the reason that the AutoWasm's status would have;
nothing is kept on disk.
"""

import argparse
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.pullsecrets import PullAccess
from autowasm.cli import fetching
from autowasm.errors import AutoWasmError
from autowasm.explain.facts import SourceFact
from autowasm.net.pools import Pools
from autowasm.net.urls import redact
from autowasm.registry.credentials import Credential

_OWN: Final = "your own login, if any"

Use = Callable[[Record, Path], Awaitable[None]]
"""Receives the fetched module, in a file that is removed afterwards."""


async def resolve(
    autowasm: AutoWasm,
    access: PullAccess,
    given: Credential | None,
    arguments: argparse.Namespace,
    *,
    pools: Pools,
    fetch: bool,
    use: Use | None = None,
) -> SourceFact:
    """Resolve the source; with `fetch` also download and check the module. Only a download tests an object's URL.

    The login is `given` (from the command line), else the AutoWasm's, else docker's. `use` is called with a module that has
    passed the checks.
    """
    credential = given or access.credential
    login = (
        _OWN if credential is not access.credential or credential is None else "spec.secret's login"
    )
    login = login if autowasm.image is not None else ""
    try:
        async with fetching.opened(autowasm, credential, arguments, pools=pools) as source:
            if not fetch:
                where = autowasm.spec.filter.source
                pinned = await source.source.resolve(where, credential=source.credential)
                return SourceFact(pinned=pinned.image or redact(pinned.url), login=login)
            secret_uid = access.secret_uid if autowasm.image is not None else ""
            async with fetching.fetched(source, arguments, secret_uid=secret_uid, pools=pools) as (
                record,
                path,
            ):
                if use is not None:
                    await use(record, path)
                return SourceFact(pinned=record.origin, login=login, record=record)
    except AutoWasmError as error:
        return SourceFact(
            kind=type(error).__name__, reason=error.reason, problem=str(error), login=login
        )
