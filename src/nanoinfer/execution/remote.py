"""A tensor-parallel engine's execution, seen from the process that schedules: the ranks are workers elsewhere.

Steps are staged here, once, and go to every rank as integers; the first rank sends the sampled tokens back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from nanoinfer.execution.channel import Kind
from nanoinfer.execution.contract import Execution
from nanoinfer.execution.cuda_graphs import GraphFacts, GraphSizes, graph_sizes
from nanoinfer.execution.devices import DeviceMemory
from nanoinfer.execution.meeting import Host, Meeting, accept
from nanoinfer.execution.memory import MemoryFacts
from nanoinfer.execution.profile import DeviceProfile
from nanoinfer.execution.rank import UNTIMED
from nanoinfer.execution.seeds import Seeds
from nanoinfer.execution.staging import StagedDecodes, Stager
from nanoinfer.execution.wire import encode
from nanoinfer.execution.workers import Worker, Workers, spawn
from nanoinfer.model.parallel import Alone, TensorParallel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nanoinfer.config import EngineConfig
    from nanoinfer.execution.staging import StagedStep
    from nanoinfer.model.config import ModelConfig
    from nanoinfer.scheduling.plan import StepPlan


@dataclass(slots=True)
class RemoteHandle:
    """A step that the ranks work on; `tokens` waits for it. Steps are waited for in their order."""

    workers: Workers
    step: StagedStep
    elapsed_ns: int | None = None

    @property
    def graph(self) -> bool:
        """Whether a CUDA graph is replayed."""
        return self.step.replay

    def tokens(self) -> list[int]:
        """Wait for the ids, one for each sampled row in the plan's order."""
        answer = self.workers.receive(0, Kind.TOKENS).integers
        device_ns = int(answer[0])
        self.elapsed_ns = None if device_ns == UNTIMED else device_ns
        if isinstance(self.step, StagedDecodes):
            return self.step.staged.in_plan_order(answer[1:])
        ids: list[int] = answer[1:].tolist()
        return ids

    def device_ns(self) -> int | None:
        """Time the step took on the first rank's device, None where that was not recorded; call it after `tokens`."""
        return self.elapsed_ns


class RemoteRunner:
    """Runs plans on the ranks."""

    def __init__(self, workers: Workers, stager: Stager, sizes: GraphSizes) -> None:
        self._workers = workers
        self._stager = stager
        self._graph_sizes = sizes

    def launch(self, plan: StepPlan) -> RemoteHandle:
        """Send one step to all ranks and return without waiting for it."""
        step = self._stager.stage(plan, *self._graph_sizes)
        self._workers.broadcast(Kind.STEP, integers=encode(step))
        return RemoteHandle(self._workers, step)


def build_remote(
    config: EngineConfig,
    model_config: ModelConfig,
    folder: Path,
    *,
    devices: Sequence[torch.device],
    launched: Meeting | None = None,
    name: str = "",
) -> Execution:
    """Start a rank on each device and let them build the model together.

    Where another launcher has started the processes, only the first rank is started here; the others come to the
    meeting. `name` goes before the ranks' in messages. What a rank refuses is raised here.
    """
    TensorParallel(0, config.tensor_parallel_size, Alone()).local(model_config)  # refuses what cannot be split
    host = Host(launched)
    workers = _start(config, folder, devices=devices, meeting=host.meeting, joined=launched is not None, name=name)
    try:
        facts = [workers.receive(rank, Kind.READY, limited=False).facts for rank in range(len(devices))]
    except BaseException:
        workers.close()
        host.close()
        raise
    return _execution(config, model_config, workers, facts, host)


def _start(
    config: EngineConfig, folder: Path, *, devices: Sequence[torch.device], meeting: Meeting, joined: bool, name: str
) -> Workers:
    names = [f"{name}rank {rank}" for rank in range(len(devices))]
    num_spawned = 1 if joined else len(devices)
    own = [spawn(names[rank]) for rank in range(num_spawned)]
    others = accept(meeting, len(devices) - num_spawned)
    all_workers = own + [
        Worker(worker, channel, None) for worker, channel in zip(names[num_spawned:], others, strict=True)
    ]
    workers = Workers(all_workers, rank_timeout_s=config.rank_timeout_s)
    setup: dict[str, Any] = {
        "role": "rank",
        "config": asdict(config) | {"data_parallel_size": 1},
        "folder": str(folder),
        "meeting": meeting.part("ranks").as_facts(),
        "num_threads": max(1, torch.get_num_threads() // len(devices)),
        "rank_timeout_s": config.rank_timeout_s,
    }
    for rank, device in enumerate(devices):
        workers.send(rank, Kind.SETUP, setup | {"rank": rank, "device": str(device)})
    return workers


def _execution(
    config: EngineConfig,
    model_config: ModelConfig,
    workers: Workers,
    facts: Sequence[Any],
    host: Host,
) -> Execution:
    first = facts[0]
    graphs = None if first["graphs"] is None else GraphFacts(**first["graphs"])
    sizes = GraphSizes() if graphs is None else graph_sizes(config, first["max_model_len"])
    stager = Stager(
        Seeds(config.seed),
        num_slots=config.max_num_seqs,
        num_blocks=first["num_blocks"],
        vocab_size=model_config.vocab_size,
        pin_memory=False,
    )
    return Execution(
        runner=RemoteRunner(workers, stager, sizes),
        device=torch.device(first["device"]),
        dtype=getattr(torch, first["dtype"]),
        num_blocks=first["num_blocks"],
        max_model_len=first["max_model_len"],
        block_bytes=first["block_bytes"],
        pool_bytes=first["pool_bytes"],
        weights_bytes=first["weights_bytes"],
        activations_peak_bytes=first["activations_peak_bytes"],
        graphs=graphs,
        ranks=RemoteRanks(workers, tuple(facts), host),
    )


@dataclass(frozen=True, slots=True)
class RemoteRanks:
    """The ranks' processes, what each said when it was ready, and the store that they met at."""

    workers: Workers
    ready: tuple[Any, ...]
    host: Host

    def memory(self, num_used_blocks: int) -> list[DeviceMemory]:
        """Where the bytes are on every rank's device; every rank uses the same blocks."""
        self.workers.broadcast(Kind.MEMORY)
        answers = [self.workers.receive(rank, Kind.MEMORY).facts for rank in range(len(self.ready))]
        return [
            DeviceMemory(
                ready["device"],
                _memory_facts(ready, num_used_blocks),
                bytes_in_use=answer["device_bytes_in_use"],
                bytes_before=ready["device_bytes_before"],
            )
            for ready, answer in zip(self.ready, answers, strict=True)
        ]

    def start_profile(self) -> None:
        """Let every rank record what its device does; returns when all do."""
        self.workers.broadcast(Kind.START_PROFILE)
        for rank in range(len(self.ready)):
            self.workers.receive(rank, Kind.START_PROFILE)

    def stop_profile(self) -> list[DeviceProfile | None]:
        """Return what each rank's device did since; None for a CPU."""
        self.workers.broadcast(Kind.STOP_PROFILE)
        found = [self.workers.receive(rank, Kind.STOP_PROFILE).facts["profile"] for rank in range(len(self.ready))]
        return [None if profile is None else DeviceProfile(**profile) for profile in found]

    def close(self) -> None:
        """End the ranks, and the store that they met at."""
        self.workers.close()
        self.host.close()


def _memory_facts(ready: Any, num_used_blocks: int) -> MemoryFacts:  # noqa: ANN401  facts as they came over the channel
    graphs = ready["graphs"]
    return MemoryFacts(
        weights_bytes=ready["weights_bytes"],
        kv_pool_bytes=ready["pool_bytes"],
        kv_block_bytes=ready["block_bytes"],
        kv_used_peak_bytes=num_used_blocks * ready["block_bytes"],
        activations_peak_bytes=ready["activations_peak_bytes"],
        cuda_graphs_bytes=None if graphs is None else graphs["capture_bytes"],
    )
