"""What Envoy, Prometheus and the kubelet talk to."""
