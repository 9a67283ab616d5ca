"""Staged rollouts (ADR 39): which Pods a step has, and when the next step begins. Pure; the reconciler observes and writes."""
