"""The story: two customers, two margins, four requests, one of them abandoned, and every unit at Stripe."""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import openai

from tests.demo import screen
from tests.demo.stage import Stage, opened, serving

MODEL = "qwen3.5-0.8b"
COLUMNS = ("customer", "how", "outcome", "in", "out", "counted_by", "cost_usd", "price_usd", "margin_usd")
WITHIN_S = 15
ABANDON_AFTER = 12

PICO_PER_UNIT = 1_000_000
"""A unit at Stripe is a micro-dollar: a million picodollars."""


def main() -> int:
    """Run the demo; 0 if the money at Stripe equals the ledger to the unit."""
    screen.console.print("[bold]Weir[/]: meters your model server's tokens, adds your margin, gets it paid by Stripe.")
    screen.step("1  Start a real llama.cpp server, a Stripe double, and Weir")
    with opened() as stage:
        screen.note("model: a [bold]scripted test model[/] (real qwen35 architecture and vocabulary, canned text,")
        screen.note("       no download); Stripe: a local double, checked against Stripe's OpenAPI document")
        keys = _prepare(stage)
        with serving(stage):
            screen.note(f"gateway ready at {stage.url}/v1")
            ids = _send(stage, keys)
            _show_requests(stage, ids)
            screen.step("4  What did it earn?")
            _run(stage, "report", "margin")
            is_equal = _push(stage)
            is_enforced = _dunning(stage, keys["Acme"])
    _farewell()
    return 0 if is_equal and is_enforced else 1


def _do(stage: Stage, *words: str) -> None:
    screen.command(words)
    stage.weir(*words)


def _run(stage: Stage, *words: str) -> None:
    screen.command(words)
    for line in stage.weir(*words).rstrip().splitlines():
        screen.console.print(f"    {line}", markup=False, soft_wrap=True)


def _prepare(stage: Stage) -> dict[str, str]:
    _do(stage, "db", "upgrade")
    _run(stage, "stripe", "setup")
    screen.step("2  Set a cost, two margins, two customers")
    _do(stage, "cost", "set", MODEL, "--input", "0.03", "--output", "0.12")
    _do(stage, "margin", "set", "30%")
    for name in ("Acme", "Globex"):
        _do(stage, "customer", "add", name, "--stripe")
    _do(stage, "margin", "set", "margin:40%", "--customer", "Globex")
    return {name: stage.weir_json("key", "create", name)["key"] for name in ("Acme", "Globex")}


def _send(stage: Stage, keys: dict[str, str]) -> list[tuple[str, str]]:
    """Send four requests with the official client and return (request id, how it was sent)."""
    screen.step("3  Customers call it with the official openai client")
    acme, globex = (
        openai.OpenAI(api_key=keys[name], base_url=f"{stage.url}/v1", max_retries=0) for name in ("Acme", "Globex")
    )
    return [
        (_stream(acme, "Acme"), "streamed"),
        (_plain(globex, "Globex"), "plain"),
        (_stream(globex, "Globex"), "streamed"),
        (_abandon(acme, "Acme"), f"left after {ABANDON_AFTER} events"),
    ]


def _ask(text: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 80}


def _plain(client: openai.OpenAI, name: str) -> str:
    answer = client.chat.completions.with_raw_response.create(**_ask("Say hello."))
    usage = answer.parse().usage
    assert usage is not None
    amount = answer.headers["x-weir-amount"]
    screen.note(f"{name}, plain:    {usage.prompt_tokens} + {usage.completion_tokens} tokens, x-weir-amount: {amount}")
    return str(answer.headers["x-request-id"])


def _stream(client: openai.OpenAI, name: str) -> str:
    screen.console.print(f"  {name}, streamed: ", end="")
    answer = client.chat.completions.with_raw_response.create(**_ask("Say hello."), stream=True)
    for chunk in answer.parse():
        if chunk.choices:
            screen.token(chunk.choices[0].delta.content or "")
    screen.console.print()
    return str(answer.headers["x-request-id"])


def _abandon(client: openai.OpenAI, name: str) -> str:
    screen.console.print(f"  {name}, leaving:  ", end="")
    answer = client.chat.completions.with_raw_response.create(**_ask("Tell me a long story."), stream=True)
    stream = answer.parse()
    for number, chunk in enumerate(stream, 1):
        if chunk.choices:
            screen.token(getattr(chunk.choices[0].delta, "reasoning_content", None) or "")
        if number == ABANDON_AFTER:
            break
    stream.close()
    screen.console.print(" [yellow]… the client hangs up: generation stops, what was delivered is billed[/]")
    return str(answer.headers["x-request-id"])


def _show_requests(stage: Stage, ids: list[tuple[str, str]]) -> None:
    rows = []
    names = {customer["id"]: customer["name"] for customer in stage.weir_json("customer", "list")}
    for request_id, how in ids:
        event = _until(functools.partial(_traced, stage, request_id, len(ids)))
        cost, price = event["cost"], event["amount"]
        rows.append(
            {
                "customer": names[event["customer_id"]],
                "how": how,
                "outcome": event["outcome"],
                "in": event["input_tokens"],
                "out": event["output_tokens"],
                "counted_by": event["count_source"],
                "cost_usd": cost,
                "price_usd": price,
                "margin_usd": _pico_text(_pico(price) - _pico(cost)),
            }
        )
    screen.table("", rows, COLUMNS)


def _traced(stage: Stage, request_id: str, requests: int) -> Any:
    """Return the receipt, None until all requests are recorded: that of the abandoned one is counted first."""
    recorded = sum(row["requests"] for row in stage.weir_json("usage", "--by", "customer"))
    return stage.weir_json("trace", request_id) if recorded == requests else None


def _push(stage: Stage) -> bool:
    screen.step("5  Push to Stripe, and compare to the unit")
    _do(stage, "stripe", "push", "--now")
    status = {row["customer"]: row for row in stage.weir_json("stripe", "status")["customers"]}
    rows, is_equal = [], True
    for billed in stage.weir_json("usage", "--by", "customer"):
        found = status[billed["customer"]]
        at_stripe = stage.stripe.meter_total(found["stripe_customer"])
        ledger = _pico(billed["amount"])
        same = at_stripe * PICO_PER_UNIT + found["carry_pico"] == ledger
        is_equal = is_equal and same
        rows.append(
            {
                "customer": billed["customer"],
                "ledger_pico": ledger,
                "units_at_stripe": at_stripe,
                "carry_pico": found["carry_pico"],
                "units_×_10⁶_+_carry": at_stripe * PICO_PER_UNIT + found["carry_pico"],
            }
        )
    screen.table("", rows, tuple(rows[0]))
    faults = stage.stripe.violations
    screen.verdict("what Stripe received equals the ledger to the unit", is_good=is_equal)
    screen.verdict(f"requests that break Stripe's OpenAPI document: {len(faults)}", is_good=not faults)
    return is_equal and not faults


def _dunning(stage: Stage, key: str) -> bool:
    screen.step("6  An unpaid invoice closes the tap, a paid one opens it")
    client = openai.OpenAI(api_key=key, base_url=f"{stage.url}/v1", max_retries=0)
    cus = stage.weir_json("customer", "show", "Acme")["stripe_customer"]
    invoice = stage.stripe.fail_invoice(cus)
    refused = _until(lambda: _status(client) == 403)
    screen.verdict("invoice.payment_failed → Acme gets 403 customer_suspended", is_good=bool(refused))
    stage.stripe.pay_invoice(invoice if isinstance(invoice, str) else invoice["id"])
    resumed = _until(lambda: _status(client) == 200)
    screen.verdict("invoice.paid → Acme is served again", is_good=bool(resumed))
    return bool(refused and resumed)


def _status(client: openai.OpenAI) -> int:
    try:
        client.chat.completions.create(**_ask("hi"))
    except openai.APIStatusError as error:
        return error.status_code
    return 200


def _until(probe: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := probe()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _pico(decimal: str) -> int:
    whole, _, fraction = decimal.partition(".")
    return int(whole) * 10**12 + int(fraction.ljust(12, "0"))


def _pico_text(amount: int) -> str:
    return f"{amount // 10**12}.{amount % 10**12:012d}"


def _farewell() -> None:
    screen.step("Now with your own model server and your own Stripe test key")
    screen.console.print("  .venv/bin/weir init      # finds llama.cpp, vLLM, Ollama, SGLang, LM Studio")
    screen.console.print("  STRIPE_API_KEY=sk_test_… .venv/bin/weir stripe setup")
    screen.console.print("  STRIPE_API_KEY=sk_test_… STRIPE_WEBHOOK_SECRET=whsec_… .venv/bin/weir serve")


if __name__ == "__main__":
    sys.exit(main())
