"""How long an upstream worked for each of its requests, when it works for several at once.

Fair means: each instant is split equally among the requests that are in service then. A request that has a server for
itself for 10 s and shares it with another one for 6 s more has 13 s. A request is in service from when the upstream has
all of it until its answer is complete, or is cut; a stream of llama.cpp only from its head, which that server sends
when a slot takes the request up (measured), so that who waits for a slot pays nothing to those who are in one.

Invariant: Σ shares of all requests + carry = the time during which at least one was in service, to the microsecond.
The proof is `mark`, the only place where time is given out: of `count` requests each gets `each`, and
`count × each + carry = passed + the carry before`. What does not divide is not lost, but given out with the next
instant.

A share has two parts, for the prompt and for what was generated, which are the whole by construction: in the
proportion that the upstream tells (llama.cpp, Ollama), else up to the first token and from it on, else (an answer that
came whole) by its tokens.

A server counts for its own worker: several workers of one upstream each share out their own requests' time, and where
that is more than an hour in an hour, the hour's cost is spread over all of it in proportion.
"""

from proxy.meter.steps import Times

PROMPT_TOKENS_AS_ONE = 10
"""So many computed prompt tokens count as one generated token, where an answer came whole and tells no times."""

NEVER = -1


class BusyClock:
    """The time of one upstream, as a share: what a request would have had that was in service from the beginning."""

    __slots__ = ("_at_us", "_carry_us", "_count", "_share_us")

    def __init__(self) -> None:
        self._at_us = 0
        self._carry_us = 0
        self._count = 0
        self._share_us = 0

    def enter(self, now_us: int) -> int:
        """Take a request into service; return the share so far, from which its own begins."""
        share_us = self.mark(now_us)
        self._count += 1
        return share_us

    def leave(self, now_us: int) -> int:
        """Let a request go; return the share so far, with which its own ends."""
        share_us = self.mark(now_us)
        self._count -= 1
        assert self._count >= 0, "who leaves was in service"
        return share_us

    def mark(self, now_us: int) -> int:
        """Return the share so far, of a request that stays."""
        count = self._count
        if count:
            each, self._carry_us = divmod(max(0, now_us - self._at_us) + self._carry_us, count)
            self._share_us += each
        self._at_us = now_us
        return self._share_us

    def so_far(self, now_us: int) -> int:
        """Return what `mark` would, and change nothing: for other threads, to which it may be an instant old."""
        count = self._count
        return self._share_us + (max(0, now_us - self._at_us) + self._carry_us) // count if count else self._share_us


def divided(
    share_us: int, until_first_us: int, told: Times | None, computed_tokens: int, output_tokens: int
) -> tuple[int, int]:
    """Divide a request's share between its prompt and its output; the two are the whole.

    `told` are the upstream's own times, whose proportion counts; `until_first_us` is the share until the first token,
    NEVER where none was seen to come: then the tokens decide, of which the cached ones took no time.
    """
    if told is not None:
        prompt, generation = told
    elif until_first_us != NEVER:
        return min(until_first_us, share_us), max(0, share_us - until_first_us)
    else:
        prompt, generation = computed_tokens, output_tokens * PROMPT_TOKENS_AS_ONE
    whole = prompt + generation
    prompt_us = share_us * prompt // whole if whole else share_us
    return prompt_us, share_us - prompt_us
