"""The composition root: Config → opened parts, closed in reverse. The only place that names what is used for what.

A worker is one process with one event loop. Beside the loop run these threads: the recorder (commits), the directory
(follows the ledger's epoch), discovery (asks upstreams), checkpoints (of streams in flight), and the background jobs,
which elect one worker each.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import uvicorn
import uvloop
from uvicorn.server import HANDLED_SIGNALS

from billing import clock
from billing.asking import tls_context
from billing.config import Config, Upstream
from billing.errors import ConfigError, DatabaseAwayError
from billing.jobs import SHARDS, Jobs
from billing.ledger import facts, memo, migrate
from billing.ledger.database import Database
from billing.notify import watch
from billing.tokens.errors import VocabularyError
from billing.tokens.qwen35 import NAME as BUILT_IN
from billing.tokens.registry import TokenizerRegistry
from proxy.admit.directory import Directory
from proxy.admit.purses import Purses
from proxy.admit.remembering import Remembering
from proxy.admit.table import Table
from proxy.admit.throttle import Throttle
from proxy.checkpoints import Checkpoints
from proxy.edge import app as control_plane
from proxy.edge.protocol import KEEP_ALIVE_S, GatewayProtocol
from proxy.relay.audit import Auditor
from proxy.relay.catalog import Catalog, Server
from proxy.relay.connection import Pool
from proxy.relay.counting import Counting
from proxy.relay.discovery import Discovery
from proxy.relay.holding import Terms
from proxy.relay.services import Services
from proxy.settle import Days, Recorder
from proxy.spooling import Drainer, open_spool
from proxy.supervisor import Supervisor

DRAIN_LOOK_S = 0.05
TICK_S = 1.0
BACKLOG = 2048
GC_ALLOCATIONS = 50_000
LAST_BYTES_S = 10
"""How long the error events of stopped streams may take to leave after the grace."""

log = logging.getLogger("weir.gateway")


def serve(config: Config) -> None:
    """Run the gateway until it is told to stop. Raises ConfigError, SchemaError, DatabaseAwayError."""
    if not config.upstreams:
        raise ConfigError("no [[upstreams]] are configured; `weir init` finds local model servers")
    for upstream in config.upstreams:
        tls_context(upstream)  # now, and not in each of several workers
    _look_at_database(config)
    registry = _warmed_registry(config)
    workers = config.gateway.workers
    table = Table(workers)
    with _bound(config, shares_port=workers > 1) as reserved:
        port = reserved.getsockname()[1]
        if workers == 1:
            _run_worker(config, registry, reserved, table)
        else:  # each has a socket of its own on the one port, so that the kernel spreads the connections

            def run(index: int) -> None:
                table.join(index)
                _run_worker(config, registry, _bound(config, shares_port=True, port=port), table)

            Supervisor(workers, run).run()


def _look_at_database(config: Config) -> None:
    """Refuse to start on another schema. While it is away, what this host has kept of it is enough to start with.

    Where nothing was kept, this is a first start, and its URL may be wrong. Raises SchemaError, DatabaseAwayError, and
    RefusedError in another currency than the ledger's.
    """
    database = Database(config.database.url)
    try:
        migrate.require_current(database)
        with database.writing() as conn:
            facts.settle_currency(conn, config.billing.currency, clock.now())
    except DatabaseAwayError as error:
        if not memo.is_usable(memo.path_of(Path(config.database.spool), database)):
            raise
        log.warning("gateway.database_away", extra={"error": str(error)})
    finally:
        database.close()


def _warmed_registry(config: Config) -> TokenizerRegistry:
    """Load the vocabularies before the workers part, who share them then: 0.3 s and 100 MB, once and not at random.

    A file that can not be read is reported, and its models are counted with the built-in vocabulary until it can.
    """
    registry = TokenizerRegistry(config.tokenizers)
    models = {model for upstream in config.upstreams for model in upstream.models} or {BUILT_IN}
    for name in sorted({*models, *config.tokenizers}):
        try:
            registry.vocabulary(name)
        except VocabularyError as error:
            log.error("counting.vocabulary", extra={"model": name, "error": str(error)})  # noqa: TRY400
    return registry


def _run_worker(config: Config, registry: TokenizerRegistry, listener: socket.socket, table: Table) -> None:
    listener.listen(BACKLOG)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, Database(config.database.url), registry, listener, table))


async def _serve(
    config: Config, database: Database, registry: TokenizerRegistry, listener: socket.socket, table: Table
) -> None:
    async with _opened(config, database, registry, table) as (services, jobs):
        GatewayProtocol.services = services
        options = uvicorn.Config(
            control_plane.build(config, database, services, jobs.wake),
            http=GatewayProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=config.gateway.shutdown_grace_s + LAST_BYTES_S,
        )
        server = GracefulServer(options, services, config.gateway.shutdown_grace_s)
        host, port = listener.getsockname()[:2]
        log.info("gateway.listening", extra={"host": host, "port": port})
        ticking = services.loop.create_task(_tick(services, server, config.database.stale_s_max), name="weir-tick")
        _quiet_collector()
        await server.serve(sockets=[listener])
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking


def _quiet_collector() -> None:
    """Let the cycle collector look at what is new, and seldom; a request leaves no cycles (10 % of CPU)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


class GracefulServer(uvicorn.Server):
    """uvicorn's server; when it stops, streams have their grace and are then ended and billed as `stopped`."""

    def __init__(self, config: uvicorn.Config, services: Services, grace_s: int) -> None:
        super().__init__(config)
        self._services = services
        self._grace_s = grace_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that stop us. uvicorn's raises them again at its end, before the recorder is closed."""
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what is new, wait for what is running, stop what takes too long."""
        self._services.is_shutting_down = True
        over_at = self._services.loop.time() + self._grace_s
        stopping = self._services.loop.call_at(over_at, self._stop_streams)
        await super().shutdown(sockets)
        while self._services.exchanges and self._services.loop.time() < over_at:  # noqa: ASYNC110 -- no event per request
            await asyncio.sleep(DRAIN_LOOK_S)  # answers that are drained have no connection that could be waited for
        stopping.cancel()
        self._stop_streams()

    def _stop_streams(self) -> None:
        for exchange in list(self._services.exchanges):
            exchange.shut_down()
        for connection in list(self.server_state.connections):
            assert isinstance(connection, GatewayProtocol)
            connection.stop_receiving()


@asynccontextmanager
async def _opened(
    config: Config, database: Database, registry: TokenizerRegistry, table: Table
) -> AsyncIterator[tuple[Services, Jobs]]:
    """Open everything of one worker, and close it in reverse."""
    loop = asyncio.get_running_loop()
    defaults = config.limits.default_rpm, config.limits.default_tpm
    kept = memo.path_of(Path(config.database.spool), database)
    directory = Directory(database, config.billing.default_margin, config.billing.currency, *defaults, memory=kept)
    remembering = Remembering(database, directory, kept)
    shard, spool = os.getpid() % SHARDS, open_spool(Path(config.database.spool))
    hasty = Database(config.database.url, wait_s=1)
    recorder = Recorder(hasty, loop, shard, spool)
    counting = Counting(registry, loop, clamps_output=config.audit.clamps_output)
    catalog = Catalog([_server(upstream, loop) for upstream in config.upstreams])
    discovery = Discovery(catalog, loop.call_soon_threadsafe)
    jobs = Jobs(config, database)
    on_refusal = partial(watch.refused, config) if config.notify.url else None
    purses = Purses(database, loop, config.billing.currency, config.billing.zone, on_refusal=on_refusal)
    terms = Terms(purses, counting, config.limits.default_max_output_tokens, config.billing.timezone)
    days = Days(config.billing.zone)
    body_bytes_max = config.gateway.max_body_mb * 2**20
    throttle = Throttle(table)
    services = Services(loop, directory, catalog, recorder, counting, terms, days, throttle, body_bytes_max)
    services.gauges = jobs.gauges
    services.is_stale = directory.age_s(time.monotonic()) > config.database.stale_s_max
    auditor = Auditor(counting, database, config.audit.sample_ppm) if config.audit.sample_ppm else None
    services.audit = auditor
    live, checkpointed = services.exchanges, services.checkpointed
    checkpoints = Checkpoints(hasty, counting, live, checkpointed, lambda: catalog.models, spool)
    drainer = None if spool is None else Drainer(database, spool, shard)
    await loop.run_in_executor(None, discovery.ask_once)
    for part in (recorder, purses, directory, remembering, discovery, jobs):
        part.start()
    checkpoints.start(loop)
    if drainer is not None:
        drainer.start()
    if auditor is not None:
        auditor.start()
    try:
        yield services, jobs
    finally:
        await counting.close()
        await recorder.close()
        if auditor is not None:
            await loop.run_in_executor(None, auditor.stop)
        await checkpoints.close()
        if drainer is not None:
            await loop.run_in_executor(None, drainer.stop)
        await purses.close()
        for part in (jobs, discovery, remembering, directory):
            await loop.run_in_executor(None, part.stop)
        for server in catalog.servers:
            server.pool.close()
        hasty.close()
        database.close()


def _server(upstream: Upstream, loop: asyncio.AbstractEventLoop) -> Server:
    kind = upstream.kind if upstream.kind != "auto" else "openai"
    return Server(upstream, Pool(upstream, loop), kind, dict(upstream.models))


async def _tick(services: Services, server: "GracefulServer", stale_s_max: int) -> None:
    """Look once a second for upstreams that are silent and for clients that are idle: no timer per request."""
    while True:
        await asyncio.sleep(TICK_S)
        now = services.loop.time()
        services.recorder.check_time(time.monotonic())
        services.is_stale = services.directory.age_s(time.monotonic()) > stale_s_max
        for exchange in list(services.exchanges):
            exchange.check_time(now)
        for connection in list(server.server_state.connections):
            assert isinstance(connection, GatewayProtocol)
            connection.check_time(now)


def _bound(config: Config, *, shares_port: bool, port: int | None = None) -> socket.socket:
    """Return a socket that is bound and does not listen yet: the kernel gives it no connections."""
    host, port = config.gateway.host, config.gateway.port if port is None else port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        raise ConfigError(f"can not listen on {host}:{port}: {error.strerror}") from None
    return bound
