"""Keeps the orders, and asks billing for the money and for giving it back."""
