"""`weir.toml` and the environment become one frozen `Config`; an unknown key names its nearest valid one.

Precedence: `WEIR_SECTION__KEY` (and `STRIPE_API_KEY`, `STRIPE_WEBHOOK_SECRET`) over the file over the defaults.
Relative paths are relative to the file's folder.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from billing import address
from billing.errors import ConfigError, InvalidAmountError
from billing.money import parse_amount
from billing.notify.signing import keys

ENV_PREFIX = "WEIR_"
STRIPE_ENV = {"STRIPE_API_KEY": "api_key", "STRIPE_WEBHOOK_SECRET": "webhook_secret"}

CERTIFICATE_FILES = ("ca_file", "client_cert", "client_key")
UpstreamKind = Literal["auto", "llamacpp", "vllm", "sglang", "ollama", "lmstudio", "openai"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Gateway(_Section):
    """Where the gateway listens, and its own limits."""

    host: str = "127.0.0.1"
    port: int = Field(default=8787, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    max_body_mb: int = Field(default=32, ge=1, le=1024)
    admin_token: str = ""
    shutdown_grace_s: int = Field(default=30, ge=0, le=3600)


class Database(_Section):
    """Where the ledger is: `sqlite:///weir.db` or `postgresql+psycopg://…`, and what holds while it is away.

    `spool` is the folder in which events wait then; `stale_s_max` is how long keys and prices are used as they were.
    """

    url: str = "sqlite:///weir.db"
    spool: str = "weir-spool"
    stale_s_max: int = Field(default=86_400, ge=1, le=30 * 86_400)


class Upstream(_Section):
    """One model server. `models` maps public names to the server's; empty means: ask its /v1/models.

    `ca_file` (PEM) is trusted instead of the system's authorities; `client_cert` and `client_key` (PEM) are shown.
    """

    name: str = Field(min_length=1, max_length=100)
    url: str
    api_key: str = ""
    kind: UpstreamKind = "auto"
    weight: int = Field(default=1, ge=1, le=1000)
    models: dict[str, str] = Field(default_factory=dict)
    connect_timeout_s: int = Field(default=5, ge=1, le=600)
    first_byte_timeout_s: int = Field(default=600, ge=1, le=86_400)
    idle_timeout_s: int = Field(default=120, ge=1, le=86_400)
    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""

    @field_validator("url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        base = value.rstrip("/").removesuffix("/v1")
        address.parse(base)
        return base

    @model_validator(mode="after")
    def _certificates_fit(self) -> Self:
        named = [name for name in CERTIFICATE_FILES if getattr(self, name)]
        if named and not self.url.startswith("https://"):
            raise ValueError(f"{named[0]} is for https:// alone")
        if self.client_key and not self.client_cert:
            raise ValueError("client_key needs its client_cert")
        return self


class Billing(_Section):
    """Currency, calendar and the margin that holds while no global rule exists."""

    currency: str = Field(default="usd", pattern=r"^[a-z]{3}$")
    timezone: str = "UTC"
    push_interval_s: int = Field(default=60, ge=1, le=3600)
    default_margin: str = "30%"

    @field_validator("timezone")
    @classmethod
    def _is_zone(cls, value: str) -> str:
        if value != "UTC" and value not in available_timezones():
            raise ValueError("is not an IANA time zone such as Europe/Berlin")
        return value

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of calendar budgets and reports."""
        return ZoneInfo(self.timezone)


class Stripe(_Section):
    """Stripe's keys and addresses; nothing is sent while `enabled` is false or no key is set."""

    enabled: bool = True
    mode: Literal["amount", "tokens"] = "amount"
    api_key: str = ""
    webhook_secret: str = ""
    api_base: str = "https://api.stripe.com"
    meter_events_base: str = "https://meter-events.stripe.com"
    meter_event_name: str = Field(default="weir_usage_micro", min_length=1, max_length=100)
    return_url: str = Field(default="", pattern=r"^(https?://\S+)?$", max_length=2000)

    @property
    def is_active(self) -> bool:
        """Whether anything may be sent to Stripe."""
        return self.enabled and bool(self.api_key)

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The signing secrets that are valid now: several, comma-separated, while one is rolled."""
        return tuple(secret.strip() for secret in self.webhook_secret.split(",") if secret.strip())


class Dunning(_Section):
    """What an unpaid invoice leads to: after the grace period, suspension (0: at once)."""

    grace_days: int = Field(default=3, ge=0, le=365)
    action: Literal["suspend", "none"] = "suspend"


class Audit(_Section):
    """Whether a server's counts are true: the share of requests that is recounted, and what follows a mismatch.

    `sample` is a percentage ("1%", "0.5%") or a share ("0.01"); a plain number above 1 is a percentage, too.
    """

    sample: Decimal = Decimal("0.01")
    on_mismatch: Literal["flag", "clamp"] = "flag"

    @field_validator("sample", mode="before")
    @classmethod
    def _is_share(cls, value: object) -> Decimal:
        text = str(value).strip()  # a float's text is the decimal that was written
        number = text.removesuffix("%").strip()
        try:
            share = Decimal(number)
        except InvalidOperation:
            raise ValueError('must be a percentage such as "1%"') from None
        is_percentage = share.is_finite() and (number != text or share > 1)
        if not share.is_finite() or not 0 <= share <= (100 if is_percentage else 1):
            raise ValueError("must lie between 0% and 100%")
        return share.scaleb(-2) if is_percentage else share

    @property
    def sample_ppm(self) -> int:
        """The share in millionths, rounded down; what is above 0 is at least 1."""
        return max(int(self.sample * 1_000_000), int(self.sample > 0))

    @property
    def clamps_output(self) -> bool:
        """Whether an output that is reported far too large is billed as counted."""
        return self.on_mismatch == "clamp"


class Notify(_Section):
    """Where webhooks about budgets and balances go (none without `url`), and below which balance credit is low."""

    url: str = Field(default="", pattern=r"^(https?://\S+)?$", max_length=2000)
    secret: str = ""
    low_balance: str = ""

    @field_validator("secret")
    @classmethod
    def _is_secret(cls, value: str) -> str:
        if value:
            keys(value)
        return value

    @field_validator("low_balance", mode="before")
    @classmethod
    def _is_amount(cls, value: object) -> str:
        text = str(value).strip()
        try:
            is_negative = bool(text) and parse_amount(text) < 0
        except InvalidAmountError as error:
            raise ValueError(str(error)) from None
        if is_negative:
            raise ValueError("must not be negative")
        return text

    @model_validator(mode="after")
    def _is_signed(self) -> Self:
        if self.url and not self.secret:
            raise ValueError("url needs secret, too: whsec_ and base64, such as `openssl rand -base64 32` makes")
        return self


class Limits(_Section):
    """What a key without limits of its own may do; 0 means no limit."""

    default_rpm: int = Field(default=0, ge=0)
    default_tpm: int = Field(default=0, ge=0)
    default_max_output_tokens: int = Field(default=4096, ge=1)


class Config(_Section):
    """The whole configuration, frozen."""

    gateway: Gateway = Gateway()
    database: Database = Database()
    upstreams: tuple[Upstream, ...] = ()
    tokenizers: dict[str, str] = Field(default_factory=dict)
    billing: Billing = Billing()
    stripe: Stripe = Stripe()
    dunning: Dunning = Dunning()
    limits: Limits = Limits()
    notify: Notify = Notify()
    audit: Audit = Audit()

    @property
    def stripe_return_url(self) -> str:
        """Where Stripe's pages send a customer who has paid; the gateway's own page unless it is set."""
        return self.stripe.return_url or f"http://{self.gateway.host}:{self.gateway.port}/portal"

    @field_validator("upstreams")
    @classmethod
    def _names_differ(cls, value: tuple[Upstream, ...]) -> tuple[Upstream, ...]:
        names = [upstream.name for upstream in value]
        if len(set(names)) != len(names):
            raise ValueError("two upstreams have the same name")
        return value


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the file (None: `weir.toml` in the working folder, if there is one) and the environment.

    Raises ConfigError, one line that says what to change.
    """
    chosen = path if path is not None else Path("weir.toml")
    raw: dict[str, Any] = {}
    if path is not None or chosen.exists():
        try:
            raw = tomllib.loads(chosen.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{chosen} does not exist; `weir init` writes one") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{chosen} is not valid TOML: {error}") from None
    _overlay_environment(raw, environ)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{chosen}: {_first_fault(error)}") from None
    folder = chosen.resolve().parent
    return _with_absolute_files(_with_absolute_database(config, folder), folder)


def _overlay_environment(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, value in sorted(environ.items()):
        if name in STRIPE_ENV:
            _section(raw, "stripe")[STRIPE_ENV[name]] = value
        elif name.startswith(ENV_PREFIX) and "__" in name:
            section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
            if section in ("upstreams", "tokenizers"):
                raise ConfigError(f"{name}: [{section}] can only be set in the file")
            _section(raw, section)[key] = value


def _section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    section = raw.setdefault(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"[{name}] must be a table")
    return section


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
    model: type[BaseModel] = Config
    for part in fault["loc"][:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = Upstream if part == "upstreams" else annotation  # type: ignore[assignment]
    key = str(fault["loc"][-1])
    nearest = difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.0)
    return f"unknown key {where!r}; did you mean {nearest[0]!r}?"


def _with_absolute_database(config: Config, folder: Path) -> Config:
    prefix = "sqlite:///"
    url = config.database.url
    if url.startswith(prefix) and not url.startswith(prefix + "/"):
        url = prefix + str(folder / url.removeprefix(prefix))
    spool = str(folder / config.database.spool)
    return config.model_copy(update={"database": config.database.model_copy(update={"url": url, "spool": spool})})


def _with_absolute_files(config: Config, folder: Path) -> Config:
    """Return the configuration with its upstreams' certificates under the file's folder."""
    if not any(getattr(upstream, name) for upstream in config.upstreams for name in CERTIFICATE_FILES):
        return config
    upstreams = tuple(
        upstream.model_copy(
            update={name: str(folder / file) for name in CERTIFICATE_FILES if (file := getattr(upstream, name))}
        )
        for upstream in config.upstreams
    )
    return config.model_copy(update={"upstreams": upstreams})
