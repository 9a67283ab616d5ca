"""`python -m tools.generate.dashboards`: write dashboards/wasmer.json and dashboards/prometheus-rules.yaml."""

from tools.generate.dashboards import grafana, rules
from tools.generate.paths import BOARD, RULES

if __name__ == "__main__":
    BOARD.write_text(grafana.render())
    RULES.write_text(rules.render())
