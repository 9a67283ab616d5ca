"""Registries without HEAD, and records that any client may have written."""

from typing import cast

import msgspec
import pytest

from autowasm.artifacts.image import ImageSource
from autowasm.digest import Digest
from autowasm.errors import AutoWasmError, SourceNotFound, SourceUnavailable, SpecError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.client import RegistryClient
from autowasm.registry.credentials import Credential
from tests.fakes.autowasms import IMAGE, autowasm, record

MOVED = Digest.parse("sha256:" + "f" * 64)


class Registry:
    """Answers HEAD with `answer`, or fails with it."""

    def __init__(self, answer: Digest | AutoWasmError | None) -> None:
        self.answer = answer

    async def head(
        self, reference: ImageReference, *, credential: Credential | None
    ) -> Digest | None:
        if isinstance(self.answer, AutoWasmError):
            raise self.answer
        return self.answer


async def has_moved(answer: Digest | AutoWasmError | None) -> bool | None:
    with Pools() as pools:
        source = ImageSource(cast(RegistryClient, Registry(answer)), limits=Limits(), pools=pools)
        spec = autowasm(image=IMAGE).spec.filter.source
        return await source.has_moved(spec, record(), credential=None)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        SourceNotFound("404", reason="ImageNotFound"),
        SourceUnavailable("405", reason="UnexpectedAnswer"),
    ],
)
async def test_unanswered_head_leaves_the_change_unknown(answer: AutoWasmError | None) -> None:
    assert await has_moved(answer) is None


async def test_other_digest_means_that_the_tag_has_moved() -> None:
    assert await has_moved(MOVED) is True


async def test_registry_that_is_down_is_an_error() -> None:
    with pytest.raises(SourceUnavailable, match="down"):
        await has_moved(SourceUnavailable("down", reason="RegistryUnavailable"))


async def test_record_whose_image_is_no_reference_names_the_field() -> None:
    with Pools() as pools:
        source = ImageSource(cast(RegistryClient, Registry(None)), limits=Limits(), pools=pools)
        with pytest.raises(SpecError, match=r"status\.module\.image"):
            await source.pin(
                msgspec.structs.replace(record(), image="Not A Reference"), credential=None
            )
