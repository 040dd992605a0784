"""A small shop of three services; none of them knows that it is audited.

gateway (FastAPI) -> orders (Flask) -> billing (gRPC). Run with the folder that holds this package on PYTHONPATH.
"""
