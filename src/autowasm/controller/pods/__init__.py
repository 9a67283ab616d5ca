"""Finds the Pods that have a module (downloadtracker, load report), and those that must fetch it again (resend)."""
