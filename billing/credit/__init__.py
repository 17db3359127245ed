"""Prepaid credit as values: what a request may cost at most, what an amount affords, in which order grants burn.

Pure: no I/O, no clock. Invariant (DESIGN I7): what is held is never below what can be used, and what is given out
never above what there is. `billing/ledger/{credit,leases,charges}.py` keep it in the database, `proxy/admit/purse.py`
spends it.

holds     a request's worst case, how many tokens an amount affords, how a real amount falls on leases
budget    what a customer or a key may use in a period, or owe; the names of purses
account   a customer's grants: burn order, expiry, what may be leased, the size of a lease
"""
