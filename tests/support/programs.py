"""Programs of others that tests drive: fetched once from the package index into .cache, in exactly one version.

Any number of processes may ask at once: one installs under a lock. An installation counts when its marker is there, so
that one that was interrupted is made anew. Only the slow suite asks.
"""

import fcntl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

CACHE: Final = Path(__file__).parents[2] / ".cache" / "programs"
INSTALL_LIMIT_S: Final = 900


def from_pypi(package: str, version: str, *more: str) -> Path:
    """The folder of a package's programs, in a virtual environment of its own; `more` is what pip is told besides."""

    def install(home: Path) -> None:
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        _run([str(home / "bin" / "pip"), "install", "--quiet", f"{package}=={version}", *more])

    return _installed(f"{package}-{version}", install) / "bin"


def from_npm(package: str, version: str) -> Path:
    """The folder of a package's programs, in a project of its own."""

    def install(home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        options = ["--silent", "--no-audit", "--no-fund", "--prefix", str(home)]
        _run(["npm", "install", *options, f"{package}@{version}"])

    name = package.replace("/", "-").removeprefix("@")
    return _installed(f"{name}-{version}", install) / "node_modules" / ".bin"


def _installed(name: str, install: Callable[[Path], None]) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    home = CACHE / name
    marker = home / "complete"
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not marker.exists():
            install(home)
            marker.touch()
    return home


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_LIMIT_S)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr[-2000:]}"
