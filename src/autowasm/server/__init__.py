"""The blob port for Envoy and the admin port for Prometheus and the kubelet."""
