"""The decision whether a request may run: pure, in the order that README publishes.

1 invalid_api_key      unknown, revoked or expired key
2 customer_suspended   with the reason
3 model_not_found      unknown, or not allowed for the key
4 model_not_priced     no cost rate in force: never served free
5 rate_limit_exceeded  requests, tokens, concurrency
6 insufficient_credits decided last, when all else is (`proxy/relay/holding.py`): it may have to ask the ledger
"""

from typing import NamedTuple

from billing.ledger.accounts import Principal
from billing.limits import MODEL_NAME_CHARS_MAX
from billing.pricing.quote import Quote
from proxy.admit.limits import Exceeded
from proxy.relay.refusals import Refusal, retry_after

BAD_KEY = Refusal("invalid_api_key", "no valid API key; send `Authorization: Bearer wk_…`")


class Facts(NamedTuple):
    """What is known when a request asks to run."""

    model: str
    is_served: bool
    quote: Quote | None


def refuse_key(principal: Principal | None, now: int) -> Refusal | None:
    """Refuse a key that does not hold, or a customer who is suspended: known before the body is read."""
    if principal is None or principal.is_revoked:
        return BAD_KEY
    if principal.expires_at is not None and now >= principal.expires_at:
        return BAD_KEY
    if principal.suspension is not None:
        return Refusal("customer_suspended", f"this account is suspended: {principal.suspension}")
    return None


def refuse(principal: Principal, facts: Facts) -> Refusal | None:
    """Refuse the request, or return None: it may run."""
    allowed = principal.models is None or facts.model in principal.models
    if not facts.is_served or not allowed:
        return Refusal("model_not_found", f"the model {_shown(facts.model)} does not exist for this key", "model")
    if facts.quote is None:
        message = f"the model {_shown(facts.model)} has no price yet; the operator must set one"
        return Refusal("model_not_priced", message)
    return None


def _shown(model: str) -> str:
    """Return a name as it may be repeated to whoever sent it: it can be as long as a body."""
    return repr(model if len(model) <= MODEL_NAME_CHARS_MAX else f"{model[:MODEL_NAME_CHARS_MAX]}…")


def too_fast(exceeded: Exceeded) -> Refusal:
    """Refuse what a rate limit does not allow now: asked last, since what is let through is counted."""
    seconds = -(-exceeded.retry_us // 1_000_000)
    if exceeded.kind != "concurrency":
        whose = "this account's limit" if exceeded.is_customers else "the limit"
        text = f"{whose} of {exceeded.limit} {exceeded.kind} per minute is used up; retry in {seconds} s"
    else:
        whose = "account" if exceeded.is_customers else "key"
        text = f"{exceeded.limit} requests of this {whose} are running already; retry when one has ended"
    return Refusal("rate_limit_exceeded", text, headers=(retry_after(seconds),))
