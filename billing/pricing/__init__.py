"""Pure pricing: dated cost rates and margin rules become a quote, and a quote turns usage into money.

    rates      effective-dated versions and the one lookup, `version_at`
    stated     prices in money: fixed ones, and minimums
    margins    "30%", "margin:40%"; scopes; which rule wins, and why
    quote      unit prices, what a request costs and what it earns
    terms      plans' allowances and volume tiers: what an event comes to behind all before it
    book       PriceBook: an immutable snapshot of all rates and rules; `quote(model, customer, at)`
    publish    what a new rate or margin must pass before it becomes history

No I/O, no clock, no globals. Prices are decided in `book.PriceBook.quote` and nowhere else.
"""
