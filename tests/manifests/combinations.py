"""Values of the chart in combination: any two choices of different parts occur together in some of them.

Invariant: the combinations are the same in each run.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from random import Random
from typing import Any, Final

Values = Mapping[str, Any]

COUNT: Final = 40
_CANDIDATES: Final = 50
"""Of so many random combinations, the one with the most new pairs is taken."""
_RESTRICTED: Final = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_DIGEST: Final = "sha256:" + "0123456789abcdef" * 4

PARTS: Final[Mapping[str, tuple[Values, ...]]] = {
    "names": (
        {},
        {"name": "wasmer-blue", "namespace": "mesh-blue"},
        {"fullnameOverride": "mesh-wasmer", "namespaceOverride": "mesh-blue"},
    ),
    "labels": ({}, {"commonLabels": {"team": "mesh"}, "commonAnnotations": {"example.com/a": "b"}}),
    "cache": (
        {},
        {"cache": {"persistent": True}},
        {"cache": {"persistent": True, "storageClassName": "", "size": "20Gi"}},
    ),
    "strategy": (
        {},
        {"strategy": {"type": "Recreate"}, "updateStrategy": {"type": "OnDelete"}},
        {"revisionHistoryLimit": 0},
    ),
    "image": (
        {},
        {"image": {"digest": _DIGEST, "pullPolicy": "Always"}},
        {"image": {"tag": "dev"}, "imagePullSecrets": [{"name": "a"}], "global": {"imagePullSecrets": ["b"]}},
    ),
    "flags": (
        {},
        {"config": {"preflight": "strict", "logLevel": "debug", "allowCidr": ["10.1.0.0/16"]}},
        {"replicas": 1, "config": {"leaderElect": False}},
        {"config": {"watchNamespace": ["team-a"]}, "rbac": {"clusterWide": False}},
    ),
    "environment": (
        {},
        {"extraEnv": [{"name": "A", "value": "b"}], "extraEnvFrom": [{"secretRef": {"name": "a", "optional": True}}]},
    ),
    "authorities": (
        {},
        {"registryCa": [{"pem": "-----BEGIN CERTIFICATE-----\nMAoCAQACAQACAQA=\n-----END CERTIFICATE-----\n"}]},
        {"registryCa": [{"host": "registry.example.com", "secret": "ca"}, {"configMap": "ca", "key": "all.pem"}]},
    ),
    "policy": (
        {},
        {"policy": {"namespaces": {"team-a": {"registries": ["registry.example.com"]}, "*": {"digestRequired": True}}}},
        {"policy": {"configMap": "ours"}},
    ),
    "service": (
        {},
        {"service": {"port": 8181, "annotations": {"example.com/a": "b"}, "labels": {"team": "edge"}}},
        {"service": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"]}},
    ),
    "account": (
        {},
        {"serviceAccount": {"labels": {"team": "mesh"}, "annotations": {"example.com/role": "a"}}},
        {"serviceAccount": {"create": False, "name": "shared"}},
    ),
    "rights": ({}, {"rbac": {"aggregate": False}}, {"rbac": {"create": False}}),
    "hooks": (
        {},
        {"uninstallCheck": {"enabled": False}, "downloadTest": {"enabled": False}},
        {"uninstallCheck": {"override": True}},
    ),
    "Pods": (
        {},
        {"podLabels": {"team": "mesh"}, "podAnnotations": {"example.com/a": "b"}, "deploymentAnnotations": {"example.com/c": "d"}},
        {
            "initContainers": [{"name": "first", "image": "a:1", "securityContext": _RESTRICTED}],
            "extraContainers": [{"name": "beside", "image": "a:1", "securityContext": _RESTRICTED}],
            "extraVolumes": [{"name": "tmp", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        },
    ),
    "security": ({}, {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}),
    "resources": ({}, {"resources": {"limits": None, "requests": {"cpu": "1"}}}),
    "network": (
        {},
        {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.10"]}, "hostAliases": [{"ip": "10.0.0.9", "hostnames": ["a"]}]},
    ),
    "nodes": (
        {},
        {"nodeSelector": {"kubernetes.io/os": None, "pool": "infra"}, "tolerations": [{"operator": "Exists"}]},
        {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}}},
        {"topologySpreadConstraints": [{"topologyKey": "a", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}], "runtimeClassName": "gvisor"},
    ),
    "disruption": (
        {},
        {"podDisruptionBudget": {"enabled": False}},
        {"podDisruptionBudget": {"minAvailable": "50%", "unhealthyPodEvictionPolicy": "AlwaysAllow"}},
    ),
    "priority": ({}, {"priorityClass": {"create": True}}, {"priorityClassName": "system-cluster-critical"}),
    "policies": (
        {},
        {"networkPolicy": {"enabled": True}},
        {"networkPolicy": {"enabled": True, "metricsFrom": [{"podSelector": {}}], "egress": {"enabled": True, "to": [{"ports": [{"port": 443}]}]}}},
    ),
    "metrics": (
        {},
        {"metrics": {"annotations": False, "podMonitor": {"enabled": True, "scrapeTimeout": "9s"}}},
        {"metrics": {"port": 9090, "serviceMonitor": {"enabled": True, "honorLabels": True, "namespace": "team-a"}}},
    ),
    "monitoring": ({}, {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True, "namespace": "team-a"}}),
    "mesh": ({}, {"destinationRule": {"enabled": True}, "rootNamespace": "mesh-blue", "clusterDomain": "blue.example"}),
    "further": ({}, {"extraObjects": ["apiVersion: v1\nkind: ConfigMap\nmetadata: {name: further, namespace: team-a}"]}),
}  # fmt: skip
"""What an operator decides, and the choices: values that do not contradict those of other parts."""

Choice = tuple[str, int]


def _pairs(chosen: Mapping[str, int]) -> set[tuple[Choice, Choice]]:
    return set(combinations(sorted(chosen.items()), 2))


def every_pair() -> set[tuple[Choice, Choice]]:
    """Any two choices of different parts."""
    choices = [(name, number) for name in sorted(PARTS) for number in range(len(PARTS[name]))]
    return {(one, other) for one, other in combinations(choices, 2) if one[0] != other[0]}


@cache
def chosen() -> Sequence[Mapping[str, int]]:
    """For each combination, the number of the choice by part."""
    random = Random(1)  # the same each time, and nothing secret
    missing = every_pair()
    found = []
    for _ in range(COUNT):
        candidates = [
            {name: random.randrange(len(choices)) for name, choices in PARTS.items()}
            for _ in range(_CANDIDATES)
        ]
        best = max(candidates, key=lambda one: len(_pairs(one) & missing))
        missing -= _pairs(best)
        found.append(best)
    return found


def values(choices: Mapping[str, int]) -> dict[str, Any]:
    """The values of one combination."""
    merged: dict[str, Any] = {}
    for name, number in choices.items():
        merged = _merged(merged, PARTS[name][number])
    return merged


def _merged(one: Values, other: Values) -> dict[str, Any]:
    both = {
        name: _merged(one[name], other[name])
        for name in one.keys() & other.keys()
        if isinstance(one[name], dict) and isinstance(other[name], dict)
    }
    return {**one, **other, **both}


def covered() -> set[tuple[Choice, Choice]]:
    """The pairs of choices that occur in some combination."""
    return {pair for choices in chosen() for pair in _pairs(choices)}
