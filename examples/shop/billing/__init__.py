"""Keeps the invoices: charges an order once and refunds it at most once."""
