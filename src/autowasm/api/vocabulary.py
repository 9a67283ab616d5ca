"""The words for field errors of an AutoWasm: allowed values, names of other APIs, and fields that are not supported.

Invariant: every path is in the schema, or is that of a field that the schema does not have; a test compares both.
"""

from typing import Final

from autowasm.manifests.fielderrors import Vocabulary

_FILTER: Final = "spec.filter"
IMAGE: Final = f"{_FILTER}.source.registry.image"
OBJECT_URL: Final = f"{_FILTER}.source.object.url"
_IMAGE: Final = "an image reference such as registry.example/team/filter:v1"
_URL: Final = "an http or https URL"
_LABELS: Final = (
    "a mapping of labels such as app: details; {} selects every workload of the namespace"
)
_SELECTOR: Final = "a mapping with matchLabels"
_STEPS: Final = 'a list of steps such as [1, "10%", "50%"]'
_DURATION: Final = "a duration with its unit, such as 5m"
_IN_STEPS: Final = "use spec.rollout, which has steps"
_PRIORITY: Final = "use spec.filter.position and spec.filter.priority for the order of filters"


def _meant_by(path: str, value: object) -> str:
    """The field to which a value belongs: `url` of a WasmPlugin is an image unless it is an http URL."""
    if path != OBJECT_URL or not isinstance(value, str):
        return path
    scheme, has_scheme, _ = value.partition("://")
    is_image = scheme in {"oci", "docker"} if has_scheme else not value.startswith((".", "/"))
    return IMAGE if is_image and value else path


AUTOWASM: Final = Vocabulary(
    expected={
        "apiVersion": "wasm.tcm.io/v1alpha1",
        "kind": "AutoWasm",
        "metadata": "a mapping with the name of the AutoWasm",
        "metadata.name": "the name of the AutoWasm",
        "spec": "a mapping with filter and selector",
        "spec.filter": "a mapping with source",
        "spec.selector": _SELECTOR,
        "spec.selector.matchLabels": _LABELS,
        "spec.selector.matchLabels[*]": 'a string; "" is an empty label value',
        "spec.secret": "the name of a Secret in the AutoWasm's namespace",
        f"{_FILTER}.source": "a mapping with registry (and its image) or object (and its url)",
        f"{_FILTER}.source.registry": "a mapping with image",
        f"{_FILTER}.source.registry.image": _IMAGE,
        f"{_FILTER}.source.object": "a mapping with url",
        f"{_FILTER}.source.object.url": _URL,
        f"{_FILTER}.applyPorts": "a list of ports such as [9080]",
        f"{_FILTER}.applyPorts[]": "the number of a port, from 1 to 65535",
        f"{_FILTER}.rootID": "a string, the root id of the module",
        f"{_FILTER}.vmID": "a string, the id of the Wasm VM",
        f"{_FILTER}.sha256": "the sha256 of the module, 64 lower-case hexadecimal digits in quotes",
        f"{_FILTER}.env": "a list such as [{name: LEVEL, value: debug}]",
        f"{_FILTER}.env[]": "a mapping with name and value",
        f"{_FILTER}.env[].name": "the name of the variable",
        f"{_FILTER}.env[].value": "a string",
        f"{_FILTER}.allowOnHeadersStopIteration": "true or false",
        f"{_FILTER}.priority": "a whole number (lower numbers run first)",
        f"{_FILTER}.refreshInterval": _DURATION,
        "spec.rollout": "a mapping with steps, or {} for the default steps",
        "spec.rollout.steps": _STEPS,
        "spec.rollout.steps[]": 'a whole number of Pods such as 1, or a percentage such as "10%"',
        "spec.rollout.pause": "a duration with its unit, such as 30s",
        "spec.rollout.deadline": "a duration with its unit, such as 10m",
        "spec.rollout.maxFailureRatio": "a number from 0 to 1, such as 0.01 for 1%",
    },
    meant={
        "spec.image": f"{_FILTER}.source.registry.image",
        "spec.url": f"{_FILTER}.source.object.url",
        f"{_FILTER}.image": f"{_FILTER}.source.registry.image",
        f"{_FILTER}.url": f"{_FILTER}.source.object.url",
        f"{_FILTER}.source.image": f"{_FILTER}.source.registry.image",
        f"{_FILTER}.source.url": f"{_FILTER}.source.object.url",
        f"{_FILTER}.source.oci": f"{_FILTER}.source.registry",
        f"{_FILTER}.source.http": f"{_FILTER}.source.object",
        f"{_FILTER}.source.https": f"{_FILTER}.source.object",
        f"{_FILTER}.source.remote": f"{_FILTER}.source.object",
        f"{_FILTER}.source.registry.url": f"{_FILTER}.source.registry.image",
        f"{_FILTER}.source.registry.ref": f"{_FILTER}.source.registry.image",
        f"{_FILTER}.source.object.uri": f"{_FILTER}.source.object.url",
        f"{_FILTER}.ports": f"{_FILTER}.applyPorts",
        f"{_FILTER}.port": f"{_FILTER}.applyPorts",
        f"{_FILTER}.config": f"{_FILTER}.pluginConfig",
        f"{_FILTER}.configuration": f"{_FILTER}.pluginConfig",
        f"{_FILTER}.pluginName": f"{_FILTER}.rootID",
        f"{_FILTER}.imagePullPolicy": f"{_FILTER}.pullPolicy",
        f"{_FILTER}.failurePolicy": f"{_FILTER}.failStrategy",
        "spec.imagePullSecret": "spec.secret",
        "spec.pullSecret": "spec.secret",
        "spec.workloadSelector": "spec.selector",
        "spec.pluginName": f"{_FILTER}.rootID",
        "spec.imagePullPolicy": f"{_FILTER}.pullPolicy",
        f"{_FILTER}.imagePullSecret": "spec.secret",
        "spec.selector.labels": "spec.selector.matchLabels",
        "spec.selector.*": "spec.selector.matchLabels",
    },
    meant_by=_meant_by,
    formats=frozenset(
        {
            "apiVersion",
            "kind",
            f"{_FILTER}.source.registry.image",
            f"{_FILTER}.source.object.url",
            f"{_FILTER}.sha256",
            f"{_FILTER}.refreshInterval",
            "spec.rollout.pause",
            "spec.rollout.deadline",
        }
    ),
    unsupported={
        "matchExpressions": "use spec.selector.matchLabels, and one AutoWasm for each set of labels",
        "spec.vmConfig": "write its env as spec.filter.env",
        "spec.filter.vmConfig": "write its env as spec.filter.env",
        "spec.targetRef": "select Pods with spec.selector.matchLabels",
        "spec.targetRefs": "select Pods with spec.selector.matchLabels",
        "spec.filter.targetRefs": "select Pods with spec.selector.matchLabels",
        "spec.imagePullSecrets": "use spec.secret, the name of one Secret",
        "spec.filter.imagePullSecrets": "use spec.secret, the name of one Secret",
        "spec.strategy": _IN_STEPS,
        "spec.updateStrategy": _IN_STEPS,
        "spec.replicas": "the Pods are those that spec.selector selects",
        "spec.template": "an AutoWasm has no Pods of its own; spec.selector selects running ones",
        "spec.configPatches": "wasmer writes the EnvoyFilter from spec.filter",
        "spec.phase": _PRIORITY,
        "spec.filter.phase": _PRIORITY,
        "spec.match": "use spec.filter.context and spec.filter.applyPorts",
        "spec.filter.match": "use spec.filter.context and spec.filter.applyPorts",
        "spec.type": "AutoWasm inserts HTTP filters",
        "spec.filter.type": "AutoWasm inserts HTTP filters",
        "spec.namespace": "the Pods and the Secret are in the AutoWasm's own namespace, metadata.namespace",
        "spec.selector.matchNames": "select Pods with spec.selector.matchLabels",
        "namespaceSelector": "an AutoWasm selects Pods of its own namespace; create one in each namespace",
        "spec.filter.env[].valueFrom": "write the value itself, or put it into pluginConfig",
        "spec.filter.source.registry.tag": "write the tag into image: host/name:tag",
        "spec.filter.source.registry.digest": "write the digest into image: host/name@sha256:...",
        "spec.filter.source.registry.secret": "use spec.secret, the name of a Secret",
        "spec.filter.source.object.secret": "objects are public; use a registry for a module that needs a login",
        "spec.filter.source.object.sha256": "use spec.filter.sha256",
        "spec.filter.source.local": "push the module to a registry, or serve it over http",
        "spec.filter.source.file": "push the module to a registry, or serve it over http",
        "spec.filter.source.configMap": "push the module to a registry, or serve it over http",
    },
)
