"""A limit on everything that could grow, with its unit in its name, and the relations between them.

What an operator may want to change is in `billing/config.py`; these hold whatever the configuration says.
"""

from billing.money import PICO_PER_MAJOR, PICO_PER_MICRO

TOKENS_PER_EVENT_MAX = 10**9
"""No request has more tokens; a count above it is an upstream's mistake and is clamped."""

RATE_PICO_MAX = 9_000 * PICO_PER_MICRO
"""The dearest rate, 9,000 per 1M tokens: then an event's amount always fits 63 bits."""

REQUEST_FEE_PICO_MAX = 100 * PICO_PER_MAJOR
"""The dearest per-request fee: 100 major units."""

RATE_UNUSUAL_LOW = 100
"""Below 0.0001 per 1M tokens a rate is taken for one per token."""

RATE_UNUSUAL_HIGH = 1_000 * PICO_PER_MICRO
"""Above 1,000 per 1M tokens a rate is taken for one in cents, or per 1M of something else."""

MARKUP_PPM_UNUSUAL = 10_000_000
"""Above 1,000 % on the cost a margin is taken for a slip of the decimal point."""

MARGIN_PPM_MAX = 1_000_000_000
"""The largest margin in either direction, 100,000 %."""

MODEL_NAME_CHARS_MAX = 200
"""The longest public name of a model."""

QUOTE_CACHE_ENTRIES_MAX = 65_536
"""Quotes that one price book keeps at hand; above it, it starts over."""

RECORD_BATCH_ROWS_MAX = 512
"""Usage events in one commit."""

RECORD_QUEUE_ROWS_MAX = 50_000
"""Usage events that may wait for a commit; above it new requests are refused."""

SPOOL_ROWS_MAX = 5_000_000
"""Events that wait in one worker's spool while the database is away, some 8 GB; above it requests are refused."""

SPOOL_CHUNK_ROWS = 1_000
"""Events that leave the spool in one transaction."""

RESPONSE_BODY_BYTES_MAX = 256 * 2**20
"""A non-streamed answer is held whole until it is recorded; a larger one is an upstream's fault."""

STREAM_EVENT_BYTES_MAX = 16 * 2**20
"""One event of a stream."""

HEADER_BYTES_MAX = 64 * 2**10
"""All header lines of one request or response."""

HEADS_KEPT_MAX = 1_024
"""Request heads that a worker knows again; above it, it starts over."""

HEAD_BYTES_KEPT_MAX = 4 * 2**10
"""A longer head is parsed each time."""

STRIPE_UNITS_PER_EVENT_MAX = 10**15 - 1
"""Stripe takes at most 15 significant digits in a meter event's value (changelog 2026-04-22.dahlia)."""

WEBHOOK_BODY_BYTES_MAX = 2**20
"""One event of Stripe's; the objects in it list at most ten rows of a kind."""

GRANT_PICO_MAX = 10**9 * PICO_PER_MAJOR
"""The largest credit at once: a thousand million major units; more is a slip of the decimal point."""

GRANTS_LIVE_MAX = 100
"""Credits of one customer that are neither used up nor expired, as at Stripe; every entry lists them."""

TOKENS_INCLUDED_MAX = 10**15
"""The most tokens of a period that a plan's terms can speak of; sums of them are far below 63 bits."""

TIERS_MAX = 20
"""Volume tiers of a plan."""

LEASE_PICO_MAX = 10**6 * PICO_PER_MAJOR
"""The most that one lease holds: its amounts are single columns of 63 bits."""

PURSE_WAITERS_MAX = 1_000
"""Requests of one customer that wait for credit in one worker; above it they are refused for now."""

MACHINE_PRICE_PICO_MAX = 9 * 10**6 * PICO_PER_MAJOR
"""The dearest machine, nine million: it fits 63 bits."""

MACHINE_RENT_PICO_MAX = 10**5 * PICO_PER_MAJOR
"""The dearest hour of a machine."""

MACHINE_LIFE_HOURS_MAX = 50 * 365 * 24
"""The longest life, over which a price is written off: fifty years."""

MACHINE_NAME_CHARS_MAX = 100
"""The longest name of a machine."""

MACHINE_UPSTREAMS_MAX = 100
"""Upstreams of one machine."""

POWER_MILLIWATT_MAX = 10**9
"""The hungriest machine, a megawatt."""

KWH_PRICE_PICO_MAX = 1_000 * PICO_PER_MAJOR
"""The dearest kWh."""

POWER_SAMPLES_MAX = 1_000_000
"""Samples of power in one file, two years of one a minute."""

HARDWARE_DAYS_MAX = 3 * 366
"""Days of which `weir cost actual` and `report variance` tell at once: each hour of each machine is worked out."""

assert RATE_PICO_MAX * TOKENS_PER_EVENT_MAX + REQUEST_FEE_PICO_MAX < 2**63
assert LEASE_PICO_MAX < 2**62
assert MACHINE_PRICE_PICO_MAX < 2**63
assert RECORD_BATCH_ROWS_MAX <= SPOOL_CHUNK_ROWS <= SPOOL_ROWS_MAX
