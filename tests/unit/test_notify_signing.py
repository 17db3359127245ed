"""Standard Webhooks: signatures against the example of the specification's own libraries, and hand calculation."""

import base64
import hashlib
import hmac

import pytest

from billing.config import Notify
from billing.notify import signing

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_a_signature_is_that_of_the_reference_implementations() -> None:
    """The vector that the libraries of the specification test themselves with."""
    body = b'{"test": 2432232314}'
    found = signing.headers(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body)
    assert found == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_while_a_secret_is_rolled_there_is_a_signature_for_each() -> None:
    other = "whsec_" + base64.b64encode(b"x" * 32).decode()
    found = signing.headers(f"{SECRET}, {other}", "msg_1", 7, "é".encode())["webhook-signature"].split(" ")
    digest = hmac.new(b"x" * 32, b"msg_1.7." + "é".encode(), hashlib.sha256).digest()
    assert found[1] == "v1," + base64.b64encode(digest).decode()
    assert len(found) == 2


@pytest.mark.parametrize("secret", ["whsec_", "whsec_abc", "whsec_" + "ä" * 40, base64.b64encode(b"x" * 23).decode()])
def test_what_is_no_secret_is_refused_without_repeating_it(secret: str) -> None:
    with pytest.raises(ValueError, match="must") as refused:
        signing.keys(secret)
    assert secret not in str(refused.value) or secret == "whsec_"


@pytest.mark.parametrize(
    "given",
    [
        {"url": "https://x"},
        {"url": "ftp://x", "secret": SECRET},
        {"secret": "short"},
        {"low_balance": "-1"},
        {"low_balance": "much"},
    ],
)
def test_a_configuration_that_can_not_work_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        Notify(**given)


def test_amounts_may_be_written_as_numbers() -> None:
    assert Notify.model_validate({"url": "https://x", "secret": SECRET, "low_balance": 5}).low_balance == "5"
