"""`weir doctor`: what is wrong with an installation, and what to do about it.

Each check looks at one thing and gives what it found; none stops the others, and none changes anything. A check that
can not be made (its database is away) says so and is no second fault. "warn" is worth knowing, "fail" is wrong.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from billing import asking, clock
from billing.address import parse
from billing.clock import SECOND_US, instant_text
from billing.config import Config, Upstream
from billing.errors import WeirError
from billing.ledger import inflight, leases, migrate, spool, standings, versions
from billing.ledger.database import Database, DatabaseError
from billing.stripe_sync.client import connect
from billing.tokens.registry import TokenizerRegistry

OK, WARN, FAIL = "ok", "warn", "fail"
ASK_TIMEOUT_S = 3
ANSWER_BYTES_MAX = 2**20
FREE_BYTES_MIN = 2**30
CLOCK_OFF_US_MAX = 2 * SECOND_US
_TROUBLED = ("held", "rejected", "uncertain")


class Result(NamedTuple):
    """What a check found, and what to do about it, empty where nothing is to do."""

    check: str
    state: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined; `database` is None if it does not answer or is on another schema."""

    config: Config
    database: Database | None
    database_fault: str


def examine(config: Config) -> Iterator[Result]:
    """Make every check."""
    database = Database(config.database.url, wait_s=2)
    with closing(database):
        try:
            migrate.require_current(database)
            patient = Patient(config, database, "")
        except WeirError as error:
            patient = Patient(config, None, str(error))
        for check in CHECKS:
            try:
                yield from check(patient)
            except (WeirError, DatabaseError, OSError) as error:
                name = check.__name__.removeprefix("_").replace("_", " ")
                yield Result(name, FAIL, " ".join(str(error).split())[:300], "see the text")


def _configuration(patient: Patient) -> Iterator[Result]:
    config = patient.config
    count = len(config.upstreams)
    if count:
        yield Result("configuration", OK, f"{count} upstreams")
    else:
        yield Result("configuration", FAIL, "no upstreams", "add [[upstreams]]; `weir init` finds local model servers")
    if not config.gateway.admin_token:
        yield Result("admin token", WARN, "not set", "set gateway.admin_token, or run `weir init`")


def _database(patient: Patient) -> Iterator[Result]:
    if patient.database is None:
        yield Result("database", FAIL, patient.database_fault, "start it, check database.url, or `weir db upgrade`")
        return
    found = f"answers, schema {migrate.revisions()[-1]}"
    mode = patient.database.journal_mode()
    if mode not in (None, "wal"):
        yield Result("database", FAIL, f"journal_mode is {mode}", "keep it on a local disk: WAL needs one")
        return
    with patient.database.reading() as conn:
        off_us = leases.database_now(conn, clock.now) - clock.now()
    yield Result("database", OK, found if mode is None else f"{found}, WAL")
    if abs(off_us) > CLOCK_OFF_US_MAX:
        seconds = off_us // SECOND_US
        yield Result("clock", FAIL, f"the database's clock is {seconds} s off", "run NTP on both hosts")
    else:
        yield Result("clock", OK, instant_text(clock.now()))


def _upstreams(patient: Patient) -> Iterator[Result]:
    for upstream in patient.config.upstreams:
        models = _models_of(upstream)
        name = f"upstream {upstream.name}"
        if models is None:
            yield Result(name, FAIL, f"{upstream.url} does not answer", "start it, or check its url and api_key")
        elif missing := [own for own in upstream.models.values() if models and own not in models]:
            yield Result(name, WARN, f"does not list {', '.join(missing)}", "check `models` of this upstream")
        else:
            yield Result(name, OK, f"answers, {len(models)} models")


def _models_of(upstream: Upstream) -> list[str] | None:
    reply = asking.ask(
        parse(upstream.url),
        "/v1/models",
        timeout_s=ASK_TIMEOUT_S,
        bytes_max=ANSWER_BYTES_MAX,
        api_key=upstream.api_key,
        tls=asking.tls_context(upstream),
    )
    if reply is None or reply.status != 200 or not isinstance(reply.parsed, dict):
        return None
    listed = reply.parsed.get("data")
    entries = listed if isinstance(listed, list) else []
    return [str(entry.get("id")) for entry in entries if isinstance(entry, dict)]


def _models(patient: Patient) -> Iterator[Result]:
    """Each model that is served has a price and a vocabulary."""
    config = patient.config
    served = {name for each in config.upstreams for name in each.models or (_models_of(each) or ())}
    registry = TokenizerRegistry(config.tokenizers)
    for model in sorted(served):
        try:
            registry.vocabulary(model)
            yield Result(f"tokenizer {model}", OK, registry.choose(model).source)
        except WeirError as error:
            remedy = 'set it in [tokenizers]: "qwen3.5", or a .tiktoken, tokenizer.json or .gguf file'
            yield Result(f"tokenizer {model}", FAIL, str(error), remedy)
    if patient.database is None:
        return
    with patient.database.reading() as conn:
        billing = config.billing
        book = versions.load_book(conn, default_margin=billing.default_margin, currency=billing.currency)
    for model in sorted(served):
        if book.quote(model, None, clock.now()) is None:
            yield Result(f"price {model}", FAIL, "no cost in force: it is refused", f"weir cost set {model} …")
        else:
            yield Result(f"price {model}", OK, "priced")


def _spool(patient: Patient) -> Iterator[Result]:
    folder = Path(patient.config.database.spool)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        remedy = "set [database] spool to a folder that can be written"
        yield Result("spool", FAIL, f"{existing} can not be written", remedy)
        return
    waits = spool.waiting(folder)
    if waits.refused:
        yield Result("spool", FAIL, f"the ledger refused {waits.refused} events", "see spool.refused in the log")
    elif waits.rows:
        yield Result("spool", WARN, f"{waits.rows} events wait for the database", "they drain when it is back")
    else:
        yield Result("spool", OK, "empty")


def _disk(patient: Patient) -> Iterator[Result]:
    folders = {"spool": Path(patient.config.database.spool)}
    if patient.database is not None and patient.database.is_sqlite and patient.database.url.database:
        folders["database"] = Path(patient.database.url.database).parent
    for name, folder in folders.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        state = OK if free >= FREE_BYTES_MIN else FAIL
        yield Result(f"disk of {name}", state, f"{free >> 20} MiB free", "" if state == OK else "make room")


def _stripe(patient: Patient) -> Iterator[Result]:
    stripe = patient.config.stripe
    if not stripe.enabled:
        yield Result("stripe", OK, "not enabled")
    elif not stripe.api_key:
        yield Result("stripe", WARN, "no key: nothing is sent", "set STRIPE_API_KEY, or stripe.enabled = false")
    else:
        meters = connect(patient.config).meters()
        is_set_up = any(meter.event_name == stripe.meter_event_name for meter in meters)
        remedy = "" if is_set_up else "run `weir stripe setup`"
        yield Result("stripe", OK if is_set_up else FAIL, f"answers, {len(meters)} meters", remedy)
        if not stripe.webhook_secrets:
            yield Result("stripe webhook", FAIL, "no secret: events are refused", "set STRIPE_WEBHOOK_SECRET")
        else:
            yield Result("stripe webhook", OK, f"{len(stripe.webhook_secrets)} secrets")


def _outbox(patient: Patient) -> Iterator[Result]:
    if patient.database is None:
        return
    with patient.database.reading() as conn:
        counts = standings.counts(conn)
        silent = inflight.suspects(conn, leases.database_now(conn, clock.now))
    troubled = {state: counts[state] for state in _TROUBLED if counts.get(state)}
    if troubled:
        text = ", ".join(f"{count} {state}" for state, count in troubled.items())
        yield Result("outbox", FAIL, f"batches: {text}", "weir stripe status; weir stripe reconcile")
    else:
        yield Result("outbox", OK, f"{sum(counts.values())} batches, none held")
    if silent:
        remedy = "they are recovered by any running `weir serve` or `weir worker`"
        yield Result("workers", WARN, f"{len(silent)} left streams in flight", remedy)


CHECKS: tuple[Callable[[Patient], Iterator[Result]], ...] = (
    _configuration,
    _database,
    _upstreams,
    _models,
    _spool,
    _disk,
    _stripe,
    _outbox,
)
"""Every check; all are made."""
