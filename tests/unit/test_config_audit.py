"""`[audit]`: the share of requests that is recounted is exact, however it is written."""

from pathlib import Path

import pytest

from billing.config import load
from billing.errors import ConfigError


def configured(tmp_path: Path, line: str) -> int:
    """The share in millionths that a line of `[audit]` means."""
    path = tmp_path / "weir.toml"
    path.write_text(f"[audit]\n{line}\n", encoding="utf-8")
    return load(path, {}).audit.sample_ppm


@pytest.mark.parametrize(
    ("line", "ppm"),
    [
        ("", 10_000),
        ('sample = "1%"', 10_000),
        ('sample = "0.1 %"', 1_000),
        ("sample = 0.01", 10_000),
        ('sample = "0.07"', 70_000),
        ("sample = 0.29", 290_000),  # as a binary fraction this is 0.28999999999999998
        ("sample = 1.1", 11_000),
        ("sample = 0", 0),
        ('sample = "0%"', 0),
        ("sample = 1", 1_000_000),
        ("sample = 1.0", 1_000_000),
        ('sample = "100%"', 1_000_000),
        ("sample = 100", 1_000_000),
        ('sample = "0.0000001"', 1),
    ],
)
def test_the_share_is_what_was_written(tmp_path: Path, line: str, ppm: int) -> None:
    assert configured(tmp_path, line) == ppm


@pytest.mark.parametrize("value", ['"some"', '"-1%"', "-0.1", "101", '"101%"', '"nan"', '"inf"', "true", '""', "nan"])
def test_what_is_no_share_is_refused_in_one_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"audit\.sample: must (be a percentage|lie between)"):
        configured(tmp_path, f"sample = {value}")


def test_the_environment_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "weir.toml"
    path.write_text('[audit]\nsample = "1%"\n', encoding="utf-8")
    environment = {"WEIR_AUDIT__SAMPLE": "50%", "WEIR_AUDIT__ON_MISMATCH": "clamp"}
    audit = load(path, environment).audit
    assert (audit.sample_ppm, audit.clamps_output) == (500_000, True)
