"""What is followed of a cluster: AutoWasms, our EnvoyFilters, and Pods.

Not what is made of it (`observers.py`). Invariant: of EnvoyFilters only those with our label are ever asked for.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from autowasm.api.envoyfilter import MANAGED_BY
from autowasm.controller.publishing.publisher import AUTOWASMS, ENVOYFILTERS
from autowasm.kube.client import KubeClient
from autowasm.kube.codec import DocumentCodec
from autowasm.kube.informer import Informer, InformerGroup
from autowasm.kube.listwatch import ListWatch
from autowasm.kube.pods import Pod, pod_codec
from autowasm.kube.reflector import ReflectorMetrics
from autowasm.kube.resources import PODS
from autowasm.settings import Cluster

_OURS = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())


class Reflections(Protocol):
    """Metrics for each informer by name."""

    def reflector(self, name: str) -> ReflectorMetrics:
        """Those of one informer."""


@dataclass(frozen=True, slots=True)
class ClusterInformers:
    """In the namespaces that are watched."""

    autowasms: InformerGroup[dict[str, Any]]
    envoyfilters: InformerGroup[dict[str, Any]]
    pods: InformerGroup[Pod]
    """Only a leader runs these."""

    @property
    def all(self) -> tuple[Informer[Any], ...]:
        """Every single one."""
        return (*self.autowasms, *self.envoyfilters, *self.pods)


def make_informers(
    client: KubeClient, *, cluster: Cluster, metrics: Reflections
) -> ClusterInformers:
    """None of them runs yet."""
    namespaces: tuple[str | None, ...] = cluster.watch_namespaces or (None,)
    limits = client.limits
    return ClusterInformers(
        autowasms=InformerGroup(
            Informer(
                "autowasms",
                list_watch=ListWatch(
                    client,
                    AUTOWASMS,
                    DocumentCodec(limits),
                    namespace=namespace,
                    pause=limits.echo_pause,
                ),
                limits=limits,
                resync=limits.resync,
                metrics=metrics.reflector("autowasms"),
            )
            for namespace in namespaces
        ),
        envoyfilters=InformerGroup(
            Informer(
                "envoyfilters",
                list_watch=ListWatch(
                    client,
                    ENVOYFILTERS,
                    DocumentCodec(limits),
                    namespace=namespace,
                    label_selector=_OURS,
                    pause=limits.echo_pause,
                ),
                limits=limits,
                metrics=metrics.reflector("envoyfilters"),
            )
            for namespace in namespaces
        ),
        pods=InformerGroup(
            Informer(
                "pods",
                list_watch=ListWatch(
                    client, PODS, pod_codec(), namespace=namespace, pause=limits.pods_pause
                ),
                limits=limits,
                metrics=metrics.reflector("pods"),
            )
            for namespace in namespaces
        ),
    )
