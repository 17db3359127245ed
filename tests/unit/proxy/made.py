"""A key and its customer, as the gateway knows them."""

from billing.clock import Instant
from billing.ledger.accounts import Principal


def principal(
    *,
    models: frozenset[str] | None = None,
    rpm: int = 0,
    tpm: int = 0,
    concurrency: int = 0,
    expires_at: int | None = None,
    is_revoked: bool = False,
    suspension: str | None = None,
    period: tuple[int | None, int | None] = (None, None),
) -> Principal:
    """A key that may do everything, but for what is said."""
    start, end = (None if instant is None else Instant(instant) for instant in period)
    return Principal(
        key_id="key_1",
        customer_id="cus_1",
        customer_name="acme",
        models=models,
        rpm=rpm,
        tpm=tpm,
        concurrency=concurrency,
        expires_at=None if expires_at is None else Instant(expires_at),
        is_revoked=is_revoked,
        suspension=suspension,
        period_start=start,
        period_end=end,
    )
