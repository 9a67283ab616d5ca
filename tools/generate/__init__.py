"""Generators of the files that follow from the code: pages, dashboard, rules, manifests.

`make reference`, `make dashboards`, `make manifests` and `make bench-docs` run them, and `make picture` the one that needs
a run of the faults. Invariant: a test fails when a file is not what its generator writes.
"""
