"""Layers on each other: a module is found exactly where a container's file system would have it."""

import contextlib
import io
import posixpath
import tarfile
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm.imagelayer import Hidden, clean_path, read_layer

LIMITS = Limits()
parts = st.sampled_from(["a", "b", "m.wasm", "n.wasm"])
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
entries = st.one_of(
    st.tuples(st.just("file"), paths),
    st.tuples(st.just("folder"), paths),
    st.tuples(st.just("link"), paths),
    st.tuples(st.just("gone"), paths),
    st.tuples(st.just("emptied"), st.one_of(st.just(""), paths)),
)


def unpackable(layer: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without the entries below a file or a link of the same layer: no container runtime unpacks such a layer."""
    leaves = {path for kind, path in layer if kind in ("file", "link")}
    return [
        (kind, path)
        for kind, path in layer
        if not any(path.startswith(f"{leaf}/") for leaf in leaves)
    ]


layers = st.lists(entries, max_size=5, unique_by=lambda entry: entry[1]).map(unpackable)
prefixes = st.sampled_from(["", "./", "/", ".//"])


def packed(layer: list[tuple[str, str]], number: int, prefix: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for kind, path in layer:
            folder, base = posixpath.split(path)
            name = {
                "gone": posixpath.join(folder, f".wh.{base}"),
                "emptied": posixpath.join(path, ".wh..wh..opq"),
            }.get(kind, path)
            entry = tarfile.TarInfo(prefix + name)
            if kind == "folder":
                entry.type = tarfile.DIRTYPE
            elif kind == "link":
                entry.type, entry.linkname = tarfile.SYMTYPE, "elsewhere"
            content = f"{number}".encode() if kind == "file" else b""
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def applied(image: list[list[tuple[str, str]]]) -> dict[str, tuple[str, int]]:
    """The file system, as the specification has it unpacked: path to kind and layer."""
    tree: dict[str, tuple[str, int]] = {}

    def remove(path: str, *, itself: bool, number: int) -> None:
        """The entries of layers below this one."""
        for each, (_, layer) in list(tree.items()):
            below = each.startswith(f"{path}/" if path else "")
            if layer < number and (below or (itself and each == path)):
                del tree[each]

    for number, layer in enumerate(image):
        for kind, path in layer:  # whiteouts are for the layers below: first
            if kind in ("gone", "emptied"):
                remove(path, itself=kind == "gone", number=number)
        for kind, path in layer:
            if kind in ("gone", "emptied"):
                continue
            if kind != "folder" or tree.get(path, ("folder", 0))[0] != "folder":
                remove(path, itself=True, number=number)
            for folder in (path[:end] for end, letter in enumerate(path) if letter == "/"):
                if (
                    tree.get(folder, ("folder", 0))[0] != "folder"
                ):  # also without an entry of its own
                    tree[folder] = ("folder", number)
            tree[path] = (kind, number)
    return tree


def found(image: list[list[tuple[str, str]]], prefix: str) -> dict[str, int]:
    """By path, the layer of each module that we see."""
    hidden = Hidden(limits=LIMITS)
    modules: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in reversed(range(len(image))):
            path = Path(folder) / "layer"
            path.write_bytes(packed(image[number], number, prefix))
            layer = read_layer(path, packing="tar", limits=LIMITS)
            for module in hidden.visible(layer):
                modules[clean_path(module.name)] = number
            hidden.add(layer)
    return modules


@settings(deadline=None)  # files, on a disk that others use
@given(st.lists(layers, max_size=4), prefixes)
@example([[("file", "a")], [("file", "a/m.wasm")], [("folder", "a")]], "")
@example([[("file", "m.wasm")], [("file", "m.wasm/a")]], "")
def test_modules_are_those_of_the_unpacked_image(
    image: list[list[tuple[str, str]]], prefix: str
) -> None:
    wanted = {
        path: number
        for path, (kind, number) in applied(image).items()
        if kind == "file" and path.endswith(".wasm")
    }
    assert found(image, prefix) == wanted


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_are_a_layer_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer"
        path.write_bytes(data)
        with contextlib.suppress(ContentRejected):
            Hidden(limits=LIMITS).visible(read_layer(path, packing="tar+gzip", limits=LIMITS))


@given(st.text(max_size=20))
def test_a_path_stays_below_the_root(name: str) -> None:
    path = clean_path(name)
    assert not path.startswith("/")
    assert ".." not in path.split("/")
    assert clean_path(path) == path
