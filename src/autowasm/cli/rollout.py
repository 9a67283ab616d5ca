"""`wasmc rollout`: shows a staged rollout, and commands wasmer by the annotation `wasm.tcm.io/rollout` (ADR 39).

Invariants: only the annotation is written; a command names the generation that it is for, so it never hits an edit that happens at the
same time. Exit statuses as those of `kubectl rollout status`: 0 unless the rollout failed or did not end in time.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

from autowasm.api import parsing, status
from autowasm.api.status import RolloutPhase
from autowasm.api.v1alpha1 import ROLLOUT_ANNOTATION
from autowasm.cli import clusters, registries, rollouttext
from autowasm.cli.rollouttext import Shown
from autowasm.cli.stdio import is_coloured
from autowasm.controller.publishing.publisher import AUTOWASMS
from autowasm.errors import AutoWasmError, SpecError, UsageError
from autowasm.kube.client import Document, KubeClient
from autowasm.kube.errors import ApiError, NotFound
from autowasm.kube.resources import ObjectKey
from autowasm.kube.writes import MERGE_PATCH
from autowasm.net.pools import Pools
from autowasm.reasons import Reason
from autowasm.telemetry import logs
from autowasm.units import parse_duration

_EACH: Final = 1.0
"""Seconds between two looks."""
_HANDLED_WITHIN: Final = 10.0
"""Seconds that a command waits for wasmer to carry it out."""
_IN_PROGRESS: Final = frozenset({RolloutPhase.PROGRESSING, RolloutPhase.PAUSED})
_ALLOWED: Final = {
    "pause": {RolloutPhase.PROGRESSING},
    "resume": {RolloutPhase.PAUSED},
    "promote": {RolloutPhase.PROGRESSING, RolloutPhase.PAUSED, RolloutPhase.ABORTED},
    "abort": {RolloutPhase.PROGRESSING, RolloutPhase.PAUSED},
    "retry": {RolloutPhase.ABORTED},
}
"""Phases in which a command has a meaning (`controller/rollout/statemachine.py`)."""
_HOME: Final = "\x1b[H\x1b[J"


def run(arguments: argparse.Namespace) -> int:
    """Print, return the exit status. Raises AutoWasmError, UsageError, KeyboardInterrupt."""
    logs.configure(level="warning", form="plain")
    key = ObjectKey(clusters.namespace(arguments, os.environ), arguments.name)
    if arguments.timeout is not None:
        try:
            arguments.timeout = parse_duration(arguments.timeout)
        except ValueError as error:
            raise UsageError(f"--timeout: {error}") from error
    try:
        return registries.run_to_end(_run(key, arguments))
    except (ApiError, ValueError) as error:
        raise UsageError(f"{key}: {error}") from error


async def _run(key: ObjectKey, arguments: argparse.Namespace) -> int:
    with Pools(transfers=1) as pools:
        async with clusters.connected(arguments, pools=pools) as client:
            if arguments.verb == "status":
                return await _status(client, key, arguments)
            document = await _read(client, key)
            if arguments.verb == "history":
                return _history(key, document, arguments)
            return await _command(client, key, document, arguments.verb)


async def _read(client: KubeClient, key: ObjectKey) -> Document:
    try:
        return await client.get(AUTOWASMS, key)
    except NotFound as error:
        raise AutoWasmError(
            f"AutoWasm {key} does not exist (kubectl get aw -A lists all)", reason=Reason.NOT_FOUND
        ) from error


def _shown(key: ObjectKey, document: Document) -> Shown:
    try:
        autowasm = parsing.parse(document)
    except SpecError:
        autowasm = None
    generation = document.get("metadata", {}).get("generation")
    return Shown(
        name=str(key),
        autowasm=autowasm,
        status=status.read(document.get("status")),
        generation=generation if isinstance(generation, int) else 0,
    )


async def _status(client: KubeClient, key: ObjectKey, arguments: argparse.Namespace) -> int:
    screen = _Screen(sys.stdout, is_json=arguments.json)
    loop = asyncio.get_running_loop()
    end = loop.time() + arguments.timeout if arguments.timeout else None
    while True:
        document = await _read(client, key)
        one = _shown(key, document)
        screen.show(one, document, is_last=not arguments.watch)
        result = _exit_status(one)
        if result is not None or not arguments.watch:
            screen.end(one, document)
            return result or 0
        if end is not None and loop.time() >= end:
            screen.end(one, document)
            print(f"wasmc: error: not rolled out within {arguments.timeout:g} s", file=sys.stderr)
            return 1
        await asyncio.sleep(_EACH)


def _exit_status(one: Shown) -> int | None:
    """None: it goes on."""
    rollout = one.rollout
    if rollout is None or not one.is_current:
        # Without spec.rollout there is nothing to wait for but the publication.
        has_steps = one.autowasm is not None and one.autowasm.spec.rollout is not None
        is_over = not has_steps and one.status.observed_generation == one.generation
        return 0 if is_over and rollout is None else None
    if rollout.phase is RolloutPhase.SUCCEEDED:
        return 0
    return 1 if rollout.phase is RolloutPhase.ABORTED else None


class _Screen:
    """A view that is drawn again on a terminal; elsewhere a line for each change."""

    def __init__(self, stream: TextIO, *, is_json: bool) -> None:
        self._stream = stream
        self._is_json = is_json
        self._is_live = stream.isatty() and not is_json
        self._last = ""

    def show(self, one: Shown, document: Document, *, is_last: bool) -> None:
        """Draw it."""
        if is_last:
            return
        if self._is_live:
            print(_HOME + self._view(one), file=self._stream, flush=True)
            return
        line = json.dumps(rollouttext.as_json(one, document)) if self._is_json else ""
        line = line or rollouttext.summary(one, width=shutil.get_terminal_size().columns)
        if line != self._last:
            self._last = line
            print(line, file=self._stream, flush=True)

    def end(self, one: Shown, document: Document) -> None:
        """Print the whole view once."""
        if self._is_json:
            text = json.dumps(rollouttext.as_json(one, document), indent=None if self._last else 2)
            if text != self._last:
                print(text, file=self._stream, flush=True)
        elif self._is_live:
            print(_HOME + self._view(one), file=self._stream, flush=True)
        else:
            print(self._view(one), file=self._stream, flush=True)

    def _view(self, one: Shown) -> str:
        width, colour = shutil.get_terminal_size().columns, is_coloured(self._stream)
        return "\n".join(rollouttext.view(one, width=width, colour=colour))


def _history(key: ObjectKey, document: Document, arguments: argparse.Namespace) -> int:
    one = _shown(key, document)
    if arguments.json:
        found = document.get("status") or {}
        aborted = (found.get("rollout") or {}).get("aborted") or []
        text = {"name": one.name, "history": found.get("history") or [], "aborted": aborted}
        print(json.dumps(text, indent=2), flush=True)
    else:
        width = shutil.get_terminal_size().columns
        print("\n".join(rollouttext.history(one, width=width)), flush=True)
    return 0


async def _command(client: KubeClient, key: ObjectKey, document: Document, verb: str) -> int:
    """Write the annotation, and wait until wasmer has carried it out."""
    rollout = _shown(key, document).rollout
    if rollout is None:
        raise AutoWasmError(
            f"{key} has no staged rollout; spec.rollout makes the next change one",
            reason=Reason.NOT_FOUND,
        )
    if rollout.phase not in _ALLOWED[verb]:
        raise AutoWasmError(
            f"{key}: {verb} has no effect while the rollout is {rollout.phase.value}",
            reason=Reason.USAGE,
        )
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    value = f"{verb}@{rollout.target.generation} {moment}"
    body = {"metadata": {"annotations": {ROLLOUT_ANNOTATION: value}}}
    path = AUTOWASMS.object_path(key)
    await client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
    loop = asyncio.get_running_loop()
    end = loop.time() + _HANDLED_WITHIN
    while loop.time() < end:
        one = _shown(key, await _read(client, key))
        if one.rollout is not None and one.rollout.command == value:
            print(rollouttext.summary(one, width=shutil.get_terminal_size().columns), flush=True)
            return 0
        await asyncio.sleep(_EACH / 4)
    print(f"{key}: {verb} is requested; wasmer has not carried it out yet", flush=True)
    return 0
