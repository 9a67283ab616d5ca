"""The EnvoyFilter of an AutoWasm: `render` makes it, the other functions read it back. Pure.

A real Envoy needed each difference to the reference sample (ADR 6). Invariants: the same input gives the same bytes; only
fields that Envoy and Istio know are emitted, because Envoy silently ignores an unknown field inside a TypedStruct.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from autowasm.api import patches, pluginconfig
from autowasm.api import record as records
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import API_VERSION, KIND, AutoWasm, FailStrategy, PatchContext
from autowasm.digest import Sha256Hex, sha256_hex
from autowasm.settings import EnvoyFetch

MANAGED_BY = {"app.kubernetes.io/managed-by": "wasmer"}
REVISION_LABEL = "istio.io/rev"
REFERENCED_SERVICES = "envoyfilter.istio.io/referenced-services"
"""Istio's annotation. If gateways get clusters for their routes only (PILOT_FILTER_GATEWAY_CLUSTER_CONFIG), it names the
further Services that a gateway needs. Sidecars ignore it."""
OWNED_ANNOTATIONS = frozenset({records.ANNOTATION, REFERENCED_SERVICES})
"""Annotations that wasmer owns on its EnvoyFilters: as `render` makes them, or absent. It keeps all others."""
VM_ID_DIGEST_LENGTH = 12

_TYPE = "type.googleapis.com/"
_OUTBOUND = re.compile(r"outbound\|[0-9]+\|[^|]*\|(?P<host>[^|]+)")
_URI_END = re.compile(r"/wasm/([0-9a-f]{64})\?r=([0-9]{1,9})\Z")


def render(
    autowasm: AutoWasm, record: Record, settings: EnvoyFetch, *, resend: int = 0
) -> dict[str, Any]:
    """The whole object, keys in sorted order. `resend`: how many times it was resent (ADR 17).

    Namespace and name are the AutoWasm's. The owner reference is set if the AutoWasm has a uid (one from a directory has
    none).
    """
    spec = autowasm.spec
    value = _wasm_filter(autowasm, record, settings, resend=resend)
    result: dict[str, Any] = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": _metadata(autowasm, record, settings),
        "spec": {"configPatches": patches.config_patches(spec.filter, value)},
    }
    if spec.filter.priority is not None:
        result["spec"]["priority"] = spec.filter.priority
    if spec.selector.match_labels:
        # Istio's validation warns about an empty workloadSelector; without it the meaning is the same.
        result["spec"]["workloadSelector"] = {
            "labels": dict(sorted(spec.selector.match_labels.items()))
        }
    return result


def _metadata(autowasm: AutoWasm, record: Record, settings: EnvoyFetch) -> dict[str, Any]:
    labels = dict(MANAGED_BY)
    if revision := autowasm.metadata.labels.get(REVISION_LABEL):
        labels[REVISION_LABEL] = revision
    annotations = {records.ANNOTATION: records.dump(record)}
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
    """`namespace/host` of the Service behind `outbound|PORT|SUBSET|HOST`; the host alone if it is not a Kubernetes Service's.

    None if istiod does not make the cluster from a Service, so it cannot omit the cluster.
    """
    found = _OUTBOUND.fullmatch(cluster)
    if found is None:
        return None
    host = found["host"]
    _, _, rest = host.partition(".")
    namespace, _, domain = rest.partition(".")
    return f"{namespace}/{host}" if namespace and domain.startswith("svc.") else host


def _wasm_filter(
    autowasm: AutoWasm, record: Record, settings: EnvoyFetch, *, resend: int
) -> dict[str, Any]:
    return {
        "name": patches.FILTER,
        "typedConfig": {
            "@type": f"{_TYPE}udpa.type.v1.TypedStruct",
            "typeUrl": f"{_TYPE}envoy.extensions.filters.http.wasm.v3.Wasm",
            "value": {"config": _plugin_config(autowasm, record, settings, resend=resend)},
        },
    }


def _plugin_config(
    autowasm: AutoWasm, record: Record, settings: EnvoyFetch, *, resend: int
) -> dict[str, Any]:
    filter_ = autowasm.spec.filter
    config: dict[str, Any] = {}
    if filter_.plugin_config is not UNSET:
        config["configuration"] = _configuration(filter_.plugin_config)
    if filter_.fail_strategy is FailStrategy.FAIL_OPEN:
        config["failOpen"] = True  # Envoy before 1.33 silently ignores failurePolicy
    elif filter_.fail_strategy is FailStrategy.FAIL_RELOAD:
        config["failurePolicy"] = "FAIL_RELOAD"
    config["name"] = autowasm.metadata.name
    if filter_.root_id is not None:
        config["rootId"] = filter_.root_id
    config["vmConfig"] = _vm_config(autowasm, record, settings, resend=resend)
    return config


def _configuration(value: Any) -> dict[str, Any]:
    """Always a StringValue: of other messages, also of a Struct, the filter receives protobuf's wire format.

    Source: Envoy `MessageUtil::anyToBytes`, which unwraps StringValue and BytesValue only.
    """
    return {"@type": f"{_TYPE}google.protobuf.StringValue", "value": pluginconfig.as_text(value)}


def _vm_config(
    autowasm: AutoWasm, record: Record, settings: EnvoyFetch, *, resend: int
) -> dict[str, Any]:
    filter_ = autowasm.spec.filter
    config: dict[str, Any] = {
        "code": {
            "remote": {
                "httpUri": {
                    "cluster": settings.cluster,
                    "timeout": _duration(settings.timeout),
                    "uri": f"{settings.authority}/wasm/{record.sha256}{_again(resend)}",
                },
                "retryPolicy": {
                    "numRetries": settings.retries,
                    "retryBackOff": {"baseInterval": "1s", "maxInterval": "5s"},
                },
                "sha256": record.sha256,
            }
        }
    }
    if filter_.env:
        variables = {variable.name: variable.value for variable in filter_.env}
        config["environmentVariables"] = {"keyValues": dict(sorted(variables.items()))}
    config["runtime"] = "envoy.wasm.runtime.v8"
    config["vmId"] = _vm_id(autowasm, record)
    return config


def _vm_id(autowasm: AutoWasm, record: Record) -> str:
    """The part of Envoy's VM key that wasmer chooses. It has everything in which two VMs can differ.

    Envoy makes the key of vmId, the VM's own configuration (wasmer sets none) and the code, which is empty while Envoy
    fetches the module. Envoy reuses a VM with the same key as it is, with the code and the environment of its start. On
    Envoy 1.36 this includes the failure policy, because the plugin's key has only name, direction, rootID and
    configuration. Sources: `createWasm` in Envoy's wasm.cc, `makeVmKey` and `makePluginKey` in proxy-wasm-cpp-host.
    """
    filter_ = autowasm.spec.filter
    base = filter_.vm_id or f"{autowasm.metadata.namespace}.{autowasm.metadata.name}"
    parts = [base, record.sha256[:VM_ID_DIGEST_LENGTH]]
    # Defaults are omitted: objects without these fields keep the id of earlier versions.
    more: dict[str, Any] = {}
    if filter_.env:
        more["env"] = {variable.name: variable.value for variable in filter_.env}
    if filter_.fail_strategy is not FailStrategy.FAIL_CLOSE:
        more["failStrategy"] = filter_.fail_strategy.value
    if more:
        text = json.dumps(more, sort_keys=True).encode()
        parts.append(hashlib.sha256(text).hexdigest()[:VM_ID_DIGEST_LENGTH])
    return "-".join(parts)


def _again(resend: int) -> str:
    """The query of the n-th resend. wasmer ignores it; Envoy sees another configuration and fetches again (ADR 17)."""
    return f"?r={resend}" if resend else ""


def resend_count_of(envoyfilter: Mapping[str, Any], sha256: str) -> int:
    """How many times the live EnvoyFilter was resent for this module; 0 for another module."""
    for value in patches.filters_of(envoyfilter):
        try:
            config = value["typedConfig"]["value"]["config"]
            uri = config["vmConfig"]["code"]["remote"]["httpUri"]["uri"]
        except (KeyError, TypeError):
            continue  # the tunnel's anchor (api/patches.py), or a manual edit
        found = _URI_END.search(uri) if isinstance(uri, str) else None
        return int(found[2]) if found and found[1] == sha256 else 0
    return 0


def _duration(seconds: float) -> str:
    """A duration in protobuf's JSON form: no exponent, at most milliseconds."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def digests_of(envoyfilter: Mapping[str, Any]) -> tuple[Sha256Hex, ...]:
    """The modules that its spec makes proxies fetch, each once. wasmer must serve them, whatever the annotations hold."""
    found: dict[Sha256Hex, None] = {}
    for value in patches.filters_of(envoyfilter):
        try:
            config = value["typedConfig"]["value"]["config"]
            found[sha256_hex(config["vmConfig"]["code"]["remote"]["sha256"])] = None
        except (KeyError, TypeError, ValueError):
            continue  # the tunnel's anchor (api/patches.py), or a manual edit: no module of wasmer's
    return tuple(found)


def plugin_config_of(envoyfilter: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The PluginConfig that every patch of `render` has; None if there is none. A manual edit may lack fields."""
    for value in patches.filters_of(envoyfilter):
        try:
            config = value["typedConfig"]["value"]["config"]
        except (KeyError, TypeError):
            continue  # the tunnel's anchor (api/patches.py), or a manual edit
        if isinstance(config, Mapping):
            return config
    return None


def record_of(envoyfilter: Mapping[str, Any]) -> Record | None:
    """The record in its annotation; None if it is absent or unreadable, or if the spec names another module."""
    annotations = (envoyfilter.get("metadata") or {}).get("annotations") or {}
    text = annotations.get(records.ANNOTATION)
    record = records.load(text) if isinstance(text, str) else None
    return record if record and digests_of(envoyfilter) == (record.sha256,) else None
