"""The minor unit of each currency at Stripe, in which it counts what cards pay. Pure.

Invariant: an amount is either a whole number of minor units or refused; nothing is rounded on the way to a card.
"""

from billing.errors import ConfigError, UsageError
from billing.money import PICO_PER_MAJOR, Pico, format_amount

# https://docs.stripe.com/currencies: the minor unit of these is the major one.
ZERO_DECIMAL = frozenset(
    (
        *("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga"),
        *("pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"),
    )
)
# Of these Stripe's documentation says two things (UGX is zero-decimal, yet given with two decimals), or amounts are
# restricted (three decimals, the last of which must be 0): one wrong guess would be wrong by a factor of 10 to 100.
UNCLEAR = frozenset(("ugx", "isk", "bhd", "jod", "kwd", "omr", "tnd"))

MINOR_MAX = 99_999_999
"""Stripe takes at most eight digits at once (https://docs.stripe.com/api/payment_intents/create, `amount`)."""


def pico_per_minor(currency: str) -> int:
    """Return how many picounits one minor unit has. Raises ConfigError for a currency whose unit is not settled."""
    if currency in UNCLEAR:
        raise ConfigError(f"billing.currency = {currency!r}: Stripe's minor unit for it is not settled; use another")
    minor_per_major = 1 if currency in ZERO_DECIMAL else 100
    return int(PICO_PER_MAJOR) // minor_per_major


def to_minor(amount: Pico, currency: str) -> int:
    """Write an amount in minor units. Raises UsageError unless it is a whole number of them that a card can pay."""
    whole, rest = divmod(amount, pico_per_minor(currency))
    if rest or not 0 < whole <= MINOR_MAX:
        raise UsageError(
            f"{format_amount(amount, currency)} can not be paid by card: it takes whole cents, above 0, at most"
            f" {MINOR_MAX} of them"
        )
    return whole


def to_pico(minor: int, currency: str) -> Pico:
    """Read an amount in minor units."""
    return Pico(minor * pico_per_minor(currency))
