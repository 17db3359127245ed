"""`weir`: the admin's commands of `billing.cli`, and those that run the gateway.

It lives here, since `billing` may not import the gateway; it only mounts and adds. A command's module is imported
when the command is named: the `stripe` package alone takes a quarter of a second to import, the gateway another half.
"""

import sys
from collections.abc import Mapping
from types import MappingProxyType

import click

from billing.cli.app import Session, pass_session, root, run
from proxy import logs

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "init": "billing.cli.init",
        "serve": "proxy.main",
        "worker": "proxy.main",
        "doctor": "billing.cli.doctor",
        "customer": "billing.cli.customer",
        "key": "billing.cli.key",
        "cost": "billing.cli.cost",
        "margin": "billing.cli.margin",
        "plan": "billing.cli.plan",
        "prices": "billing.cli.prices",
        "credit": "billing.cli.credit",
        "usage": "billing.cli.usage",
        "report": "billing.cli.report",
        "export": "billing.cli.export",
        "simulate": "billing.cli.simulate",
        "trace": "billing.cli.trace",
        "audit": "billing.cli.audit",
        "adjust": "billing.cli.adjust",
        "stripe": "billing.cli.stripe",
        "invoice": "billing.cli.invoice",
        "db": "billing.cli.db",
    }
)
"""Each command and the module that holds it under its own name, in the order of `weir --help`."""


@click.command()
@pass_session
def serve(session: Session) -> None:
    """Run the gateway: the data plane, Stripe's webhook endpoint and the background jobs."""
    from proxy import gateway  # noqa: PLC0415 -- see the module's docstring

    logs.to()
    gateway.serve(session.config)


@click.command()
@pass_session
def worker(session: Session) -> None:
    """Run only the background jobs: pushing usage to Stripe, working off its webhooks, dunning."""
    from billing.jobs import Jobs  # noqa: PLC0415 -- see the module's docstring

    logs.to()
    Jobs(session.config, session.database).run()


root.mount(COMMANDS)


def main() -> None:
    """Run the command line."""
    sys.exit(run())
