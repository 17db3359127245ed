"""`make soak`: two gateways on one PostgreSQL under load for minutes, while everything dies; then the money is counted.

Seeded: the same seed gives the same sequence of faults (not of moments). What clients received whole must be in the
ledger once, with its tokens and its amount, and `weir audit ledger` must find nothing. The figures are printed.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.acceptance.harness import MODEL, Gateway, Upstream, eventually
from tests.faults.load import Load, assert_recorded, stand_in
from tests.support.postgres import PostgresServer

DRAIN_S = 120
NAP_S = 6


class Soak:
    """Two gateways, their database, and what may happen to them."""

    def __init__(self, one: Gateway, other: Gateway, server: PostgresServer, seed: int) -> None:
        """Everything runs."""
        self.gateways = (one, other)
        self.server = server
        self.chance = random.Random(seed)
        self.happened: Counter[str] = Counter()
        self.faults: tuple[Callable[[], None], ...] = (
            *(self.kill_gateway, self.kill_gateway, self.restart_gateway, self.stop_gateway_for_a_while),
            *(self.kill_database, self.silence_database),
        )

    def run(self, seconds: int) -> None:
        """Let one thing happen after the other."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            fault = self.chance.choice(self.faults)
            fault()
            self.happened[fault.__name__] += 1
            time.sleep(self.chance.uniform(0.5, 3))

    def kill_gateway(self) -> None:
        """SIGKILL, and a new one."""
        gateway = self.chance.choice(self.gateways)
        gateway.kill9()
        gateway.start()

    def restart_gateway(self) -> None:
        """SIGTERM, and a new one: a rolling restart."""
        gateway = self.chance.choice(self.gateways)
        assert gateway.stop() == 0
        gateway.start()

    def stop_gateway_for_a_while(self) -> None:
        """SIGSTOP for longer than a worker may be silent."""
        gateway = self.chance.choice(self.gateways)
        os.kill(gateway.pid, signal.SIGSTOP)
        time.sleep(NAP_S)
        os.kill(gateway.pid, signal.SIGCONT)

    def kill_database(self) -> None:
        """SIGKILL of all of PostgreSQL, and a new one after some seconds."""
        self.server.kill9()
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


def main() -> int:
    """Run it, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-soak-")))
        upstream = Upstream(
            stack.enter_context(stand_in(home / "bench")), models={MODEL: "qwen3.5-9b"}, options={"kind": "openai"}
        )
        server = stack.enter_context(PostgresServer())
        url = server.create_database()
        one = stack.enter_context(Gateway(home / "one", upstream, database_url=url))
        other = Gateway(home / "other", upstream, database_url=url)
        other.home.mkdir()
        other.write_config()
        other.share_key(one.key)
        other.start()
        stack.callback(other.end)
        soak = Soak(one, other, server, options.seed)
        with Load(one, seed=options.seed, clients=8) as load, Load(other, seed=options.seed + 1, clients=8) as second:
            soak.run(options.minutes * 60)
        for gateway in soak.gateways:
            _await_well(gateway)
        eventually(lambda: _spools(one, other) <= len(soak.gateways), "spools are adopted", limit_s=DRAIN_S)
        whole = [*load.seen.whole, *second.seen.whole]
        events = assert_recorded(one, whole)
        for gateway in soak.gateways:
            gateway.assert_no_failure()
        outcomes = Counter(str(row["outcome"]) for row in events)
        print(f"seed {options.seed}, {options.minutes} min: {dict(sorted(soak.happened.items()))}")
        print(f"answers received whole: {len(whole)}, recorded once and exactly: {len(whole)}, given away: 0")
        print(f"cut: {load.seen.broken + second.seen.broken}, refused: {dict(load.seen.refused + second.seen.refused)}")
        print(f"events: {len(events)}, {dict(sorted(outcomes.items()))}; weir audit ledger: all hold")
    return 0


def _await_well(gateway: Gateway) -> None:
    eventually(lambda: gateway.readiness["status"] == "ready", "it is well", limit_s=DRAIN_S)


def _spools(*gateways: Gateway) -> int:
    return sum(len(list((gateway.home / "weir-spool").glob("*.spool"))) for gateway in gateways)


if __name__ == "__main__":
    sys.exit(main())
