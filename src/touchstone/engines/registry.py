"""Engine names and the adapters behind them. An adapter is imported only when its engine is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

from touchstone.engines.base import Capabilities, Engine, EngineError, EngineSpec
from touchstone.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType


@dataclass(frozen=True, slots=True)
class Shipped:
    """An adapter of ours: its module, the package that its engine lives in, and how to get that package."""

    module: str
    package: str
    install: str


ADAPTERS: Mapping[str, Shipped] = MappingProxyType(
    {
        "nanoinfer": Shipped("touchstone.engines.nanoinfer", "nanoinfer", "pip install -e ."),
        "nano-vllm": Shipped(
            "touchstone.engines.nano_vllm",
            "nanovllm",
            "pip install flash-attn git+https://github.com/GeeeekExplorer/nano-vllm.git",
        ),
        "openai-server": Shipped("touchstone.engines.openai_server", "aiohttp", "pip install aiohttp"),
        "transformers": Shipped("touchstone.engines.transformers", "transformers", "pip install transformers"),
        "vllm": Shipped("touchstone.engines.vllm", "vllm", "pip install vllm"),
    }
)


class Adapter(Protocol):
    """What an adapter module offers."""

    def capabilities(self) -> Capabilities:
        """Tell what the engine can switch and report, without loading a model or the engine's package."""
        ...

    def build(self, spec: EngineSpec) -> Engine:
        """Build the engine in this process."""
        ...


def load_adapter(name: str) -> Adapter:
    """Import the adapter of an engine, but not the engine.

    `name` is one of `ADAPTERS`, or the import path of a module of your own that offers `capabilities()` and
    `build(spec)`; EngineError names what is missing.
    """
    path = ADAPTERS[name].module if name in ADAPTERS else name
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if (reason := why_not_installed(name)) is not None:
            raise EngineError(reason) from error
        known = ", ".join(sorted(ADAPTERS))
        raise EngineError(
            f"engine {name!r} cannot be loaded: {error}; use one of {known}, or the import path of an adapter "
            f"module{did_you_mean(name, ADAPTERS)}"
        ) from error
    except Exception as error:  # a module of one's own can fail in any way
        raise EngineError(f"engine {name!r}: importing {path} fails with {_named(error)}; mend that module") from error
    _check(name, module)
    return cast("Adapter", module)


def capabilities_of(name: str) -> Capabilities:
    """Ask an adapter what its engine can do; EngineError with the remedy where nothing usable comes back."""
    if (reason := why_not_installed(name)) is not None:
        raise EngineError(reason)
    adapter = load_adapter(name)
    try:
        told = adapter.capabilities()
    except Exception as error:  # likewise
        raise EngineError(f"engine {name!r}: capabilities() fails with {_named(error)}; mend the adapter") from error
    if not isinstance(told, Capabilities):
        raise EngineError(
            f"engine {name!r}: capabilities() returns {type(told).__name__}; "
            "return a touchstone.engines.base.Capabilities"
        )
    return told


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def why_not_installed(name: str) -> str | None:
    """Say which package an engine lacks and how to get it; None where it is there, or where nobody can know before."""
    shipped = ADAPTERS.get(name)
    if shipped is None or find_spec(shipped.package) is not None:
        return None
    return f"engine {name!r} needs the package {shipped.package}, which is not installed: {shipped.install}"


def build_engine(spec: EngineSpec) -> Engine:
    """Build the engine that a spec names, in this process."""
    adapter = load_adapter(spec.engine)
    capabilities = adapter.capabilities()
    unknown = sorted(set(spec.options) - capabilities.options)
    if unknown:
        raise EngineError(
            f"engine {spec.engine!r} has no option {', '.join(unknown)}; leave it away or update the engine"
        )
    for option, value in capabilities.refuses(spec.options).items():
        only = capabilities.fixed[option]
        raise EngineError(f"engine {spec.engine!r} has {option} = {only} only, not {value}; leave the option away")
    if (reason := why_not_installed(spec.engine)) is not None:
        raise EngineError(reason)
    return adapter.build(spec)


def _check(name: str, module: ModuleType) -> None:
    missing = [part for part in ("capabilities", "build") if not callable(getattr(module, part, None))]
    if missing:
        raise EngineError(f"engine {name!r}: module {module.__name__} offers no {' and no '.join(missing)}()")
