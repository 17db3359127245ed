"""A worker of the kill tests: requests on prepaid credit or on budgets until nothing is left, recorded as by a gateway.

Each of its clients holds a request's worst case, "generates" for a moment, settles, commits the event with what credit
pays for it, and only then writes the line that a client would have seen: `<event id> <amount>`. It dies wherever it is
killed. `python -m tests.faults.credit_worker DATABASE CUSTOMER LOG SEED [KEY BUDGET…]`: with budgets it pays later.
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
from billing.ledger.charges import Cap, Charge
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

    def __init__(self, url: str, customer_id: str, log: Path, seed: int, key_id: str, budgets: list[str]) -> None:
        self.database = Database(url)
        self.customer_id = customer_id
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.random = random.Random(seed)
        self.shard = seed % 64
        self.key_id = key_id
        self.budgets = budgets
        self.purse_ids = budgets or [customer_id]

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
            holds: list[Hold] = []
            answer: Answer | None = None
            for purse_id in self.purse_ids:
                answer = await self._ask(purses, purse_id, need)
                if not isinstance(answer, Hold):
                    break
                if answer.tokens < need.tokens:
                    need = need._replace(tokens=answer.tokens)
                    for before, held in zip(self.purse_ids, holds, strict=False):
                        purses.shrink(before, held, need.most)
                holds.append(answer)
            if len(holds) < len(self.purse_ids):
                for before, held in zip(self.purse_ids, holds, strict=False):
                    purses.void(before, held)
                refusals += not isinstance(answer, Unavailable)
                await asyncio.sleep(RETRY_S)
                continue
            refusals = 0
            await asyncio.sleep(self.random.random() / 50)
            amount = need.fixed + need.per_token * self.random.randint(0, need.tokens)
            charge = self._charge(purses, holds, amount)
            await asyncio.to_thread(self._record, charge)
            os.write(self.log, f"{charge.event.id} {amount}\n".encode())

    def _charge(self, purses: Purses, holds: list[Hold], amount: int) -> Charge:
        at = clock.now()
        given = {"customer_id": self.customer_id, "api_key_id": self.key_id, "amount_pico": amount}
        made = event(at, finished_at=at, window_start=clock.hour_start(at), **given)
        paid = [purses.settle(purse_id, held, amount) for purse_id, held in zip(self.purse_ids, holds, strict=True)]
        if not self.budgets:
            return Charge(made, paid[0])
        return Charge(made, None, False, tuple(map(Cap, self.budgets, paid)), UTC.key)

    async def _ask(self, purses: Purses, purse_id: str, need: Need) -> Answer:
        later: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        now = purses.hold(purse_id, need, later.set_result)
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
    database_url, customer, log_path, seed_text, *limits = sys.argv[1:]
    print("ready", flush=True)
    key, *of_budgets = limits or ["key_app"]
    asyncio.run(Worker(database_url, customer, Path(log_path), int(seed_text), key, of_budgets).run())
