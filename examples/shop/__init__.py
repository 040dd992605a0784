"""A small shop of five services; none of them knows that it is audited.

gateway (FastAPI) -> orders (Flask) -> billing (gRPC) and shipping (Celery); backoffice (Django) -> orders. Run with the
folder that holds this package on PYTHONPATH.
"""
