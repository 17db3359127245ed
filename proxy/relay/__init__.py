"""Relay: the body edited as documented, the upstream chosen and connected, the exchange pumped.

refusals     every way in which Weir itself says no: status, code, shape (pure)
headers      what passes, what is dropped, what is added, both ways (pure)
request      the body parsed once, read, edited and serialised (pure)
gathering    which whole answers are asked for as streams, so that they can be stopped (pure)
affordable   what a prepaid request needs of its credit, and the limits it is forwarded with (pure)
holding      the credit of one prepaid request: held, settled or given up
lifecycle    states × causes → what is billed, and what the client is told (pure table)
catalog      public model name → upstreams; discovery and health
connection   one upstream HTTP/1.1 connection on httptools, and the pool
decoding     gzip and deflate, undone piece by piece (pure)
client       what an exchange needs of its client
settlement   how a request is paid and its client gets the last of it: the bill's half of an exchange
exchange     one request, from its first byte to its last: the only place where the parts meet
"""
