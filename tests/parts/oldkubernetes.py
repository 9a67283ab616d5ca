"""Changes to the source of Kubernetes 1.16 that let a current Go build the same program.

* The OpenAPI definitions are not in the module: the release's own build generates them. Here the release's own
  openapi-gen generates them.
* The validator of custom resources mistakes an empty string for null if both have the same address. A current Go has one zero value
  for all types, so they do; with the Go of that release they did not. One condition is changed.

Invariant: nothing else in the copied source differs from the modules that go.sum names.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.parts import cache

log = logging.getLogger(__name__)

_KUBERNETES = "k8s.io/kubernetes"
_GENERATED = "pkg/generated/openapi"
_FILE = "zz_generated.openapi"
_SOURCES = ("cmd", "pkg", "plugin", "third_party")
"""The folders of k8s.io/kubernetes that the programs are built from."""
_MARK = re.compile(r"^// \+k8s:openapi-gen=true", re.MULTILINE)
"""A comment by which the Makefile of that release finds the packages that have definitions."""


_VALIDATE = "github.com/go-openapi/validate"
_ZERO_IS_NULL = (
    "data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data))"
)
"""The condition in type.go of that module."""


def complete(folder: Path, scratch: Path, *, go: Path, env: Mapping[str, str]) -> None:
    """Make `scratch` a Go module like `folder`, with copies of the modules that must differ. Raises PartError."""
    for name in ("go.mod", "go.sum"):
        shutil.copyfile(folder / name, scratch / name)
    definitions = _generate(scratch, go=go, env=env)
    file = f"{_GENERATED}/{_FILE}.go"
    source = _copy(_KUBERNETES, _SOURCES, scratch, go=go, env=env)
    shutil.copyfile(definitions / _KUBERNETES / file, source / file)
    validator = _copy(_VALIDATE, ("",), scratch, go=go, env=env) / "type.go"
    text = validator.read_text()
    if text.count(_ZERO_IS_NULL) != 1:
        raise cache.PartError(f"{_VALIDATE}: type.go is not the one that is known")
    validator.write_text(text.replace(_ZERO_IS_NULL, "data == nil"))


def _generate(scratch: Path, *, go: Path, env: Mapping[str, str]) -> Path:
    """The folder that contains the definitions."""
    log.info("Generating the OpenAPI definitions of Kubernetes.")
    what = "generating the OpenAPI definitions of Kubernetes"
    generator = scratch / "openapi-gen"
    build: list[str | Path] = [
        go,
        "build",
        "-mod=readonly",
        "-gcflags=all=-dwarf=false",
        "-o",
        generator,
    ]
    cache.run([*build, "k8s.io/kube-openapi/cmd/openapi-gen"], what=what, cwd=scratch, env=env)
    header = scratch / "header"
    header.touch()
    arguments: list[str | Path] = ["--output-base", scratch, "--go-header-file", header]
    arguments += ["--output-package", f"{_KUBERNETES}/{_GENERATED}", "-O", _FILE]
    arguments += ["--report-filename", scratch / "report"]
    packages = _packages(scratch, go=go, env=env)
    # It gets the location of packages from Go, which it finds on PATH.
    path = {"PATH": f"{go.parent}:{env.get('PATH', '')}"}
    cache.run(
        [generator, *arguments, "-i", ",".join(packages)],
        what=what,
        cwd=scratch,
        env={**env, **path},
    )
    return scratch


def _copy(
    module: str, folders: Sequence[str], scratch: Path, *, go: Path, env: Mapping[str, str]
) -> Path:
    """A copy of these folders of the module, which replaces it."""
    what = f"copying {module}"
    listed = cache.run([go, "list", "-m", "-json", module], what=what, cwd=scratch, env=env)
    found = json.loads(listed)
    found = found.get("Replace", found)
    copied = scratch / "copied" / module
    for name in folders:
        # The module cache is read-only; copyfile does not copy the modes.
        origin = Path(found["Dir"]) / name
        shutil.copytree(origin, copied / name, copy_function=shutil.copyfile, dirs_exist_ok=True)
    shutil.copyfile(Path(found["GoMod"]), copied / "go.mod")
    replace = f"-replace={module}=./{copied.relative_to(scratch)}"
    cache.run([go, "mod", "edit", replace], what=what, cwd=scratch, env=env)
    return copied


def _packages(folder: Path, *, go: Path, env: Mapping[str, str]) -> list[str]:
    """The packages of kube-apiserver that have definitions."""
    listed = cache.run(
        [
            go,
            "list",
            "-deps",
            "-f",
            "{{.ImportPath}}\t{{.Dir}}",
            f"{_KUBERNETES}/cmd/kube-apiserver",
        ],
        what="listing the packages of Kubernetes",
        cwd=folder,
        env=env,
    )
    found = []
    for line in listed.splitlines():
        package, _, where = line.partition("\t")
        if package.startswith("k8s.io/") and any(
            _MARK.search(source.read_text()) for source in Path(where).glob("*.go")
        ):
            found.append(package)
    return found
