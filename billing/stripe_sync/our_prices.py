"""Which lines of an invoice are ours: the price of amounts and those of tokens, what a unit is worth, whose batches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from billing.ledger import stripe_objects, token_meters
from billing.ledger.database import Connection
from billing.ledger.outbox import Batch
from billing.ledger.stripe_objects import Kind
from billing.ledger.token_meters import TokenPrice
from billing.money import PICO_PER_MICRO, Pico


@dataclass(frozen=True, slots=True)
class OurPrices:
    """The prices at Stripe that bill usage."""

    amount_price_id: str | None
    tokens: Mapping[str, TokenPrice]

    def is_ours(self, price_id: str) -> bool:
        """Tell whether a line at this price bills usage."""
        return bool(price_id) and (price_id == self.amount_price_id or price_id in self.tokens)

    def meter(self, price_id: str) -> str:
        """Return the name of the meter of tokens that a price of ours bills, "" for amounts."""
        return "" if price_id == self.amount_price_id else self.tokens[price_id].event_name

    def worth(self, price_id: str, units: int) -> Pico:
        """Return what units come to at a price of ours."""
        unit_pico = PICO_PER_MICRO if price_id == self.amount_price_id else self.tokens[price_id].unit_pico
        return Pico(units * unit_pico)

    def billed(self, price_id: str, batches: Iterable[Batch]) -> list[Batch]:
        """Return those batches that a price of ours bills."""
        name = self.meter(price_id)
        if name:
            return [batch for batch in batches if batch.event_name == name]
        of_tokens = {price.event_name for price in self.tokens.values()}
        return [batch for batch in batches if batch.event_name not in of_tokens]


def load(conn: Connection) -> OurPrices:
    """Return what setup and the pusher have recorded."""
    return OurPrices(stripe_objects.known(conn).get(Kind.PRICE), token_meters.price_ids(conn))
