"""A bench in tokens mode: events at real quotes, prices that change, and what the double invoices of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from billing import ids
from billing.clock import Instant, hour_start
from billing.config import Config
from billing.ledger import events, versions
from billing.money import Pico, PicoPerToken
from billing.pricing.book import PriceBook
from billing.pricing.margins import MarginRule, Scope, parse_margin
from billing.pricing.quote import Quote
from billing.pricing.rates import CostRate
from billing.stripe_sync import push, token_setup
from billing.stripe_sync.push import Pusher
from billing.usage import Usage, UsageEvent
from tests.emulators.stripe_double import StripeDouble
from tests.stripe_bench import NOON, SENDS_PER_S, Bench

MODEL = "qwen3.5-9b"


class TokenBench(Bench):
    """A ledger and an account of Stripe's in tokens mode; costs and margins are appended as the CLI does."""

    def __init__(self, url: str, double: StripeDouble) -> None:
        super().__init__(url, double)
        stripe = self.config.stripe.model_copy(update={"mode": "tokens"})
        self.config: Config = self.config.model_copy(update={"stripe": stripe})

    def prepare(self) -> None:
        """As in amount mode, and what the rate card needs."""
        super().prepare()
        token_setup.ensure(
            self.database, self.port, token_setup.of_card(self.config, self.book(), self.now()), self.now(), "test"
        )

    def book(self) -> PriceBook:
        """The price book as it is now."""
        with self.database.reading() as conn:
            return versions.load_book(conn, default_margin="30%", currency="usd")

    def cost(self, model: str, input_: int, output: int, *, cached: int | None = None, request: int = 0) -> None:
        """Set a cost in picounits per token from now on."""
        rate = CostRate(
            id=ids.uuid7(),
            model=model,
            input=PicoPerToken(input_),
            cached_input=None if cached is None else PicoPerToken(cached),
            output=PicoPerToken(output),
            reasoning=None,
            request=Pico(request),
            effective_from=self.now(),
            recorded_at=self.now(),
        )
        with self.database.writing() as conn:
            versions.append_cost_rate(conn, rate, default_margin="30%", currency="usd", backdate=False, actor="test")

    def margin(self, text: str, customer_id: str | None = None) -> None:
        """Set a margin from now on, of all or of one customer."""
        rule = MarginRule(
            id=ids.uuid7(),
            scope=Scope(customer_id=customer_id),
            margin=parse_margin(text),
            effective_from=self.now(),
            recorded_at=self.now(),
            allow_loss=False,
        )
        with self.database.writing() as conn:
            versions.append_margin_rule(conn, rule, default_margin="30%", currency="usd", backdate=False, actor="test")

    def quote(self, model: str, customer_id: str) -> Quote:
        """What the model costs the customer now."""
        found = self.book().quote(model, customer_id, self.now())
        assert found is not None, "it has a cost"
        return found

    def use(
        self,
        customer_id: str,
        input_: int,
        output: int,
        *,
        cached: int = 0,
        model: str = MODEL,
        quote: Quote | None = None,
        at: Instant | None = None,
    ) -> UsageEvent:
        """Record a request as the gateway does: at the quote that holds, its amount tokens times prices."""
        chosen = self.quote(model, customer_id) if quote is None else quote
        finished = self.now() if at is None else at
        usage = Usage(input_, output, cached, 0)
        event = UsageEvent(
            id=ids.uuid7(),
            customer_id=customer_id,
            api_key_id="key_1",
            model=model,
            upstream="local",
            upstream_model=model,
            endpoint="/v1/chat/completions",
            started_at=finished,
            first_token_at=finished,
            finished_at=finished,
            outcome="completed",
            http_status=200,
            count_source="upstream",
            input_tokens=input_,
            cached_input_tokens=cached,
            output_tokens=output,
            reasoning_tokens=0,
            cost_pico=chosen.cost.charge(usage),
            amount_pico=chosen.price.charge(usage),
            price_ref=chosen.ref,
            window_start=hour_start(finished),
        )
        with self.database.writing() as conn:
            versions.store_quote(conn, chosen)
            events.append(conn, [event], 0)
        return event

    def token_pusher(self) -> Pusher:
        """The product's own pusher, at any pace."""
        made = push.pusher(self.config, self.database, self.port, self.now)
        return Pusher(self.database, self.port, made.event_name, self.now, SENDS_PER_S, tokens=made.tokens)

    def pusher(self, *_arguments: object, **_more: object) -> Pusher:
        """In tokens mode."""
        return self.token_pusher()

    def audit_tokens(self, customer_id: str) -> None:
        """Prove I6 from the rows: Σ units × unit + carry = Σ assigned, each unit counted by Stripe on its meter."""
        batches = self.batches(customer_id)
        carry = 0
        for number, batch in enumerate(batches, start=1):
            assert (batch.seq, batch.carry_in_pico) == (number, carry)
            carry = batch.carry_pico
        assert sum(batch.units * batch.unit_pico for batch in batches) + carry == self.assigned_pico(customer_id)
        counted = {each.identifier: each for each in self.double.meter_events if each.status == "counted"}
        for batch in batches:
            if batch.units and batch.first_sent_at is not None:
                event = counted[batch.identifier]
                assert (event.event_name, int(event.value)) == (batch.event_name, batch.units)

    def sent(self, customer_id: str) -> dict[tuple[str, int], int]:
        """Units by meter and unit price in picounits."""
        found: dict[tuple[str, int], int] = {}
        for batch in self.batches(customer_id):
            if batch.units:
                key = (batch.event_name, batch.unit_pico)
                found[key] = found.get(key, 0) + batch.units
        return found

    def lines(self, customer_id: str) -> dict[str, int]:
        """The metered units of all finalized invoices of a customer, by the meter's event name and unit price."""
        stripe_customer = self.account(customer_id).stripe_customer_id
        names = {meter["id"]: meter["event_name"] for meter in self.double.objects("billing.meter")}
        prices = {price["id"]: price for price in self.double.objects("price")}
        found: dict[str, int] = {}
        for invoice in self.double.objects("invoice"):
            if invoice["customer"] != stripe_customer or invoice["status"] == "draft":
                continue
            for line in invoice["lines"]["data"]:
                price = prices[line["pricing"]["price_details"]["price"]]
                if line["quantity"]:
                    name = f"{names[price['recurring']['meter']]} @ {price['unit_amount_decimal']}"
                    found[name] = found.get(name, 0) + line["quantity"]
        return found


@contextmanager
def token_bench(url: str, *, now: int | None = NOON) -> Iterator[TokenBench]:
    """A prepared bench in tokens mode, with one model sold; Stripe's own document must find no fault at the end."""
    with StripeDouble(now=now) as double:
        made = TokenBench(url, double)
        try:
            Bench.prepare(made)
            made.cost(MODEL, 30_000, 120_000, cached=3_000)
            made.prepare()
            yield made
        finally:
            made.database.close()
        assert double.violations == []
