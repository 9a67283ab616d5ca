"""Writes wasmer.json and prometheus-rules.yaml: `make dashboards`. Tests keep them true."""

from pathlib import Path

from dashboards import grafana, rules

FOLDER = Path(__file__).parent
BOARD = FOLDER / "wasmer.json"
RULES = FOLDER / "prometheus-rules.yaml"


def main() -> None:
    """Write both."""
    BOARD.write_text(grafana.render())
    RULES.write_text(rules.render())


if __name__ == "__main__":
    main()
