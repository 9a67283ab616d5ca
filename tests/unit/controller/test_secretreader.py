"""The result of each answer of the API server about a Secret or a ServiceAccount."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from autowasm.controller.secretreader import ClusterSecrets
from autowasm.errors import SecretAccessForbidden, SourceUnavailable
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import Forbidden, NotFound, ServerError
from autowasm.kube.resources import ObjectKey, ResourceType


class ApiServer:
    """Answers every GET with this error, as `KubeClient` raises it."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def get(self, resource: ResourceType, key: ObjectKey) -> dict[str, Any]:
        raise self._error


async def _ask(error: Exception, question: Callable[[ClusterSecrets], Awaitable[object]]) -> object:
    async with asyncio.TaskGroup() as tasks:
        secrets = ClusterSecrets(cast("KubeClient", ApiServer(error)), tasks)
        (answer,) = await asyncio.gather(question(secrets), return_exceptions=True)
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def _secret(secrets: ClusterSecrets) -> object:
    return await secrets.read("team", "pull")


async def _names(secrets: ClusterSecrets) -> object:
    return await secrets.pull_secrets("team")


@pytest.mark.parametrize(
    ("question", "reason"), [(_secret, "SecretForbidden"), (_names, "ServiceAccountForbidden")]
)
async def test_missing_rights_are_reported_and_are_no_refusal_by_a_registry(
    question: Callable[[ClusterSecrets], Awaitable[object]], reason: str
) -> None:
    with pytest.raises(SecretAccessForbidden) as caught:
        await _ask(Forbidden("no", code=403), question)
    assert caught.value.reason == reason


@pytest.mark.parametrize("question", [_secret, _names])
async def test_an_api_server_that_fails_makes_the_source_unavailable(
    question: Callable[[ClusterSecrets], Awaitable[object]],
) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        await _ask(ServerError("later", code=503, retry_after=7.0), question)
    assert (caught.value.reason, caught.value.retry_after) == ("SecretUnavailable", 7.0)


async def test_missing_secret_or_account_is_empty() -> None:
    assert await _ask(NotFound("gone", code=404), _secret) is None
    assert await _ask(NotFound("gone", code=404), _names) == ()


async def test_value_that_is_no_base64_is_left_out() -> None:
    class Answering:
        async def get(self, resource: ResourceType, key: ObjectKey) -> dict[str, Any]:
            data = {"good": "eHl6", "bad": "x", "strange": None}
            return {"type": "Opaque", "metadata": {"uid": "u"}, "data": data}

    async with asyncio.TaskGroup() as tasks:
        secrets = ClusterSecrets(cast("KubeClient", Answering()), tasks)
        found = await secrets.read("team", "pull")
    assert found is not None
    assert found.data == {"good": b"xyz"}
