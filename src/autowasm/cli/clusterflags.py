"""The flags that only `wasmer controller` has: which API server, and how replicas share the work.

Not those that it shares with standalone mode (`flags.py`).
"""

from pathlib import Path

from autowasm.cli.options import Groups, Option, Values, boolean, duration, several
from autowasm.settings import Cluster, Election, HealingSettings

_DEFAULT = Cluster()
_ELECTION = Election()

GROUPS: Groups = {
    "cluster": (
        Option("--kubeconfig", "FILE", "absent: the service account of the Pod", Path),
        several("--watch-namespace", "NAME", "only this namespace; repeatable (default: all)"),
        Option(
            "--root-namespace",
            "NAME",
            "the mesh's root namespace, where selectors reach every namespace",
            default=_DEFAULT.root_namespace,
        ),
        Option(
            "--service-account-pull-secrets",
            "",
            "without spec.secret, use imagePullSecrets of the namespace's default ServiceAccount (needs get serviceaccounts)",
            boolean,
            default=False,
            switch=True,
        ),
        Option(
            "--allow-mesh-wide",
            "",
            "take an empty selector in the root namespace: every workload of the mesh",
            boolean,
            default=False,
            switch=True,
        ),
    ),
    "replicas": (
        Option(
            "--leader-elect",
            "",
            "one replica writes, chosen by a Lease; the others follow and serve (default)",
            boolean,
            default=True,
            switch=True,
        ),
        Option(
            "--lease-name",
            "NAME",
            "the Lease, in the Service's namespace",
            default=_ELECTION.lease_name,
        ),
        duration(
            "--lease-duration",
            "a silent leader is followed after this, in whole seconds",
            _ELECTION.lease_duration,
        ),
        duration(
            "--renew-deadline",
            "a leader that cannot renew stops leading after this; less than --lease-duration",
            _ELECTION.renew_deadline,
        ),
        duration("--retry-period", "between two renewals", _ELECTION.retry_period),
        Option(
            "--peers-service",
            "NAME",
            "headless Service of all replicas, beside --service-name; empty: no peers",
            default="wasmer-peers",
        ),
        duration(
            "--heal-after",
            "sidecars that missed a module get it once more when they have not come back for this long",
            HealingSettings().settle,
        ),
    ),
}


def cluster(value: Values) -> Cluster:
    """What they say. Raises UsageError."""
    return Cluster(
        kubeconfig=value("kubeconfig"),
        watch_namespaces=value("watch_namespace"),
        root_namespace=value("root_namespace"),
        allow_mesh_wide=value("allow_mesh_wide"),
        election=Election(
            enabled=value("leader_elect"),
            lease_name=value("lease_name"),
            lease_duration=value("lease_duration"),
            renew_deadline=value("renew_deadline"),
            retry_period=value("retry_period"),
        ),
        service_account_pull_secrets=value("service_account_pull_secrets"),
    )


def healing(value: Values) -> HealingSettings:
    """What they say."""
    after: float = value("heal_after")
    return HealingSettings(
        settle=after, given_up=after / 2, interval=min(HealingSettings().interval, after / 4)
    )
