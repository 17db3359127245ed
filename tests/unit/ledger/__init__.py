"""The ledger, on both engines."""
