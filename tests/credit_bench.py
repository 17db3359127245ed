"""A ledger with prepaid customers and a clock that the test moves: what the tests of credit stand on.

`CreditBench.audit` proves I7 from the rows alone, with none of the product's sums: nothing given twice, nothing spent
that was not given, and every request's amount on exactly the leases and grants that paid it.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from billing import ids
from billing.clock import SECOND_US, Instant
from billing.credit.holds import Part
from billing.ledger import accounts, charges, credit, events, leases, migrate, proof, schema
from billing.ledger.charges import Charge
from billing.ledger.database import Database
from billing.ledger.leases import Taken
from billing.money import Pico
from billing.usage import UsageEvent
from tests.unit.ledger.made import event

NOON = Instant(1_772_366_400_000_000)
TESTS = "tests"
USD = "usd"
GIVING = ("grant", "topup")


class CreditBench:
    """One ledger, its clock, and short words for what happens to credit."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.at = NOON
        self.zone = ZoneInfo("UTC")

    def now(self) -> Instant:
        """The bench's time."""
        return self.at

    def wait(self, seconds: int) -> None:
        """Time passes, or (a clock step) goes back."""
        self.at = Instant(self.at + seconds * SECOND_US)

    def customer(self, name: str = "acme", *, is_prepaid: bool = True) -> str:
        """Add a (prepaid) customer, and return its id."""
        with self.database.writing() as conn:
            return accounts.add_customer(conn, name, None, self.at, TESTS, is_prepaid=is_prepaid).id

    def grant(self, customer_id: str, amount: int, **given: Any) -> str:
        """Give credit, and return its id."""
        with self.database.writing() as conn:
            return credit.grant(conn, customer_id, Pico(amount), USD, self.at, TESTS, **given).id

    def take(self, customer_id: str, need: int, *, holder: str = "a", wished: int = 0, currency: str = USD) -> Taken:
        """Lease for a worker."""
        with self.database.writing() as conn:
            return leases.take(conn, customer_id, holder, currency, need, wished, self.at, self.zone)

    def lease(self, customer_id: str, need: int, holder: str = "a") -> str:
        """Lease from one grant, and return the lease's id."""
        (added,) = self.take(customer_id, need, holder=holder).additions
        return added.lease_id

    def use(self, customer_id: str, amount: int, *parts: tuple[str, int], **given: Any) -> tuple[UsageEvent, ...]:
        """Record a request that costs so much, on these leases; return what was written off."""
        made = self.event(customer_id, amount, **given)
        return self.record(Charge(made, tuple(Part(lease, Pico(share)) for lease, share in parts)))

    def use_plain(self, customer_id: str, amount: int, **given: Any) -> None:
        """Record a metered request, which no credit pays and no lease covers; it ends in a window of this instant."""
        made = self.event(customer_id, amount, **{"window_start": self.at, **given})
        with self.database.writing() as conn:
            events.append(conn, [made], 0)

    def event(self, customer_id: str, amount: int, **given: Any) -> UsageEvent:
        """A request of the customer's, now."""
        values = {"customer_id": customer_id, "amount_pico": amount, "finished_at": self.at, **given}
        return event(self.at, **values)

    def record(self, *charged: Charge, shard: int = 0) -> tuple[UsageEvent, ...]:
        """Record requests in one commit; return what was written off."""
        with self.database.writing() as conn:
            return charges.append(conn, [charge.event for charge in charged], charged, shard, self.at)

    def close(self, customer_id: str, *lease_ids: str) -> None:
        """Close leases."""
        with self.database.writing() as conn:
            leases.close(conn, customer_id, lease_ids, self.at)

    def give_back(self, lease_id: str, amount: int) -> None:
        """Give back a part of a lease that is not used."""
        with self.database.writing() as conn:
            leases.give_back(conn, [Part(lease_id, Pico(amount))], self.at)

    def tidy(self, customer_id: str) -> None:
        """Sweep."""
        with self.database.writing() as conn:
            leases.tidy(conn, customer_id, self.at)

    def standing(self, customer_id: str) -> tuple[int, int, int]:
        """Balance, held, available."""
        with self.database.reading() as conn:
            found = leases.standing(conn, customer_id, self.at)
        return found.balance, found.held, found.available

    def history(self, customer_id: str) -> list[tuple[str, int, int]]:
        """All entries, oldest first: kind, amount, what the grant has left after it."""
        with self.database.reading() as conn:
            found = credit.entries(conn, customer_id, 10_000)
        return [(entry.kind.value, entry.amount, entry.left) for entry in reversed(found)]

    def rows(self, table: sa.Table, customer_id: str) -> list[dict[str, Any]]:
        """A customer's rows of a table."""
        with self.database.reading() as conn:
            query = sa.select(table).where(table.c.customer_id == customer_id)
            return [dict(row) for row in conn.execute(query.order_by(*table.primary_key.columns)).mappings()]

    def spent(self, customer_id: str) -> int:
        """What the customer's events come to, corrections included."""
        return sum(row["amount_pico"] for row in self.rows(schema.usage_events, customer_id))

    # the proof

    def audit(self, customer_id: str) -> None:
        """Fail unless the customer's rows agree with each other and nothing is overspent."""
        self.prove()
        entries = sorted(self.rows(schema.credit_entries, customer_id), key=lambda row: row["seq"])
        held = self.rows(schema.leases, customer_id)
        charged = self._charges(customer_id)
        self._audit_entries(entries)
        self._audit_leases(entries, held, charged)
        self._audit_events(customer_id, charged)
        given = sum(_amount(row) for row in entries if row["kind"] in GIVING)
        assert self.spent(customer_id) <= given
        balance, waiting, available = self.standing(customer_id)
        owed = entries[-1]["owed_micro"] * 10**6 + entries[-1]["owed_pico"] if entries else 0
        assert balance + owed >= waiting >= 0
        assert available + owed >= 0

    def prove(self) -> None:
        """Fail if `weir audit ledger` finds anything; the tests' events name no quotes."""
        with self.database.reading() as conn:
            assert [each for each in proof.run(conn) if each.audit != "amount = tokens × prices"] == []

    def _audit_entries(self, entries: list[dict[str, Any]]) -> None:
        """Numbered without a gap, in order of time, and what each says is left is what the sums say."""
        assert [row["seq"] for row in entries] == list(range(1, len(entries) + 1))
        assert [row["at"] for row in entries] == sorted(row["at"] for row in entries)
        left: dict[str, int] = defaultdict(int)
        owed = 0
        for row in entries:
            before, owed = owed, row["owed_micro"] * 10**6 + row["owed_pico"]
            assert owed >= 0
            assert row["kind"] in ("refund", "reversal") or owed - before == min(0, _amount(row)) * (owed != before)
            left[row["grant_id"]] += _amount(row)
            assert left[row["grant_id"]] == row["left_micro"] * 10**6 + row["left_pico"] >= 0
            grants = {grant[0]: grant[5] for grant in json.loads(row["grants"])}
            assert grants == {grant_id: amount for grant_id, amount in left.items() if amount}

    def _audit_leases(
        self, entries: list[dict[str, Any]], held: list[dict[str, Any]], charged: list[dict[str, Any]]
    ) -> None:
        """Used is what requests took; closed leases are burns; open ones fit into what their grants have left."""
        used: dict[str, int] = defaultdict(int)
        for row in charged:
            used[row["lease_id"]] += row["amount_pico"]
        burns = {row["lease_id"]: (-_amount(row), row["grant_id"]) for row in entries if row["kind"] == "burn"}
        open_: dict[str, int] = defaultdict(int)
        for lease in held:
            assert lease["used_pico"] == used[lease["id"]]
            if lease["closed_at"] is None:
                open_[lease["grant_id"]] += lease["amount_pico"]
                assert lease["id"] not in burns
            elif lease["used_pico"]:
                assert burns.pop(lease["id"]) == (lease["used_pico"], lease["grant_id"])
        assert burns == {}
        last = {grant[0]: grant[5] for grant in json.loads(entries[-1]["grants"])} if entries else {}
        for grant_id, amount in open_.items():
            assert amount <= last[grant_id]

    def _audit_events(self, customer_id: str, charged: list[dict[str, Any]]) -> None:
        """Each request is on leases for what it costs, but for what was written off; the rollups know it."""
        paid: dict[str, int] = defaultdict(int)
        for row in charged:
            paid[row["event_id"]] += row["amount_pico"]
        events = self.rows(schema.usage_events, customer_id)
        for row in events:
            if row["anomaly"] == "uncovered":
                assert row["outcome"] == "adjustment"
                paid[row["adjusts"]] -= row["amount_pico"]
            elif row["adjusts"] is not None and row["amount_pico"] < 0:
                paid[row["id"]] += row["amount_pico"]  # given back, as a new credit
        assert {i: a for i, a in paid.items() if a} == {
            row["id"]: row["amount_pico"] for row in events if row["anomaly"] != "uncovered" and row["amount_pico"]
        }
        rollups = self.rows(schema.usage_hourly, customer_id)
        for name in ("amount", "credit", "assigned"):
            assert sum(row[f"{name}_micro"] * 10**6 + row[f"{name}_pico"] for row in rollups) == self.spent(customer_id)
        assert sum(row["is_unassigned"] for row in rollups) == 0
        assert sum(row["requests"] for row in rollups) == sum(row["adjusts"] is None for row in events)

    def _charges(self, customer_id: str) -> list[dict[str, Any]]:
        charged, held = schema.credit_charges, schema.leases
        query = sa.select(charged).join(held, held.c.id == charged.c.lease_id)
        with self.database.reading() as conn:
            rows = conn.execute(query.where(held.c.customer_id == customer_id)).mappings()
            return [dict(row) for row in rows]


def _amount(row: dict[str, Any]) -> int:
    amount: int = row["amount_micro"] * 10**6 + row["amount_pico"]
    return amount


@contextmanager
def credit_bench(url: str) -> Iterator[CreditBench]:
    """A bench on a fresh database."""
    bench = CreditBench(url)
    migrate.upgrade(bench.database)
    yield bench
    bench.database.close()


def new_holder() -> str:
    """A worker's name."""
    return ids.new_id("worker")
