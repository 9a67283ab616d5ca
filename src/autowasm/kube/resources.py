"""Resources of the API server and their objects: names, keys and URL paths.

There is no discovery: the resources that AutoWasm uses are known. Invariant: a path consists of checked segments only, so
no name can lead out of its collection.
"""

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote


class ObjectKey(NamedTuple):
    """Namespace and name: the key of stores and work queues. Cluster-scoped: namespace `""`."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class ResourceType:
    """One kind of object and the path of its collection. `group` is `""` for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(
        self,
        *,
        namespace: str | None = None,
        name: str | None = None,
        subresource: str | None = None,
    ) -> str:
        """URL path of the collection (of one namespace or of all), of an object, or of its subresource."""
        if name is not None and self.namespaced and not namespace:
            raise ValueError(f"{self.plural} {name!r} needs a namespace")
        if namespace and not self.namespaced:
            raise ValueError(f"{self.plural} have no namespace")
        parts = ["apis", self.group] if self.group else ["api"]
        parts.append(self.version)
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "".join("/" + _segment(part) for part in parts)

    def object_path(self, key: ObjectKey, *, subresource: str | None = None) -> str:
        """URL path of one object or of its subresource."""
        return self.path(namespace=key.namespace or None, name=key.name, subresource=subresource)


def _segment(part: str) -> str:
    if part in {"", ".", ".."}:
        raise ValueError(f"{part!r} cannot be part of a path")
    return quote(part, safe="")


PODS = ResourceType("", "v1", "pods", "Pod")
SECRETS = ResourceType("", "v1", "secrets", "Secret")
SERVICEACCOUNTS = ResourceType("", "v1", "serviceaccounts", "ServiceAccount")
SERVICES = ResourceType("", "v1", "services", "Service")
ENDPOINTS = ResourceType("", "v1", "endpoints", "Endpoints")
EVENTS = ResourceType("", "v1", "events", "Event")
LEASES = ResourceType("coordination.k8s.io", "v1", "leases", "Lease")
NAMESPACES = ResourceType("", "v1", "namespaces", "Namespace", namespaced=False)
