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
