"""What usage costs, what it earns, and proof that it was paid.

Data flow: usage → pricing (pure) → ledger (SQL: events, hourly rollups) → outbox → Stripe, and back
through webhooks and reconciliation. The map, and what each part may import:

    money, usage, errors, ids, clock, calendar, limits   nothing of ours but errors: values and their rules
    config, address                            money, errors
    asking                                     config: short questions to a model server; its certificates
    disconnect                                 errors: what a client's leaving means for its answer
    tokens/                                    errors: text → token counts on the model's own vocabulary
    pricing/                                   money, usage: dated rates and margins → a quote → an amount
    credit/                                    pricing, money: what a request may cost, what an amount affords
    ledger/                                    pricing and above: the only home of SQL; functions take `conn`
    stripe_sync/                               ledger: the only home of the `stripe` package
    reports/                                   ledger, pricing: read rollups, never events
    notify/                                    ledger, reports: webhooks to the operator about budgets and balances
    jobs                                       stripe_sync, ledger: background work, one elected worker each
    cli/                                       all of the above

Where is a token counted? By the upstream, read in `proxy/meter/`; if that is missing, `tokens/counting.py`.
Where is a price decided? `pricing/book.py`: `PriceBook.quote`. Where is money rounded? `money.publish_rate`.
`billing` never imports `proxy`.
"""
