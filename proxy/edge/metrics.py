"""What this worker counted, in Prometheus' text format 0.0.4. Labels are codes and outcomes, never customers."""

from collections.abc import Mapping

from proxy.relay.services import Services

RECONCILING = (
    ("weir_stripe_unexplained", "Hours and invoice lines that differ from Stripe's without a known reason."),
    ("weir_stripe_unreadable", "Customers of whom Stripe told nothing in the last comparison."),
    ("weir_stripe_reconciled_timestamp_seconds", "When all customers were last compared with Stripe."),
)


def exposition(services: Services) -> str:
    """Return the page."""
    lines: list[str] = []
    counters: tuple[tuple[str, str, str, Mapping[str, int] | Mapping[int, int]], ...] = (
        ("weir_requests_total", "Recorded requests by outcome.", "outcome", services.outcomes),
        ("weir_refusals_total", "Requests refused by Weir, by code.", "code", services.refusals),
        ("weir_upstream_errors_total", "Errors of upstreams, by status.", "status", services.upstream_errors),
        ("weir_tokens_total", "Tokens recorded, by type.", "type", services.tokens),
        (
            "weir_audited_total",
            "Prompts and outputs of the audit's sample, by verdict on the server's count.",
            "verdict",
            services.audit.results if services.audit is not None else {},
        ),
        ("weir_usage_anomalies_total", "Usage that could not be true, by kind.", "kind", services.anomalies),
    )
    gauges: tuple[tuple[str, str, int], ...] = (
        ("weir_requests_in_flight", "Requests being relayed now.", len(services.exchanges)),
        ("weir_directory_stale", "1 while keys and prices can not be renewed.", int(services.directory.is_stale)),
        ("weir_database_away", "1 while the database can not be written.", int(services.recorder.is_away)),
        ("weir_spooled_events", "Events that wait for the database.", services.recorder.spooled_rows),
        ("weir_recorder_failing", "1 while usage can not be recorded.", int(services.recorder.is_failing)),
    )
    polls = services.directory.polls
    lines += ("# HELP weir_directory_polls_total Times that the ledger was asked for changes of keys and prices.",)
    lines += ("# TYPE weir_directory_polls_total counter", f"weir_directory_polls_total {polls}")
    known = dict(services.gauges)
    gauges += tuple((name, text, known[name]) for name, text in RECONCILING if name in known)
    for name, text, label, values in counters:
        lines += (f"# HELP {name} {text}", f"# TYPE {name} counter")
        lines += (f'{name}{{{label}="{key}"}} {value}' for key, value in sorted(values.items()))
    for gauge, meaning, level in gauges:
        lines += (f"# HELP {gauge} {meaning}", f"# TYPE {gauge} gauge", f"{gauge} {level}")
    return "\n".join(lines) + "\n"
