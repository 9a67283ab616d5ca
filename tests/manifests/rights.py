"""Questions to the API server about the rights of a user."""

import asyncio

from tests.parts.kubernetes import Cluster

_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


async def may(
    cluster: Cluster,
    user: str,
    verb: str,
    group: str,
    resource: str,
    *,
    namespace: str,
    name: str = "",
) -> bool:
    """Whether the user has the right; `resource` may have a subresource after a slash."""
    resource, _, subresource = resource.partition("/")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": resource,
        "subresource": subresource,
        "namespace": namespace,
        "name": name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    answer = await cluster.request("POST", _REVIEWS, body=review)
    return bool(answer["status"]["allowed"])


async def wait_until_may(
    cluster: Cluster,
    user: str,
    verb: str,
    group: str,
    resource: str,
    *,
    namespace: str,
    name: str = "",
) -> None:
    """Wait for the right: the API server grants it some moments after the objects that give it are stored. Raises TimeoutError."""
    async with asyncio.timeout(60):
        while not await may(cluster, user, verb, group, resource, namespace=namespace, name=name):
            await asyncio.sleep(0.05)
