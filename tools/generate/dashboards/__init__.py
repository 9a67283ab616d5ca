"""The Grafana dashboard and Prometheus' rules: definitions, and the files made of them."""
