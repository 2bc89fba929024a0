"""Decides everything before anything is measured: which tests, how often, in which order, with which seeds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from touchstone.canonical import canonical_json, sha256_hex
from touchstone.environment import usable_memory_bytes, usable_threads
from touchstone.experiment import BASELINE_TEST, INSTRUMENT_TEST, Bilingual, Design, Experiment, Profile, family_of
from touchstone.records import SCHEMA_VERSION, AbsentArm, ArmSpec, NotMeasured, PlannedTest, RunPlan, Scalar, UnitPlan
from touchstone.running.estimate import Machine, seconds_by_test
from touchstone.running.models import TINY_SOURCE
from touchstone.running.peers import options_of, why_no_device, why_no_peer, why_too_few, with_engines
from touchstone.running.sizes import DTYPE_BYTES, kv_bytes_per_token, num_parameters
from touchstone.suggestions import did_you_mean
from touchstone.validity import canary_limit
from touchstone.workload import derive_seed, shuffled, with_extra_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from touchstone.engines.base import Capabilities
    from touchstone.experiment import Arm
    from touchstone.records import Environment, Hardware, WorkloadSpec
    from touchstone.running.models import ChosenModel

CODE_TEST = "4.1"
CODE_TREE = "src"


class PlanError(ValueError):
    """A run that cannot be planned; the message names the value and the remedy."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How often a test is measured: fresh processes, timed repetitions in each, warm-ups before them."""

    processes: int
    repetitions: int
    warmups: int


# n = 6 is the smallest number of processes whose [min, max] is a 95 % interval of the median (96.9 %), and the smallest
# number of blocks with which an exact sign-flip test can reach p < .05. k = 3 makes a process's score the median of
# three. Memory barely varies, so outside the paper three processes show that it does not. `quick` is for a first look
# and says "indicative" with every number. One warm-up of full size touches every shape that is timed afterwards. A
# smoke block goes through its order twice, because its runs last a third of a second, beside neighbours that come and
# go. The instrument's own runs are the shortest of all; six rounds keep a busy machine from hiding a tenth.
# Scaling has a dozen arms of several GPUs each, and starting them takes most of the time: three processes an arm, held
# against the six of the one-GPU baseline by an interval for unequal samples. Each times one run: with three, the paper
# on four GPUs would not fit into half an hour.
# A point of a sweep is one block a process, on engines that the test itself or the point before has warmed up already.
_REPEATED, _PAIRED, _STEADY, _INSTRUMENT, _SCALING = "repeated", "paired", "steady", "instrument", "scaling"
# Engines side by side are three processes each as well: their start-up, a minute for some, is most of the time.
_POINT, _PEERS = "point", "peers"
# The baseline of scaling times one run a process, as the arms do that are held against it.
_BASELINE = "baseline"
# Prompts touch every shape that is timed, so a warm-up on a GPU need not wait for the last of many output tokens.
_WARMUP_OUTPUT_TOKENS: Mapping[Profile, int] = MappingProxyType({Profile.QUICK: 32, Profile.PAPER: 32})
LAYOUTS: Mapping[tuple[Profile, str], Layout] = MappingProxyType(
    {
        (Profile.SMOKE, _REPEATED): Layout(processes=6, repetitions=3, warmups=1),
        (Profile.SMOKE, _PAIRED): Layout(processes=6, repetitions=2, warmups=1),
        (Profile.SMOKE, _STEADY): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.SMOKE, _INSTRUMENT): Layout(processes=6, repetitions=6, warmups=1),
        (Profile.SMOKE, _BASELINE): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.SMOKE, _SCALING): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.SMOKE, _POINT): Layout(processes=6, repetitions=1, warmups=1),
        (Profile.SMOKE, _PEERS): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.QUICK, _REPEATED): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.QUICK, _PAIRED): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.QUICK, _STEADY): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.QUICK, _INSTRUMENT): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.QUICK, _BASELINE): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.QUICK, _SCALING): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.QUICK, _POINT): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.QUICK, _PEERS): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.PAPER, _REPEATED): Layout(processes=6, repetitions=3, warmups=1),
        (Profile.PAPER, _PAIRED): Layout(processes=6, repetitions=1, warmups=1),
        (Profile.PAPER, _STEADY): Layout(processes=6, repetitions=1, warmups=1),
        (Profile.PAPER, _INSTRUMENT): Layout(processes=6, repetitions=1, warmups=1),
        (Profile.PAPER, _BASELINE): Layout(processes=6, repetitions=1, warmups=1),
        (Profile.PAPER, _SCALING): Layout(processes=3, repetitions=1, warmups=1),
        (Profile.PAPER, _POINT): Layout(processes=6, repetitions=1, warmups=1),
        (Profile.PAPER, _PEERS): Layout(processes=3, repetitions=1, warmups=1),
    }
)
UNIT_TIMEOUT_S: Mapping[Profile, int] = MappingProxyType({Profile.SMOKE: 300, Profile.QUICK: 900, Profile.PAPER: 1800})

_KV_GRANULE_TOKENS = 64  # a request's KV space is rounded up to this, the least common multiple of usual block sizes
_KV_MEMORY_SHARE = 0.8  # of device memory, for all KV pools and weights of one process together


@dataclass(frozen=True, slots=True)
class Planned:
    """A planned test and the experiment that declares it; None for the code metrics."""

    test: PlannedTest
    experiment: Experiment | None

    @property
    def is_paired(self) -> bool:
        """Whether a process holds a whole block."""
        return self.experiment is not None and self.experiment.design is Design.PAIRED_BLOCKS


@dataclass(frozen=True, slots=True)
class Facilities:
    """What the machine and the engine have, as far as tests ask for it.

    `engines` are all of the run's by name; `shape` is the model's config.json.
    """

    device: str
    num_gpus: int
    capabilities: Capabilities
    engines: Mapping[str, Capabilities] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something that a test needs, and why it is not measured without it."""

    is_met: Callable[[Facilities], bool]
    reason: Callable[[Facilities], Bilingual]


def _no_gpu(facilities: Facilities) -> Bilingual:
    if facilities.num_gpus:
        return Bilingual(
            "the run was asked for on the processor, not on the GPU", "本次运行指定在 CPU 上进行，未使用 GPU"
        )
    return Bilingual("no NVIDIA GPU on this machine", "本机没有 NVIDIA GPU")


def _few_gpus(facilities: Facilities) -> Bilingual:
    count = facilities.num_gpus
    return Bilingual(f"several GPUs are needed, this machine has {count}", f"需要多张 GPU，本机有 {count} 张")


def _unreported(english: str, chinese: str) -> Callable[[Facilities], Bilingual]:
    return lambda _: Bilingual(f"this engine does not report {english}", f"该引擎不报告{chinese}")


REQUIREMENTS: Mapping[str, Requirement] = MappingProxyType(
    {
        "GPU": Requirement(lambda have: have.device.startswith("cuda") and have.num_gpus > 0, _no_gpu),
        "several GPUs": Requirement(lambda have: have.num_gpus > 1, _few_gpus),
        "steps": Requirement(lambda have: have.capabilities.reports_steps, _unreported("its steps", "每一步的信息")),
        "cached tokens": Requirement(
            lambda have: have.capabilities.reports_cached_tokens,
            _unreported("cached prompt tokens", "缓存命中的提示 token 数"),
        ),
        "memory parts": Requirement(
            lambda have: have.capabilities.reports_memory_parts, _unreported("its memory parts", "各部分内存")
        ),
    }
)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What the user asked for, with every default filled in. `only` empty means every test.

    `peers` are further engines, for the tests that compare engines; `engine_options` holds options by engine.
    """

    profile: Profile
    engine: str
    device: str
    dtype: str
    seed: int
    only: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    engine_options: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)

    @property
    def engines(self) -> tuple[str, ...]:
        """All engines of the run; the first one is measured by every test."""
        return (self.engine, *self.peers)

    @property
    def own_options(self) -> dict[str, Scalar]:
        """Options that the user gave the first engine."""
        return dict(self.engine_options.get(self.engine, {}))


def make_plan(
    request: RunRequest,
    experiments: Sequence[Experiment],
    environment: Environment,
    model: ChosenModel,
    capabilities: Capabilities,
    peers: Mapping[str, Capabilities] = MappingProxyType({}),
) -> RunPlan:
    """Lay out the whole run and hash it. The same arguments give the same plan on every machine of one kind.

    `capabilities` are those of the run's engine, `peers` those of the further ones by name. A point of a sweep that has
    no workload in the profile is no part of the plan.
    """
    engines = {request.engine: capabilities, **peers}
    check_request(request, experiments, engines)
    request = _with_instrument(request, experiments)
    experiments = [with_engines(experiment, request.engines) for experiment in experiments]
    facilities = Facilities(request.device, len(environment.hardware.gpus), capabilities, engines, model.config)
    planned: list[Planned] = []
    not_measured: list[NotMeasured] = []
    in_profile = [each for each in experiments if each.axis is None or request.profile in each.workload]
    possible = [each for each in in_profile if _why_not(each, replace(request, only=()), facilities) is None]
    for experiment in in_profile:
        reason = _why_not(experiment, request, facilities)
        if reason is not None:
            not_measured.append(NotMeasured(test_id=experiment.plan_id, reason=reason.en, reason_zh=reason.zh))
        else:
            family = _on_the_same_engines(experiment, possible, request)
            test = _plan_test(experiment, family, request, environment.hardware, model.config, facilities)
            planned.append(Planned(test, experiment))
    if _selected(CODE_TEST, request):
        planned.append(Planned(_plan_code_test(), None))
    else:
        not_measured.append(NotMeasured(test_id=CODE_TEST, reason=_NOT_SELECTED.en, reason_zh=_NOT_SELECTED.zh))
    if not planned:
        raise PlanError("nothing can be measured here: " + _reasons(not_measured, request))
    units = _order_units(planned, request)
    tests = _with_estimates(planned, units, Machine(request.device, request.dtype, model.config))
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "profile": request.profile.value,
        "seed": request.seed,
        "engine": request.engine,
        "peers": request.peers,
        "device": request.device,
        "dtype": request.dtype,
        "model": model.spec,
        "engine_options": request.own_options,
        "threads": _threads(environment.hardware, model),
        "canary_limit": canary_limit(request.profile.value, request.device),
        "telemetry_enforced": request.profile is Profile.PAPER,
        "tests": tuple(tests),
        "units": units,
        "not_measured": tuple(not_measured),
    }
    unhashed = RunPlan(**fields, plan_sha256="0" * 64).model_dump(mode="json", exclude={"plan_sha256"})
    return RunPlan(**fields, plan_sha256=sha256_hex(canonical_json(unhashed)))


# --- which tests ----------------------------------------------------------------------------------------------------

_NOT_SELECTED = Bilingual("left out of this run by --only", "本次运行用 --only 排除了该测试")


def check_request(request: RunRequest, experiments: Sequence[Experiment], engines: Mapping[str, Capabilities]) -> None:
    """Refuse names and values that no plan can be made of: PlanError with the nearest that is. Touches nothing."""
    if request.seed < 0:
        raise PlanError(f"--seed is {request.seed}; use 0 or a positive number")
    known = [*(experiment.plan_id for experiment in experiments), CODE_TEST]
    if unknown := sorted(set(request.only) - set(known)):
        near = did_you_mean(unknown[0], known)
        raise PlanError(f"--only names {', '.join(unknown)}; the tests are {', '.join(known)}{near}")
    _check_options(request, engines)


def _check_options(request: RunRequest, engines: Mapping[str, Capabilities]) -> None:
    if twice := sorted({engine for engine in request.engines if request.engines.count(engine) > 1}):
        raise PlanError(f"--engine names {', '.join(twice)} more than once; name each engine once")
    for engine, options in request.engine_options.items():
        if engine not in engines:
            raise PlanError(f"--option is for {engine}, an engine that no --engine names; name it, or leave it away")
        if unknown := sorted(set(options) - engines[engine].options):
            known = ", ".join(sorted(engines[engine].options)) or "none"
            near = did_you_mean(unknown[0], engines[engine].options)
            raise PlanError(f"engine {engine} has no option {', '.join(unknown)}; it has {known}{near}")
    for engine in request.engines:
        if (fault := engines[engine].what_is_wrong(request.engine_options.get(engine, {}))) is not None:
            raise PlanError(f"--option for {engine}: {fault}")


def _with_instrument(request: RunRequest, experiments: Sequence[Experiment]) -> RunRequest:
    """Add placebo and control to a choice that holds a paired test, whose verdicts are void without them."""
    paired = {experiment.plan_id for experiment in experiments if experiment.design is Design.PAIRED_BLOCKS}
    known = {experiment.plan_id for experiment in experiments}
    if not paired & set(request.only) or INSTRUMENT_TEST not in known - set(request.only):
        return request
    return replace(request, only=(*request.only, INSTRUMENT_TEST))


def _reasons(not_measured: Iterable[NotMeasured], request: RunRequest) -> str:
    asked = (test for test in not_measured if _selected(test.test_id, request))
    return "; ".join(f"{test.test_id}: {test.reason}" for test in asked)


def _selected(test_id: str, request: RunRequest) -> bool:
    """Tell whether a test is wanted; whoever names a test names the points of its sweep with it."""
    return not request.only or test_id in request.only or family_of(test_id) in request.only


def _on_the_same_engines(
    experiment: Experiment, possible: Sequence[Experiment], request: RunRequest
) -> tuple[Experiment, ...]:
    """Find what can be measured on the engines of an experiment, itself included: what shares processes and options.

    What the choice of tests leaves out counts, so that a point has the same engines whether its test is run or not.
    Compared engines get one size for all points: some compile anew for every size, for minutes.
    """
    asked = experiment.engine_options.get(request.profile, {})
    alike = (other for other in possible if _may_share_engines(experiment, other, request))
    return tuple(
        other
        for other in alike
        if experiment.compares_engines or other.engine_options.get(request.profile, {}) == asked
    )


def _may_share_engines(one: Experiment, other: Experiment, request: RunRequest) -> bool:
    """Tell whether two experiments can have engines in common: a test and its points, or tests that compare nothing."""
    if family_of(one.plan_id) == family_of(other.plan_id):
        return True
    return all(
        each.design is Design.REPEATED and not each.compares_engines and not _needs_own_process(each, request)
        for each in (one, other)
    )


def _needs_own_process(experiment: Experiment, request: RunRequest) -> bool:
    """Without a GPU the kernel counts the memory of a process from its beginning, whatever ran in it."""
    return experiment.measure_memory and not request.device.startswith("cuda")


def _why_not(experiment: Experiment, request: RunRequest, facilities: Facilities) -> Bilingual | None:
    """Say why a test is not measured, None when it is: not selected, no such machine, no such engine option."""
    if not _selected(experiment.plan_id, request):
        return _NOT_SELECTED
    for name, requirement in REQUIREMENTS.items():
        if name in experiment.requires and not requirement.is_met(facilities):
            return requirement.reason(facilities)
    reasons = [_why_no_arm(arm, experiment, facilities) for arm in experiment.arms]
    if experiment.compares_engines:
        return why_too_few(reasons.count(None))
    paired = experiment.design is Design.PAIRED_BLOCKS
    shared = experiment.engine_options.get(request.profile, {})
    lacking = next((reason for reason in reasons if reason is not None), None)
    return (
        why_no_device(facilities.capabilities, request.device)
        or (_ALONE if paired and facilities.capabilities.alone else None)
        or _why_no_option(shared, facilities.capabilities)
        or (lacking if paired or None not in reasons else None)
    )


_ALONE = Bilingual(
    "a process can hold one such engine only, and this test alternates between engines in one process",
    "一个进程只能容纳一个该引擎，而本测试需在同一进程内交替运行多个引擎",
)


def _why_no_arm(arm: Arm, experiment: Experiment, facilities: Facilities) -> Bilingual | None:
    """Say why an arm is not run, None when it is: too few GPUs, or an engine that is not there or lacks its options."""
    if arm.engine is not None:
        return why_no_peer(arm, experiment, facilities.engines, facilities.device)
    if arm.num_gpus > max(facilities.num_gpus, 1):
        count = facilities.num_gpus
        return Bilingual(
            f"{arm.num_gpus} GPUs are needed, this machine has {count}",
            f"需要 {arm.num_gpus} 张 GPU，本机有 {count} 张",
        )
    return _why_no_option(arm.options, facilities.capabilities) or _why_not_split(arm.options, facilities.shape)


# What tensor parallelism gives to each device in equal parts.
_SPLIT = (
    ("num_attention_heads", Bilingual("attention heads", "个注意力头")),
    ("intermediate_size", Bilingual("channels of the MLP", "个 MLP 通道")),
)


def _why_not_split(options: Mapping[str, Scalar], shape: Mapping[str, Any]) -> Bilingual | None:
    """Say why a model cannot be shared by so many devices: known before a process is started and fails."""
    size = options.get("tensor_parallel_size")
    for key, what in _SPLIT if isinstance(size, int) else ():
        if (count := shape.get(key)) is not None and count % size:
            return Bilingual(
                f"the model's {count} {what.en} cannot be shared equally by {size} GPUs",
                f"模型的 {count} {what.zh}无法由 {size} 张 GPU 均分",
            )
    return None


def _there(options: Mapping[str, Scalar], capabilities: Capabilities) -> dict[str, Scalar]:
    """Leave out what is asked to be off and what the engine does not have: that is off already."""
    return {name: value for name, value in options.items() if name in capabilities.options or value is not False}


def _why_no_option(needed: Mapping[str, Scalar], capabilities: Capabilities) -> Bilingual | None:
    if missing := sorted(_there(needed, capabilities).keys() - capabilities.options):
        names = ", ".join(missing)
        return Bilingual(f"not implemented by this engine yet: option {names}", f"该引擎尚未实现选项 {names}")
    if refused := capabilities.refuses(needed):
        only = ", ".join(f"{name} = {capabilities.fixed[name]}" for name in refused)
        return Bilingual(f"this engine has {only} only", f"该引擎只有 {only} 一种设置")
    return None


# --- how often, with which options ----------------------------------------------------------------------------------


def layout_of(experiment: Experiment, profile: Profile) -> Layout:
    """Look up how often a test is measured in a profile."""
    if experiment.plan_id == INSTRUMENT_TEST:
        return LAYOUTS[profile, _INSTRUMENT]
    if experiment.plan_id == BASELINE_TEST:
        return LAYOUTS[profile, _BASELINE]
    if experiment.compares_engines:
        return LAYOUTS[profile, _PEERS]
    if experiment.scaling is not None:
        return LAYOUTS[profile, _SCALING]
    if experiment.axis is not None:
        return LAYOUTS[profile, _POINT]
    kind = _PAIRED if experiment.design is Design.PAIRED_BLOCKS else _REPEATED
    return LAYOUTS[profile, _STEADY if experiment.steady else kind]


def _plan_test(
    experiment: Experiment,
    family: Sequence[Experiment],
    request: RunRequest,
    hardware: Hardware,
    config: Mapping[str, Any],
    facilities: Facilities,
) -> PlannedTest:
    workload = experiment.workload[request.profile]
    arms, absent = _arms(experiment, request.profile, facilities)
    layout = layout_of(experiment, request.profile)
    paired = experiment.design is Design.PAIRED_BLOCKS
    shared = _there(experiment.engine_options.get(request.profile, {}), facilities.capabilities)
    sized = _sizes(family, request, hardware, config, len(arms) if paired else 1)
    if experiment.compares_engines:
        arms, shared = _engine_arms(experiment, arms, sized | shared, request, facilities), {}
    else:
        options = facilities.capabilities.options
        taken = request.own_options.keys() | shared.keys()
        shared |= {name: value for name, value in sized.items() if name in options and name not in taken}
    return PlannedTest(
        test_id=experiment.plan_id,
        engine=request.engine,
        arms=arms,
        workload=workload,
        num_processes=layout.processes,
        num_repetitions=layout.repetitions,
        num_warmups=layout.warmups,
        estimated_s=0.0,
        engine_options=shared,
        margin=experiment.margins[request.profile] if paired else None,
        repeat_last=experiment.repeat_last,
        absent_arms=absent,
        warmup_output_tokens=experiment.warmup_output_tokens or _WARMUP_OUTPUT_TOKENS.get(request.profile),
        prompts_of=experiment.scaling.baseline_test if experiment.scaling is not None else None,
        profile_devices=experiment.profile_devices,
        axis=experiment.axis,
    )


def _sizes(
    family: Sequence[Experiment], request: RunRequest, hardware: Hardware, config: Mapping[str, Any], engines: int
) -> dict[str, Scalar]:
    """Size KV pool and model length for the largest workload that these engines will see, of every arm."""
    longest = [
        with_extra_output(
            each.workload[request.profile].model_copy(
                update={"num_requests": _most_requests_per_gpu(each, request.profile)}
            ),
            max(arm.extra_output for arm in each.arms),
        )
        for each in family
    ]
    running = [each.engine_options.get(request.profile, {}).get("max_num_seqs") for each in family]
    pools = [
        _kv_cache_bytes(workload, request, hardware, config, engines, most)
        for workload, most in zip(longest, running, strict=True)
    ]
    lengths = [workload.input_tokens.high + workload.output_tokens.high for workload in longest]
    return {"kv_cache_bytes": max(pools), "max_model_len": max(lengths)}


def _arms(
    experiment: Experiment, profile: Profile, facilities: Facilities
) -> tuple[tuple[ArmSpec, ...], tuple[AbsentArm, ...]]:
    """Part the declared arms into those that are run and those that cannot be, with the reason."""
    specs = [(_arm_spec(arm, profile, facilities), _why_no_arm(arm, experiment, facilities)) for arm in experiment.arms]
    present = tuple(spec for spec, reason in specs if reason is None)
    absent = (AbsentArm(arm=spec, reason=why.en, reason_zh=why.zh) for spec, why in specs if why is not None)
    return present, tuple(absent)


def _engine_arms(
    experiment: Experiment,
    specs: Sequence[ArmSpec],
    shared: Mapping[str, Scalar],
    request: RunRequest,
    facilities: Facilities,
) -> tuple[ArmSpec, ...]:
    """Give each engine the options that it runs with, complete."""
    declared = {arm.name: arm for arm in experiment.arms}
    complete = []
    for spec in specs:
        engine = spec.engine or request.engine
        asked = request.engine_options.get(engine, {})
        options = options_of(declared[spec.name], facilities.engines[engine], shared, asked)
        complete.append(spec.model_copy(update={"options": options}))
    return tuple(complete)


def _arm_spec(arm: Arm, profile: Profile, facilities: Facilities) -> ArmSpec:
    return ArmSpec(
        name=arm.name,
        options=dict(arm.options) if arm.engine is not None else _there(arm.options, facilities.capabilities),
        extra_output=arm.extra_output,
        num_gpus=arm.num_gpus,
        engine=arm.engine,
        num_requests=None if arm.requests_per_gpu is None else arm.requests_per_gpu[profile] * arm.num_gpus,
    )


def _most_requests_per_gpu(experiment: Experiment, profile: Profile) -> int:
    """Most requests that one device has to hold, so that every device of every arm gets the same KV pool."""
    own = (arm.requests_per_gpu for arm in experiment.arms)
    workload = experiment.workload[profile].num_requests
    return max(workload if requests is None else requests[profile] for requests in own)


def _plan_code_test() -> PlannedTest:
    return PlannedTest(
        test_id=CODE_TEST,
        engine=None,
        arms=(),
        workload=None,
        num_processes=1,
        num_repetitions=1,
        num_warmups=0,
        estimated_s=0.0,
    )


def _threads(hardware: Hardware, model: ChosenModel) -> int:
    """Use every core that the process may use, but one for the tiny model, whose matrices are not worth dividing."""
    return 1 if model.spec.source == TINY_SOURCE else usable_threads(hardware)


def _kv_cache_bytes(
    workload: WorkloadSpec,
    request: RunRequest,
    hardware: Hardware,
    config: Mapping[str, Any],
    engines: int,
    max_num_seqs: Scalar,
) -> int:
    """Size the KV pool so that all requests that run at once fit, as far as memory goes; the same in every arm.

    All engines of one process share `_KV_MEMORY_SHARE` of the memory, their weights included.
    """
    tokens = workload.input_tokens.high + workload.output_tokens.high
    granules = math.ceil(tokens / _KV_GRANULE_TOKENS) + 1
    running = min(workload.num_requests, int(max_num_seqs)) if max_num_seqs else workload.num_requests
    wanted = running * granules * _KV_GRANULE_TOKENS * kv_bytes_per_token(config, request.dtype)
    if request.device.startswith("cuda"):
        memory = min(gpu.memory_bytes for gpu in hardware.gpus)
    else:
        memory = usable_memory_bytes(hardware)
    weights = num_parameters(config) * DTYPE_BYTES[request.dtype]
    available = int(memory * _KV_MEMORY_SHARE / engines) - weights
    if available <= 0:
        raise PlanError(
            f"{engines} engine(s) of {weights / 1e9:.1f} GB weights do not fit {memory / 1e9:.1f} GB of memory; "
            "choose a smaller model or --dtype"
        )
    return min(wanted, available)


# --- in which order -------------------------------------------------------------------------------------------------


def _order_units(planned: Sequence[Planned], request: RunRequest) -> tuple[UnitPlan, ...]:
    """Interleave the tests: round r holds the r-th process of every group of tests, shuffled by the seed.

    A drift of the machine then falls on all tests alike, and none is measured all at the beginning or the end.
    """
    units = _in_shared_processes([unit for each in planned for unit in _units_of(each, request)])
    engines = _engines(units, planned)
    ordered: list[UnitPlan] = []
    for process in range(max((each.test.num_processes for each in planned), default=0)):
        started: dict[str, list[UnitPlan]] = {}
        for unit in units:
            if unit.process == process:
                started.setdefault(unit.shared_process or unit.unit_id, []).append(unit)
        random = Random(derive_seed(request.seed, "order", process))
        for name in shuffled(random, list(started)):
            ordered += _in_one_process(random, started[name], engines)
    return tuple(ordered)


def _with_estimates(planned: Sequence[Planned], units: Sequence[UnitPlan], machine: Machine) -> Iterator[PlannedTest]:
    tests = {each.test.test_id: each.test for each in planned}
    seconds = seconds_by_test(units, tests, _engines(units, planned), machine)
    for test in tests.values():
        yield test.model_copy(update={"estimated_s": round(seconds[test.test_id], 1)})


def _in_shared_processes(units: Sequence[UnitPlan]) -> list[UnitPlan]:
    """Leave a unit that shares its process with no other without a name for it."""
    members = Counter(unit.shared_process for unit in units)
    alone = {name for name, count in members.items() if count == 1}
    return [
        unit.model_copy(update={"shared_process": None}) if unit.shared_process in alone else unit for unit in units
    ]


def _engines(units: Sequence[UnitPlan], planned: Sequence[Planned]) -> dict[str, bytes]:
    """Tell of each unit by which settings its engines could serve another unit of its process."""
    tests = {each.test.test_id: each.test for each in planned}
    return {unit.unit_id: _settings_of_engines(unit, tests[unit.test_id]) for unit in units}


def _settings_of_engines(unit: UnitPlan, test: PlannedTest) -> bytes:
    own = [arm.options for arm in test.arms if arm.name in unit.arm_order]
    return canonical_json([test.engine_options, own])


def _in_one_process(random: Random, units: Sequence[UnitPlan], engines: Mapping[str, bytes]) -> Iterator[UnitPlan]:
    """Order the units of a process by chance, but those on the same engines one after the other."""
    groups: dict[bytes, list[UnitPlan]] = {}
    for unit in units:
        groups.setdefault(engines[unit.unit_id], []).append(unit)
    for group in shuffled(random, list(groups.values())):
        yield from shuffled(random, group)


def _units_of(planned: Planned, request: RunRequest) -> Iterator[UnitPlan]:
    """One unit a process; a process of a paired test holds a whole block, of any other test one arm."""
    test = planned.test
    for process in range(test.num_processes):
        unit_seed = derive_seed(request.seed, test.prompts_of or test.test_id, process)
        for name, arm_order in _arm_orders(planned, unit_seed):
            group = _group(planned, arm_order, request)
            yield UnitPlan(
                unit_id=f"{test.test_id}-{name}{process}",
                test_id=test.test_id,
                process=process,
                shared_process=None if group is None else f"{group}{process}",
                arm_order=arm_order,
                num_warmups=test.num_warmups,
                num_repetitions=test.num_repetitions,
                seed=unit_seed,
            )


def _group(planned: Planned, arm_order: Sequence[str], request: RunRequest) -> str | None:
    """Name what a unit shares the processes of its rounds with; None where it needs a process of its own.

    Starting a process takes longer than most units. The blocks of all paired tests share one, which builds one after
    the other the engines that they ask for; and so do arms on the same number of devices, most of them on one engine.
    Compared engines share none with each other.
    """
    experiment = planned.experiment
    if experiment is None or _needs_own_process(experiment, request):
        return None
    if planned.is_paired:
        return "blocks-b"
    arm = next(arm for arm in planned.test.arms if arm.name in arm_order)
    if arm.engine is not None:
        return f"{family_of(planned.test.test_id)}-{arm.name.replace(' ', '')}-p"
    tensor, data = (arm.options.get(name, 1) for name in ("tensor_parallel_size", "data_parallel_size"))
    return f"engine-{tensor}x{data}-p"


def _arm_orders(planned: Planned, unit_seed: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    arms = planned.test.arms
    if not arms:
        yield "p", ()
    elif planned.is_paired:
        forth = _block_order([arm.name for arm in arms], unit_seed)
        yield "b", (*forth, *reversed(forth))
    else:
        for arm in arms:
            yield ("p" if len(arms) == 1 else f"{arm.name.replace(' ', '')}-p"), (arm.name,)


def _block_order(names: Sequence[str], unit_seed: int) -> list[str]:
    """Order the arms of a block by chance; run forth and back, each arm's mean position is the block's middle."""
    if len(names) == 2:  # noqa: PLR2004  a pair is turned round by one coin
        return list(reversed(names)) if Random(derive_seed(unit_seed, "coin")).random() < 1 / 2 else list(names)
    return shuffled(Random(derive_seed(unit_seed, "coin")), names)
