"""Which Pods have a module (downloadtracker, load report), and which must get it again (resend)."""
