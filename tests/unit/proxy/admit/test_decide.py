"""Refusals come in the published order, and say what a client needs to know."""

import json
from itertools import product

import pytest

from billing.clock import SECOND_US
from billing.limits import MODEL_NAME_CHARS_MAX
from billing.money import Pico, PicoPerToken
from billing.pricing.quote import Quote, UnitPrices
from proxy.admit.decide import BAD_KEY, Facts, refuse, refuse_key, too_fast
from proxy.admit.limits import Exceeded
from proxy.relay.refusals import Refusal
from tests.unit.proxy.made import principal

PRICES = UnitPrices(PicoPerToken(1), PicoPerToken(1), PicoPerToken(2), PicoPerToken(2), Pico(0))
QUOTE = Quote.of(
    model="m", currency="usd", cost_rate_id="c", margin_rule_id=None, margin="30%", cost=PRICES, price=PRICES
)
EXCEEDED = Exceeded("requests", 10, 6 * SECOND_US)
ORDER = ["invalid_api_key", "customer_suspended", "model_not_found", "model_not_priced", "rate_limit_exceeded"]


def code(refusal: Refusal | None) -> str | None:
    """Its code."""
    return refusal.code if refusal is not None else None


@pytest.mark.parametrize("faults", list(product((False, True), repeat=len(ORDER))))
def test_of_several_reasons_the_first_of_the_published_order_is_told(faults: tuple[bool, ...]) -> None:
    """All 32 combinations."""
    revoked, suspended, unknown, unpriced, is_fast = faults
    who = principal(is_revoked=revoked, suspension="invoice in_1 is unpaid" if suspended else None)
    facts = Facts("m", not unknown, None if unpriced else QUOTE)
    first = next((one for one, fault in zip(ORDER, faults, strict=True) if fault), None)
    refusal = refuse_key(who, 0) or refuse(who, facts) or (too_fast(EXCEEDED) if is_fast else None)
    assert code(refusal) == first


def test_a_key_that_does_not_hold_is_no_key() -> None:
    """Unknown, revoked and expired look alike: nobody learns which keys there were."""
    assert refuse_key(None, 0) is BAD_KEY
    assert refuse_key(principal(is_revoked=True), 0) is BAD_KEY
    assert refuse_key(principal(expires_at=100, suspension="unpaid"), 100) is BAD_KEY


def test_a_key_expires_at_its_instant() -> None:
    """The boundary belongs to the time after."""
    assert refuse_key(principal(expires_at=100), 99) is None
    assert refuse_key(principal(expires_at=100), 100) is BAD_KEY
    assert refuse_key(principal(), 10**18) is None


def test_a_suspension_tells_its_reason() -> None:
    """The customer can do something about it."""
    refused = refuse_key(principal(suspension="invoice in_1 is unpaid"), 0)
    assert refused is not None
    assert "invoice in_1 is unpaid" in refused.message


@pytest.mark.parametrize(
    ("models", "found"),
    [(None, True), (frozenset({"m", "x"}), True), (frozenset({"x"}), False), (frozenset[str](), False)],
)
def test_a_model_that_the_key_may_not_use_does_not_exist_for_it(models: frozenset[str] | None, found: bool) -> None:
    """No allowed models is not all models."""
    assert (refuse(principal(models=models), Facts("m", True, QUOTE)) is None) is found


@pytest.mark.parametrize("model", ["x" * 32_000_000, "\x00\x1b[31m\n" * 10_000, "\U0001f600" * MODEL_NAME_CHARS_MAX])
def test_a_name_of_any_length_is_answered_in_a_few_words(model: str) -> None:
    """A name can be as long as a body, and as odd."""
    for facts in (Facts(model, False, None), Facts(model, True, None)):
        refused = refuse(principal(), facts)
        assert refused is not None
        body = refused.body("/v1/chat/completions")
        assert len(body) < 3_000
        assert json.loads(body)["error"]["code"] == refused.code
        assert "\n" not in refused.message


@pytest.mark.parametrize(
    ("kind", "retry_us", "seconds"),
    [("requests", 1, 1), ("tokens", 6 * SECOND_US, 6), ("tokens", 6 * SECOND_US + 1, 7)],
)
def test_a_limit_tells_when_to_come_back(kind: str, retry_us: int, seconds: int) -> None:
    """Whole seconds, rounded up: a client that waits so long is let in."""
    refused = too_fast(Exceeded(kind, 10, retry_us))
    assert refused.headers == ((b"retry-after", b"%d" % seconds),)
    assert f"10 {kind}" in refused.message


def test_too_many_at_once_has_no_window_to_tell_of() -> None:
    """Only when to try again."""
    refused = too_fast(Exceeded("concurrency", 3, SECOND_US))
    assert refused.headers == ((b"retry-after", b"1"),)
    assert "3 requests" in refused.message
