"""Outgoing traffic: address policy, deadlines, minimum rate, thread pools."""
