"""Signatures of outgoing webhooks, by the Standard Webhooks specification (https://www.standardwebhooks.com). Pure.

Signed is `<webhook-id>.<webhook-timestamp>.<body>` with HMAC-SHA256. The secret is `whsec_` and base64, of 24 to 64
bytes; several, comma-separated, while one is rolled: then there is a signature for each.
"""

import base64
import hmac

PREFIX = "whsec_"
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64


def keys(secret: str) -> tuple[bytes, ...]:
    """Return the keys of a configured secret. Raises ValueError, which says what is wrong and never the secret."""
    found = []
    for part in secret.split(","):
        try:
            key = base64.b64decode(part.strip().removeprefix(PREFIX), validate=True)
        except ValueError:
            raise ValueError("must be whsec_ and base64, such as `openssl rand -base64 32` makes") from None
        if not SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX:
            raise ValueError(f"must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes before base64")
        found.append(key)
    return tuple(found)


def headers(secret: str, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """Return the three headers of a message that is sent now. Raises ValueError for what is no secret."""
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys(secret))
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
