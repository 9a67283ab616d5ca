"""Outgoing traffic: address policy, deadlines, minimum rate, TLS, proxies, thread pools."""
