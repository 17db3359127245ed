"""The double as a process: `python -m tests.emulators.stripe_double --port 0 --port-file FILE`.

Prints one JSON line with its address and key, writes the port when it listens, and ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

from .double import StripeDouble


def main(arguments: list[str] | None = None) -> int:
    """Serves until it is told to end."""
    parser = argparse.ArgumentParser(prog="stripe_double", description="A stateful double of Stripe on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="where to write the port, once it is open")
    parser.add_argument("--api-key", help="the secret key to accept; made up unless given")
    parser.add_argument(
        "--now", type=int, help="Unix seconds at which the clock stands; follows the machine's unless given"
    )
    options = parser.parse_args(arguments)
    is_ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_ended.set())
    with StripeDouble(port=options.port, api_key=options.api_key, now=options.now) as double:
        if options.port_file is not None:
            _write_whole(options.port_file, double.url.rpartition(":")[2])
        print(json.dumps({"url": double.url, "api_key": double.api_key}), flush=True)
        is_ended.wait()
    return 0


def _write_whole(path: Path, text: str) -> None:
    """Readers see nothing or everything, never half."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())
