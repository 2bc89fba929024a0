"""Every record that Touchstone writes, as frozen pydantic models; the JSON Schemas are exported from here.

Units are part of the names: `_ns`, `_s`, `_bytes`, `_tokens`. A fact that was not obtained is None, never 0.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = "1.0"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Scalar = bool | int | float | str | None


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# --- environment ----------------------------------------------------------------------------------------------------


class Gpu(Record):
    """One NVIDIA device as the driver describes it."""

    index: int
    name: str
    memory_bytes: int
    compute_capability: str | None
    power_limit_w: float | None


class Hardware(Record):
    """The machine, captured and never typed in."""

    host_id: str = Field(description="first 12 hex digits of the SHA-256 of the machine id; names no host")
    cpu_model: str
    cpu_physical_cores: int | None
    cpu_logical_cores: int
    cpu_usable_cores: int = Field(description="cores in this process's affinity mask")
    cgroup_cpu_cores: float | None = Field(description="CPU quota of the control group in cores; None without a limit")
    cgroup_memory_bytes: int | None = Field(description="memory limit of the control group; None without a limit")
    memory_bytes: int
    gpus: tuple[Gpu, ...]


class Software(Record):
    """Versions in force. `packages` maps distribution names to versions."""

    os: str
    kernel: str
    python: str
    driver: str | None
    cuda: str | None
    packages: dict[str, str]


class ClockUse(Record):
    """Which source files of the instrument read a clock or wait for a device, by their own statements."""

    num_files: int = Field(description="files searched")
    readers: tuple[str, ...] = Field(description="those that do, relative to the package")
    unreadable: tuple[str, ...] = Field(description="files that are no Python")


class Source(Record):
    """Which code ran."""

    commit: str | None
    dirty: bool | None
    diff_sha256: Sha256 | None = Field(description="hash of the uncommitted changes; None on a clean tree")
    lock_sha256: Sha256 | None = Field(description="hash of the pinned requirement files, concatenated in name order")
    clock: ClockUse | None = Field(default=None, description="None in runs from before it was recorded")


class Environment(Record):
    """Where the numbers come from. `fingerprint` is the SHA-256 of the other fields in canonical JSON."""

    hardware: Hardware
    software: Software
    source: Source
    fingerprint: Sha256


# --- traces: what one timed repetition leaves behind ----------------------------------------------------------------


class RequestTrace(Record):
    """Facts about one request; times are host nanoseconds since the trace began (arrivals may be 0).

    `emissions` index the trace's `emission_times_ns`: entry i is the moment when output token i was on the host.
    """

    request_id: int
    arrival_ns: int
    scheduled_ns: int | None
    prompt_tokens: int
    cached_tokens: int | None
    requested_tokens: int
    emissions: tuple[int, ...]
    finish_reason: str
    output_sha256: Sha256 = Field(description="SHA-256 of the output ids as little-endian int32")
    distinct_tokens: int
    preemptions: int | None


class StepTrace(Record):
    """Facts about one engine step; times are host nanoseconds since the trace began."""

    kind: Literal["prefill", "decode", "mixed"]
    prefill_tokens: int
    decode_tokens: int
    batch: int
    graph: bool
    begin_ns: int
    launched_ns: int | None = Field(description="when the host had launched the step; None where no one can tell")
    end_ns: int
    device_ns: int | None = Field(description="between the device events at its ends, gaps between kernels included")
    rank: int = Field(default=0, description="data-parallel replica that made the step; replicas overlap in time")


class Trace(Record):
    """One timed repetition. `steps` is None for an engine that does not tell its steps.

    `duration_ns` runs from the first submission to the last token with the device synchronized on both sides.
    """

    duration_ns: int
    emission_times_ns: tuple[int, ...]
    requests: tuple[RequestTrace, ...]
    steps: tuple[StepTrace, ...] | None
    peak_concurrency: int | None
    peak_kv_blocks_used: int | None
    output_sha256: Sha256 = Field(description="SHA-256 over the requests' output hashes in request order")


# --- the machine beside a timed run ---------------------------------------------------------------------------------


class CanaryReading(Record):
    """Own speed of this machine at one moment, from work that never changes (`touchstone.canary`)."""

    flops_per_s: float = Field(gt=0, description="F: floating-point operations of a fixed matrix product, per second")
    bytes_per_s: float = Field(gt=0, description="B: bytes read and written by a fixed copy, per second")
    operation_s: float = Field(gt=0, description="seconds that the host needs to start one smallest operation")
    read_again: int = Field(
        default=0,
        ge=0,
        description="how often it was taken again because it lay below the best of its process; the fastest counts",
    )


class Canary(Record):
    """The readings right before and right after a timed run."""

    before: CanaryReading
    after: CanaryReading


class GpuTelemetry(Record):
    """One GPU over a timed run. A value that the driver does not give is None."""

    index: int
    sm_clock_min_mhz: float | None
    sm_clock_median_mhz: float | None
    memory_clock_median_mhz: float | None
    power_mean_w: float | None
    energy_j: float | None = Field(description="difference of the driver's energy counter")
    temperature_max_c: float | None
    slowdown_s: dict[str, float] | None = Field(
        description="seconds for which the driver held the clocks down, by reason, from its counters; only reasons > 0"
    )
    other_processes: int | None = Field(description="most processes on the device that are not of this run")


class Telemetry(Record):
    """What happened to the machine during a timed run: counters at both ends, and samples in between."""

    duration_s: float
    interval_s: float
    num_samples: int
    load_average: float | None = Field(description="one-minute load average after the run")
    throttled_s: float | None = Field(description="seconds for which the control group's CPU quota stopped its tasks")
    voluntary_switches: int | None
    involuntary_switches: int | None = Field(description="how often the kernel took a core from this process")
    other_busy_cores: float | None = Field(description="mean number of cores kept busy by other processes")
    gpus: tuple[GpuTelemetry, ...]


class DeviceMemory(Record):
    """One of several devices of an engine."""

    device: str
    kv_pool_bytes: int
    total_peak_bytes: int | None = Field(description="the device's own total; None for a CPU, which has none")
    instrument_bytes: int | None = Field(default=None, description="what the instrument holds there; part of the total")


class MemoryParts(Record):
    """Where the bytes are, device memory on a GPU and resident memory of the process without one.

    `weights + kv_pool + activations_peak + cuda_graphs + context_and_other + residual == device_total_peak`.
    `context_and_other` is measured before the engine exists; `residual` is what remains unexplained, and may be
    negative. The parts are sums over all devices of the engine; `devices` holds what is told of each.
    """

    device: str
    weights_bytes: int = Field(description="unique parameter storages")
    kv_pool_bytes: int
    kv_block_bytes: int
    kv_used_peak_bytes: int = Field(description="blocks in use at the peak, in bytes; part of the pool")
    activations_peak_bytes: int | None = Field(description="peak of temporaries during the run")
    cuda_graphs_bytes: int | None
    context_and_other_bytes: int
    instrument_bytes: int | None = Field(
        default=None, description="device memory that the instrument holds for its canary; part of context and other"
    )
    device_total_peak_bytes: int
    residual_bytes: int | None
    method: str = Field(description="how each part was obtained, one sentence")
    devices: tuple[DeviceMemory, ...] = Field(default=(), description="one entry a device where there are several")


# --- the plan of a run, made and hashed before anything is measured -------------------------------------------------


class Lengths(Record):
    """How many tokens: `low == high` is fixed, otherwise uniform over low..high inclusive."""

    low: int = Field(ge=1)
    high: int = Field(ge=1)


class WorkloadSpec(Record):
    """A seeded synthetic workload; see `touchstone.workload` for how requests follow from it.

    Concurrency None means that all requests are submitted at once (or at their arrival times); 1 means one after the
    other. `request_rate_per_s` draws Poisson arrivals; `load` does so at a share of the rate at which the baseline arm
    serves the same requests all at once, measured in the same process. `shared_fraction` of the requests begin with one
    common prefix of `prefix_fraction` of their length.
    """

    num_requests: int = Field(ge=1)
    input_tokens: Lengths
    output_tokens: Lengths
    concurrency: int | None = None
    request_rate_per_s: float | None = None
    load: float | None = None
    shared_fraction: float = Field(default=0.0, ge=0, le=1)
    prefix_fraction: float = Field(default=0.0, ge=0, le=1)
    temperature: float = 0.0


class ArmSpec(Record):
    """One side of a comparison: a name and what makes it differ, engine options or (in the control) extra work."""

    name: str
    options: dict[str, Scalar]
    extra_output: float = Field(
        default=0.0, ge=0, description="share of output tokens asked for beyond the workload's; only in the control"
    )
    num_gpus: int = Field(default=1, ge=1, description="devices that the arm takes, 0 .. num_gpus - 1")
    engine: str | None = Field(
        default=None, description="engine of an arm that compares engines, whose options are then complete"
    )
    num_requests: int | None = Field(
        default=None, ge=1, description="requests of this arm where they are not the workload's number"
    )


class AbsentArm(Record):
    """An arm that this machine or this engine cannot run, with the reason."""

    arm: ArmSpec
    reason: str
    reason_zh: str


class ModelSpec(Record):
    """Which model, as given to the engine."""

    source: str = Field(description="hub id, or 'local folder', or 'made on the spot'; never a path of the machine")
    weights: Literal["loaded", "synthetic"]
    note: str | None = Field(description="why the weights are synthetic or the model tiny; None for a real model")
    note_zh: str | None = None


class UnitPlan(Record):
    """What one fresh process does for one test: which arms in which order, how many timed repetitions, which seed.

    Units of one `shared_process` are measured by one process, one after the other.
    """

    unit_id: str
    test_id: str
    process: int
    shared_process: str | None = None
    arm_order: tuple[str, ...] = Field(description="one timed run an entry, repeated `num_repetitions` times")
    num_warmups: int
    num_repetitions: int
    seed: int


class PlannedTest(Record):
    """What the run will do for one test of the user's plan."""

    test_id: str
    engine: str | None
    arms: tuple[ArmSpec, ...]
    workload: WorkloadSpec | None
    num_processes: int
    num_repetitions: int
    num_warmups: int
    estimated_s: float
    engine_options: dict[str, Scalar] = Field(default={}, description="options that all arms of this test share")
    margin: float | None = Field(default=None, description="ratio - 1 within which paired arms count as equivalent")
    repeat_last: bool = Field(default=False, description="whether each process ends with its last run once more")
    axis: str | None = Field(default=None, description="of a point: the quantity that its sweep varies")
    absent_arms: tuple[AbsentArm, ...] = Field(default=(), description="declared arms that are not run")
    warmup_output_tokens: int | None = Field(default=None, description="most output tokens of a warm-up request")
    prompts_of: str | None = Field(default=None, description="test whose seeds, and so prompts, this one shares")
    profile_devices: bool = Field(default=False, description="whether a process ends with a profiled run of each arm")


class NotMeasured(Record):
    """A test that this run does not measure, with the reason."""

    test_id: str
    reason: str
    reason_zh: str


class RunPlan(Record):
    """Everything decided in advance. `plan_sha256` is the SHA-256 of the other fields in canonical JSON."""

    schema_version: str
    profile: Literal["smoke", "quick", "paper"]
    seed: int
    engine: str
    peers: tuple[str, ...] = Field(default=(), description="further engines, which the tests that compare engines run")
    device: str
    dtype: str
    model: ModelSpec
    engine_options: dict[str, Scalar]
    threads: int | None = Field(default=None, description="processor threads of each measuring process")
    canary_limit: float | None = Field(
        default=None,
        description="a canary that moved by more makes an attempt invalid: larger / smaller rate - 1; None reads none",
    )
    telemetry_enforced: bool = Field(default=False, description="whether a disturbed machine makes an attempt invalid")
    tests: tuple[PlannedTest, ...]
    units: tuple[UnitPlan, ...] = Field(description="in the order in which they are run")
    not_measured: tuple[NotMeasured, ...]
    plan_sha256: Sha256


# --- ledger bodies --------------------------------------------------------------------------------------------------


class GraphCapture(Record):
    """What the capture of an engine's CUDA graphs cost, once, before its first request."""

    num_graphs: int
    capture_s: float
    capture_bytes: int = Field(description="device memory that they keep, the driver's own included")


class EngineFacts(Record):
    """The engine as it said of itself inside the process that measured.

    `shares_at_admission` promises that a request finds every whole block of the prompts admitted before it, those of
    its own step included; None where the engine does not say from when on blocks can be found.
    """

    name: str
    version: str
    settings: dict[str, Scalar]
    model: dict[str, Scalar] = Field(description="architecture, parameters, weight bytes, layers, heads, dtype, ...")
    graphs: GraphCapture | None = None
    shares_at_admission: bool | None = None


class Measurement(Record):
    """One timed run. The trace lies in a compressed file beside the ledger, named by its hash."""

    unit_id: str
    test_id: str
    arm: str
    position: int = Field(description="index of the run inside its process, from 0")
    repetition: int
    seed: int
    started_at: str
    trace_sha256: Sha256 = Field(description="hash of the uncompressed canonical JSON; file traces/<hash>.json.gz")
    memory: MemoryParts | None
    canary: Canary | None = None
    other_canaries: tuple[Canary, ...] = Field(
        default=(), description="of the devices after the first where the arm takes several, in order of their index"
    )
    telemetry: Telemetry | None = None
    request_rate_per_s: float | None = Field(
        default=None, description="the arrival rate that a load came to in this process; None without a load"
    )
    graphs: GraphCapture | None = Field(default=None, description="what the arm's CUDA graphs cost; None without them")


class DeviceWork(Record):
    """What one GPU did in a profiled run, by its kernels; `communication_ns` holds the waiting for other GPUs."""

    arm: str | None = Field(default=None, description="whose engine was profiled; None is the unit's only arm")
    device: str
    span_ns: int = Field(description="from the begin of the first kernel or copy to the end of the last")
    busy_ns: int = Field(description="part of the span in which at least one of them ran")
    communication_ns: int = Field(description="kernels that add up or gather between GPUs")


class Attempt(Record):
    """What came of a unit in one process. `startup_s` is None where engines of a unit before were used again."""

    unit_id: str
    test_id: str
    attempt: int = Field(ge=1)
    valid: bool
    reason: str | None = Field(description="why it is not valid; None when it is")
    started_at: str
    ended_at: str
    environment_fingerprint: Sha256
    plan_sha256: Sha256
    engine: EngineFacts | None
    startup_s: float | None
    measurements: tuple[Measurement, ...]
    device_work: tuple[DeviceWork, ...] | None = Field(
        default=None,
        description="one more run of each arm after the timed ones, of other prompts, under a profiler; None where "
        "none was made",
    )
    repeated: Measurement | None = Field(
        default=None,
        description="the last run once more, with the same prompts on the same engine; shows whether results are "
        "cached, and is part of no metric",
    )


class FunctionMetrics(Record):
    """One function as the syntax tree, radon and lizard see it; None where a tool does not report it."""

    file: str
    line: int
    name: str
    num_lines: int
    complexity_radon: int | None
    complexity_lizard: int | None
    difference_causes: tuple[str, ...]


class FileMetrics(Record):
    """Counts of one source file. `naive_*` are the plan's text counts, kept to show what they miss.

    A file with an `error` is no Python: what only a syntax tree can count is None.
    """

    file: str
    package: str
    physical_lines: int
    source_lines: int | None = Field(description="lines with code: no blanks, comments or docstrings")
    functions: int | None
    classes: int | None
    functions_radon: int | None
    functions_lizard: int | None
    classes_radon: int | None
    naive_lines: int
    naive_functions: int
    naive_classes: int
    error: str | None


class CodeMetrics(Record):
    """Test 4.1 over one tree: the syntax tree is the referee, the two tools are joined to it."""

    tree: str = Field(description="what was measured, relative to the repository")
    tree_sha256: Sha256
    radon_version: str
    lizard_version: str
    python_version: str
    files: tuple[FileMetrics, ...]
    functions: tuple[FunctionMetrics, ...]
    differences: dict[str, int] = Field(description="cause -> number of functions or files where the tools differ")
    unexplained: tuple[str, ...] = Field(description="file:line of differences without a known cause; must be empty")

    def by_package(self) -> dict[str, tuple[list[FileMetrics], list[FunctionMetrics]]]:
        """Files and functions of every package, in the order of their names."""
        package_of = {file.file: file.package for file in self.files}
        parts: dict[str, tuple[list[FileMetrics], list[FunctionMetrics]]] = {
            package: ([], []) for package in sorted(set(package_of.values()))
        }
        for file in self.files:
            parts[file.package][0].append(file)
        for function in self.functions:
            parts[package_of[function.file]][1].append(function)
        return parts


class QualityAttempt(Record):
    """Test 4.1 as one ledger entry."""

    test_id: Literal["4.1"]
    environment_fingerprint: Sha256
    plan_sha256: Sha256
    measured_at: str
    code: CodeMetrics


class RunEvent(Record):
    """Something that happened to the run as a whole."""

    event: Literal["started", "interrupted", "resumed", "finished"]
    at: str
    detail: str | None


class EntryKind(StrEnum):
    """What a ledger line holds."""

    ENVIRONMENT = "environment"
    PLAN = "plan"
    EVENT = "event"
    ATTEMPT = "attempt"
    QUALITY = "quality"


class LedgerEntry(Record):
    """One line of `ledger.jsonl`; `sha256` covers every other field in canonical JSON, the previous hash included."""

    seq: int = Field(ge=0)
    previous_sha256: Sha256 = Field(description="64 zeros on the first line")
    kind: EntryKind
    written_at: str
    body: Environment | RunPlan | RunEvent | Attempt | QualityAttempt
    sha256: Sha256


# --- results: one JSON a test ---------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """Whether a number may be trusted to hold within the plan's ±5 %."""

    STABLE = "STABLE"
    UNSTABLE = "UNSTABLE"
    DRIFTING = "DRIFTING"
    INSUFFICIENT = "INSUFFICIENT"
    INVALID = "INVALID"
    EXACT = "EXACT"


class Interval(Record):
    """A two-sided interval; `level` is the coverage that it guarantees or claims."""

    low: float
    high: float
    level: float
    method: str


class WorkedExample(Record):
    """One timed run put into a metric's formula: the run whose value lies nearest to the median."""

    unit_id: str
    position: int
    value: float
    terms: dict[str, float] = Field(description="the numbers in the formula by their LaTeX symbol")


class Roofline(Record):
    """How near the worked example's run comes to what this machine could do at best.

    The work of the steps behind the metric cannot take less than `floor_s`: the sum over the steps of
    max(weights / B, FLOPs / F), and no less than all their bytes / B or all their FLOPs / F. B and F are the fastest
    canary readings of the whole run. `share` is `floor_s / measured_s`: 1 is the physical bound.
    """

    floor_s: float
    measured_s: float
    share: float
    bound: float = Field(description="the best possible value of the metric, in its unit")
    limited_by: Literal["bytes", "FLOPs"]
    num_bytes: float = Field(description="weights and KV cache that these steps must read at least")
    num_flops: float = Field(description="floating-point operations that these steps must do at least")
    bytes_per_s: float
    flops_per_s: float
    launch_s: float | None = Field(
        description="host seconds that starting the operations of the steps takes at least; None where graphs replay"
    )
    explanation: str | None = Field(description="the rule that explains a share below a tenth; None where none is due")
    explanation_zh: str | None = None


class MetricStatistics(Record):
    """One metric of one arm over all valid processes."""

    metric: str
    arm: str
    unit: str
    key: bool = Field(description="whether the test's ±5 % requirement is about this metric")
    repetitions: tuple[tuple[float, ...], ...] = Field(description="one row a process, one value a repetition")
    values: tuple[float, ...] = Field(description="the score of each process: the median of its repetitions")
    n: int
    k: int
    sample_size: int | None = Field(description="pooled requests or tokens behind a percentile; None otherwise")
    median: float | None
    interval: Interval | None = Field(description="distribution-free interval of the median; None below n = 6")
    log_t_interval: Interval | None
    max_deviation: float | None = Field(description="S = max |x / median - 1|")
    drift: float | None = Field(description="Theil-Sen slope x (n - 1) / median")
    drift_p: float | None = Field(description="Kendall's tau, two-sided")
    verdict: Verdict
    indicative: bool = Field(description="n is too small for a 95 % interval of the median")
    withheld: str | None = Field(description="why no value is given although the test ran; None otherwise")
    withheld_zh: str | None = None
    example: WorkedExample | None = None
    roofline: Roofline | None = None


class Payback(Record):
    """After how many decode tokens the capture of CUDA graphs is earned back, from one pair of costs a block.

    `tokens` solves mean(capture) = tokens x mean(seconds saved a token). The interval is Fieller's: all numbers of
    tokens that the blocks do not contradict. An end that is None is infinite; `tokens` None means never.
    """

    captures_s: tuple[float, ...] = Field(description="seconds that the capture took, one value a block")
    saved_s: tuple[float, ...] = Field(description="seconds saved a decode token, one value a block")
    capture_bytes: int = Field(description="device memory that the graphs keep, median over the blocks")
    num_graphs: int
    tokens: float | None
    low: float | None
    high: float | None
    level: float
    verdict: Literal["EARNED BACK", "NEVER", "UNDECIDED"]


class Effect(Record):
    """The effect of a switch, from paired blocks: the ratio treatment / baseline of a metric.

    `p_holm` adjusts the t tests of all effects of a test and of the points of its sweeps; `p_sign_flip` is exact and
    stands by itself. The verdict is VOID, with the reason in `void`, where the run's placebo or control failed; what
    was computed stays beside it.
    """

    metric: str
    baseline: str
    treatment: str
    blocks: tuple[float, ...] = Field(description="one log-ratio a block")
    ratio: float
    interval: Interval | None
    p_sign_flip: float | None
    p_holm: float | None
    verdict: str
    void: str | None = None
    void_zh: str | None = None


class CanarySummary(Record):
    """All canary readings of a test's valid attempts."""

    num_readings: int
    flops_per_s: float = Field(description="median")
    bytes_per_s: float = Field(description="median")
    operation_s: float = Field(description="median")
    largest_move: float = Field(description="largest change of a rate within a run or against the run's median")
    limit: float | None = Field(description="the plan's limit; None where none was declared")


class TelemetrySummary(Record):
    """The telemetry of a test's valid attempts; None where no run has it."""

    num_runs: int
    load_average_max: float | None
    throttled_s: float | None
    involuntary_switches: int | None
    other_busy_cores_max: float | None
    sm_clock_min_mhz: float | None
    temperature_max_c: float | None
    power_mean_w: float | None
    energy_j: float | None
    slowdown_s: dict[str, float] | None
    other_gpu_processes: int | None


class ScalingPoint(Record):
    """One arm of a scaling series against the one-device baseline.

    `speedup` is the geometric mean of the arm's process scores over that of the baseline's, with Welch's interval on
    logarithms; `efficiency` is the speed-up over the number of devices. Where the arm gives no number, `reason` says
    why, and nothing stands in its place.
    """

    test_id: str = Field(description="the test whose runs these are: the baseline's own for one device")
    arm: str
    num_gpus: int
    num_requests: int | None
    throughput: float | None = Field(description="median of the arm's process scores")
    speedup: float | None
    speedup_interval: Interval | None
    efficiency: float | None
    efficiency_interval: Interval | None
    serial_fraction: float | None = Field(description="what the law gives for this point alone")
    reason: str | None
    reason_zh: str | None


class ScalingFit(Record):
    """One serial fraction for all measured points of a series, by least squares in closed form.

    Amdahl (strong scaling): 1 / S = s + (1 - s) / p; Gustafson (weak scaling): S = p - s (p - 1).
    """

    law: Literal["Amdahl", "Gustafson"]
    serial_fraction: float
    num_gpus: tuple[int, ...] = Field(description="the points that were fitted")
    fitted: tuple[float, ...] = Field(description="the law's speed-up at each of them")
    residuals: tuple[float, ...] = Field(description="measured / fitted speed-up - 1 at each of them")


class ScalingSeries(Record):
    """Arms that differ in their number of devices alone, the baseline first."""

    id: str
    name: str
    name_zh: str
    law: Literal["strong", "weak"]
    metric: str
    points: tuple[ScalingPoint, ...]
    fit: ScalingFit | None = Field(description="None where fewer than two points with several devices were measured")


class PeerComparison(Record):
    """One engine beside the first one of its test, on the same requests; without numbers where it was not measured.

    `ratio` is its time over the first engine's, from one log-ratio a round; `interval` is Student's on these.
    """

    arm: str
    engine: str
    version: str | None
    settings: dict[str, Scalar] = Field(description="as the engine told them")
    seconds: float | None = Field(description="median over the processes of the time for all requests")
    rounds: tuple[float, ...] = Field(description="one log-ratio for each round; none for the first engine")
    ratio: float | None
    interval: Interval | None
    share: float | None = Field(description="median share of the physical bound that follows from the requests alone")
    cached_tokens: int | None = Field(description="prompt tokens from a cache in all runs; None where it is not told")
    reason: str | None
    reason_zh: str | None


class Check(Record):
    """One machine-decided statement about the numbers, with what it was decided from."""

    id: str
    passed: bool
    detail: str
    detail_zh: str
    failed_arms: tuple[str, ...] = Field(
        default=(), description="the only arms that a failure concerns; none where it concerns the whole test"
    )


class Evidence(Record):
    """Where the numbers can be looked up."""

    ledger: str
    ledger_root_sha256: Sha256
    entries: tuple[int, ...] = Field(description="sequence numbers of the ledger lines that the numbers come from")
    attempts: int
    valid_attempts: int
    invalid_reasons: tuple[str, ...]
    environment_fingerprint: Sha256
    plan_sha256: Sha256


class Prose(Record):
    """The plan's text fields in Chinese; the English ones are fields of the result itself."""

    test_name: str
    method: str
    how_obtained: str
    verification: str


class Result(Record):
    """One test in the plan's shape, plus what is needed to check it."""

    test_id: str
    schema_version: str
    status: Literal["measured", "not measured"]
    reason: str | None
    reason_zh: str | None
    test_name: str
    test_date: str
    hardware: str
    method: str
    parameters: dict[str, Any]
    results: dict[str, Scalar]
    how_obtained: str
    verification: str
    zh: Prose
    statistics: tuple[MetricStatistics, ...]
    effects: tuple[Effect, ...]
    scaling: tuple[ScalingSeries, ...] = ()
    checks: tuple[Check, ...]
    peers: tuple[PeerComparison, ...] = ()
    evidence: Evidence | None
    canary: CanarySummary | None = None
    telemetry: TelemetrySummary | None = None
    payback: Payback | None = None
