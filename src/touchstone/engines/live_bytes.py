"""How many bytes of temporaries a torch program holds at its peak, on a device whose allocator does not say: the CPU.

Every storage that an operator hands out is counted from its birth to its release. Scratch space that an operator
allocates and frees inside itself is not seen.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the base class untyped
    """Count the bytes of storages made while the mode is entered; `peak_bytes` is the most alive at one time.

    Storages that existed before (weights, KV pool) are not counted, whatever is done to them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves the base class untyped
        self.peak_bytes: int = 0
        self._live_bytes = 0
        self._noted: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> Any:  # noqa: ANN401  whatever the operator returns
        """Run the operator and note the storages that it hands out for the first time."""
        for storage in _storages((args, kwargs)):
            self._note(storage, 0)  # an input that is new here was there before
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._note(storage, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        return result

    def _note(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        identity = storage._cdata  # noqa: SLF001  the only stable identity of a storage
        if identity not in self._noted:
            self._noted[identity] = weakref.ref(storage, partial(self._release, identity, num_bytes))
            self._live_bytes += num_bytes

    def _release(self, identity: int, num_bytes: int, _reference: object) -> None:
        del self._noted[identity]
        self._live_bytes -= num_bytes


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_iter(tree):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
            yield leaf.untyped_storage()
