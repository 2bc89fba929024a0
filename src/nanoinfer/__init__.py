"""nanoinfer: a small, fast LLM inference engine with a paged KV cache."""

from nanoinfer.config import ConfigError, EngineConfig
from nanoinfer.execution.devices import DeviceMemory
from nanoinfer.execution.memory import MemoryFacts
from nanoinfer.execution.profile import DeviceProfile
from nanoinfer.execution.workers import WorkerError
from nanoinfer.llm import LLM
from nanoinfer.request import (
    FinishReason,
    RequestError,
    RequestFacts,
    RequestOutput,
    SamplingParams,
    StepFacts,
)

__all__ = [
    "LLM",
    "ConfigError",
    "DeviceMemory",
    "DeviceProfile",
    "EngineConfig",
    "FinishReason",
    "MemoryFacts",
    "RequestError",
    "RequestFacts",
    "RequestOutput",
    "SamplingParams",
    "StepFacts",
    "WorkerError",
]
