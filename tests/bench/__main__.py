"""`python -m tests.bench`: start the stand-in and the gateways, run the rounds, print, count Weir's money."""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench import report, weir
from tests.bench.gateways import DRIVERS, LITELLM, Gateway, Place
from tests.bench.processes import Cores, choose_cores, running, status_of, wait_until_ready
from tests.bench.programs import BenchError, Programs, build
from tests.bench.scenarios import SCENARIOS, Bench, Durations, Sample, Scenario
from tests.support.ports import free_port

CACHE = Path(__file__).parents[2] / ".cache" / "bench"
FULL, QUICK = Durations(whole_ms=1500, stream_ms=2000), Durations(whole_ms=700, stream_ms=1200)
WARM_UP = SCENARIOS[1]


def main() -> int:
    """Run the benchmark; the exit code: 1 when the money doesn't add up, 2 when it can't run."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 160)
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            return _run(options, console, stack)
    except BenchError as error:
        console.print(f"bench: {error}", style="red", highlight=False)
        return 2
    except KeyboardInterrupt:
        return 130


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--gateways", help=f"some of {','.join(DRIVERS)} (--quick: all but litellm)")
    parser.add_argument("--scenarios", default="", help="only those whose name contains this text")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (3; --quick: 2)")
    parser.add_argument("--quick", action="store_true", help="under a minute, without LiteLLM")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, each round's too")
    options = parser.parse_args()
    wanted = options.gateways.split(",") if options.gateways else list(DRIVERS)
    if unknown := set(wanted) - set(DRIVERS):
        parser.error(f"no such gateway: {', '.join(sorted(unknown))}; there are {', '.join(DRIVERS)}")
    if options.quick and not options.gateways:
        wanted.remove("litellm")
    options.gateways = [name for name in DRIVERS if name in wanted]
    options.rounds = options.rounds or (2 if options.quick else 3)
    options.scenarios = tuple(scenario for scenario in SCENARIOS if options.scenarios in scenario.name)
    if not options.scenarios:
        parser.error("no scenario's name contains that")
    return options


def _run(options: argparse.Namespace, console: Console, stack: ExitStack) -> int:
    """Everything between the start of the stand-in and the last line that is printed."""
    began = time.monotonic()
    cores = choose_cores()
    if cores.gateway == cores.load:
        console.print("there is one core only, which all share: compare CPU alone", style="yellow")
    home = _run_directory(stack)
    programs = build(CACHE)
    upstream_port = _start_upstream(programs, cores, home, stack)
    gateways, missing = _start_gateways(options.gateways, upstream_port, cores, home, stack, console)
    durations = QUICK if options.quick else FULL
    bench = Bench(programs.load, cores.load, upstream_port, durations)
    warm_ups = {gateway.name: bench.measure(WARM_UP, gateway) for gateway in gateways}
    results = _rounds(bench, options.scenarios, gateways, options.rounds, console)
    report.show(console, options.scenarios, results)
    money = _count_money(home / "weir", warm_ups, results, console) if "weir" in warm_ups else None
    took_s = round(time.monotonic() - began)
    console.print(f"{options.rounds} rounds, {took_s} s; see tests/bench/__init__.py on how to read this")
    if options.json:
        figures = report.as_json(options.scenarios, results)
        _write_json(options.json, {"missing": missing, "money": money, "took_s": took_s, "figures": figures})
    return 1 if money and not money["adds_up"] else 0


def _run_directory(stack: ExitStack) -> Path:
    """A directory for this run, on the disk of the checkout; those of runs that were killed are removed."""
    for stale in CACHE.glob("run-*"):
        if not Path("/proc", stale.name.split("-")[1]).exists():
            shutil.rmtree(stale, ignore_errors=True)
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"run-{os.getpid()}-", dir=CACHE)))


def _start_upstream(programs: Programs, cores: Cores, home: Path, stack: ExitStack) -> int:
    port = free_port()
    place = home / "upstream"
    place.mkdir()
    process = stack.enter_context(running(cores.load, [programs.upstream, str(port)], home=place))
    wait_until_ready(process, lambda: status_of(port, "/v1/models") == 200, deadline_s=10)
    return port


def _start_gateways(
    names: list[str], upstream_port: int, cores: Cores, home: Path, stack: ExitStack, console: Console
) -> tuple[list[Gateway], dict[str, str]]:
    """The gateways that run now, and why the others don't."""
    gateways: list[Gateway] = []
    missing: dict[str, str] = {}
    for name in names:
        place = Place(upstream_port, cores.gateway, home / name, CACHE)
        place.home.mkdir()
        try:
            gateways.append(stack.enter_context(DRIVERS[name](place)))
        except BenchError as error:
            log = place.home / "log"
            tail = log.read_text(errors="replace")[-600:] if log.exists() else ""
            missing[name] = str(error)
            console.print(f"without {name}: {error}\n{tail}".rstrip(), style="yellow", highlight=False, markup=False)
    return gateways, missing


def _rounds(
    bench: Bench, scenarios: tuple[Scenario, ...], gateways: list[Gateway], rounds: int, console: Console
) -> report.Results:
    """All measurements: in each round each scenario at each gateway in turn, next to each other in time."""
    results: report.Results = {scenario.name: {g.name: [] for g in gateways} for scenario in scenarios}
    with console.status("") as status:
        for number in range(1, rounds + 1):
            for scenario in scenarios:
                for gateway in gateways:
                    status.update(f"round {number} of {rounds}: {scenario.name}: {gateway.name}")
                    results[scenario.name][gateway.name].append(bench.measure(scenario, gateway))
    return results


def _count_money(home: Path, warm_ups: dict[str, Sample], results: report.Results, console: Console) -> dict[str, Any]:
    """Hold Weir's ledger against the answers that came, right after the last one: I1 leaves it no time."""
    samples = [warm_ups["weir"], *(sample for by_name in results.values() for sample in by_name["weir"])]
    owed = weir.owed(
        sum(sample.right for sample in samples),
        sum(sample.input_tokens for sample in samples),
        sum(sample.output_tokens for sample in samples),
    )
    recorded = weir.recorded(home)
    adds_up = owed == recorded
    unfinished = sum(sample.wrong + sample.incomplete for sample in samples)
    console.print(
        f"weir's money: {owed.count:,} answers came whole, {recorded.count:,} rows; "
        f"tokens {owed.input_tokens:,} + {owed.output_tokens:,} came, "
        f"{recorded.input_tokens:,} + {recorded.output_tokens:,} recorded; "
        f"{owed.amount_pico:,} picounits owed, {recorded.amount_pico:,} recorded; "
        f"{unfinished} answers wrong or unfinished: " + ("it adds up" if adds_up else "IT DOES NOT ADD UP"),
        style="green" if adds_up else "bold red",
        highlight=False,
    )
    return {"adds_up": adds_up, "owed": asdict(owed), "recorded": asdict(recorded), "unfinished": unfinished}


def _write_json(path: Path, run: dict[str, Any]) -> None:
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    path.write_text(json.dumps({"machine": machine, "litellm": LITELLM, **run}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
