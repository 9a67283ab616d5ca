"""Writes by ADR 12: create, or PUT with the resourceVersion that was read; the same for the status.

Not server-side apply, which cannot detect a foreign object and provides no fencing. Callers compare before they write.
Invariants: an object that another client changed since it was read is never overwritten (Conflict), and no object that is being
deleted is written.
"""

from collections.abc import Mapping
from typing import Any, Final

from autowasm.kube.client import KubeClient
from autowasm.kube.codec import StoredDocument, as_stored, decode_document, document_meta
from autowasm.kube.resources import ObjectKey, ResourceType

MERGE_PATCH: Final = "application/merge-patch+json"


def is_terminating(document: Mapping[str, Any]) -> bool:
    """Whether the object is being deleted and its finalizers still run."""
    return document["metadata"].get("deletionTimestamp") is not None


async def create(
    client: KubeClient, resource: ResourceType, body: Mapping[str, Any]
) -> StoredDocument:
    """POST to the collection of the namespace that the body names. Returns the object as stored.

    Raises AlreadyExists; Forbidden (`namespace_terminating`) in a namespace that is being deleted.
    """
    path = resource.path(namespace=body["metadata"].get("namespace") or None)
    return await _decoded(await client.request("POST", path, body=body))


async def update(
    client: KubeClient,
    resource: ResourceType,
    body: Mapping[str, Any],
    *,
    read: Mapping[str, Any],
) -> StoredDocument | None:
    """PUT `body` to replace the object as it was `read`. Returns the stored object; None if it is being deleted.

    Raises Conflict if the object has changed since, or is another object of the same name; NotFound.
    """
    return await _put(client, resource, body, read=read, subresource=None)


async def update_status(
    client: KubeClient,
    resource: ResourceType,
    status: Mapping[str, Any],
    *,
    read: Mapping[str, Any],
) -> StoredDocument | None:
    """PUT the status of the object as it was `read`. Returns and raises as `update`.

    The server uses only the status, so the rest, which may be a megabyte, is not sent.
    """
    name = {
        part: read["metadata"][part] for part in ("name", "namespace") if part in read["metadata"]
    }
    body = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": name,
        "status": status,
    }
    return await _put(client, resource, body, read=read, subresource="status")


async def merge_patch(
    client: KubeClient, resource: ResourceType, key: ObjectKey, body: Mapping[str, Any]
) -> StoredDocument:
    """PATCH with a JSON merge patch (RFC 7396). Returns the object as stored. Raises NotFound."""
    path = resource.object_path(key)
    return await _decoded(await client.request("PATCH", path, body=body, content_type=MERGE_PATCH))


async def _put(
    client: KubeClient,
    resource: ResourceType,
    body: Mapping[str, Any],
    *,
    read: Mapping[str, Any],
    subresource: str | None,
) -> StoredDocument | None:
    if is_terminating(read):
        return None
    key, resource_version = document_meta(read)
    metadata = {
        **body["metadata"],
        "resourceVersion": resource_version,
        "uid": read["metadata"]["uid"],
    }
    # The server keeps its own if there are none; those of an informer are incomplete (`codec.without_field_sets`).
    metadata.pop("managedFields", None)
    path = resource.object_path(key, subresource=subresource)
    return await _decoded(await client.request("PUT", path, body={**body, "metadata": metadata}))


async def _decoded(answer: bytes | bytearray) -> StoredDocument:
    """The object as an informer will show it."""
    return as_stored(await decode_document(answer))
