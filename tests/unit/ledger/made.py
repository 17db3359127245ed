"""Usage events of which only what matters to a test has to be said."""

from typing import Any

from billing import clock, ids
from billing.clock import Instant
from billing.money import Pico, PicoPerToken
from billing.pricing.quote import Quote, UnitPrices
from billing.usage import UsageEvent

PRICE_REF = "quote"


def event(when: Instant, **given: Any) -> UsageEvent:
    """A completed request at an instant, of 1000 tokens in (600 cached) and 500 out (200 of them reasoning)."""
    values = {
        "id": ids.uuid7(),
        "customer_id": "cust_acme",
        "api_key_id": "key_app",
        "model": "qwen3.5-9b",
        "upstream": "local",
        "upstream_model": "Qwen/Qwen3.5-9B",
        "endpoint": "/v1/chat/completions",
        "started_at": when,
        "first_token_at": when + 100_000,
        "finished_at": when + 1_000_000,
        "outcome": "completed",
        "http_status": 200,
        "count_source": "upstream",
        "input_tokens": 1_000,
        "cached_input_tokens": 600,
        "output_tokens": 500,
        "reasoning_tokens": 200,
        "cost_pico": 90_000_000,
        "amount_pico": 117_000_000,
        "price_ref": PRICE_REF,
        "window_start": clock.hour_start(when),
    }
    return UsageEvent(**{**values, **given})


def quote() -> Quote:
    """A quote at the prices that make `event` cost what it does."""
    cost, price = (
        UnitPrices(PicoPerToken(inward), PicoPerToken(inward), PicoPerToken(outward), PicoPerToken(outward), Pico(0))
        for inward, outward in ((30_000, 120_000), (39_000, 156_000))
    )
    return Quote.of(
        model="qwen3.5-9b",
        currency="usd",
        cost_rate_id="rate_1",
        margin_rule_id=None,
        margin="30%",
        cost=cost,
        price=price,
    )
