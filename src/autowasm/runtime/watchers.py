"""What looks, in cluster mode, at who got what: proof of load, and healing.

Not what is found or done there. Invariant: none of it in standalone mode, which knows no Pods.
"""

import time
from collections.abc import Callable

from autowasm.controller.pods.resend import Healing, Mesh, Outage
from autowasm.controller.pods.rollout import Gathering, Loading, Workloads
from autowasm.kube.resources import ObjectKey
from autowasm.runtime.ground import Ground
from autowasm.runtime.modes import ChosenMode
from autowasm.settings import HealingSettings


def make_loading(ground: Ground, chosen: ChosenMode, *, gathering: Gathering) -> Loading | None:
    """What keeps `status.pods` a proof; None: standalone."""
    mode = chosen.mode
    if ground.settings.cluster is None or not isinstance(mode, Workloads):
        return None
    loading = Loading(mode, gathering, metrics=ground.metrics, settings=ground.settings.proof)
    mode.prove(loading.report)
    return loading


def make_healing(
    ground: Ground,
    chosen: ChosenMode,
    *,
    gathering: Gathering,
    requeue: Callable[[ObjectKey], None],
) -> Healing | None:
    """What gives a filter to its proxies once more; None: standalone."""
    mode, elector = chosen.mode, chosen.elector
    if ground.settings.cluster is None or not isinstance(mode, Mesh):
        return None
    return Healing(
        mode,
        gathering,
        is_stored=ground.store.__contains__,
        requeue=requeue,
        announce=chosen.announce,
        metrics=ground.metrics,
        settings=ground.settings.healing,
        outage=_outage(chosen, ground.settings.healing),
        others_led=lambda: elector.others_led if elector is not None else float("-inf"),
    )


def _outage(chosen: ChosenMode, healing: HealingSettings) -> Outage | None:
    now = time.time()
    if chosen.last_alive is None or now - chosen.last_alive <= healing.outage:
        return None
    return Outage(chosen.last_alive, now)
