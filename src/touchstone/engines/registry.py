"""Engine names and the adapters behind them. An adapter is imported only when its engine is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from touchstone.engines.base import Capabilities, Engine, EngineError, EngineSpec

if TYPE_CHECKING:
    from types import ModuleType

ADAPTERS = {"nanoinfer": "touchstone.engines.nanoinfer"}


class Adapter(Protocol):
    """What an adapter module offers."""

    def capabilities(self) -> Capabilities:
        """Tell what the engine can switch and report, without loading a model."""
        ...

    def build(self, spec: EngineSpec) -> Engine:
        """Build the engine in this process."""
        ...


def load_adapter(name: str) -> Adapter:
    """Import the adapter of an engine.

    `name` is one of `ADAPTERS`, or the import path of a module of your own that offers `capabilities()` and
    `build(spec)`; EngineError names what is missing.
    """
    path = ADAPTERS.get(name, name)
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        known = ", ".join(sorted(ADAPTERS))
        raise EngineError(
            f"engine {name!r} cannot be loaded: {error}; use one of {known}, or the import path of an adapter module"
        ) from error
    _check(name, module)
    return cast("Adapter", module)


def build_engine(spec: EngineSpec) -> Engine:
    """Build the engine that a spec names, in this process."""
    adapter = load_adapter(spec.engine)
    unknown = sorted(set(spec.options) - adapter.capabilities().options)
    if unknown:
        raise EngineError(
            f"engine {spec.engine!r} has no option {', '.join(unknown)}; leave it away or update the engine"
        )
    return adapter.build(spec)


def _check(name: str, module: ModuleType) -> None:
    missing = [part for part in ("capabilities", "build") if not callable(getattr(module, part, None))]
    if missing:
        raise EngineError(f"engine {name!r}: module {module.__name__} offers no {' and no '.join(missing)}()")
