"""Stripe kept in step with the ledger, both ways: usage goes out as meter events, what Stripe decides comes in.

    port     P  StripePort: what Weir asks of Stripe, answers as values
    payments P  PaymentsPort: the same for payments for credit
    client      the ports over the official SDK, with `sdk` (calls, errors, pages) and `sdk_payments`
    batches  P  unassigned amounts + carry → whole units + carry, identifiers, timestamps
    retry    P  (attempt, answer, age) → delivered, again, held, refused
    push        claim → send, one lane per customer → record
    setup       meter, product and price: a plan, then its application
    token_parts P  tokens mode: what a rollup's amount is made of, in tokens at their prices
    token_setup     tokens mode: meters, products and prices of tokens, by the rate card or by what usage needs
    token_lanes     tokens mode: each customer's meters, and the items of its subscription, before a push
    our_prices      which lines of an invoice bill usage, and whose batches
    findings    what a comparison found, in bounded memory
    drift           what somebody changed at Stripe since setup
    customers   a customer at Stripe and its subscription
    webhook     verify, store, 200
    effects  P  what Stripe says now, against our account → what changes here
    paid_in  P  a payment for credit as Stripe has it → what it has to have credited
    topups      the page where customers pay, and the payment's way into their credit
    autotopup   saved cards charged when a balance is low
    disputing   a disputed payment freezes its customer
    closing     a customer's account closed: last usage invoiced, then the subscription ends
    previews    the coming invoice, by the ledger and by Stripe
    subjects P  what an event is about
    minor_units P  picounits and the minor units that cards pay
    refresh     one account brought in step with Stripe: fetch, decide, record; and the dunning sweep
    process     works off the stored events
    lanes       several calls at once, at a pace
    turn        whose turn it is to push, or to change accounts

P: pure, no I/O and no clock. Nothing here opens a transaction around a call to Stripe.
"""
