"""What each extractor adds to a request of its framework: the same service with Auditspan, with it and without it.

    python -m bench.instrumentation.extractors SPOOL_FOLDER ROUNDS PAIRS [ON ...]

Two processes forked from one, alike but for the extractor, answer the same requests by turns (``turns.py``); both write
records. ``web.py``, ``rpc.py``, ``queues.py``, ``data.py`` and ``tokens.py`` have the services. A line of JSON for each.
"""
