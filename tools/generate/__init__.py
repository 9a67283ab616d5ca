"""Generators of the files that follow from the code: pages, dashboard, rules, manifests.

`make reference`, `make dashboards`, `make manifests` and `make bench-docs` run them; `make picture` runs the one that
needs a run of the faults. Invariant: a test fails if a file differs from the output of its generator.
"""
