"""`python -m tests.fuzz [--minutes N] [--seed S] [--only TRY]`: fuzz a gateway until the time is over or it is found.

Each try has a name, such as `7:answer:123`; `--only 7:answer:123` is that one alone.
"""

import argparse
import tempfile
import time
from pathlib import Path
from random import Random

from tests.fuzz.target import Target, running


def main() -> None:
    """Run, and end with 1 and the try's name at the first find."""
    parser = argparse.ArgumentParser(description="Fuzz a gateway with bodies, HTTP and upstreams' answers.")
    parser.add_argument("--minutes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="one try by its name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="weir-fuzz-") as home, running(Path(home) / "g") as target:
        if options.only:
            attempt(target, options.only)
            return
        end, number = time.monotonic() + options.minutes * 60, 0
        while time.monotonic() < end:
            for way in ("answer", "answer", "request", "http"):
                attempt(target, f"{options.seed}:{way}:{number}")
                number += 1
        print(f"{number} tries, nothing found: {dict(sorted(target.seen.items()))}")


def attempt(target: Target, name: str) -> None:
    """One try; an AssertionError says its name."""
    try:
        getattr(target, name.split(":")[1])(Random(name))
    except AssertionError as error:
        raise AssertionError(f"--only {name}\n{error}") from None


if __name__ == "__main__":
    main()
