"""The fuzz targets: one function for each reader of foreign input, and seeds for it.

They do not test the results of the readers: only an unexpected exception or an endless run is an error. Each function
gets bytes, and returns or raises one of `expected`.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from autowasm.api import validation
from autowasm.api.envoyfilter import render
from autowasm.controller.pods.podmatching import pod_codec
from autowasm.errors import AutoWasmError, ContentRejected, SpecError, UsageError
from autowasm.kube.codec import DocumentCodec, without_depths
from autowasm.kube.errors import ApiError
from autowasm.kube.listwatch import LineSplitter
from autowasm.limits import Limits
from autowasm.manifests import nodes
from autowasm.reference import ImageReference
from autowasm.registry.credentials import from_docker_config, from_dockercfg
from autowasm.registry.layouts import choose_layout
from autowasm.registry.manifest import ImageIndex, children_by_preference, parse_manifest
from autowasm.sandbox.engine import Engine, make_engine
from autowasm.server.ranges import Conditions, decide
from autowasm.settings import EnvoyFetch
from autowasm.standalone import documents
from autowasm.standalone.listeners import ListenerTemplate
from autowasm.wasm.archive import extract_module
from autowasm.wasm.module import inspect_bytes
from tests.fakes.autowasms import document, record
from tests.hostile import hostcalls, inputs
from tests.parts.envoy import listeners_yaml
from tests.unit.wasm.archives import tar, zst

LIMITS = Limits(unpacked_bytes=4 * 1024 * 1024, ratio_grace_bytes=1024 * 1024, archive_entries=200)
"""Limits of archives: small, so that a bomb costs the fuzzer little."""


@dataclass(frozen=True, slots=True)
class Target:
    """`run` may raise `expected`; its text must then be one line or at least printable."""

    run: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    expected: tuple[type[Exception], ...] = (ContentRejected,)


def _wasm(data: bytes) -> object:
    return inspect_bytes(data, limits=Limits(), allow_imports=frozenset())


def _wasm_seeds() -> Iterable[bytes]:
    hello = inputs.hello()
    yield hello
    yield inputs.with_names(3, size=100)
    yield inputs.with_declared_functions(2**32 - 1)
    yield inputs.overlong_leb()


def _archive(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.write_bytes(data)
        return extract_module(source, Path(folder, "out"), packing="detect", limits=LIMITS)


def _archive_seeds() -> Iterable[bytes]:
    module = inputs.MODULE_START
    plain = tar({"plugin.wasm": module, "README": b"read me"})
    yield plain
    yield inputs.gzip_of({"dir/filter.wasm": module})
    yield zst(plain)
    yield inputs.tar_with_claimed_size()
    yield inputs.tangled_archive()
    yield tar({"a" * 200 + "/plugin.wasm": module})


def _manifest(data: bytes) -> object:
    found = parse_manifest(data, None, limits=Limits())
    return (
        children_by_preference(found)[0]
        if isinstance(found, ImageIndex)
        else choose_layout(found, limits=LIMITS)
    )


def _manifest_seeds() -> Iterable[bytes]:
    layer = inputs.descriptor(b"x", "application/vnd.oci.image.layer.v1.tar+gzip")
    yield inputs.manifest([layer])
    child = inputs.descriptor(b"y", "application/vnd.oci.image.manifest.v1+json")
    platform = {"os": "linux", "architecture": "amd64"}
    index = {"schemaVersion": 2, "manifests": [child, {**child, "platform": platform}]}
    yield json.dumps(index).encode()


def _reference(data: bytes) -> object:
    text = data.decode(errors="replace")
    found = ImageReference.parse(text)
    if ImageReference.parse(str(found)) != found:
        raise AssertionError(f"{text!r} reads back as another")
    if not str(found).isprintable() or ".." in found.repository:
        raise AssertionError(f"{text!r} is let through")
    return found


def _docker_config(data: bytes) -> object:
    from_dockercfg(data, host="r.example", repository="a/b")
    return from_docker_config(data, host="r.example", repository="a/b")


def _range(data: bytes) -> object:
    fields = [text or None for text in data.decode("latin-1").split("\n")[:4]]
    fields += [None] * (4 - len(fields))
    decision = decide("GET", Conditions(*fields), etag='"sha256:aa"', size=1000)
    if decision.status in (200, 206) and not 0 <= decision.offset <= 1000 - decision.count:
        raise AssertionError(f"{fields} sends {decision}")
    return decision


def _spec(data: bytes) -> object:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    autowasm = validation.parse(document(spec=value))
    made = render(autowasm, record(), EnvoyFetch())
    return msgspec.json.encode(made)


def _spec_seeds() -> Iterable[bytes]:
    full = document(
        applyPorts=[80, 9080],
        pluginConfig={"a": [1, 2.5, None, {"b": "c"}]},
        env=[{"name": "A", "value": "b"}],
        failStrategy="FAIL_OPEN",
        refreshInterval="1h",
        vmID="{{ .Values }} %{x}\n",
    )
    yield json.dumps(full["spec"]).encode()
    yield json.dumps({**full["spec"], "secret": "../x"}).encode()


def _documents(data: bytes) -> object:
    return documents.parse(data, limits=Limits(spec_bytes=20_000))


def _template(data: bytes) -> object:
    """Without filters a template keeps its meaning, and with one it is still a document."""
    made = ListenerTemplate(data.decode(errors="replace"))
    filter_ = {
        "configPatches": [
            {"match": {"context": "GATEWAY", "listener": {}}, "patch": {"value": {"name": "y"}}}
        ]
    }
    before = nodes.first_document(made.inject([]))[0]
    after = nodes.first_document(made.inject([{"metadata": {"name": "a"}, "spec": filter_}]))[0]
    if before is None or after is None:
        raise AssertionError("a template that became nothing")
    return ListenerTemplate(made.inject([]))


def _template_seeds() -> Iterable[bytes]:
    text = listeners_yaml([9080, 9081], cluster="x")
    yield text.encode()
    yield text.removeprefix("resources:\n").encode()
    yield json.dumps(yaml.safe_load(text)["resources"][0]).encode()


def _watch(data: bytes) -> object:
    """Cut at the position in the first byte: the lines do not depend on it."""
    cut = 1 + (data[0] if data else 0)
    pieces = [data[at : at + cut] for at in range(1, len(data), cut)]
    splitter = LineSplitter(limit=1 << 16)
    for codec in (DocumentCodec(), pod_codec()):
        for piece in pieces:
            for line in splitter.feed(piece):
                _any_depth(codec.decode_event, line)
        _any_depth(codec.decode_page, data)
    return asyncio


def _any_depth(decode: Callable[[bytes], object], text: bytes) -> None:
    """An event loop only if it is needed: creating one takes longer than all other work."""
    try:
        decode(text)
    except RecursionError:
        decode(asyncio.run(without_depths(text)))


def _watch_seeds() -> Iterable[bytes]:
    metadata = {"name": "a", "namespace": "b", "resourceVersion": "1", "uid": "0"}
    for kind in ("ADDED", "DELETED", "BOOKMARK", "ERROR"):
        line = json.dumps({"type": kind, "object": {"metadata": metadata, "status": {"code": 410}}})
        yield b"\x05" + line.encode() + b"\n" + line.encode()
    yield json.dumps({"metadata": {}, "items": [{"metadata": metadata}]}).encode()


_ENGINES: list[Engine] = []
"""One object, created for the first input."""


def _host_calls(data: bytes) -> object:
    """A module with these calls gets a verdict."""
    if not _ENGINES:
        _ENGINES.append(make_engine())
    return hostcalls.run(data, _ENGINES[0]).started


TARGETS = {
    "wasm": Target(_wasm, _wasm_seeds),
    "archives": Target(_archive, _archive_seeds),
    "manifests": Target(_manifest, _manifest_seeds),
    "references": Target(
        _reference,
        lambda: [b"r.example:5000/a/b_c:v1", b"ubuntu", b"a/b@sha256:" + b"0" * 64],
        (ValueError,),
    ),
    "docker-configs": Target(
        _docker_config,
        lambda: [inputs.docker_config(2), b'{"auths":{"r.example/a":{"auth":"dTpw"}}}'],
        (SpecError,),
    ),
    "ranges": Target(
        _range, lambda: [b'"sha256:aa"\n*\n"sha256:aa"\nbytes=0-9', b"\n\n\nbytes=-5, 6-"]
    ),
    "specs": Target(_spec, _spec_seeds, (SpecError,)),
    "documents": Target(
        _documents, lambda: [b"kind: AutoWasm\napiVersion: wasm.tcm.io/v1alpha1\n---\na: &b [1]\n"]
    ),
    "templates": Target(_template, _template_seeds, (UsageError, nodes.Unreadable)),
    "watch-lines": Target(_watch, _watch_seeds, (ApiError, AutoWasmError)),
    "host-calls": Target(_host_calls, lambda: [bytes(range(256)) * 4, b"\0\5" + b"\xa0" * 400], ()),
}


def check(target: Target, data: bytes) -> None:
    """Run it once. Raises unexpected exceptions, and AssertionError for a message that is not one printable line."""
    try:
        target.run(data)
    except target.expected as error:
        message = str(error)
        if not message or len(message) > 10_000:
            raise AssertionError(f"a message of {len(message)} characters") from error
        if isinstance(error, ContentRejected | SpecError) and not message.isprintable():
            raise AssertionError(f"a message that is no line: {message!r}") from error
