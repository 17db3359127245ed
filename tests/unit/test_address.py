"""Where a model server is: what a URL means, and that a wrong one is refused in words that help."""

import re
from pathlib import Path

import pytest

from billing import config
from billing.address import SOCKET_PATH_BYTES_MAX, Address, parse
from billing.errors import ConfigError

GOOD = {
    "http://127.0.0.1:8080": Address(False, "127.0.0.1", 8080, None, "", "127.0.0.1:8080"),
    "http://models": Address(False, "models", 80, None, "", "models"),
    "https://models.example.org/qwen/": Address(True, "models.example.org", 443, None, "/qwen", "models.example.org"),
    "http://[::1]:9000/a/b": Address(False, "::1", 9000, None, "/a/b", "[::1]:9000"),
    "unix:///run/llama.sock": Address(False, "localhost", 0, "/run/llama.sock", "", "localhost"),
    "unix:/run/llama.sock": Address(False, "localhost", 0, "/run/llama.sock", "", "localhost"),
    "unix:///run/a:b.sock": Address(False, "localhost", 0, "/run/a:b.sock", "", "localhost"),
    "unix:///run/llama.sock:/qwen/x/": Address(False, "localhost", 0, "/run/llama.sock", "/qwen/x", "localhost"),
    "unix:///run/llama.sock:/": Address(False, "localhost", 0, "/run/llama.sock", "", "localhost"),
    f"unix:///{'a' * (SOCKET_PATH_BYTES_MAX - 1)}": Address(
        False, "localhost", 0, "/" + "a" * (SOCKET_PATH_BYTES_MAX - 1), "", "localhost"
    ),
}

BAD = {
    "127.0.0.1:8080": "must start with",
    "ftp://127.0.0.1": "must start with",
    "": "must start with",
    "http://": "names no host",
    "https:///v1": "names no host",
    "http://user:secret@host": "api_key",
    "http://host/?key=1": "no ?",
    "http://host/#top": "no #",
    "http://höst": "punycode",
    "http://host/a b": "spaces",
    "http://host/\n": "spaces",
    "http://host:70000": "65535",
    "http://host:http": "Port could not",
    "http://[::1": "Invalid IPv6",
    "unix://run/llama.sock": "absolute",
    "unix:llama.sock": "absolute",
    "unix:": "absolute",
    "unix:///run/llama.sock:/a?b": "no ?",
    f"unix:///{'a' * SOCKET_PATH_BYTES_MAX}": "107 bytes",
}


@pytest.mark.parametrize(("url", "address"), GOOD.items(), ids=GOOD.keys())
def test_a_url_names_one_place(url: str, address: Address) -> None:
    assert parse(url) == address


@pytest.mark.parametrize(("url", "text"), BAD.items(), ids=BAD.keys())
def test_a_wrong_url_is_refused_in_words_that_help(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse(url)


def written(folder: Path, **keys: str) -> Path:
    """A configuration with one upstream."""
    path = folder / "weir.toml"
    lines = [f'{name} = "{value}"' for name, value in {"name": "local", **keys}.items()]
    path.write_text("\n".join(["[[upstreams]]", *lines]), encoding="utf-8")
    return path


@pytest.mark.parametrize(("url", "text"), BAD.items(), ids=BAD.keys())
def test_the_configuration_refuses_it_and_says_where(tmp_path: Path, url: str, text: str) -> None:
    path = written(tmp_path, url=url.replace("\n", "\\n"))
    with pytest.raises(ConfigError) as refused:
        config.load(path, {})
    assert "upstreams.0.url: " in str(refused.value)
    assert text in str(refused.value)


def test_the_end_of_an_openai_base_url_is_not_part_of_the_address(tmp_path: Path) -> None:
    for given, kept in (
        ("http://a:1/v1/", "http://a:1"),
        ("http://a:1/x/v1", "http://a:1/x"),
        ("unix:///run/l.sock:/v1", "unix:///run/l.sock:"),
    ):
        (upstream,) = config.load(written(tmp_path, url=given), {}).upstreams
        assert upstream.url == kept
    assert parse("unix:///run/l.sock:") == parse("unix:///run/l.sock")


def test_certificates_lie_beside_the_configuration(tmp_path: Path) -> None:
    path = written(tmp_path, url="https://a", ca_file="tls/ca.pem", client_cert="/etc/own.pem")
    (upstream,) = config.load(path, {}).upstreams
    assert (upstream.ca_file, upstream.client_cert) == (str(tmp_path / "tls/ca.pem"), "/etc/own.pem")
    assert upstream.client_key == ""


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"url": "http://a", "ca_file": "ca.pem"}, "ca_file is for https:// alone"),
        ({"url": "unix:///run/a.sock", "client_cert": "c.pem"}, "client_cert is for https:// alone"),
        ({"url": "https://a", "client_key": "k.pem"}, "client_key needs its client_cert"),
    ],
)
def test_a_certificate_that_would_not_be_used_is_refused(tmp_path: Path, keys: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(written(tmp_path, **keys), {})
    assert text in str(refused.value)
