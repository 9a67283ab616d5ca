"""Which Pods have a module (rollout, load report), and which must get it again (resend)."""
