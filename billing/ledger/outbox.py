"""The outbox: what rollups hold beyond what batches hold becomes batches, and each batch's way to Stripe is recorded.

Invariant (I6): for each customer, Σ units × unit + the last batch's carry = Σ amounts assigned, where a batch's unit
(`unit_pico`) is a millionth of the currency, or in tokens mode a token's price. It holds because a plan
(batches, and the rows they cover) is written in the transaction that read the rows: `append` adds to `assigned_*`
exactly what `pending` read, and fails as a whole if a row changed in between or a seq is taken.

A row's `window_seq` grows with each assignment and every event stores the one it found. So a batch's `covers`, a list
of [api_key_id, model, shard, window_seq], names exactly the events it holds; an entry of an earlier hour (a
correction that a later hour paid for) has that hour's window_start as a fifth element. In tokens mode the batches of
an hour's meters name the same events, and each holds their tokens of its own type.

The way of a batch: `pending` (Stripe can not have counted it) → `sending` → `accepted`, or back to `pending`, or
`uncertain` (it may have been counted), or `rejected`, or `held`. `carried` holds less than a unit, so nothing is sent.
`sending`, `uncertain`: first_sent_at is the first attempt that may have been counted. What leads out of `accepted`,
`rejected` and `held` is in `ledger.repairs`: Stripe's summaries make `confirmed`, or prove that a batch has to be sent
again, under a fresh identifier (`resend` counts them), and so does a person.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import sqlalchemy as sa

from billing.clock import Instant
from billing.ledger import schema
from billing.money import PICO_PER_MICRO, Pico, join

PENDING_ROWS_MAX = 1_000
"""Rollup rows in one transaction of the outbox: they are locked meanwhile, and the recorder waits for them."""

_BATCHES = schema.meter_batches
_ROLLUPS = schema.usage_hourly
_CUSTOMERS = schema.customers


class State(StrEnum):
    """Where a batch is on its way."""

    PENDING = "pending"
    SENDING = "sending"
    ACCEPTED = "accepted"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    UNCERTAIN = "uncertain"
    HELD = "held"
    CARRIED = "carried"


class Counts(NamedTuple):
    """What usage counts, as rollups do: cached tokens are a part of the input, reasoning of the output."""

    requests: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    image_input_tokens: int = 0
    audio_input_tokens: int = 0


NO_COUNTS = Counts()

SENDABLE = (State.PENDING, State.UNCERTAIN, State.SENDING)
DELIVERED = (State.ACCEPTED, State.CONFIRMED)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one rollup row holds beyond what was assigned: two sums, which `money.join` joins; may be negative.

    `price_ref` names the quote of the row, None for a row of a release that kept none.
    """

    customer_id: str
    stripe_customer_id: str
    window_start: Instant
    api_key_id: str
    model: str
    shard: int
    window_seq: int
    micro: int
    pico: int
    price_ref: str | None = None
    counts: Counts = NO_COUNTS

    @property
    def amount(self) -> Pico:
        """The unassigned amount."""
        return join(self.micro, self.pico)


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a customer's chain of batches: its number, its carry, and whether a batch waits to be sent.

    `billed_until` is the end of the last period whose invoice is finalized, None before the first.
    """

    seq: int
    carry: Pico
    is_waiting: bool
    billed_until: Instant | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One row of `meter_batches`; its first identifier at Stripe is its `id`."""

    id: str
    customer_id: str
    seq: int
    stripe_customer_id: str
    event_name: str
    idempotency_key: str
    window_start: Instant
    timestamp_s: int
    units: int
    carry_in_pico: int
    carry_pico: int
    covers: str
    state: State
    attempts: int
    created_at: Instant
    first_sent_at: Instant | None
    next_attempt_at: Instant
    settled_at: Instant | None
    last_answer: str | None
    resend: int = 0
    via: str = "v1"
    unit_pico: int = PICO_PER_MICRO

    @property
    def identifier(self) -> str:
        """The meter event's identifier: the batch's id, and behind a dot how often it was given a fresh one."""
        return identifier_of(self.id, self.resend)


def identifier_of(batch_id: str, resend: int) -> str:
    """Return the identifier under which a batch is sent after so many fresh ones; a batch's id holds no dot."""
    return f"{batch_id}.r{resend}" if resend else batch_id


@dataclass(frozen=True, slots=True)
class Plan:
    """Batches to append, in order of their seq, and the deltas that they cover."""

    batches: tuple[Batch, ...]
    assigned: tuple[Delta, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch that this process may send now, and whether an earlier attempt of it may have been counted."""

    batch: Batch
    was_uncertain: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt came to, for the claim (`id`, `attempts`) that made it."""

    id: str
    attempts: int
    state: State
    idempotency_key: str
    first_sent_at: Instant | None
    next_attempt_at: Instant
    settled_at: Instant | None
    last_answer: str


def pending(
    conn: sa.Connection,
    after: str = "",
    rows_max: int = PENDING_ROWS_MAX,
    *,
    only: str | None = None,
    is_waiting: bool = False,
    is_locking: bool = True,
) -> tuple[list[Delta], str | None]:
    """Return the unassigned deltas of customers linked to Stripe, by customer and window, after customer `after`.

    `only` asks for one customer. The second value is None, or the customer at whom the list was cut: some windows of
    that one are missing. The rows are locked until the transaction ends. On PostgreSQL a row that the recorder holds
    right now is left to the next round, unless `is_waiting`: then it is waited for, in the recorder's own order of
    rows. On SQLite the transaction must be a writing one. Without `is_locking` it only looks.
    """
    of_whom = _ROLLUPS.c.customer_id.in_(_LINKED) if only is None else _ROLLUPS.c.customer_id == only
    query = _PENDING.where(of_whom).suffix_with("/* weir:outbox.pending */")
    if conn.dialect.name == "postgresql":
        order = (_ROLLUPS.c.api_key_id, sa.collate(_ROLLUPS.c.model, "C"), _ROLLUPS.c.shard)
        query = query.order_by(*order)
        if is_locking:
            query = query.with_for_update(of=_ROLLUPS, skip_locked=not is_waiting)
    rows = conn.execute(query.limit(rows_max), {"after": after, "customers_max": rows_max}).all()
    deltas = [Delta(row[0], row[1], Instant(row[2]), *row[3:10], Counts(*row[10:])) for row in rows]
    if len(deltas) < rows_max:
        return deltas, None
    last = deltas[-1]
    whole = [d for d in deltas if (d.customer_id, d.window_start) != (last.customer_id, last.window_start)]
    return whole or deltas, last.customer_id


IS_UNASSIGNED = _ROLLUPS.c.is_unassigned == sa.literal_column("1")
"""Literal, because a partial index is used only where the planner can prove its predicate."""

_LINKED = (
    sa.select(_CUSTOMERS.c.id)
    .where(
        _CUSTOMERS.c.stripe_customer_id.is_not(None),
        _CUSTOMERS.c.id > sa.bindparam("after"),
        sa.exists().where(_ROLLUPS.c.customer_id == _CUSTOMERS.c.id, IS_UNASSIGNED),
    )
    .order_by(_CUSTOMERS.c.id)
    .limit(sa.bindparam("customers_max"))
)

_PENDING = (
    sa.select(
        _ROLLUPS.c.customer_id,
        _CUSTOMERS.c.stripe_customer_id,
        _ROLLUPS.c.window_start,
        _ROLLUPS.c.api_key_id,
        _ROLLUPS.c.model,
        _ROLLUPS.c.shard,
        _ROLLUPS.c.window_seq,
        _ROLLUPS.c.amount_micro - _ROLLUPS.c.assigned_micro,
        _ROLLUPS.c.amount_pico - _ROLLUPS.c.assigned_pico,
        _ROLLUPS.c.price_ref,
        *(_ROLLUPS.c[name] - _ROLLUPS.c[f"assigned_{name}"] for name in Counts._fields),
    )
    .select_from(_ROLLUPS.join(_CUSTOMERS, _CUSTOMERS.c.id == _ROLLUPS.c.customer_id))
    .where(IS_UNASSIGNED, _CUSTOMERS.c.stripe_customer_id.is_not(None))
    .order_by(_ROLLUPS.c.customer_id, _ROLLUPS.c.window_start)
)


def tails(conn: sa.Connection, customer_ids: Sequence[str]) -> dict[str, Tail]:
    """Return the end of each customer's chain; a customer without batches has seq 0 and carry 0.

    Needs no lock: two planners would both append the next seq, and the unique constraint refuses the second.
    """
    waiting = set(conn.execute(_WAITING).scalars())
    found: dict[str, Tail] = {}
    for start in range(0, len(customer_ids), PENDING_ROWS_MAX):
        rows = conn.execute(_TAILS, {"ids": customer_ids[start : start + PENDING_ROWS_MAX]})
        found |= {row[0]: Tail(row[1] or 0, Pico(row[2] or 0), row[0] in waiting, row[3]) for row in rows}
    return found


def _of_last_batch(column: sa.Column[int]) -> sa.ScalarSelect[int]:
    """One column of a customer's last batch: one step into the unique index, however long the chain is."""
    of_customer = sa.select(column).where(_BATCHES.c.customer_id == _CUSTOMERS.c.id)
    return of_customer.order_by(_BATCHES.c.seq.desc()).limit(1).correlate(_CUSTOMERS).scalar_subquery()


_IS_SENDABLE = _BATCHES.c.state.in_([str(state) for state in SENDABLE])
_WAITING = sa.select(_BATCHES.c.customer_id).distinct().where(_IS_SENDABLE).suffix_with("/* weir:outbox.waiting */")
_TAILS = (
    sa.select(
        _CUSTOMERS.c.id,
        _of_last_batch(_BATCHES.c.seq),
        _of_last_batch(_BATCHES.c.carry_pico),
        _CUSTOMERS.c.billed_until,
    )
    .where(_CUSTOMERS.c.id.in_(sa.bindparam("ids", expanding=True)))
    .suffix_with("/* weir:outbox.tails */")
)


def append(conn: sa.Connection, plan: Plan) -> None:
    """Insert the batches and assign their deltas, in the transaction that read them with `pending`.

    Raises IntegrityError if another process appended to the same customer's chain.
    """
    if plan.batches:
        conn.execute(sa.insert(_BATCHES), [_row(batch) for batch in plan.batches])
    if plan.assigned:
        changed = conn.execute(_ASSIGN, [_assignment(delta) for delta in plan.assigned])
        assert changed.rowcount == len(plan.assigned), "a rollup row changed although the transaction holds its lock"


_ASSIGN = (
    sa.update(_ROLLUPS)
    .where(
        _ROLLUPS.c.customer_id == sa.bindparam("of_customer"),
        _ROLLUPS.c.window_start == sa.bindparam("of_window"),
        _ROLLUPS.c.api_key_id == sa.bindparam("of_key"),
        _ROLLUPS.c.model == sa.bindparam("of_model"),
        _ROLLUPS.c.shard == sa.bindparam("of_shard"),
        _ROLLUPS.c.window_seq == sa.bindparam("of_seq"),
        _ROLLUPS.c.amount_micro - _ROLLUPS.c.assigned_micro == sa.bindparam("micro"),
        _ROLLUPS.c.amount_pico - _ROLLUPS.c.assigned_pico == sa.bindparam("pico"),
    )
    .values(
        assigned_micro=_ROLLUPS.c.assigned_micro + sa.bindparam("micro"),
        assigned_pico=_ROLLUPS.c.assigned_pico + sa.bindparam("pico"),
        window_seq=_ROLLUPS.c.window_seq + 1,
        **{f"assigned_{name}": _ROLLUPS.c[f"assigned_{name}"] + sa.bindparam(f"of_{name}") for name in Counts._fields},
    )
)


def _assignment(delta: Delta) -> dict[str, object]:
    return {
        "of_customer": delta.customer_id,
        "of_window": delta.window_start,
        "of_key": delta.api_key_id,
        "of_model": delta.model,
        "of_shard": delta.shard,
        "of_seq": delta.window_seq,
        "micro": delta.micro,
        "pico": delta.pico,
        **{f"of_{name}": count for name, count in delta.counts._asdict().items()},
    }


def due(
    conn: sa.Connection,
    now: Instant,
    rows_max: int,
    *,
    besides: Collection[str] = (),
    is_everything: bool = False,
) -> list[Batch]:
    """Return batches that may be sent now, longest due first, of customers besides these.

    `is_everything` includes those that wait for a retry. Every row in `sending` is due: the caller is the only elected
    pusher, so its sender is dead.
    """
    query = sa.select(_BATCHES).where(_IS_SENDABLE, _BATCHES.c.customer_id.not_in(sorted(besides)))
    if not is_everything:
        query = query.where(_BATCHES.c.next_attempt_at <= now)
    query = query.order_by(_BATCHES.c.next_attempt_at, _BATCHES.c.seq, _BATCHES.c.id).limit(rows_max)
    return [of_row(row) for row in conn.execute(query.suffix_with("/* weir:outbox.due */")).mappings()]


def claim(conn: sa.Connection, batches: Iterable[Batch], now: Instant) -> list[Claim]:
    """Mark the batches as being sent, before the first byte leaves, and return those that are still as they were.

    One conditional update each (state and attempts as read), so that no batch is sent by two processes at once. Its
    way and key (`via`, `idempotency_key`) are those that the caller chose.
    """
    claims = []
    for batch in batches:
        query = (
            sa.update(_BATCHES)
            .where(
                _BATCHES.c.id == batch.id,
                _BATCHES.c.state == str(batch.state),
                _BATCHES.c.attempts == batch.attempts,
            )
            .values(
                state=str(State.SENDING),
                attempts=_BATCHES.c.attempts + 1,
                first_sent_at=sa.func.coalesce(_BATCHES.c.first_sent_at, now),
                next_attempt_at=now,
                via=batch.via,
                idempotency_key=batch.idempotency_key,
            )
            .returning(_BATCHES)
        )
        row = conn.execute(query).mappings().one_or_none()
        if row is not None:
            claims.append(Claim(of_row(row), was_uncertain=batch.first_sent_at is not None))
    return claims


def settle(conn: sa.Connection, outcomes: Iterable[Outcome]) -> None:
    """Record what attempts came to; an outcome of a claim that another process took over changes nothing."""
    for outcome in outcomes:
        conn.execute(
            sa.update(_BATCHES)
            .where(
                _BATCHES.c.id == outcome.id,
                _BATCHES.c.state == str(State.SENDING),
                _BATCHES.c.attempts == outcome.attempts,
            )
            .values(
                state=str(outcome.state),
                idempotency_key=outcome.idempotency_key,
                first_sent_at=outcome.first_sent_at,
                next_attempt_at=outcome.next_attempt_at,
                settled_at=outcome.settled_at,
                last_answer=outcome.last_answer,
            )
        )


def hold(conn: sa.Connection, batch: Batch, reason: str, now: Instant) -> None:
    """Stop sending a batch: only reconciliation, or a person, may say what became of it."""
    conn.execute(
        sa.update(_BATCHES)
        .where(_BATCHES.c.id == batch.id, _BATCHES.c.state == str(batch.state))
        .values(state=str(State.HELD), settled_at=now, last_answer=reason)
    )


_IDENTIFIER = _BATCHES.c.id + sa.case(
    (_BATCHES.c.resend > 0, ".r" + sa.cast(_BATCHES.c.resend, sa.Text)), else_=sa.literal("")
)


def readdress(conn: sa.Connection, customer_id: str, stripe_customer_id: str, now: Instant) -> int:
    """Give what Stripe can not have counted to the customer's new link; return how many batches that were.

    Their keys were used with the old customer, if at all, so they get new ones.
    """
    changed = conn.execute(
        sa.update(_BATCHES)
        .where(
            _BATCHES.c.customer_id == customer_id,
            _BATCHES.c.stripe_customer_id != stripe_customer_id,
            _BATCHES.c.state.in_([str(State.PENDING), str(State.REJECTED)]),
            _BATCHES.c.first_sent_at.is_(None),
        )
        .values(
            state=str(State.PENDING),
            stripe_customer_id=stripe_customer_id,
            idempotency_key=_IDENTIFIER + "." + stripe_customer_id,
            next_attempt_at=now,
            settled_at=None,
        )
    )
    return changed.rowcount


def not_before(conn: sa.Connection, customer_id: str, event_name: str | None, opens_s: int, oldest_s: int) -> int:
    """Give what Stripe can not have counted, and would be timed before it is billed, the time from which it is.

    Of one meter, or (None) of all; what is older than `oldest_s` keeps its time. Return how many batches changed.
    """
    conditions = [
        _BATCHES.c.customer_id == customer_id,
        _BATCHES.c.state == str(State.PENDING),
        _BATCHES.c.first_sent_at.is_(None),
        _BATCHES.c.timestamp_s < opens_s,
        _BATCHES.c.timestamp_s >= oldest_s,
    ]
    if event_name is not None:
        conditions.append(_BATCHES.c.event_name == event_name)
    key = _BATCHES.c.idempotency_key + f".{opens_s}"
    return conn.execute(
        sa.update(_BATCHES).where(*conditions).values(timestamp_s=opens_s, idempotency_key=key)
    ).rowcount


def in_state(conn: sa.Connection, states: Sequence[State], rows_max: int) -> list[Batch]:
    """Return the batches in these states, oldest first."""
    query = sa.select(_BATCHES).where(_BATCHES.c.state.in_([str(state) for state in states]))
    rows = conn.execute(query.order_by(_BATCHES.c.created_at, _BATCHES.c.id).limit(rows_max)).mappings()
    return [of_row(row) for row in rows]


def batches_of(
    conn: sa.Connection,
    customer_id: str,
    window_start: int,
    api_key_id: str,
    model: str,
    shard: int,
    window_seq: int,
) -> list[Batch]:
    """Return the batches that hold the event with these values; none while it is not assigned, several in tokens mode.

    Mostly batches of the event's own hour; a correction that was paid for later is in a batch of a later hour.
    """
    of_customer = sa.select(_BATCHES).where(_BATCHES.c.customer_id == customer_id)
    own = of_customer.where(_BATCHES.c.window_start == window_start)
    later = of_customer.where(_BATCHES.c.window_start > window_start, _BATCHES.c.covers.contains(f", {window_start}]"))
    cover = [api_key_id, model, shard, window_seq]
    for query, wanted in ((own, cover), (later, [*cover, window_start])):
        rows = conn.execute(query.order_by(_BATCHES.c.seq).suffix_with("/* weir:outbox.batches_of */")).mappings()
        found = [batch for batch in map(of_row, rows) if wanted in json.loads(batch.covers)]
        if found:
            return found
    return []


def of_row(row: sa.RowMapping) -> Batch:
    """Return a row of `meter_batches` as a value; for the ledger's own modules."""
    return Batch(**{**row, "state": State(row["state"])})


def _row(batch: Batch) -> Mapping[str, object]:
    return {name: getattr(batch, name) for name in Batch.__slots__} | {"state": str(batch.state)}
