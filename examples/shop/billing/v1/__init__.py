"""Billing's gRPC interface, generated from billing.proto beside this file."""
