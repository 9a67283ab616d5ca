"""Where each page is followed."""

from tests.docs import blocks

LAPTOP = {"docs/tutorial/laptop.md", "README.md"}
TUTORIAL = "docs/tutorial/cluster.md"
INSTALL = "docs/install.md"
PRIVATE = {"docs/how-to/private-registry.md"}
"""`$REGISTRY` asks for a login there."""


def in_cluster() -> list[str]:
    """Pages with commands or files that are followed where the tutorial has installed wasmer."""
    return [
        page
        for page in blocks.pages()
        if page not in LAPTOP | {TUTORIAL, INSTALL}
        and any(block.language != "text" for block in blocks.read(page))
    ]
