"""The life of a request as a table: in which phase it ended, why, and hence what is billed and told.

    RECEIVING ─▶ ADMITTED ─▶ WAITING ─▶ RELAYING ─▶ SETTLING ─▶ DELIVERED
    reading      keys,       upstream   bytes are    durable     last bytes
    the body     limits      has it     delivered    commit      have left

Rules (DESIGN I1, I2, §10): before the upstream has the whole request nothing is billed. After that a client that
leaves pays for the prompt and for what was generated so far. An upstream that fails costs nothing before its first
token, and what was delivered after it. Once a request settles, nothing changes its outcome any more.

    what happens                         the client sees            billed                          outcome
    client leaves before it is sent      -                          nothing, no event
    client leaves before the first byte  -                          prompt                          client_closed
    client leaves between tokens         -                          prompt, what was generated      client_closed
    … after the last token, before the   -                          prompt, what was generated,     client_closed
      usage                                                         its end of sequence
    … after the usage, before `[DONE]`   -                          as reported                     client_closed
    … after `[DONE]`                     -                          as reported                     completed
    client reads nothing for idle time   reset                      as if it left                   client_closed
    client half-closes                   close                      as if it left (as llama.cpp,    client_closed
                                                                    vLLM)
    upstream refused, reset, garbage,    502, 503                   nothing, no event
      no answer before a token           504
    upstream's 4xx, 5xx, any body        its answer                 nothing, no event
    upstream breaks after a token,       its bytes, error event     prompt, what was delivered      upstream_error
      stalls, ends without an end
    whole answer too short for its       502                        nothing, no event
      length
    error event inside a 200             that event                 what came before it, if any     upstream_error
    SIGTERM, within the grace            all of it                  as reported                     completed
    SIGTERM, after the grace             error event; 503 if none   what was delivered; nothing     stopped
                                         was sent

In each the upstream's connection is closed, or idle and fit for the next request. A prompt is billed as its server told
it (`message_start`, `timings`, `prompt_progress`), cached part included; else the server is asked, else it is counted.
Running counts (`timings_per_token` of llama.cpp, `continuous_usage_stats` of vLLM) are used where the client asks for
them. They are asked for, and hidden, in chats of vLLM with `include_reasoning: false` alone: it sends nothing while it
reasons, so that a client that leaves meanwhile pays for the prompt, and one that leaves later for all until then. Not
otherwise: on b11549 they made a stream of 44 tokens 20,681 bytes out of 10,768, and would have to be
cut out of each event again, which costs a parse (6 µs) for each token of every stream to spare a count of those cut.
(Tests: `tests/acceptance/test_gateway_{recording,upstreams,endings,draining,llama,http}.py`, `tests/faults`.)

Where the key says `drain` (`billing/disconnect.py`), a client that leaves in WAITING or RELAYING ends nothing: the
phases go on without it, at full speed and under the same time-outs, and its place, its prepaid hold and the upstream's
connection stay taken until the end. An answer that completes is then billed as reported, `client_closed`; DRAINED is
when the tokens of `drain:TOKENS` are used up, or the gateway stops: billed as if the client left then.
"""

from dataclasses import dataclass
from enum import Enum, auto

from billing.usage import Outcome


class Phase(Enum):
    """Where a request is."""

    RECEIVING = auto()
    ADMITTED = auto()
    WAITING = auto()
    RELAYING = auto()
    SETTLING = auto()
    DELIVERED = auto()


class Cause(Enum):
    """Why a request ends before its upstream completed it."""

    CLIENT_CLOSED = auto()
    UPSTREAM_DIED = auto()
    UPSTREAM_TIMEOUT = auto()
    SHUTDOWN = auto()
    DRAINED = auto()


@dataclass(frozen=True, slots=True)
class Ending:
    """What follows: the outcome of the event (None: none is recorded), and the refusal's code for the client."""

    outcome: Outcome | None
    code: str | None


_NOTHING = Ending(None, None)
_LEFT = Ending(Outcome.CLIENT_CLOSED, None)

_BEFORE_TOKENS = {
    (Phase.RECEIVING, Cause.CLIENT_CLOSED): _NOTHING,
    (Phase.RECEIVING, Cause.UPSTREAM_DIED): Ending(None, "no_upstream"),
    (Phase.RECEIVING, Cause.UPSTREAM_TIMEOUT): Ending(None, "no_upstream"),
    (Phase.RECEIVING, Cause.SHUTDOWN): Ending(None, "shutting_down"),
    (Phase.RECEIVING, Cause.DRAINED): _NOTHING,
    (Phase.ADMITTED, Cause.CLIENT_CLOSED): _NOTHING,
    (Phase.ADMITTED, Cause.UPSTREAM_DIED): Ending(None, "no_upstream"),
    (Phase.ADMITTED, Cause.UPSTREAM_TIMEOUT): Ending(None, "no_upstream"),
    (Phase.ADMITTED, Cause.SHUTDOWN): Ending(None, "shutting_down"),
    (Phase.ADMITTED, Cause.DRAINED): _NOTHING,
    (Phase.WAITING, Cause.CLIENT_CLOSED): _LEFT,
    (Phase.WAITING, Cause.UPSTREAM_DIED): Ending(None, "upstream_error"),
    (Phase.WAITING, Cause.UPSTREAM_TIMEOUT): Ending(None, "upstream_timeout"),
    (Phase.WAITING, Cause.SHUTDOWN): Ending(None, "shutting_down"),
    (Phase.WAITING, Cause.DRAINED): _LEFT,
    (Phase.RELAYING, Cause.CLIENT_CLOSED): _LEFT,
    (Phase.RELAYING, Cause.UPSTREAM_DIED): Ending(None, "upstream_error"),
    (Phase.RELAYING, Cause.UPSTREAM_TIMEOUT): Ending(None, "upstream_timeout"),
    (Phase.RELAYING, Cause.SHUTDOWN): Ending(None, "shutting_down"),
    (Phase.RELAYING, Cause.DRAINED): _LEFT,
}

_AFTER_TOKENS = {
    (Phase.RELAYING, Cause.CLIENT_CLOSED): _LEFT,
    (Phase.RELAYING, Cause.UPSTREAM_DIED): Ending(Outcome.UPSTREAM_ERROR, "upstream_error"),
    (Phase.RELAYING, Cause.UPSTREAM_TIMEOUT): Ending(Outcome.UPSTREAM_ERROR, "upstream_timeout"),
    (Phase.RELAYING, Cause.SHUTDOWN): Ending(Outcome.STOPPED, "shutting_down"),
    (Phase.RELAYING, Cause.DRAINED): _LEFT,
}


def ending(phase: Phase, cause: Cause, *, has_tokens: bool) -> Ending:
    """Say what follows when `cause` ends a request in `phase`; `has_tokens`: something was delivered already."""
    if phase in (Phase.SETTLING, Phase.DELIVERED):
        return _NOTHING
    table = _AFTER_TOKENS if has_tokens and phase is Phase.RELAYING else _BEFORE_TOKENS
    return table[phase, cause]


MESSAGES = {
    "no_upstream": "no model server can be reached for this model; try again later",
    "upstream_error": "the model server broke off its answer; what was delivered is billed",
    "upstream_timeout": "the model server did not answer in time",
    "shutting_down": "this gateway is restarting; try again",
}
