"""An authority of the test's own, made with the `openssl` program: the standard library can not sign.

Elliptic curves, so that a certificate takes milliseconds. Nothing of it is kept or trusted outside the test.
"""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_DAYS = "7"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs what it is asked to; `cert` is what others have to trust."""

    folder: Path
    cert: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make an authority in a folder of its own."""
        folder.mkdir(parents=True)
        made = cls(folder, folder / "ca.pem", folder / "ca.key")
        extensions = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
        added = [word for line in extensions for word in ("-addext", line)]
        own = ("req", "-x509", *_new_key(made.key), "-out", made.cert, "-days", _DAYS, "-subj", f"/CN={folder.name}")
        _openssl(*own, *added)
        return made

    def sign(self, name: str, names: str) -> Pair:
        """Make a certificate for these names, such as `IP:127.0.0.1,DNS:localhost`."""
        pair, asked = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key"), self.folder / f"{name}.csr"
        _openssl("req", *_new_key(pair.key), "-out", asked, "-subj", f"/CN={name}")
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\n", encoding="ascii")
        by = ("-CA", self.cert, "-CAkey", self.key, "-CAcreateserial")
        _openssl("x509", "-req", "-in", asked, *by, "-out", pair.cert, "-days", _DAYS, "-extfile", extensions)
        return pair


def server_context(pair: Pair, *, clients: Authority | None = None) -> ssl.SSLContext:
    """What a server with this certificate listens with; `clients`: only theirs are let in."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)
    if clients is not None:
        context.load_verify_locations(clients.cert)
        context.verify_mode = ssl.CERT_REQUIRED
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # here a refusal is part of the handshake
    return context


def _new_key(path: Path) -> tuple[str | Path, ...]:
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
