"""Outgoing webhooks: the operator's systems are told when budgets and balances run low.

signing     Standard Webhooks signatures (pure)
messages    which thresholds are crossed, and what is said of them (pure)
watch       looks at the ledger, and writes what is to be told into the outbox
deliver     sends what is due, at least once, with back-off

Invariant: what is to be told is written before it is sent, once for each threshold and period, under an id that stays
the same however often it is sent.
"""
