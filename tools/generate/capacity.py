"""`python -m tools.generate.capacity`: write the tables of docs/capacity.md from the simulation in tests/bench/capacity.py."""

from dataclasses import replace
from typing import Final

from tests.bench.capacity import GBIT, MB, Rollout, replicas_needed, simulate
from tools.generate import markdown
from tools.generate.paths import DOCS

PAGE: Final = DOCS / "capacity.md"

_PODS: Final = (1_000, 10_000, 100_000, 1_000_000)
_MODULES: Final = (0.3 * MB, 2 * MB, 20 * MB)
_HALF: Final = 0.5
"""The share of the timeout that a plan leaves as a reserve."""


def tables() -> dict[str, str]:
    """All tables, by name."""
    return {"sizes": _sizes(), "too few": _too_few(), "spread": _spread()}


def render(page: str) -> str:
    """The page with the tables of this simulation. Raises ValueError if the page lacks one of them."""
    for name, table in tables().items():
        page = markdown.with_block(page, "table", name, table)
    return page


def _sizes() -> str:
    """All at once, one port with mutual TLS, 10 Gbit/s."""
    rows = []
    for pods in _PODS:
        for module in _MODULES:
            plan = Rollout(pods, module)
            plan = replace(plan, replicas=replicas_needed(plan, within=_HALF * plan.timeout))
            found = simulate(plan)
            cells = [_count(pods), f"{module / MB:g} MB", _count(plan.downloads)]
            cells += [_count(plan.replicas), str(plan.limit)]
            cells += [f"{found.seconds:.1f} s", _count(found.concurrent)]
            rows.append(cells)
    return markdown.table(
        "| Pods | module | downloads | replicas | limit | last sidecar | connections of a replica |",
        rows,
    )


def _too_few() -> str:
    """10 000 Pods, 2 MB: the effect of more and fewer replicas, networks, ports."""
    base = Rollout(10_000, 2 * MB)
    plans = [
        ("as above", base),
        ("1 Gbit/s", replace(base, network=GBIT)),
        ("1 Gbit/s, 8 replicas", replace(base, network=GBIT, replicas=8)),
        ("1 Gbit/s, 30 replicas", replace(base, network=GBIT, replicas=30)),
        ("1 Gbit/s, timeout 5 min", replace(base, network=GBIT, timeout=300)),
        ("5 ports", replace(base, ports=5)),
        ("5 ports, 10 replicas", replace(base, ports=5, replicas=10)),
        ("module 20 MB", replace(base, module=20 * MB)),
        ("module 20 MB, timeout 5 min", replace(base, module=20 * MB, timeout=300)),
    ]
    rows = []
    for name, plan in plans:
        found = simulate(plan)
        last = f"{found.seconds:.0f} s" if found.seconds < float("inf") else "never"
        retried, lost = (round(100 * one / found.downloads) for one in (found.retried, found.lost))
        rows.append([name, str(plan.replicas), last, f"{retried} %", f"{lost} %"])
    return markdown.table(
        "| | replicas | last sidecar | attempts that timed out | given up |", rows
    )


def _spread() -> str:
    """2 MB: replicas if the module's URL reaches the sidecars over a period."""
    spreads = (0.0, 15.0, 60.0, 300.0)
    header = [f"{one:g} s" if one else "at once" for one in spreads]
    rows = []
    for pods in _PODS:
        plans = [Rollout(pods, 2 * MB, spread=one) for one in spreads]
        needed = [replicas_needed(plan, within=_HALF * plan.timeout) for plan in plans]
        rows.append([_count(pods), *map(_count, needed)])
    return markdown.table(f"| Pods | {' | '.join(header)} |", rows)


def _count(number: int) -> str:
    return f"{number:,}".replace(",", " ")


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
