"""A database that several processes open at the same moment."""

import threading
from pathlib import Path

from billing.ledger.database import Database

PROGRAMS = 4
FILES = 40


def test_a_new_file_is_opened_by_several_at_once(tmp_path: Path) -> None:
    """Workers, and the admin beside them: SQLite tells whoever comes second that the file is locked."""
    faults: list[Exception] = []
    start = threading.Barrier(PROGRAMS)

    def open_all() -> None:
        for number in range(FILES):
            database = Database(f"sqlite:///{tmp_path}/{number}.db")
            start.wait()
            try:
                database.ping()
            except Exception as error:
                faults.append(error)
            finally:
                database.close()

    programs = [threading.Thread(target=open_all) for _ in range(PROGRAMS)]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    assert faults == []
