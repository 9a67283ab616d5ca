"""The Grafana dashboard and Prometheus' rules: definitions, and the files generated from them."""
