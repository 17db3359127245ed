"""A worker of the credit kill tests: requests on prepaid credit until there is none, recorded as the gateway does.

Each of its clients holds a request's worst case, "generates" for a moment, settles, commits the event with what credit
pays for it, and only then writes the line that a client would have seen: `<event id> <amount>`. It dies wherever it is
killed. `python -m tests.faults.credit_worker DATABASE CUSTOMER LOG SEED`
"""

import asyncio
import os
import random
import sys
import time
from pathlib import Path
from zoneinfo import ZoneInfo

from billing import clock
from billing.credit.holds import Need
from billing.errors import DatabaseAwayError
from billing.ledger import charges, events
from billing.ledger.charges import Charge
from billing.ledger.database import Database, DatabaseError
from billing.money import Pico
from proxy.admit.purse import Hold
from proxy.admit.purses import Answer, Pace, Purses, Unavailable
from tests.unit.ledger.made import event

CLIENTS = 6
GIVE_UP_AFTER = 3
RETRY_S = 0.05
RETRY_FOR_S = 30
UTC = ZoneInfo("UTC")


class Worker:
    """One process."""

    def __init__(self, url: str, customer_id: str, log: Path, seed: int) -> None:
        self.database = Database(url)
        self.customer_id = customer_id
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.random = random.Random(seed)
        self.shard = seed % 64

    async def run(self) -> None:
        """Serve until every client was refused a few times."""
        pace = Pace(tick_s=0.2, renew_ticks=5, poll_s=0.1, retry_s=0.05)
        purses = Purses(self.database, asyncio.get_running_loop(), "usd", UTC, pace=pace)
        purses.start()
        await asyncio.gather(*(self._client(purses) for _ in range(CLIENTS)))
        await purses.close()

    async def _client(self, purses: Purses) -> None:
        refusals = 0
        while refusals < GIVE_UP_AFTER:
            need = Need(
                Pico(self.random.randint(0, 300)), Pico(self.random.randint(1, 10)), self.random.randint(1, 100)
            )
            answer = await self._ask(purses, need)
            if not isinstance(answer, Hold):
                refusals += not isinstance(answer, Unavailable)
                await asyncio.sleep(RETRY_S)
                continue
            refusals = 0
            await asyncio.sleep(self.random.random() / 50)
            amount = need.fixed + need.per_token * self.random.randint(0, answer.tokens)
            made = event(clock.now(), customer_id=self.customer_id, amount_pico=amount, finished_at=clock.now())
            charge = Charge(made, purses.settle(self.customer_id, answer, amount))
            await asyncio.to_thread(self._record, charge)
            os.write(self.log, f"{made.id} {amount}\n".encode())

    async def _ask(self, purses: Purses, need: Need) -> Answer:
        later: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        now = purses.hold(self.customer_id, need, later.set_result)
        return now if now is not None else await later

    def _record(self, charge: Charge) -> None:
        deadline = time.monotonic() + RETRY_FOR_S
        while True:
            try:
                with self.database.writing() as conn:
                    charges.append(conn, events.absent(conn, [charge.event]), [charge], self.shard, clock.now())
            except (DatabaseError, DatabaseAwayError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)
            else:
                return


if __name__ == "__main__":
    database_url, customer, log_path, seed_text = sys.argv[1:]
    print("ready", flush=True)
    asyncio.run(Worker(database_url, customer, Path(log_path), int(seed_text)).run())
