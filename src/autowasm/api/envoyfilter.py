"""The EnvoyFilter of an AutoWasm: `render` makes it, the other functions read it back. Pure.

Each difference from the reference sample is one that a real Envoy needs (ADR 6). Invariants: the same input gives the same bytes; only
fields that Envoy and Istio know are emitted, because Envoy silently ignores an unknown field inside a TypedStruct.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from autowasm.api import patches, wasmfilter
from autowasm.api import record as records
from autowasm.api.patches import Placed
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import API_VERSION, KIND, AutoWasm, PatchContext
from autowasm.api.variant import variant_of
from autowasm.digest import Sha256Hex
from autowasm.settings import EnvoyFetch

MANAGED_BY = {"app.kubernetes.io/managed-by": "wasmer"}
REVISION_LABEL = "istio.io/rev"
REFERENCED_SERVICES = "envoyfilter.istio.io/referenced-services"
"""Istio's annotation. If gateways get clusters for their routes only (PILOT_FILTER_GATEWAY_CLUSTER_CONFIG), it names the
further Services that a gateway needs. Sidecars ignore it."""
OWNED_ANNOTATIONS = frozenset({records.ANNOTATION, records.STABLE_ANNOTATION, REFERENCED_SERVICES})
"""Annotations that wasmer owns on its EnvoyFilters: as `render` makes them, or absent. It keeps all others."""
_OUTBOUND = re.compile(r"outbound\|[0-9]+\|[^|]*\|(?P<host>[^|]+)")


def render(
    autowasm: AutoWasm, record: Record, settings: EnvoyFetch, *, resend: int = 0
) -> dict[str, Any]:
    """The whole object, keys in sorted order. `resend`: how many times it was resent (ADR 17).

    Namespace and name are the AutoWasm's. The owner reference is set if the AutoWasm has a uid (one read from a directory has
    none).
    """
    variant = variant_of(autowasm, record, resend=resend)
    value = wasmfilter.http_filter(
        variant, settings, name=patches.FILTER, plugin_name=autowasm.metadata.name
    )
    placed = Placed(variant.context, variant.ports, value, variant.position)
    return envoyfilter(
        autowasm,
        settings,
        patches_=patches.config_patches(placed),
        annotations={records.ANNOTATION: records.dump(record)},
    )


def envoyfilter(
    autowasm: AutoWasm,
    settings: EnvoyFetch,
    *,
    patches_: list[dict[str, Any]],
    annotations: Mapping[str, str],
) -> dict[str, Any]:
    """The object around the patches, as `render` builds it."""
    spec = autowasm.spec
    result: dict[str, Any] = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": _metadata(autowasm, settings, annotations),
        "spec": {"configPatches": patches_},
    }
    if spec.filter.priority is not None:
        result["spec"]["priority"] = spec.filter.priority
    if spec.selector.match_labels:
        # Istio's validation warns about an empty workloadSelector; without it the meaning is the same.
        result["spec"]["workloadSelector"] = {
            "labels": dict(sorted(spec.selector.match_labels.items()))
        }
    return result


def _metadata(
    autowasm: AutoWasm, settings: EnvoyFetch, annotations: Mapping[str, str]
) -> dict[str, Any]:
    labels = dict(MANAGED_BY)
    if revision := autowasm.metadata.labels.get(REVISION_LABEL):
        labels[REVISION_LABEL] = revision
    annotations = dict(annotations)
    # For gateways only: if an object has an istio.io annotation, istiod pushes after every change of its metadata
    # (pilot/pkg/model/config_compare.go NeedsPush).
    service = _referenced_service(settings.cluster)
    if autowasm.spec.filter.context is PatchContext.GATEWAY and service is not None:
        annotations[REFERENCED_SERVICES] = service
    metadata: dict[str, Any] = {
        "annotations": dict(sorted(annotations.items())),
        "labels": labels,
        "name": autowasm.metadata.name,
        "namespace": autowasm.metadata.namespace,
    }
    if autowasm.metadata.uid:
        metadata["ownerReferences"] = [
            {
                "apiVersion": API_VERSION,
                "controller": True,
                "kind": KIND,
                "name": autowasm.metadata.name,
                "uid": autowasm.metadata.uid,
            }
        ]
    return metadata


def _referenced_service(cluster: str) -> str | None:
    """`namespace/host` of the Service behind `outbound|PORT|SUBSET|HOST`; the host alone if it does not belong to a Kubernetes Service.

    None if istiod does not make the cluster from a Service, so it cannot omit the cluster.
    """
    found = _OUTBOUND.fullmatch(cluster)
    if found is None:
        return None
    host = found["host"]
    _, _, rest = host.partition(".")
    namespace, _, domain = rest.partition(".")
    return f"{namespace}/{host}" if namespace and domain.startswith("svc.") else host


def resend_count_of(envoyfilter: Mapping[str, Any], sha256: str) -> int:
    """The number of times that the live EnvoyFilter was resent for this module; 0 for another module."""
    found = map(wasmfilter.resend_of, patches.filters_of(envoyfilter))
    return next((each[1] for each in found if each is not None and each[0] == sha256), 0)


def digests_of(envoyfilter: Mapping[str, Any]) -> tuple[Sha256Hex, ...]:
    """The modules that its spec makes proxies fetch, without duplicates. wasmer must serve them regardless of the annotations."""
    # Without a module: the tunnel's anchor (api/patches.py), or a manual edit.
    found = map(wasmfilter.module_of, patches.filters_of(envoyfilter))
    return tuple(dict.fromkeys(sha256 for sha256 in found if sha256 is not None))


def records_of(envoyfilter: Mapping[str, Any]) -> tuple[Record, ...]:
    """The records in its annotations, the newest first; during a staged rollout there may be two (ADR 39).

    Empty if a record is absent or unreadable, or if the records and the spec name different modules.
    """
    annotations = (envoyfilter.get("metadata") or {}).get("annotations") or {}
    texts = [
        annotations[name]
        for name in (records.ANNOTATION, records.STABLE_ANNOTATION)
        if name in annotations
    ]
    found = [records.load(text) if isinstance(text, str) else None for text in texts]
    known = tuple(record for record in found if record is not None)
    named = {record.sha256 for record in known}
    is_whole = len(known) == len(texts) and records.ANNOTATION in annotations
    return known if is_whole and named == set(digests_of(envoyfilter)) else ()


def plugin_config_of(envoyfilter: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The PluginConfig that every patch of `render` has; None if there is none. A manual edit may lack fields."""
    return plugin_config(patches.filters_of(envoyfilter))


def plugin_config(filters: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The PluginConfig of the first of these filters that has one."""
    for value in filters:
        try:
            config = value["typedConfig"]["value"]["config"]
        except (KeyError, TypeError):
            continue  # the tunnel's anchor (api/patches.py), or a manual edit
        if isinstance(config, Mapping):
            return config
    return None


def record_of(envoyfilter: Mapping[str, Any]) -> Record | None:
    """The record in its annotation; None if it is absent or unreadable, or if the spec names another module.

    During a staged rollout, the record of the newer module.
    """
    return next(iter(records_of(envoyfilter)), None)
