"""Sends paid orders out: a Celery worker that takes them off a queue and keeps the parcels."""
