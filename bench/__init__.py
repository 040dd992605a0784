"""Measure what Auditspan costs, beside its peers and the floor, in one run on the same cores.

    python -m bench [--quick] [SUITE ...]      or: make bench

Each suite is a folder here with a `suite.py` whose `run(settings)` gives cases; `results.py` merges them by suite into
results.json, so one suite can be measured again alone. What the figures mean: docs/performance.md.
"""
