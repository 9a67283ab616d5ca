"""The chart's README.md, and the descriptions in its schema: both from the comments of values.yaml that begin with `# --`.

They are read as helm-docs reads them (https://github.com/norwoodj/helm-docs): a comment describes the key in the next line.
Invariant: a value without a description is an error.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tools.generate import markdown
from tools.generate.paths import CHART

VALUES = CHART / "values.yaml"
README = CHART / "README.md"

Path = tuple[str, ...]

_KEY = re.compile(r"^( *)([A-Za-z]+):")
_COMMENT = re.compile(r"^ *# ?(.*)$")
_BEGIN = "-- "
_README = """\
# {name}

{description}. See the [documentation]({home}).

`make manifests` writes this page.

## Install

```sh
helm install oci://ghcr.io/autowasm/charts/wasmer --generate-name --set image.repository=…
```

wasmer runs in the namespace `istio-system` under the name `wasmer`, independent of the release's name and namespace: sidecars fetch modules
from `wasmer.istio-system`. [Installing wasmer]({home}install.html) describes upgrades, several meshes and other ways of installation.

`helm test RELEASE` downloads a published module from wasmer's Service and verifies it.

## Values

Helm rejects values with a misspelt name or a wrong type. The flags in `config` are those of
[`wasmer controller`]({home}cli.html).

"""


def descriptions(text: str) -> dict[Path, str]:
    """The descriptions by the path of the key, in the order of the file."""
    found: dict[Path, str] = {}
    parents: list[tuple[int, str]] = []
    said: list[str] = []
    for line in text.splitlines():
        if comment := _COMMENT.match(line):
            words = comment[1]
            if words.startswith(_BEGIN):
                said = [words.removeprefix(_BEGIN)]
            elif said:
                said.append(words)
            continue
        if key := _KEY.match(line):
            indent, name = len(key[1]), key[2]
            while parents and parents[-1][0] >= indent:
                parents.pop()
            parents.append((indent, name))
            if said:
                found[tuple(one for _, one in parents)] = " ".join(said)
        said = []
    return found


def described(values: Mapping[str, Any], texts: Mapping[Path, str]) -> Iterator[tuple[Path, Any]]:
    """The values that have a description, with their defaults. Raises ValueError for a value outside of them."""
    yield from _described(values, texts, ())


def _described(
    values: Mapping[str, Any], texts: Mapping[Path, str], parent: Path
) -> Iterator[tuple[Path, Any]]:
    for name, value in values.items():
        path = (*parent, name)
        if path in texts:
            yield path, value
        elif isinstance(value, dict) and value:
            yield from _described(value, texts, path)
        else:
            raise ValueError(f"{VALUES}: {'.'.join(path)} has no comment that begins with `# --`")


def readme() -> str:
    """The whole page."""
    text = VALUES.read_text()
    texts = descriptions(text)
    rows = (
        (f"`{'.'.join(path)}`", f"`{json.dumps(value)}`", texts[path].replace("|", "\\|"))
        for path, value in described(yaml.safe_load(text), texts)
    )
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return _README.format(**about) + markdown.table("| Value | Default | |", rows)


def describe(schema: dict[str, Any]) -> None:
    """Put the descriptions into the schema of the values. Raises KeyError for a value that the schema lacks."""
    for path, text in descriptions(VALUES.read_text()).items():
        node = schema
        for name in path:
            node = node["properties"][name]
        node.pop("description", None)
        rest = dict(node)
        node.clear()
        node.update({"description": text, **rest})
