"""The two C programs of the benchmark, compiled when their sources are newer than what the cache holds."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent


class BenchError(Exception):
    """The benchmark can't run here; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Paths of the compiled programs."""

    upstream: Path
    load: Path


def build(cache: Path) -> Programs:
    """Compile both programs into the cache."""
    return Programs(_build("upstream", cache), _build("load", cache))


def _build(name: str, cache: Path) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler: install the package `gcc`")
    sources = [SOURCES / f"{name}.c", SOURCES / "net.h"]
    program = cache / name
    newest = max(source.stat().st_mtime for source in sources)
    if not program.exists() or program.stat().st_mtime < newest:
        cache.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(program), str(sources[0])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"gcc does not compile {name}.c:\n{done.stderr}")
    return program
