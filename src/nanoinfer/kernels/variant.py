"""Variants of kernels: made once for a shape, launched at each layer of each step with little work on the host.

Triton looks at the arguments and options of each launch as if it saw them for the first time, to find out which
specialization of the kernel they ask for. That takes the host longer than the kernels of a small step take the device,
and a layer's launches are always the same ones. So a variant keeps the compiled kernels that Triton has returned.
"""

from __future__ import annotations

from functools import reduce
from itertools import compress
from operator import attrgetter, or_
from typing import TYPE_CHECKING, Any

from torch import Tensor
from triton import knobs
from triton.runtime import JITFunction, driver

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    Grid = tuple[int, int, int]
    Tensors = tuple[Tensor, ...]
    Compiled = tuple[Callable[..., None], int, object, tuple[object, ...]]

ALIGNED_BYTES = 16  # Triton compiles for pointers that are multiples, or for any
SMALL_BITS = 31  # longer numbers, and negative ones, are not always passed as int32
_dtype = attrgetter("dtype")


class Variant:
    """One kernel with its compile-time constants and launch options (num_warps, num_stages, launch_pdl).

    The kernel's parameters are tensors, then numbers, then the constants; `do_not_specialize` names integers only.
    Triton compiles for a device, for the tensors' dtypes and alignment, for the numbers' types and, where they are
    specialized, values. What is launched here was compiled for the same of all these. Whatever is unusual is left to
    Triton: pointers that are not aligned, numbers that may need more than 32 bits, launches that a profiler listens to,
    and the interpreter. Triton's own switches (`knobs`) count when a kernel is compiled.
    """

    def __init__(self, kernel: Any, **constants: Any) -> None:  # noqa: ANN401  Triton is not typed, constants are any
        self._kernel = kernel
        self._constants = constants
        self._compiled: dict[Hashable, Compiled] = {}
        self._is_interpreted = not isinstance(kernel, JITFunction)
        params = () if self._is_interpreted else kernel.params
        self._is_open = [param.do_not_specialize for param in params]
        self._is_exact = [not is_open for is_open in self._is_open]
        self._is_aligned = [not (param.do_not_specialize or param.do_not_specialize_on_alignment) for param in params]

    def launch(self, grid: Grid, tensors: Tensors, numbers: tuple[float, ...] = ()) -> None:
        """Queue programs on the current stream; all tensors are on the current device."""
        if self._is_interpreted or self._is_watched():
            self._launch_by_triton(grid, tensors, numbers)
            return
        device = driver.active.get_current_device()
        pointers = tuple(map(Tensor.data_ptr, tensors))
        key = self._key(device, tensors, pointers, numbers)
        if (compiled := self._compiled.get(key)) is not None:
            run, function, metadata, constants = compiled
            stream = driver.active.get_current_stream(device)
            run(*grid, stream, function, metadata, None, None, None, *pointers, *numbers, *constants)
            return
        kernel = self._launch_by_triton(grid, tensors, numbers)
        if key is not None:
            names = self._kernel.arg_names[len(tensors) + len(numbers) :]
            constants = tuple(self._constants[name] for name in names)
            self._compiled[key] = kernel.run, kernel.function, kernel.packed_metadata, constants

    def _launch_by_triton(self, grid: Grid, tensors: Tensors, numbers: tuple[float, ...]) -> Any:  # noqa: ANN401  Triton's compiled kernel
        return self._kernel[grid](*tensors, *numbers, **self._constants)

    def _is_watched(self) -> bool:
        """Whether somebody wants to be told of launches, as Triton does."""
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave) or self._kernel.pre_run_hooks)

    def _key(
        self, device: int, tensors: Tensors, pointers: tuple[int, ...], numbers: tuple[float, ...]
    ) -> Hashable | None:
        """Return all that Triton compiles for, None where that is unusual."""
        first = len(tensors)
        if reduce(or_, compress(pointers, self._is_aligned), 0) % ALIGNED_BYTES:
            return None
        if reduce(or_, compress(numbers, self._is_open[first:]), 0) >> SMALL_BITS:
            return None
        exact = tuple(compress(numbers, self._is_exact[first:]))
        return device, tuple(map(_dtype, tensors)), tuple(map(type, numbers)), exact
