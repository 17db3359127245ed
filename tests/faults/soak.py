"""`make soak` (`ENGINE=sqlite` too): gateways under load for minutes, while everything dies; then the money is counted.

On PostgreSQL two gateways share a ledger, and both and the database are killed, stopped and restarted. On SQLite two
workers of one gateway do, the gateway is killed as well, another process locks the file, and with `--disk` all of it is
on a small tmpfs (that needs root) which is filled to the last byte now and then.

Who pays later has no limit; one customer is prepaid, one has a hard budget of the day, and both ask for more than they
have. Seeded: the same seed gives the same sequence of faults (not of moments). What clients received whole must be in
the ledger once, with its tokens and its amount, nobody may exceed what it has by a picounit, and `weir audit ledger`
must find nothing. The figures are printed.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

from billing.calendar import Per, period_of
from billing.clock import Instant
from tests.acceptance.harness import MODEL, Gateway, Key, Row, Upstream, eventually, price, sqlite_locked
from tests.faults.load import Load, Whole, assert_recorded, stand_in
from tests.support.postgres import PostgresServer

DRAIN_S = 120
NAP_S = 6
DISK_MIB = 512
LIMITED_REQUESTS = 1_500
"""So many of the dearest requests the prepaid customer and the one with a budget can pay."""

UTC = ZoneInfo("UTC")
LIMIT_PICO = LIMITED_REQUESTS * price(600, 64)


class Soak:
    """Gateways, their database, and what may happen to them."""

    def __init__(self, gateways: tuple[Gateway, ...], seed: int) -> None:
        """Everything runs."""
        self.gateways = gateways
        self.chance = random.Random(seed)
        self.happened: Counter[str] = Counter()
        self.faults: list[Callable[[], None]] = [
            *(self.kill_gateway, self.kill_gateway, self.restart_gateway, self.stop_gateway_for_a_while)
        ]

    def run(self, seconds: int) -> None:
        """Let one thing happen after the other."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            fault = self.chance.choice(self.faults)
            fault()
            self.happened[fault.__name__] += 1
            time.sleep(self.chance.uniform(0.5, 3))

    def kill_gateway(self) -> None:
        """SIGKILL, and a new one, once the last worker of the old one has ended with it."""
        gateway = self.chance.choice(self.gateways)
        workers = gateway.workers
        gateway.kill9()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers end with their parent")
        gateway.start()

    def restart_gateway(self) -> None:
        """SIGTERM, and a new one: a rolling restart."""
        gateway = self.chance.choice(self.gateways)
        assert gateway.stop() == 0
        gateway.start()

    def stop_gateway_for_a_while(self) -> None:
        """SIGSTOP for longer than a worker may be silent."""
        gateway = self.chance.choice(self.gateways)
        stopped = self.chance.choice([gateway.pid, *gateway.workers])
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(NAP_S)
        os.kill(stopped, signal.SIGCONT)


class OnPostgresql(Soak):
    """Two gateways, each on a host of its own, as it were, and a server that dies, too."""

    def __init__(self, gateways: tuple[Gateway, ...], seed: int, server: PostgresServer) -> None:
        """Everything runs."""
        super().__init__(gateways, seed)
        self.server = server
        self.faults += [self.kill_database, self.silence_database]

    def kill_database(self) -> None:
        """SIGKILL of all of PostgreSQL, and a new one after some seconds; now and then a gateway starts meanwhile."""
        self.server.kill9()
        if self.chance.random() < 0.5:
            self.kill_gateway()
        time.sleep(self.chance.uniform(0, 4))
        self.server.start()

    def silence_database(self) -> None:
        """SIGSTOP of PostgreSQL: it is there, and says nothing."""
        stopped = self.server.processes()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(self.chance.uniform(1, NAP_S))
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


class OnSqlite(Soak):
    """Two workers on one file; `disk` is a small one to be filled."""

    def __init__(self, gateways: tuple[Gateway, ...], seed: int, disk: Path | None) -> None:
        """Everything runs."""
        super().__init__(gateways, seed)
        self.faults += [self.kill_worker, self.kill_worker, self.lock_database]
        self.disk = disk
        if disk is not None:
            self.faults.append(self.fill_disk)

    def kill_worker(self) -> None:
        """SIGKILL of one worker; its parent starts another."""
        (gateway,) = self.gateways
        before = gateway.workers
        os.kill(self.chance.choice(before), signal.SIGKILL)
        eventually(lambda: len(set(gateway.workers) - set(before)) == 1, "it is replaced")

    def lock_database(self) -> None:
        """Another process holds the write lock, as a backup with a wrong tool does."""
        with sqlite_locked(self.gateways[0]):
            time.sleep(self.chance.uniform(1, NAP_S))

    def fill_disk(self) -> None:
        """Not a byte is left, for the ledger and for the spool."""
        assert self.disk is not None
        ballast = self.disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 2**16)
        with suppress(OSError), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(b"x")
        time.sleep(self.chance.uniform(1, 3))
        ballast.unlink()


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A tmpfs of its own; only root may make one."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def open_soak(stack: ExitStack, home: Path, options: argparse.Namespace) -> Soak:
    """Start everything."""
    url = stack.enter_context(stand_in(home / "bench"))
    upstream = Upstream(url, models={MODEL: "qwen3.5-9b"}, options={"kind": "openai"})
    if options.engine == "sqlite":
        disk = stack.enter_context(small_disk(home / "disk")) if options.disk else None
        gateway = stack.enter_context(Gateway((disk or home) / "one", upstream, settings={"workers": 2}))
        return OnSqlite((gateway,), options.seed, disk)
    server = stack.enter_context(PostgresServer())
    ledger = server.create_database()
    one = stack.enter_context(Gateway(home / "one", upstream, database_url=ledger))
    other = Gateway(home / "other", upstream, database_url=ledger)
    other.home.mkdir()
    other.write_config()
    other.share_key(one.key)
    other.start()
    stack.callback(other.end)
    return OnPostgresql((one, other), options.seed, server)


def limited_keys(gateway: Gateway) -> tuple[Key, Key]:
    """Keys of a prepaid customer and of one with a budget of the day."""
    amount = f"{Decimal(LIMIT_PICO).scaleb(-12):f}"
    gateway.weir("customer", "add", "prepaid", "--prepaid")
    gateway.weir("credit", "grant", "prepaid", amount)
    key = gateway.new_key(customer="prepaid")
    limited = gateway.new_customer("limited")
    gateway.weir("customer", "set", "limited", "--budget", amount, "--per", "day")
    return key, limited


def limited_use(events: list[Row], prepaid: Key, limited: Key) -> tuple[int, int]:
    """What the two used, corrections included: not a picounit more than they have."""
    used = sum(row["amount_pico"] for row in events if row["api_key_id"] == prepaid.id)
    days: Counter[int] = Counter()
    for row in events:
        if row["api_key_id"] == limited.id:
            days[period_of(Per.DAY, Instant(row["window_start"]), UTC).start] += row["amount_pico"]
    assert used <= LIMIT_PICO, f"the prepaid customer overspent by {used - LIMIT_PICO}"
    assert max(days.values()) <= LIMIT_PICO, f"the budget is exceeded: {days}"
    return used, max(days.values())


def main() -> int:
    """Run it, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--disk", action="store_true", help="SQLite on a tmpfs that is filled now and then; needs root")
    options = parser.parse_args()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-soak-")))
        soak = open_soak(stack, home, options)
        one = soak.gateways[0]
        prepaid, limited = limited_keys(one)
        loads = [Load(each, seed=options.seed + n, clients=8) for n, each in enumerate(soak.gateways)]
        for number, gateway in enumerate(soak.gateways):
            loads += [Load(gateway, seed=99 + number, clients=2, key=key) for key in (prepaid, limited)]
        with ExitStack() as running:
            for load in loads:
                running.enter_context(load)
            soak.run(options.minutes * 60)
        for gateway in soak.gateways:
            eventually(lambda each=gateway: each.readiness["status"] == "ready", "it is well", limit_s=DRAIN_S)  # type: ignore[misc]
        living = sum(max(1, len(gateway.workers)) for gateway in soak.gateways)
        eventually(lambda: _spools(*soak.gateways) <= living, "spools are adopted", limit_s=DRAIN_S)
        tell(soak, options, loads, (prepaid, limited))
    return 0


def tell(soak: Soak, options: argparse.Namespace, loads: list[Load], keys: tuple[Key, Key]) -> None:
    """Count the money, and print the figures."""
    one = soak.gateways[0]
    whole: list[Whole] = [each for load in loads for each in load.seen.whole]
    events = assert_recorded(one, whole)
    for gateway in soak.gateways:
        gateway.assert_no_failure()
    used = limited_use(events, *keys)
    outcomes = Counter(str(row["outcome"]) for row in events)
    broken = sum(load.seen.broken for load in loads)
    refused = sum((load.seen.refused for load in loads), Counter[str]())
    print(f"{options.engine}, seed {options.seed}, {options.minutes} min: {dict(sorted(soak.happened.items()))}")
    print(f"answers received whole: {len(whole)}, recorded once and exactly: {len(whole)}, given away: 0")
    print(f"cut: {broken}, refused: {dict(sorted(refused.items()))}")
    print(f"events: {len(events)}, {dict(sorted(outcomes.items()))}; weir audit ledger: all hold")
    print(f"of {LIMIT_PICO} picounits each: prepaid {used[0]}, budget of the day {used[1]}; overshoot 0")


def _spools(*gateways: Gateway) -> int:
    return sum(len(list((gateway.home / "weir-spool").glob("*.spool"))) for gateway in gateways)


if __name__ == "__main__":
    sys.exit(main())
