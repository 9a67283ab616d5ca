"""`wasmc rollout`: follows the staged rollout of an AutoWasm, and writes the annotation that controls it.

Invariants: only the annotation `wasm.tcm.io/rollout` is written; a broken watch is reopened after a pause, until the command's own
timeout.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final

from autowasm.api.staged import Variants, variants_of
from autowasm.api.v1alpha1 import ROLLOUT_ANNOTATION
from autowasm.cli import clusters, registries, rollouttext, rolloutview
from autowasm.cli.rolloutview import Outcome, RolloutView, view_of
from autowasm.cli.stdio import LiveBlock, is_coloured, width_of
from autowasm.controller.publisher import AUTOWASMS, ENVOYFILTERS
from autowasm.errors import AutoWasmError, UsageError
from autowasm.flowcontrol import Backoff
from autowasm.kube.client import KubeClient
from autowasm.kube.codec import DocumentCodec, WatchEvent
from autowasm.kube.errors import (
    ApiError,
    BadRequest,
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    Unauthorized,
)
from autowasm.kube.listwatch import ListWatch
from autowasm.kube.resources import ObjectKey
from autowasm.kube.writes import MERGE_PATCH
from autowasm.net.pools import Pools
from autowasm.reasons import Reason
from autowasm.units import format_duration

_TICK: Final = 1.0
"""Seconds between two updates of the times on a terminal."""
_BACKOFF: Final = Backoff(base=0.5, maximum=10.0, jitter=1.0)
_LASTING: Final = (BadRequest, Forbidden, Invalid, Unauthorized)
"""Errors that the next try would get, too."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command, return the exit status. Raises AutoWasmError, OSError, KeyboardInterrupt as `pushpull.run`."""
    registries.begin(arguments)
    key = ObjectKey(clusters.namespace(arguments, os.environ), arguments.name)
    try:
        return registries.run_to_end(_run(key, arguments))
    except (ApiError, ValueError) as error:
        raise UsageError(f"AutoWasm {key}: {error}") from error


async def _run(key: ObjectKey, arguments: argparse.Namespace) -> int:
    with Pools(transfers=1) as pools:
        async with clusters.connected(arguments, pools=pools) as client:
            if arguments.verb == "status":
                return await _status(client, key, arguments)
            if arguments.verb == "history":
                return await _history(client, key, as_json=arguments.json)
            return await _command(client, key, arguments)


async def _status(client: KubeClient, key: ObjectKey, arguments: argparse.Namespace) -> int:
    if not arguments.watch:
        view = await _view(client, key)
        width, colour = width_of(sys.stdout), is_coloured(sys.stdout)
        text = json.dumps(rollouttext.as_json(view), indent=2) if arguments.json else ""
        print(text or rollouttext.block(view, width=width, colour=colour), flush=True)
        return 1 if view.outcome is Outcome.ABORTED else 0
    screen = LiveBlock(
        sys.stdout,
        width=rollouttext.MIN_WIDTH,
        height=rollouttext.MIN_LINES,
        is_plain=arguments.json,
    )
    try:
        async with asyncio.timeout(arguments.timeout or None):
            return await _follow(client, key, screen, as_json=arguments.json)
    except TimeoutError:
        raise AutoWasmError(
            f"AutoWasm {key}: the rollout is not done after {format_duration(arguments.timeout)} (--timeout)",
            reason=Reason.ROLLOUT_COMMAND_FAILED,
        ) from None


async def _follow(client: KubeClient, key: ObjectKey, screen: LiveBlock, *, as_json: bool) -> int:
    """Show each version until the rollout of the spec has ended."""
    async with aclosing(_views(client, key, warn=screen.above)) as views:
        view = await anext(views)
        arrived: float | None = None  # the first version may be of any age
        clock = asyncio.get_running_loop().time
        while True:
            ahead = clock() - arrived if arrived is not None else 0.0
            screen.show(_text(view, screen, ahead=ahead, as_json=as_json))
            if view.outcome is not Outcome.IN_PROGRESS:
                return 1 if view.outcome is Outcome.ABORTED else 0
            following = asyncio.ensure_future(anext(views))
            try:
                while not following.done():
                    await asyncio.wait({following}, timeout=_TICK if screen.is_live else None)
                    ahead = clock() - arrived if arrived is not None else 0.0
                    screen.show(_text(view, screen, ahead=ahead, as_json=as_json))
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.wait({following})
            view, arrived = following.result(), clock()


def _text(view: RolloutView, screen: LiveBlock, *, ahead: float, as_json: bool) -> str:
    if as_json:
        return json.dumps(rollouttext.as_json(view))
    if not screen.is_live:
        return rollouttext.line(view)
    columns, rows = screen.size
    colour = is_coloured(sys.stdout)
    return rollouttext.block(view, width=columns, height=rows, colour=colour, ahead=ahead)


async def _history(client: KubeClient, key: ObjectKey, *, as_json: bool) -> int:
    view = await _view(client, key)
    live: Variants | None = None
    with contextlib.suppress(NotFound):
        try:
            live = variants_of(await client.get(ENVOYFILTERS, key))
        except Forbidden:
            print(
                "wasmc: the EnvoyFilter is not shown: your account may not read it (RBAC)",
                file=sys.stderr,
            )
    if as_json:
        print(json.dumps(rollouttext.history_json(view, live), indent=2), flush=True)
    else:
        print(rollouttext.history(view, live, width=width_of(sys.stdout)), flush=True)
    return 0


async def _command(client: KubeClient, key: ObjectKey, arguments: argparse.Namespace) -> int:
    verb: str = arguments.verb
    rollout = rolloutview.check_command(verb, await _view(client, key))
    given = rolloutview.command_value(
        verb, generation=rollout.target.generation, now=datetime.now(UTC)
    )
    body = {"metadata": {"annotations": {ROLLOUT_ANNOTATION: given}}}
    path, query = AUTOWASMS.object_path(key), {"fieldManager": "wasmc"}
    await client.request("PATCH", path, query=query, body=body, content_type=MERGE_PATCH)
    if not arguments.wait:
        print(f"AutoWasm {key}: {verb} requested\n{rollouttext.command('status', key)}", flush=True)
        return 0
    try:
        async with (
            asyncio.timeout(arguments.wait),
            aclosing(_views(client, key, warn=_warn)) as views,
        ):
            async for view in views:
                if rolloutview.is_handled(given, view):
                    rolloutview.check_result(verb, view)
                    print(rollouttext.done(verb, view), flush=True)
                    return 0
    except TimeoutError:
        pass
    raise AutoWasmError(
        f"AutoWasm {key}: wasmer has not carried out {verb} within {format_duration(arguments.wait)}; the command stays in the annotation. Check "
        f"that wasmer runs and has a leader, and that it knows the Pods and the module: wasmc explain {key.name} -n {key.namespace}",
        reason=Reason.ROLLOUT_COMMAND_FAILED,
    )


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _view(client: KubeClient, key: ObjectKey) -> RolloutView:
    """Raises UsageError without a staged rollout, AutoWasmError without the object, ApiError."""
    try:
        return view_of(key, await client.get(AUTOWASMS, key))
    except NotFound as error:
        raise AutoWasmError(
            f"AutoWasm {key} does not exist (kubectl get autowasm -A lists all), or the cluster has no such kind",
            reason=Reason.NOT_FOUND,
        ) from error


async def _views(
    client: KubeClient, key: ObjectKey, *, warn: Callable[[str], None]
) -> AsyncGenerator[RolloutView, None]:
    """The object now, and each later version of it. Never ends. Raises as `_view`, and AutoWasmError when it is deleted.

    Only an error of the first call is raised; after that, the API server may be unreachable for a while, which `warn` reports.
    """
    selector = f"metadata.name={key.name}"
    codec = DocumentCodec(client.limits)
    source = ListWatch(client, AUTOWASMS, codec, namespace=key.namespace, field_selector=selector)
    limits, failures, has_begun = client.limits, 0, False
    while True:
        try:
            document = await client.get(AUTOWASMS, key)
            has_begun = True
            yield view_of(key, document)
            version = document["metadata"]["resourceVersion"]
            async with (
                source.watch(
                    resource_version=version,
                    initial=False,
                    timeout=limits.watch_timeout,
                    silence=limits.watch_timeout + limits.watch_grace,
                ) as stream,
                aclosing(stream.events()) as events,
            ):
                async for event in events:
                    failures = 0
                    if not isinstance(event, WatchEvent):
                        continue
                    if event.type == "DELETED":
                        raise AutoWasmError(f"AutoWasm {key} was deleted", reason=Reason.NOT_FOUND)
                    yield view_of(key, event.object)
        except NotFound:
            await _view(client, key)  # raises unless it was recreated meanwhile
        except _LASTING:
            raise
        except ApiError as error:
            if not has_begun:
                raise
            failures += 1
            if failures == 1 and not isinstance(error, Expired):
                warn(f"wasmc: warning: {error}; trying again")
            await asyncio.sleep(_BACKOFF.delay(failures))
