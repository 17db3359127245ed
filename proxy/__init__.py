"""The request's way: admitted, relayed, metered, settled.

Stages in order, and what each may import:

    main        `weir`: mounts `billing.cli`, adds `serve` and `worker`
    gateway     the composition root: Config → opened adapters, closed in reverse; the only wiring
    edge/       the HTTP surface: uvicorn's protocol for the data plane, FastAPI for the control plane
    admit/      may this request run? keys (cached, by epoch), limits, `decide` (pure)
    relay/      request edits, headers, refusals, upstream connections, and the exchange that ties them
    meter/      sans-IO: upstream bytes in; client bytes and usage out
    settle      usage → priced event → durable commit → the last bytes may leave

Where is a token counted? The upstream's count is read in `meter/`; a cut stream is counted by
`billing/tokens/counting.py`. Where is a price decided? `billing/pricing/book.py`. `proxy` imports `billing`, never
the reverse.
"""
