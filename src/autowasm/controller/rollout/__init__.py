"""Staged rollouts (ADR 39): the Pods of each step, and when the next step begins. Pure; the reconciler observes and writes."""
