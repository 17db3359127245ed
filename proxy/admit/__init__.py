"""Admission: may this request run?

directory    keys and prices as this worker knows them, at one epoch of the ledger
limits       requests and tokens per minute, concurrent requests, as values (pure)
table        what is used of them, in memory that all workers of a host share
throttle     a request against all its limits, in one step
purse        a prepaid customer's leases in this worker's memory: holds, with no I/O
purses       all of them, and the thread that leases credit
decide       (key, facts) → admitted or refused, in the order of the published table (pure)
"""
