"""Prometheus and Grafana for Fletcher: configuration, alerts, the dashboard and its source, and what verifies them."""
