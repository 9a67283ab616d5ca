"""Packages from npm, exactly as a package-lock.json in `tests/assets/` names them, run by a Node from PyPI.

Invariant: the installation runs no script of a package.
"""

import hashlib
import os
import shutil
from pathlib import Path

from tests.parts import cache, pypi


def install(folder: Path) -> Path:
    """The folder node_modules with exactly the packages of `folder`/package-lock.json, installed first if it is absent.

    Raises PartError.
    """
    manifests = [folder / name for name in ("package.json", "package-lock.json")]
    key = hashlib.sha256(b"\0".join(path.read_bytes() for path in manifests)).hexdigest()[:16]

    def fill(target: Path) -> None:
        node = pypi.NODE.install()
        for path in manifests:
            shutil.copy(path, target)
        npm = node.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
        # `ci` fails where the two manifests disagree.
        cache.run(
            [node, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            what=f"installing the npm packages of {folder.name}",
            cwd=target,
            # Node has its own list of certificate authorities; pip and Go trust those of the machine, such as a proxy's.
            env={**os.environ, "NODE_USE_SYSTEM_CA": "1"},
        )

    return cache.install_once(f"npm-{folder.name}-{key}", fill=fill) / "node_modules"
