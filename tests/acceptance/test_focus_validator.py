"""The FinOps Foundation's own validator on what `weir export focus` writes; pyarrow on our Parquet files. Slow.

The validator asks for Python 3.12 for the sake of one f-string; where ours is older, that one is rewritten in its copy.
It finds its list of currencies only from its own folder.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.commands import DONE, Weir
from tests.acceptance.test_cli_export import quote, weir
from tests.support import programs

__all__ = ["quote", "weir"]

VALIDATOR: Final = "2.2.1"
MODEL: Final = "1.2.0.1"
PYARROW: Final = "21.0.0"
"""Newer ones want a newer numpy than the validator does."""

APPLICABLE: Final = (
    *("ACCOUNT_NAMING", "NEGOTIATED_PRICING", "PUBLIC_PRICE_LIST", "USAGE_MEASUREMENT", "UNIT_PRICING", "TAGGING"),
    *("SUB_ACCOUNT", "MULTIPLE_SUB_ACCOUNT_TYPES", "MULTIPLE_BILLING_ACCOUNT_TYPES", "MULTIPLE_PRICING_CATEGORIES"),
)
NOT_OURS: Final = {"InvoiceId-C-005-C"}
"""It wants the invoice of each charge that is on one; the condition itself is not in the validator's model."""

NEW_F_STRING: Final = """f"'{k.replace('\\"', '\\"\\"')}'" for k"""
OLD_F_STRING: Final = """"'" + k.replace('"', '""') + "'" for k"""


def installed() -> Path:
    """The validator's folder of programs."""
    place = programs.from_pypi("focus-validator", VALIDATOR, f"pyarrow=={PYARROW}", "--ignore-requires-python")
    if sys.version_info < (3, 12):
        for path in place.parent.glob(
            "lib/*/site-packages/focus_validator/config_objects/focus_to_duckdb_converter.py"
        ):
            path.write_text(path.read_text(encoding="utf-8").replace(NEW_F_STRING, OLD_F_STRING), encoding="utf-8")
    return place


@pytest.mark.slow
def test_the_validator_finds_no_fault_that_applies(tmp_path: Path, weir: Weir) -> None:
    """Costs, corrections and credit, as CSV; of a customer with a plain name, since it refuses quotes in one."""
    place = installed()
    assert weir("export", "focus", "--customer", "acme", "-o", "focus.csv").code == DONE
    criteria = ",".join(f"{name}_SUPPORTED" for name in APPLICABLE)
    command = [str(place / "focus-validator"), "--data-file", str(tmp_path / "focus.csv"), "--block-download"]
    command += ["--validate-version", MODEL, "--applicability-criteria", criteria]
    (home,) = place.parent.glob("lib/*/site-packages")
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=600, check=False)
    found = re.search(r"Total: (\d+) \| Pass: (\d+) \| Fail: (\d+)", done.stdout)
    assert found is not None, done.stderr[-2000:]
    failed = set(re.findall(r"❌ (\S+): FAIL", done.stdout))
    assert failed == NOT_OURS
    assert int(found[2]) > 250


@pytest.mark.slow
def test_pyarrow_reads_our_parquet(tmp_path: Path, weir: Weir) -> None:
    """Types and values: the sums of its decimals and integers are those of the CSV file."""
    place = installed()
    assert weir("export", "events", "-o", "events.parquet").code == DONE
    rows = weir("export", "events").csv
    code = (
        "import pyarrow.parquet as p; t = p.read_table('events.parquet');"
        "print(t.num_rows, t.schema.field('amount').type, t.schema.field('started_at').type);"
        "print('\\n'.join(f\"{r['id']} {r['amount']} {r['input_tokens']} {r['customer']}\" for r in t.to_pylist()))"
    )
    done = subprocess.run(
        [str(place / "python"), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    head, *lines = done.stdout.splitlines()
    assert head == "5 decimal128(38, 12) timestamp[us, tz=UTC]"
    assert lines == [f"{r['id']} {r['amount']} {r['input_tokens']} {r['customer']}" for r in rows]
