"""Frozen settings of the engine; everything is validated here, nothing writes to it later."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from nanoinfer.fields import wrong_type

SchedulingPolicy = Literal["separated", "mixed"]
WeightSource = Literal["checkpoint", "synthetic"]
DType = Literal["float32", "float16", "bfloat16"]
AllReduce = Literal["auto", "nccl"]
Placement = Literal["least_work", "prefix"]


_COUNTS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "num_kv_blocks",
    "kv_cache_bytes",
    "tensor_parallel_size",
    "data_parallel_size",
)
_LONGEST_TIMEOUT_S = 1e6  # eleven days; what the system waits for is counted in 32 bits


class ConfigError(ValueError):
    """A setting that cannot work; the message names the value and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the engine runs. Every field is a switch that an experiment may set.

    model                   local folder or hub id
    tokenizer               local folder or hub id; None takes the model's own, if there is one
    revision                branch, tag or commit on the hub
    weights                 "checkpoint" loads safetensors; "synthetic" draws them from `seed` (config.json suffices)
    device                  "cpu", "cuda" or "cuda:N"; None takes CUDA where torch sees a device
    dtype                   None takes float16 on a GPU and float32 on a CPU
    max_model_len           longest prompt plus output; None takes the model's own limit
    max_num_seqs            requests that run at the same time
    max_num_batched_tokens  token budget of one step
    block_size              tokens of one KV block, a power of two
    num_kv_blocks           size of the KV pool in blocks; None sizes it from memory
    kv_cache_bytes          size of the KV pool in bytes; not together with `num_kv_blocks`
    memory_fraction         share of the device's memory that the engine may take when it sizes the pool itself
    prefix_cache            find prompt blocks computed before, by content
    scheduling              "separated": a step is all prefill or all decode; "mixed": both share the token budget
    overlap                 launch step n + 1 before the tokens of step n were read, so that the host's work hides
                            behind the device's; None does so on a GPU only, because a CPU computes while it launches
    cuda_graphs             replay steps from CUDA graphs, captured at the start for padded sizes; without a GPU there
                            are none, whatever this says. Steps with more tokens than the largest graph, and steps in
                            which a request samples with top_k or top_p, are launched kernel by kernel
    seed                    synthetic weights, and sampling of requests without a seed of their own
    tensor_parallel_size    devices that share every layer of one model; each holds a part of its heads and vocabulary
    data_parallel_size      engines with a model of their own, each on `tensor_parallel_size` devices, behind one front
                            door; devices are counted on from `device`
    placement               which engine a request goes to: the one with the least outstanding tokens ("least_work"), or
                            the one that has the least left to do when the prefix it was given before counts as done
                            ("prefix")
    all_reduce              how devices add up their parts: "auto" goes through symmetric memory where the devices allow
                            it, "nccl" never does; without a GPU it is gloo, whatever this says
    rank_timeout_s          how long a process of the engine may be silent, or a step may take, before the run is ended
    """

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    weights: WeightSource = "checkpoint"
    device: str | None = None
    dtype: DType | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 16384
    block_size: int = 16
    num_kv_blocks: int | None = None
    kv_cache_bytes: int | None = None
    memory_fraction: float = 0.9
    prefix_cache: bool = True
    scheduling: SchedulingPolicy = "separated"
    overlap: bool | None = None
    cuda_graphs: bool = True
    seed: int = 0
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    placement: Placement = "least_work"
    all_reduce: AllReduce = "auto"
    rank_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, before anything is loaded."""
        if (fault := wrong_type(self)) is not None:
            raise ConfigError(fault)
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.block_size < 1 or self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size is {self.block_size}; use a power of two such as 16 or 64")
        if not 0.0 < self.memory_fraction <= 1.0:
            raise ConfigError(f"memory_fraction is {self.memory_fraction}; use a number above 0 and at most 1")
        if self.num_kv_blocks is not None and self.kv_cache_bytes is not None:
            raise ConfigError("num_kv_blocks and kv_cache_bytes are both set; set one of them")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; use an integer from 0 to 2**63 - 1")
        if not 0.0 < self.rank_timeout_s <= _LONGEST_TIMEOUT_S:
            raise ConfigError(
                f"rank_timeout_s is {self.rank_timeout_s}; use seconds above 0 and at most {_LONGEST_TIMEOUT_S:.0f}"
            )

    @classmethod
    def from_options(cls, model: str, **options: Any) -> EngineConfig:  # noqa: ANN401  options are checked by name here and by value in __post_init__
        """Build a config from keyword options; an unknown name is an error that lists the known ones."""
        known = {field.name for field in fields(cls)} - {"model"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ConfigError(f"unknown option {', '.join(unknown)}; known options: {', '.join(sorted(known))}")
        return cls(model=model, **options)
