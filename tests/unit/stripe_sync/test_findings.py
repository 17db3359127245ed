"""What a comparison keeps of what it found: everything is counted, what somebody has to look at is kept."""

import pytest

from billing.clock import HOUR_US, Instant
from billing.ledger.comparisons import Subject
from billing.stripe_sync import findings
from billing.stripe_sync.differences import Finding, Kind
from billing.stripe_sync.findings import Found, Report


def hour(customer: str, number: int, kind: Kind) -> Found:
    """One hour of a customer."""
    finding = Finding(Instant(number * HOUR_US), 1, 1, kind, "")
    return Found(Subject(customer, customer, f"cus_{customer}"), "meter", finding, ())


def test_a_report_counts_everything_and_keeps_what_is_of_interest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after some customers were compared once more: the counts are those of one look at each hour."""
    monkeypatch.setattr(findings, "KEPT_ROWS_MAX", 3)
    report = Report(Instant(0), Instant(HOUR_US))
    for customer in ("a", "b", "c"):
        report.add(hour(customer, number, Kind.MATCH) for number in range(4))
        report.add([hour(customer, 4, Kind.LOST)])
    assert report.kinds == {"lost": 3, "match": 12}
    assert (report.unexplained, report.is_explained, report.left_out) == (3, False, 9)
    assert [each.finding.kind for each in report.found if not each.is_explained] == [Kind.LOST] * 3
    again = Report(Instant(0), Instant(HOUR_US))
    again.add(hour("b", number, Kind.MATCH) for number in range(5))
    report.replace_customers({"b"}, [again])
    assert report.kinds == {"lost": 2, "match": 13}
    assert report.left_out + len(report.found) == 15
    assert report.unexplained == 2
