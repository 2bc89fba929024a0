"""Without a GPU the Triton kernels run in Triton's interpreter, which has to be chosen before they are imported."""

import importlib.util
import os

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=HAS_TRITON)
def _interpreter_patches_the_language_once_a_launch():
    """Spare it to patch the whole language anew for each function that a kernel calls."""
    from triton import language  # noqa: PLC0415  only where Triton is installed
    from triton.runtime import interpreter  # noqa: PLC0415  likewise

    patch_language, no_changes = interpreter._patch_lang, interpreter._LangPatchScope
    modules = {id(language), id(language.core)}  # it patches those of them that the function's module has a name for
    launch, patched = no_changes(), set()

    def patch_once(function):
        nonlocal launch, patched
        seen = modules.intersection(map(id, function.__globals__.values()))
        if launch._changes and seen <= patched:
            return no_changes()
        changes = patch_language(function)
        launch, patched = (launch, patched | seen) if launch._changes else (changes, seen)
        return changes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        yield


@pytest.fixture(autouse=HAS_TRITON)
def _interpreter_multiplies_bfloat16(monkeypatch):
    """Widen bfloat16 operands: the interpreter keeps them as uint16 and would multiply their bit patterns."""
    if torch.cuda.is_available():
        return
    import numpy as np  # noqa: PLC0415  only where Triton is installed
    import triton.language as tl  # noqa: PLC0415  likewise
    from triton.runtime import interpreter  # noqa: PLC0415  likewise

    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(operand):
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return multiply(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
