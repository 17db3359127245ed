"""The life of a request: each way to end, in each phase, by the rules of DESIGN I1, I2 and §10."""

from itertools import product

import pytest

from billing.usage import Outcome
from proxy.relay.lifecycle import MESSAGES, Cause, Ending, Phase, ending
from proxy.relay.refusals import Refusal

LEFT = Ending(Outcome.CLIENT_CLOSED, None)
NOTHING = Ending(None, None)

# phase, cause, tokens delivered? → what is recorded, what the client is told
RULES = [
    ("nothing is billed before the upstream has the whole request", "RECEIVING", "CLIENT_CLOSED", "either", NOTHING),
    ("", "ADMITTED", "CLIENT_CLOSED", "either", NOTHING),
    (
        "a request that could not be sent costs nothing",
        "ADMITTED",
        "UPSTREAM_DIED",
        "either",
        Ending(None, "no_upstream"),
    ),
    ("", "ADMITTED", "UPSTREAM_TIMEOUT", "either", Ending(None, "no_upstream")),
    ("", "RECEIVING", "UPSTREAM_DIED", "either", Ending(None, "no_upstream")),
    ("", "RECEIVING", "UPSTREAM_TIMEOUT", "either", Ending(None, "no_upstream")),
    ("a client that leaves pays for the prompt", "WAITING", "CLIENT_CLOSED", "either", LEFT),
    ("and for what was generated", "RELAYING", "CLIENT_CLOSED", "either", LEFT),
    (
        "an upstream that fails before its first token costs nothing",
        "WAITING",
        "UPSTREAM_DIED",
        "either",
        Ending(None, "upstream_error"),
    ),
    ("", "WAITING", "UPSTREAM_TIMEOUT", "either", Ending(None, "upstream_timeout")),
    ("", "RELAYING", "UPSTREAM_DIED", "no", Ending(None, "upstream_error")),
    ("", "RELAYING", "UPSTREAM_TIMEOUT", "no", Ending(None, "upstream_timeout")),
    (
        "after it, what was delivered is billed",
        "RELAYING",
        "UPSTREAM_DIED",
        "yes",
        Ending(Outcome.UPSTREAM_ERROR, "upstream_error"),
    ),
    ("", "RELAYING", "UPSTREAM_TIMEOUT", "yes", Ending(Outcome.UPSTREAM_ERROR, "upstream_timeout")),
    (
        "a gateway that stops bills what was delivered",
        "RELAYING",
        "SHUTDOWN",
        "yes",
        Ending(Outcome.STOPPED, "shutting_down"),
    ),
    ("and nothing else", "RELAYING", "SHUTDOWN", "no", Ending(None, "shutting_down")),
    ("", "WAITING", "SHUTDOWN", "either", Ending(None, "shutting_down")),
    ("", "ADMITTED", "SHUTDOWN", "either", Ending(None, "shutting_down")),
    ("", "RECEIVING", "SHUTDOWN", "either", Ending(None, "shutting_down")),
    ("what is drained is billed as if the client left when the drain ends", "WAITING", "DRAINED", "either", LEFT),
    ("", "RELAYING", "DRAINED", "either", LEFT),
    ("nothing is drained that was not sent", "ADMITTED", "DRAINED", "either", NOTHING),
    ("", "RECEIVING", "DRAINED", "either", NOTHING),
    *(("what is settled stays", p, c.name, "either", NOTHING) for p in ("SETTLING", "DELIVERED") for c in Cause),
]
HAS_TOKENS = {"yes": (True,), "no": (False,), "either": (True, False)}


@pytest.mark.parametrize(("_rule", "phase", "cause", "tokens", "expected"), RULES)
def test_each_ending_is_what_the_rules_say(_rule: str, phase: str, cause: str, tokens: str, expected: Ending) -> None:
    """The table of the module against the table of the contract."""
    for has_tokens in HAS_TOKENS[tokens]:
        assert ending(Phase[phase], Cause[cause], has_tokens=has_tokens) == expected


def test_the_rules_leave_no_ending_out() -> None:
    """Every phase, every cause, with and without tokens."""
    covered = [(phase, cause, has) for _, phase, cause, tokens, _ in RULES for has in HAS_TOKENS[tokens]]
    assert sorted(covered) == sorted((p.name, c.name, has) for p, c, has in product(Phase, Cause, (True, False)))


def test_whoever_is_billed_for_a_failure_is_told_of_it_and_every_code_has_its_words() -> None:
    """An outcome that is not the client's own doing comes with a code; each code is one of the refusals."""
    for phase, cause, has_tokens in product(Phase, Cause, (True, False)):
        found = ending(phase, cause, has_tokens=has_tokens)
        if found.code is not None:
            assert Refusal(found.code, MESSAGES[found.code]).status >= 500
        elif found.outcome is not None:
            assert found.outcome is Outcome.CLIENT_CLOSED
            assert cause in (Cause.CLIENT_CLOSED, Cause.DRAINED)
