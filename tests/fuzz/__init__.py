"""Fuzzing: what nobody would send, sent. `python -m tests.fuzz --minutes 10` goes on for as long as it is told.

    values     JSON and bytes, bent
    asked      requests: bodies of every endpoint, bent; HTTP that is none
    answered   upstreams' answers: real captures and made ones, bent, in any framing, cut anywhere
    target     a gateway before such an upstream, and what must hold whatever was sent

Generators take a `random.Random`, so that hypothesis can steer them and a seed can repeat them.

What must hold: no crash, no exception in the log, no 500 of Weir's own; whoever got text with a 200 is billed for it,
once, more than nothing; what is no 200 is free.
"""
