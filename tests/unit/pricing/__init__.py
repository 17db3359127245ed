"""Pricing, piece by piece."""
