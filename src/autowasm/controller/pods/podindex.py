"""Which Pods have which address. Not who matches (`matching.py`). Invariant: Pods that ended are not in it: addresses are reused."""

from autowasm.controller.pods.matching import has_ended
from autowasm.kube.pods import Pod
from autowasm.kube.resources import ObjectKey


class PodAddresses:
    """Kept by `pod_changed`, with what the informer shows."""

    def __init__(self) -> None:
        self._at: dict[str, frozenset[ObjectKey]] = {}

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """A Pod came, changed or went."""
        before = old.ips if old is not None and not has_ended(old) else ""
        after = new.ips if new is not None and not has_ended(new) else ""
        if before == after and (old is None) == (new is None):
            return
        for pod, ips in ((old, before), (new, after)):
            if pod is None or not ips:
                continue
            key = ObjectKey(pod.namespace, pod.name)
            for address in pod.addresses:
                keys = self._at.get(address, frozenset())
                keys = keys | {key} if pod is new else keys - {key}
                if keys:
                    self._at[address] = keys
                else:
                    del self._at[address]

    def at(self, address: str) -> frozenset[ObjectKey]:
        """The Pods that have this address now."""
        return self._at.get(address, frozenset())

    def is_shared(self, pod: Pod) -> bool:
        """Whether some other Pod has an address of this one: the node's, for instance."""
        return any(len(self.at(address)) > 1 for address in pod.addresses)
