"""The coming invoice, from the ledger and from Stripe's own preview, and why they differ.

Invariant: the difference is taken apart into what the ledger knows of (units that are not sent yet, amounts in no batch
yet, the carry below a unit), and what is left over is named `unexplained`: Stripe has counted more or less than it was
sent, for now or for good; `weir stripe reconcile` finds the hours.
"""

from dataclasses import dataclass

from billing.clock import SECOND_US, Instant
from billing.errors import RefusedError
from billing.ledger import accounts, bills
from billing.ledger.accounts import Customer
from billing.ledger.bills import Period
from billing.ledger.database import Database
from billing.money import Pico
from billing.stripe_sync import our_prices
from billing.stripe_sync.minor_units import to_pico
from billing.stripe_sync.payments import BilledInvoice
from billing.stripe_sync.port import StripePort


@dataclass(frozen=True, slots=True)
class Preview:
    """One customer's coming invoice, twice; `counted` is what the units that Stripe has counted come to."""

    customer: Customer
    start: Instant
    end: Instant
    ledger: Period
    stripe: BilledInvoice
    stripe_units: int
    counted: Pico

    @property
    def billable(self) -> Pico:
        """What the ledger would invoice: usage that no credit paid for."""
        return Pico(self.ledger.usage - self.ledger.credit)

    @property
    def difference(self) -> Pico:
        """The ledger's amount less what Stripe has counted."""
        return Pico(self.billable - self.counted)

    @property
    def carry(self) -> Pico:
        """The change of the carry in the period: below a unit now, less what the period before left."""
        return Pico(self.ledger.carry_out - self.ledger.carry_in)

    @property
    def unexplained(self) -> Pico:
        """What is sent, less what Stripe has counted: it counts with a delay, or reconciliation has to look."""
        return Pico(self.ledger.sent - self.counted)

    @property
    def stripe_total(self) -> Pico:
        """What Stripe would charge, rounded to its minor unit, other lines included."""
        return to_pico(self.stripe.total, self.stripe.currency)


def look(database: Database, port: StripePort, customer_id: str) -> Preview:
    """Ask Stripe and the ledger for a customer's coming invoice. Raises RefusedError for one without a subscription."""
    with database.reading() as conn:
        customer = accounts.get_customer(conn, customer_id)
        prices = our_prices.load(conn)
    if customer.stripe_customer_id is None or customer.stripe_subscription_id is None:
        raise RefusedError(
            f"{customer.name!r} has no subscription at Stripe; `weir customer link {customer.id}` makes one"
        )
    billed = port.payments.preview(customer.stripe_customer_id, customer.stripe_subscription_id)
    lines = [line for line in billed.lines if prices.is_ours(line.price_id)]
    start, end = customer.period_start, customer.period_end
    if lines:  # Stripe's word: our copy of the period may be a webhook behind.
        start = Instant(min(line.period_start_s for line in lines) * SECOND_US)
        end = Instant(max(line.period_end_s for line in lines) * SECOND_US)
    if start is None or end is None:
        raise RefusedError(f"the subscription of {customer.name!r} has no period of ours; `weir stripe setup --plan`")
    with database.reading() as conn:
        ledger = bills.period(conn, customer.id, start, end)
    counted = Pico(sum(prices.worth(line.price_id, line.units) for line in lines))
    return Preview(customer, start, end, ledger, billed, sum(line.units for line in lines), counted)
