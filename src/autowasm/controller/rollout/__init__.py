"""Staged rollouts (ADR 39): the Pods of each step, and when the next one begins. Pure, except `driver.py` (observes) and `publisher.py`."""
