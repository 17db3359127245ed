"""The HTTP surface: one port, two planes.

protocol   uvicorn's HTTP protocol, with the data plane taken out of it before any ASGI object is made
turn       one metered request on its connection: its key, its body, its turn to answer
app        the control plane, FastAPI: health, metrics, /v1/models, Stripe's webhook; everything else is 404
"""
