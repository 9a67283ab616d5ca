"""Writes the tables of docs/capacity.md from the simulation in tests/bench/capacity.py: `make bench-docs`. A test keeps them true."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.bench.capacity import GBIT, MB, Rollout, replicas_needed, simulate

PAGE: Final = Path(__file__).with_name("capacity.md")
END: Final = "<!-- end of table -->\n"

_PODS: Final = (1_000, 10_000, 100_000, 1_000_000)
_MODULES: Final = (0.3 * MB, 2 * MB, 20 * MB)
_HALF: Final = 0.5
"""Of the timeout: what a plan leaves for what it does not know."""


def begin(name: str) -> str:
    """The mark before a table."""
    return f"<!-- table: {name} -->\n"


def tables() -> dict[str, str]:
    """All tables, by name."""
    return {"sizes": _sizes(), "too few": _too_few(), "spread": _spread()}


def render(page: str) -> str:
    """The page with the tables of this simulation. Raises ValueError for a lost mark."""
    for name, table in tables().items():
        before, mark, rest = page.partition(begin(name))
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise ValueError(f"{PAGE.name}: no table {name}")
        page = f"{before}{mark}{table}{end}{after}"
    return page


def _sizes() -> str:
    """All at once, one port with mutual TLS, 10 Gbit/s."""
    lines = [
        "| Pods | module | downloads | replicas | limit | last sidecar | connections of a replica |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for pods in _PODS:
        for module in _MODULES:
            plan = Rollout(pods, module)
            plan = replace(plan, replicas=replicas_needed(plan, within=_HALF * plan.timeout))
            found = simulate(plan)
            lines.append(
                f"| {_count(pods)} | {module / MB:g} MB | {_count(plan.downloads)} | {_count(plan.replicas)} "
                f"| {plan.limit} | {found.seconds:.1f} s | {_count(found.concurrent)} |"
            )
    return "\n".join(lines) + "\n"


def _too_few() -> str:
    """10 000 Pods, 2 MB: what more and fewer replicas, networks, ports do."""
    base = Rollout(10_000, 2 * MB)
    rows = [
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
    lines = [
        "| | replicas | last sidecar | attempts that timed out | given up |",
        "|---|---|---|---|---|",
    ]
    for name, plan in rows:
        found = simulate(plan)
        last = f"{found.seconds:.0f} s" if found.seconds < float("inf") else "never"
        retried, lost = (round(100 * one / found.downloads) for one in (found.retried, found.lost))
        lines.append(f"| {name} | {plan.replicas} | {last} | {retried} % | {lost} % |")
    return "\n".join(lines) + "\n"


def _spread() -> str:
    """2 MB: replicas where sidecars hear of the module over a while."""
    spreads = (0.0, 15.0, 60.0, 300.0)
    lines = ["| Pods | " + " | ".join(f"{one:g} s" if one else "at once" for one in spreads) + " |"]
    lines.append("|---|" + "---|" * len(spreads))
    for pods in _PODS:
        plans = [Rollout(pods, 2 * MB, spread=one) for one in spreads]
        needed = [replicas_needed(plan, within=_HALF * plan.timeout) for plan in plans]
        lines.append(f"| {_count(pods)} | " + " | ".join(map(_count, needed)) + " |")
    return "\n".join(lines) + "\n"


def _count(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(render(PAGE.read_text()))


if __name__ == "__main__":
    main()
