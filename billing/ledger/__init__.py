"""The ledger: the only home of SQL.

Every function takes `conn` first and never begins or commits: a caller at the edge opens one transaction
(`database.Database.writing`) and calls several, so that "event + rollup" or "deltas + batches + carry" is one
transaction by construction. Rows do not leave this package: frozen dataclasses do. Core tables and not the ORM,
because nothing may query behind the reader's back, and the hot insert binds a NamedTuple as it is.

    schema      every table and constraint, and the invariant each guards; with columns and credit_tables
    database    engine, transactions, advisory locks: all differences between SQLite and PostgreSQL
    epoch       one number that grows with each change that gateways must see within a second
    migrate     the one way to this program's schema, and the check that the database is on it
    partitions  the months of usage_events on PostgreSQL
    audit       who changed what
    proof       the books against each other: `weir audit ledger`
    accounts    customers, suspensions, API keys
    versions    dated cost rates and margin rules → PriceBook
    events      usage events and their hourly rollups, in one transaction
    credit      the history of prepaid credit: what was given, burnt, expired, taken back
    clawback    credit that is taken back, also when it is spent
    topups      payments for credit, and what each has credited
    auto_topups whose credit is topped up by itself, and whose card failed
    disputes    disputed payments: what froze whom
    budgets     budgets and credit limits, and what is left of them
    notifications  webhooks to the operator: what is to be told, and what became of it
    leases      slices of credit and budgets that workers hold
    charges     usage that credit pays for or budgets limit: the event and what it takes from leases, in one transaction
    principals  whom a key stands for, and all that its requests fall under
    settings    limits of customers and keys that exist
    due         an event that is not recorded yet, also as the text that checkpoints and the spool keep
    spool       events that wait on this host while the database is away
    inflight    checkpoints of streams in flight, and what becomes of them when their worker dies
    outbox      rollup deltas → meter_batches and carry
    standings   where each customer stands with Stripe: units sent, unsent, carried
    inbox       stripe_events: stored before the 200, worked off in the background
    stripe_objects  the ids of the meter, product and price at Stripe
    totals      sums over the rollups, for reports
    bills       what an invoice bills: a period's usage, its batches, a batch's requests
    tracing     one request, from its event to its batch
    backup      a copy of the whole ledger while it is being written
"""
