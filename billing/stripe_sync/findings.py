"""What a comparison with Stripe found, within a bounded memory however many customers and hours it looked at.

Invariant: every finding is counted by its kind; those that nobody has to look at are kept up to KEPT_ROWS_MAX, those
that somebody has to up to UNEXPLAINED_ROWS_MAX. What is not kept is in the ledger's checkpoints all the same, and what
`--repair` did not see is mended by the next run.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from billing.clock import Instant
from billing.ledger.comparisons import InvoiceCheck, Subject
from billing.stripe_sync.differences import Finding

KEPT_ROWS_MAX = 10_000
UNEXPLAINED_ROWS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Found:
    """A finding, whose hour it is, and whether a check that matched before has other sums now.

    `is_known`: it matches as it did before, so there is nothing to write down.
    """

    subject: Subject
    event_name: str
    finding: Finding
    windows: tuple[str, ...]
    was_matched: tuple[int, int] | None = None
    is_known: bool = False

    @property
    def is_explained(self) -> bool:
        """Whether nobody needs to look at it."""
        return self.finding.is_explained


@dataclass(slots=True)
class Report:
    """What a run found: hours with usage on either side, invoices, and whom Stripe would not tell about.

    `counted` holds all of them by kind and whether they are explained; `left_out` how many are not in the lists, and
    `left_out_of` whose they are.
    """

    since: Instant
    until: Instant
    found: list[Found] = field(default_factory=list)
    invoices: list[InvoiceCheck] = field(default_factory=list)
    unreadable: list[tuple[Subject, str]] = field(default_factory=list)
    subjects: int = 0
    resent: int = 0
    taken_back: int = 0
    left_out: int = 0
    counted: Counter[tuple[str, bool]] = field(default_factory=Counter)
    left_out_of: Counter[tuple[str, str, bool]] = field(default_factory=Counter)

    @property
    def unexplained(self) -> int:
        """How many hours, lines and customers somebody needs to look at."""
        return len(self.unreadable) + sum(count for (_, is_fine), count in self.counted.items() if not is_fine)

    @property
    def is_explained(self) -> bool:
        """Whether everything was compared, and each difference has a known reason."""
        return self.unexplained == 0

    @property
    def kinds(self) -> Mapping[str, int]:
        """How many hours and invoice lines are of each kind."""
        kinds: Counter[str] = Counter()
        for (kind, _), count in self.counted.items():
            kinds[kind] += count
        return dict(sorted(kinds.items()))

    def add(self, found: Iterable[Found]) -> None:
        """Count hours, and keep those that are of interest; the batches that they confirmed are not."""
        for each in found:
            kind = (str(each.finding.kind), each.is_explained)
            if self._is_kept(each.subject.customer_id, kind, len(self.found)):
                self.found.append(replace(each, finding=replace(each.finding, confirmed=())))

    def add_invoices(self, checks: Iterable[InvoiceCheck]) -> None:
        """Count lines of invoices, and keep those that are of interest."""
        for check in checks:
            if self._is_kept(check.customer_id, (check.kind, check.is_explained), len(self.invoices)):
                self.invoices.append(check)

    def replace_customers(self, customer_ids: Collection[str], again: Iterable["Report"]) -> None:
        """Put what was found when these customers were compared once more in the place of what was found before."""
        concerned = frozenset(customer_ids)
        for each in self.found:
            if each.subject.customer_id in concerned:
                self.counted[str(each.finding.kind), each.is_explained] -= 1
        for check in self.invoices:
            if check.customer_id in concerned:
                self.counted[check.kind, check.is_explained] -= 1
        for (customer_id, kind, is_fine), count in self.left_out_of.items():
            if customer_id in concerned:
                self.counted[kind, is_fine] -= count
                self.left_out -= count
        self.found = [each for each in self.found if each.subject.customer_id not in concerned]
        self.invoices = [check for check in self.invoices if check.customer_id not in concerned]
        for report in again:
            self.counted.update(report.counted)
            self.found += report.found
            self.invoices += report.invoices
            self.left_out += report.left_out
        self.counted = +self.counted

    def _is_kept(self, customer_id: str, kind: tuple[str, bool], rows: int) -> bool:
        self.counted[kind] += 1
        if rows < (KEPT_ROWS_MAX if kind[1] else UNEXPLAINED_ROWS_MAX):
            return True
        self.left_out += 1
        self.left_out_of[customer_id, *kind] += 1
        return False
