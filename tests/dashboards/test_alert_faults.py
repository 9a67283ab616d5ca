"""The files `tests/chaos/test_alerts_*.py` together make every alert fire and every panel have data."""

from tests.chaos import alerting
from tests.chaos.alert_faults import GROUPS
from tests.docs.blocks import ROOT
from tools.generate.dashboards.alerts import ALERTS


def test_every_alert_has_a_fault_that_makes_it_fire() -> None:
    fired = [alert for group in GROUPS.values() for alert in group.alerts]
    assert sorted([*fired, *alerting.CLUSTER_ALERTS]) == sorted(alert.name for alert in ALERTS)


def test_every_panel_has_data_in_a_group_or_in_a_cluster() -> None:
    elsewhere = (*alerting.CLUSTER_PANELS, *alerting.POD_PANELS)
    unwanted = {
        name
        for name in alerting.queries()
        if not name.startswith(elsewhere) and not any(one.wants(name) for one in GROUPS.values())
    }
    assert unwanted == set()


def test_panels_of_a_group_are_panels_of_the_dashboard() -> None:
    for group in GROUPS.values():
        for panel in group.panels:
            assert any(name.startswith(panel) for name in alerting.queries()), panel


def test_every_group_has_a_test_file() -> None:
    files = {
        file.stem.removeprefix("test_alerts_") for file in ROOT.glob("tests/chaos/test_alerts_*.py")
    }
    assert files == {*GROUPS, "control_plane"}
