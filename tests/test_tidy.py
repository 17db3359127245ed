"""The house rules on the syntax tree: layers, purity, one home per library, exact money, sizes, docstrings."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("billing/**/*.py"), *ROOT.glob("proxy/**/*.py")])
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

LAYERS: dict[str, tuple[str, ...]] = {
    "billing.errors": (),
    "billing.money": ("billing.errors",),
    "billing.limits": ("billing.money",),
    "billing.clock": ("billing.errors",),
    "billing.calendar": ("billing.clock",),
    "billing.ids": (),
    "billing.usage": (),
    "billing.address": (),
    "billing.config": (
        *("billing.address", "billing.errors", "billing.money", "billing.limits"),
        "billing.notify.signing",
    ),
    "billing.asking": ("billing.address", "billing.config", "billing.errors"),
    "billing.disconnect": ("billing.errors",),
    "billing.tokens": ("billing.tokens", "billing.errors"),
    "billing.pricing": (
        *("billing.pricing", "billing.money", "billing.usage"),
        *("billing.limits", "billing.errors", "billing.clock", "billing.calendar"),
    ),
    "billing.ledger": (
        *("billing.ledger", "billing.pricing", "billing.money", "billing.usage", "billing.limits"),
        *("billing.errors", "billing.clock", "billing.calendar", "billing.ids", "billing.credit"),
        *("billing.disconnect", "billing.tokens.drift"),
    ),
    "billing.credit": (
        *("billing.credit", "billing.pricing", "billing.money", "billing.usage"),
        *("billing.limits", "billing.errors", "billing.clock", "billing.calendar"),
    ),
    "billing.reports": (
        *("billing.reports", "billing.ledger", "billing.pricing", "billing.money", "billing.errors"),
        *("billing.clock", "billing.calendar", "billing.credit", "billing.limits", "billing.usage"),
    ),
    "proxy.meter": ("proxy.meter", "billing.usage", "billing.tokens", "billing.limits"),
}
"""Who may import what of ours; a package that is not named here may import all that is below it."""

PURE = (
    *("billing/money.py", "billing/usage.py", "billing/limits.py", "billing/address.py", "billing/calendar.py"),
    "billing/disconnect.py",
    *(
        "billing/credit/*.py",
        "billing/notify/signing.py",
        "billing/notify/messages.py",
        "billing/pricing/*.py",
        "billing/stripe_sync/batches.py",
        "billing/stripe_sync/retry.py",
        "billing/stripe_sync/token_parts.py",
    ),
    *("billing/stripe_sync/paid_in.py", "billing/stripe_sync/subjects.py", "billing/stripe_sync/minor_units.py"),
    *("billing/stripe_sync/effects.py", "proxy/meter/*.py", "proxy/admit/decide.py", "proxy/admit/limits.py"),
    *("proxy/relay/refusals.py", "proxy/relay/headers.py", "proxy/relay/request.py", "proxy/relay/lifecycle.py"),
    *("proxy/relay/decoding.py", "proxy/relay/doubt.py", "billing/tokens/drift.py", "proxy/relay/gathering.py"),
    "proxy/relay/busy.py",
)
IMPURE = frozenset(
    {"asyncio", "logging", "os", "random", "secrets", "socket", "sqlalchemy", "subprocess", "threading", "time", "uuid"}
)

HOMES = {
    "stripe": ("billing/stripe_sync/",),
    "sqlalchemy": ("billing/ledger/",),
    "fastapi": ("proxy/edge/",),
    "uvicorn": ("proxy/edge/", "proxy/gateway.py"),
    "httptools": ("proxy/relay/connection.py", "proxy/edge/protocol.py"),
    "tiktoken": ("billing/tokens/",),
    "rich": ("billing/cli/",),
    "pydantic": ("billing/config.py",),
}

MONEY = (*("billing/money.py", "billing/usage.py", "billing/limits.py", "billing/pricing/*.py"),)
MONEY_TOO = (
    *("billing/ledger/*.py", "billing/reports/*.py", "billing/stripe_sync/*.py"),
    *("proxy/settle.py", "proxy/meter/*.py"),
)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _matching(patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_follow_the_arrows(path: Path) -> None:
    """`billing` never imports `proxy`, and each layer only what is below it."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    ours = {name for name in _imports(_tree(path)) if _is_within(name, ("billing", "proxy"))}
    if module.startswith("billing"):
        assert not {name for name in ours if _is_within(name, ("proxy",))}
    for layer, allowed in LAYERS.items():
        if _is_within(module, (layer,)):
            # `from billing import ids` names the package and then the module
            assert {name for name in ours if name != "billing" and not _is_within(name, allowed)} == set()


@pytest.mark.parametrize("path", _matching(PURE), ids=_name)
def test_pure_modules_know_no_outside(path: Path) -> None:
    """A pure module imports no clock, randomness, log, thread, socket or database, and has no async code."""
    tree = _tree(path)
    assert {name.split(".")[0] for name in _imports(tree)} & IMPURE == set()
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_each_library_has_one_home(path: Path) -> None:
    """stripe, sqlalchemy, fastapi and the others are imported only where they live."""
    for library in {name.split(".")[0] for name in _imports(_tree(path))} & HOMES.keys():
        assert _name(path).startswith(HOMES[library]), f"{library} is imported outside its home"


def _is_harmless(division: ast.BinOp | ast.AugAssign) -> bool:
    """Tell whether a / joins a path, or turns milli- or nanoseconds of waiting into seconds."""
    if isinstance(division, ast.AugAssign):
        return False
    is_path = isinstance(division.right, ast.Constant) and isinstance(division.right.value, str)
    return is_path or (isinstance(division.left, ast.Name) and division.left.id.lower().endswith(("_ns", "_ms")))


@pytest.mark.parametrize("path", _matching((*MONEY, *MONEY_TOO)), ids=_name)
def test_no_float_comes_near_money(path: Path) -> None:
    """No true division, no round(), no float() and no float literal where money or tokens are computed."""
    faults = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div) and not _is_harmless(node):
            faults.append(f"line {node.lineno}: /")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("round", "float"):
            faults.append(f"line {node.lineno}: {node.func.id}()")
        elif isinstance(node, ast.Constant) and isinstance(node.value, float) and path in _matching(MONEY):
            faults.append(f"line {node.lineno}: {node.value}")
    assert faults == []


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_file_has_one_subject_and_a_function_fits_a_screen(path: Path) -> None:
    """Files have at most 500 lines, functions at most 70."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES_MAX
    functions = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert {f.name for f in functions if (f.end_lineno or 0) - f.lineno >= FUNCTION_LINES_MAX} == set()


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_each_module_says_what_it_is_for(path: Path) -> None:
    """A module begins with a docstring, and holds no mark of unfinished work."""
    assert ast.get_docstring(_tree(path))
    text = path.read_text(encoding="utf-8")
    assert not [mark for mark in ("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error") if mark in text]
