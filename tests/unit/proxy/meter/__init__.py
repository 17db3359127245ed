"""Meters against real servers' bytes, and against bytes that no server should send."""
