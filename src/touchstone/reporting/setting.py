"""The plan's chapter on machine, model and workload, filled from what was captured; nothing in it is typed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from touchstone.experiment import Bilingual
from touchstone.reporting.formatting import exact, percent
from touchstone.reporting.values import NOTHING, Amount, Code, Printable, Row, Term

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from touchstone.records import (
        Attempt,
        EngineFacts,
        Gpu,
        Hardware,
        Lengths,
        PlannedTest,
        RunPlan,
        Scalar,
        Software,
        Source,
        WorkloadSpec,
    )

BYTES_PER_GB = 1e9
GB_DECIMALS = 1
# What `ModelSpec.source` says in words; anything else is the id of a hub.
_SOURCES: dict[str, Printable] = {
    "made on the spot": Term("made_on_the_spot"),
    "local folder": Term("local_folder"),
}


@dataclass(frozen=True, slots=True)
class WorkloadRow:
    """What one test submits, and how often."""

    test_id: str
    requests: Printable
    input_tokens: Printable
    output_tokens: Printable
    concurrency: Printable
    shared_prefix: Printable
    arms: Code
    num_warmups: int
    num_processes: int
    num_repetitions: int


def hardware_rows(hardware: Hardware) -> tuple[Row, ...]:
    """Describe the machine: devices, processor, memory and the limits of the control group."""
    return (
        *_gpu_rows(hardware.gpus),
        Row(Term("cpu"), Code(hardware.cpu_model)),
        Row(Term("cores_physical"), optional(hardware.cpu_physical_cores)),
        Row(Term("cores_logical"), optional(hardware.cpu_logical_cores)),
        Row(Term("cores_usable"), optional(hardware.cpu_usable_cores)),
        Row(Term("cpu_limit"), _limit(hardware.cgroup_cpu_cores)),
        Row(Term("ram"), gigabytes(hardware.memory_bytes)),
        Row(Term("memory_limit"), _memory_limit(hardware.cgroup_memory_bytes)),
        Row(Term("host_id"), Code(hardware.host_id)),
    )


def _gpu_rows(gpus: Sequence[Gpu]) -> Iterator[Row]:
    if not gpus:
        yield Row(Term("gpu"), Term("none"))
    for gpu in gpus:
        name = Term("gpu") if len(gpus) == 1 else Code(f"GPU {gpu.index}")
        yield Row(name, Code(gpu.name))
        yield Row(Term("gpu_memory"), gigabytes(gpu.memory_bytes))
        yield Row(Term("compute_capability"), verbatim(gpu.compute_capability))
        yield Row(Term("power_limit"), NOTHING if gpu.power_limit_w is None else Amount(exact(gpu.power_limit_w), "W"))


def software_rows(software: Software, source: Source) -> tuple[Row, ...]:
    """List the versions in force and the state of the source tree."""
    return (
        Row(Term("driver"), verbatim(software.driver)),
        Row(Term("cuda"), verbatim(software.cuda)),
        Row(Term("pytorch"), verbatim(software.packages.get("torch"))),
        Row(Term("python"), Code(software.python)),
        Row(Term("operating_system"), Code(software.os)),
        Row(Term("kernel"), Code(software.kernel)),
        *(Row(Code(name), Code(version)) for name, version in sorted(software.packages.items()) if name != "torch"),
        Row(Term("commit"), verbatim(source.commit)),
        Row(Term("worktree"), _worktree(source)),
        *(() if source.diff_sha256 is None else (Row(Term("diff_hash"), Code(source.diff_sha256)),)),
    )


def model_rows(plan: RunPlan, engine: EngineFacts | None) -> tuple[Row, ...]:
    """Describe the model: where it comes from, and what the engine said of it."""
    facts = engine.model.items() if engine is not None else ()
    return (
        Row(Term("model_source"), _SOURCES.get(plan.model.source, Code(plan.model.source))),
        Row(Term("weights"), Term(f"weights_{plan.model.weights}")),
        Row(Term("precision"), Code(plan.dtype)),
        *(() if (note := model_note(plan)) is None else (Row(Term("remark"), note),)),
        *(Row(Code(name), scalar(value)) for name, value in facts),
    )


def model_note(plan: RunPlan) -> Printable | None:
    """Say why the model is not a real one; None for a real one."""
    if plan.model.note is None or plan.model.note_zh is None:
        return None if plan.model.note is None else Code(plan.model.note)
    return Bilingual(plan.model.note, plan.model.note_zh)


def run_rows(plan: RunPlan, engine: EngineFacts | None, attempts: Sequence[Attempt]) -> tuple[Row, ...]:
    """Describe the run: engine, profile, device, seed, and the engine settings in force."""
    told = [attempt.engine for attempt in attempts if attempt.engine is not None]
    name = Code(f"{engine.name} {engine.version}" if engine is not None else plan.engine)
    own = [each.settings for each in told if engine is not None and each.name == engine.name]
    settings = own or [plan.engine_options]
    return (
        Row(Term("engine"), name),
        Row(Term("profile"), Code(plan.profile)),
        Row(Term("device"), Code(plan.device)),
        Row(Term("seed"), plan.seed),
        *(Row(Code(key), Code(" / ".join(values))) for key, values in _values(settings).items()),
    )


def _values(settings: Iterable[Mapping[str, Scalar]]) -> dict[str, list[str]]:
    """Collect the values of each setting, whatever arm it was of: tests build the engine in several ways."""
    values: dict[str, dict[str, None]] = {}
    for name, value in chain.from_iterable(each.items() for each in settings):
        values.setdefault(name.rpartition(".")[2], {})[scalar(value).text] = None
    return {name: list(seen) for name, seen in values.items()}


def workload_rows(tests: Sequence[PlannedTest]) -> tuple[WorkloadRow, ...]:
    """List the workload of each planned test that has one."""
    return tuple(_workload_row(test, test.workload) for test in tests if test.workload is not None)


def _workload_row(test: PlannedTest, workload: WorkloadSpec) -> WorkloadRow:
    return WorkloadRow(
        test_id=test.test_id,
        requests=workload.num_requests,
        input_tokens=_lengths(workload.input_tokens),
        output_tokens=_lengths(workload.output_tokens),
        concurrency=_concurrency(workload),
        shared_prefix=_shared_prefix(workload),
        arms=Code(", ".join(arm.name for arm in test.arms)),
        num_warmups=test.num_warmups,
        num_processes=test.num_processes,
        num_repetitions=test.num_repetitions,
    )


def _lengths(lengths: Lengths) -> Amount:
    same = lengths.low == lengths.high
    return Amount(exact(lengths.low) if same else f"{exact(lengths.low)}–{exact(lengths.high)}", "tokens")


def _concurrency(workload: WorkloadSpec) -> Printable:
    if workload.load is not None:
        load = percent(workload.load, 0)
        return Bilingual(
            f"Poisson arrivals, {load} of the rate served all at once", f"泊松到达，为全部同时提交时服务速率的 {load}"
        )
    if workload.request_rate_per_s is not None:
        rate = exact(workload.request_rate_per_s)
        return Bilingual(f"Poisson arrivals, {rate} a second", f"泊松到达，每秒 {rate} 个")
    return Term("all_at_once") if workload.concurrency is None else workload.concurrency


def _shared_prefix(workload: WorkloadSpec) -> Printable:
    if not workload.shared_fraction:
        return NOTHING
    requests, prefix = percent(workload.shared_fraction, 0), percent(workload.prefix_fraction, 0)
    return Bilingual(
        f"{requests} of the requests, {prefix} of their length", f"{requests} 的请求，前缀占长度的 {prefix}"
    )


def gigabytes(size: int) -> Amount:
    """Show bytes as decimal gigabytes."""
    return Amount(f"{size / BYTES_PER_GB:.{GB_DECIMALS}f}", "GB")


def optional(value: int | None) -> Printable:
    """Show a count, or say that it was not obtained."""
    return Term("unknown") if value is None else value


def verbatim(value: str | None) -> Printable:
    """Show a text as it is, or say that there is none."""
    return Term("none") if value is None else Code(value)


def scalar(value: Scalar) -> Code:
    """Show a setting as JSON would write it; None is what an engine did not decide or tell."""
    if value is None or isinstance(value, bool):
        return Code({None: "null", True: "true", False: "false"}[value])
    return Code(str(value))


def _limit(cores: float | None) -> Printable:
    return Term("no_limit") if cores is None else Amount(exact(cores))


def _memory_limit(size: int | None) -> Printable:
    return Term("no_limit") if size is None else gigabytes(size)


def _worktree(source: Source) -> Term:
    if source.dirty is None:
        return Term("unknown")
    return Term("dirty" if source.dirty else "clean")
