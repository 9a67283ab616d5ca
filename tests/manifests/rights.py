"""Questions to the API server about the rights of a user."""

import asyncio
from typing import NamedTuple

from tests.parts.kubernetes import Cluster

_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class Right(NamedTuple):
    """A verb on a resource in a namespace, or on its object with this name."""

    verb: str
    group: str
    resource: str
    """It may have a subresource after a slash."""
    namespace: str
    name: str = ""


async def may(cluster: Cluster, user: str, right: Right) -> bool:
    """Whether the user has the right."""
    resource, _, subresource = right.resource.partition("/")
    attributes = {**right._asdict(), "resource": resource, "subresource": subresource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    answer = await cluster.request("POST", _REVIEWS, body=review)
    return bool(answer["status"]["allowed"])


async def wait_until_may(cluster: Cluster, user: str, right: Right) -> None:
    """Wait for the right: the API server grants it some moments after the objects that give it are stored. Raises TimeoutError."""
    async with asyncio.timeout(60):
        while not await may(cluster, user, right):
            await asyncio.sleep(0.05)
