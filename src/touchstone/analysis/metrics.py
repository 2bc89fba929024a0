"""The metric dictionary: what each number means, in which unit, by which formula, and how a trace gives it.

Symbols, for request i: arrival a, first scheduled s, first token on the host f, last token on the host e, prompt
tokens L, cached prompt tokens c, output tokens that came back n. For step j: prefill tokens p, decode tokens d,
attributed time t (see `touchstone.analysis.samples.attribute_time`), begin b, launch returned l, time between the
device events at its ends g. T is the window from the first arrival to the last token. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from touchstone.analysis import formulas, samples
from touchstone.analysis.quantities import Measured, Unit
from touchstone.experiment import Bilingual

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from touchstone.analysis.formulas import Draw, RunFacts
    from touchstone.records import MemoryParts


class Better(StrEnum):
    """Which way is an improvement."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """One metric of one run.

    `formula` is LaTeX that GitHub renders. `better` is None where neither direction is. `counted` marks a count of
    things, which the same work must repeat to the last digit, as against a time.
    """

    id: str
    unit: Unit
    name: Bilingual
    formula: str
    how: Bilingual
    better: Better | None
    compute: Callable[[RunFacts], Measured]
    counted: bool = False


@dataclass(frozen=True, slots=True)
class ComparisonDefinition:
    """A number made from the treatment-to-baseline ratio r of a metric; `transform` turns r into it."""

    id: str
    unit: Unit
    name: Bilingual
    formula: str
    how: Bilingual
    better: Better | None
    metric: str
    transform: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class SampleDefinition:
    """A distribution inside one run, in host ns; its metrics end in `_mean`, `_p50`, `_p90`, `_p99`, `_max`."""

    id: str
    name: Bilingual
    formula: str
    how: Bilingual
    draw: Draw


# --- distributions inside a run -------------------------------------------------------------------------------------

_FROM_ARRIVAL = Bilingual("host clock, per request, from its arrival", "主机时钟，逐请求，从请求到达时起算")

SAMPLES: Mapping[str, SampleDefinition] = MappingProxyType(
    {
        definition.id: definition
        for definition in (
            SampleDefinition(
                "ttft", Bilingual("time to first token", "首 token 延迟"), "f_i - a_i", _FROM_ARRIVAL, samples.ttft
            ),
            SampleDefinition(
                "queue_time",
                Bilingual("queueing time", "排队时间"),
                "s_i - a_i",
                Bilingual(
                    "host clock, per request, from arrival to the first step that holds it",
                    "主机时钟，逐请求，从到达至首次进入调度步",
                ),
                samples.queue_time,
            ),
            SampleDefinition(
                "prefill_time",
                Bilingual("prefill part of the time to first token", "首 token 延迟中的预填充部分"),
                "f_i - s_i",
                Bilingual(
                    "host clock, per request, from the first step that holds it to its first token",
                    "主机时钟，逐请求，从首次进入调度步至首个 token 到达主机",
                ),
                samples.prefill_time,
            ),
            SampleDefinition(
                "tpot",
                Bilingual("time per output token after the first", "首 token 之后每个输出 token 的时间"),
                r"\frac{e_i - f_i}{n_i - 1}",
                Bilingual(
                    "host clock, per request with at least two tokens; the first token is not counted",
                    "主机时钟，逐请求（至少两个输出 token），不含首个 token",
                ),
                samples.tpot,
            ),
            SampleDefinition(
                "itl",
                Bilingual("gap between consecutive tokens", "相邻 token 间隔"),
                "h_{i,k+1} - h_{i,k}",
                Bilingual(
                    "host clock, every gap between consecutive tokens h of a request, pooled, unsmoothed",
                    "主机时钟，同一请求相邻 token 到达主机时刻 h 之差，全部合并，不作平滑",
                ),
                samples.itl,
            ),
            SampleDefinition(
                "total_latency",
                Bilingual("total latency", "总延迟"),
                "e_i - a_i",
                Bilingual("host clock, per request, arrival to last token", "主机时钟，逐请求，从到达至最后一个 token"),
                samples.total_latency,
            ),
        )
    }
)


def _sample_metrics(definition: SampleDefinition) -> tuple[MetricDefinition, ...]:
    """Mean, percentiles and maximum of one distribution as metrics."""

    def metric(statistic: str, formula: str, zh: str, compute: Callable[[RunFacts], Measured]) -> MetricDefinition:
        english = Bilingual(f"{definition.name.en}, {statistic}", f"{definition.name.zh}（{zh}）")
        identifier = f"{definition.id}_{statistic}"
        return MetricDefinition(identifier, Unit.MILLISECONDS, english, formula, definition.how, Better.LOWER, compute)

    inner = definition.formula
    quantiles = (
        metric(
            name,
            rf"Q_{{{percent / 100:g}}}\left[{inner}\right]",
            name,
            partial(formulas.percentile_of, definition.draw, percent),
        )
        for name, percent in formulas.PERCENTILES.items()
    )
    return (
        metric(
            "mean", rf"\frac{{1}}{{N}} \sum \left({inner}\right)", "平均", partial(formulas.mean_of, definition.draw)
        ),
        *quantiles,
        metric("max", rf"\max \left[{inner}\right]", "最大", partial(formulas.max_of, definition.draw)),
    )


def _memory_metric(
    identifier: str, name: Bilingual, how: Bilingual, part: Callable[[MemoryParts], int | None]
) -> MetricDefinition:
    formula = r"\frac{M}{10^9}"
    return MetricDefinition(
        identifier, Unit.GIGABYTES, name, formula, how, Better.LOWER, partial(formulas.memory_part, part)
    )


_MEMORY_METRICS = (
    _memory_metric(
        "model_weight_memory",
        Bilingual("model weights", "模型权重内存"),
        Bilingual("bytes of the unique parameter storages", "参数张量的去重存储字节数"),
        lambda parts: parts.weights_bytes,
    ),
    _memory_metric(
        "kv_cache_memory",
        Bilingual("KV cache pool", "KV 缓存池内存"),
        Bilingual("bytes of the pool, which is allocated in advance", "预先分配的 KV 缓存池字节数"),
        lambda parts: parts.kv_pool_bytes,
    ),
    _memory_metric(
        "kv_used_memory",
        Bilingual("KV cache in use at the peak", "KV 缓存峰值占用"),
        Bilingual("blocks in use at the peak times bytes of a block", "峰值时已用块数乘以每块字节数"),
        lambda parts: parts.kv_used_peak_bytes,
    ),
    _memory_metric(
        "activation_memory",
        Bilingual("activations at the peak", "激活值峰值内存"),
        Bilingual("peak of temporaries during the run", "运行期间临时张量的峰值"),
        lambda parts: parts.activations_peak_bytes,
    ),
    _memory_metric(
        "cuda_graph_memory",
        Bilingual("CUDA graphs", "CUDA 图内存"),
        Bilingual("growth of reserved memory while graphs were captured", "捕获 CUDA 图期间保留显存的增量"),
        lambda parts: parts.cuda_graphs_bytes,
    ),
    _memory_metric(
        "context_memory",
        Bilingual("context and other", "上下文及其他内存"),
        Bilingual("in use before the engine existed", "引擎创建之前已占用的内存"),
        lambda parts: parts.context_and_other_bytes,
    ),
    _memory_metric(
        "instrument_memory",
        Bilingual("held by the instrument", "测量仪器自身占用的内存"),
        Bilingual(
            "the buffers of the canary, a part of context and other; in no other number",
            "金丝雀的缓冲区，属于上下文及其他内存，不计入其他任何数值",
        ),
        lambda parts: parts.instrument_bytes,
    ),
    _memory_metric(
        "residual_memory",
        Bilingual("unexplained residual", "未能解释的余量"),
        Bilingual("total at the peak less all other parts", "总峰值减去其余各部分"),
        lambda parts: parts.residual_bytes,
    ),
    _memory_metric(
        "total_peak_memory",
        Bilingual("total at the peak", "总峰值内存"),
        Bilingual(
            "the device's own total on a GPU, less what the instrument holds where that is known; resident memory of "
            "the process without one",
            "有 GPU 时为设备自身统计的总量减去测量仪器自身占用的部分（已知时），无 GPU 时为进程常驻内存",
        ),
        formulas.engine_peak,
    ),
)

_MEMORY_PER_DEVICE = (
    _memory_metric(
        "kv_cache_per_device",
        Bilingual("KV cache pool of each device", "每个设备的 KV 缓存池内存"),
        Bilingual(
            "bytes of the pool on the device with the smallest one, allocated in advance",
            "各设备中最小的、预先分配的 KV 缓存池字节数",
        ),
        formulas.kv_pool_per_device,
    ),
    _memory_metric(
        "peak_memory_per_device",
        Bilingual("total at the peak of the fullest device", "占用最多的设备的总峰值内存"),
        Bilingual(
            "the device's own total, less what the instrument holds where that is known; the largest over the devices "
            "of the engine",
            "设备自身统计的总量减去测量仪器自身占用的部分（已知时），取引擎各设备中的最大值",
        ),
        formulas.peak_per_device,
    ),
)

# --- the dictionary -------------------------------------------------------------------------------------------------

_WINDOW = Bilingual(
    "tokens counted from what came back, over first arrival to last token on the host clock",
    "按实际返回的内容计数 token，除以主机时钟上首个请求到达至最后一个 token 的时间",
)
_STEPS = Bilingual(
    "tokens that the engine counted in steps of prefill alone or decode alone, over the time attributed to these; "
    "time in which steps overlap counts once",
    "引擎在只做预填充或只做解码的步中逐步计数的 token，除以归属于这些步的时间；重叠的时间只计一次",
)

_RUN_METRICS = (
    MetricDefinition(
        "output_throughput",
        Unit.OUTPUT_TOKENS_PER_S,
        Bilingual("output throughput", "输出吞吐量"),
        r"\frac{\sum n_i}{T}",
        _WINDOW,
        Better.HIGHER,
        partial(formulas.token_rate, lambda request: len(request.emissions), r"\sum n_i", Unit.OUTPUT_TOKENS_PER_S),
    ),
    MetricDefinition(
        "e2e_throughput",
        Unit.TOTAL_TOKENS_PER_S,
        Bilingual("end-to-end throughput", "端到端吞吐量"),
        r"\frac{\sum (L_i + n_i)}{T}",
        _WINDOW,
        Better.HIGHER,
        partial(
            formulas.token_rate,
            lambda request: request.prompt_tokens + len(request.emissions),
            r"\sum (L_i + n_i)",
            Unit.TOTAL_TOKENS_PER_S,
        ),
    ),
    MetricDefinition(
        "e2e_throughput_uncached",
        Unit.UNCACHED_TOKENS_PER_S,
        Bilingual("end-to-end throughput without cached tokens", "端到端吞吐量（不计缓存命中的 token）"),
        r"\frac{\sum (L_i - c_i + n_i)}{T}",
        _WINDOW,
        Better.HIGHER,
        partial(
            formulas.token_rate, formulas.uncached_and_output, r"\sum (L_i - c_i + n_i)", Unit.UNCACHED_TOKENS_PER_S
        ),
    ),
    MetricDefinition(
        "prefill_throughput",
        Unit.PREFILL_TOKENS_PER_S,
        Bilingual("prefill throughput", "预填充吞吐量"),
        r"\frac{\sum p_j}{\sum t_j}",
        _STEPS,
        Better.HIGHER,
        partial(formulas.step_rate, "prefill"),
    ),
    MetricDefinition(
        "decode_throughput",
        Unit.DECODE_TOKENS_PER_S,
        Bilingual("decode throughput", "解码吞吐量"),
        r"\frac{\sum d_j}{\sum t_j}",
        _STEPS,
        Better.HIGHER,
        partial(formulas.step_rate, "decode"),
    ),
    MetricDefinition(
        "energy_per_output_token",
        Unit.ENERGY_A_TOKEN,
        Bilingual("energy per output token", "每输出 token 能耗"),
        r"\frac{E}{\sum n_i}",
        Bilingual(
            "the driver's energy counter of all GPUs over the timed region, at least 10 s long, over the output tokens",
            "计时区间（至少 10 s）内全部 GPU 的驱动能耗计数器之差除以输出 token 数",
        ),
        Better.LOWER,
        formulas.energy_per_output_token,
    ),
    MetricDefinition(
        "total_time",
        Unit.SECONDS,
        Bilingual("total time", "总耗时"),
        r"T = \max e_i - \min a_i",
        Bilingual("host clock, first arrival to last token", "主机时钟，从首个请求到达至最后一个 token"),
        Better.LOWER,
        formulas.total_time,
    ),
    MetricDefinition(
        "prefill_step_time",
        Unit.MILLISECONDS,
        Bilingual("time of a prefill step", "预填充步耗时"),
        r"\frac{1}{N} \sum t_j",
        Bilingual("mean attributed time of the pure prefill steps", "纯预填充步归属时间的平均值"),
        Better.LOWER,
        partial(formulas.step_time, "prefill"),
    ),
    MetricDefinition(
        "decode_step_time",
        Unit.MILLISECONDS,
        Bilingual("time of a decode step", "解码步耗时"),
        r"\frac{1}{N} \sum t_j",
        Bilingual("mean attributed time of the pure decode steps", "纯解码步归属时间的平均值"),
        Better.LOWER,
        partial(formulas.step_time, "decode"),
    ),
    MetricDefinition(
        "mixed_step_time",
        Unit.MILLISECONDS,
        Bilingual("time of a mixed step", "混合步耗时"),
        r"\frac{1}{N} \sum t_j",
        Bilingual(
            "mean attributed time of the mixed steps, never split into prefill and decode",
            "混合步归属时间的平均值，不拆分为预填充与解码",
        ),
        None,
        partial(formulas.step_time, "mixed"),
    ),
    MetricDefinition(
        "mixed_tokens_per_step",
        Unit.TOKENS_PER_STEP,
        Bilingual("tokens of a mixed step", "混合步 token 数"),
        r"\frac{1}{N} \sum (p_j + d_j)",
        Bilingual("counted by the engine, mean over the mixed steps", "引擎计数，对混合步取平均"),
        None,
        formulas.mixed_tokens_per_step,
    ),
    MetricDefinition(
        "cpu_overhead",
        Unit.MILLISECONDS,
        Bilingual("host time of a decode step", "每个解码步的主机耗时"),
        r"\frac{1}{N} \sum (l_j - b_j)",
        Bilingual(
            "host clock, from the beginning of a pure decode step until its launch has returned",
            "主机时钟，从纯解码步开始至其启动调用返回",
        ),
        Better.LOWER,
        formulas.cpu_overhead,
    ),
    MetricDefinition(
        "device_idle_between_steps",
        Unit.PERCENT,
        Bilingual("device idle between decode steps", "解码步之间的设备空闲占比"),
        r"100 \cdot \left(1 - \frac{\sum g_j}{\sum t_j}\right)",
        Bilingual(
            "share of the pure decode steps' attributed time outside the device events before the first and after the "
            "last kernel of each; gaps between the kernels inside a step are not idle here, they count as device time",
            "纯解码步的归属时间中，落在各步首尾设备事件（首个核函数之前与最后一个核函数之后）以外的比例；"
            "步内核函数之间的空隙在此不计为空闲，而计入设备时间",
        ),
        Better.LOWER,
        formulas.device_idle_between_steps,
    ),
    MetricDefinition(
        "device_busy_share",
        Unit.PERCENT,
        Bilingual("share of the time in which the device runs a kernel", "设备执行核函数的时间占比"),
        r"100 \cdot \frac{\sum v_i}{\sum w_i}",
        Bilingual(
            "one profiled run of other prompts after the timed ones, prompt steps included: time in which at least one "
            "kernel or copy runs, over the time from each device's first one to its last; the profiler slows the host "
            "down, so that without it the share can be higher",
            "计时运行之后用其他提示再作一次剖析运行（含预填充步）：至少有一个核函数或拷贝在执行的时间，"
            "除以各设备从首个至最后一个的时间；剖析会拖慢主机，不剖析时的占比可能更高",
        ),
        Better.HIGHER,
        formulas.device_busy_share,
    ),
    MetricDefinition(
        "communication_share",
        Unit.PERCENT,
        Bilingual("share of the device's time in collectives", "集合通信占设备时间的比例"),
        r"100 \cdot \frac{\sum k_i}{\sum w_i}",
        Bilingual(
            "one profiled run of other prompts after the timed ones: kernels of the collectives, waiting for other "
            "devices included, over the time from each device's first kernel to its last",
            "计时运行之后用其他提示再作一次剖析运行：集合通信核函数的时间（含等待其他设备），"
            "除以各设备从首个核函数至最后一个的时间",
        ),
        Better.LOWER,
        formulas.communication_share,
    ),
    MetricDefinition(
        "cache_hit_rate",
        Unit.PERCENT,
        Bilingual("prefix cache hit rate", "前缀缓存命中率"),
        r"100 \cdot \frac{\sum c_i}{\sum L_i}",
        Bilingual(
            "prompt tokens found in the cache at admission over all prompt tokens, counted by the engine",
            "请求进入调度时在缓存中找到的提示 token 数除以全部提示 token 数，由引擎计数",
        ),
        Better.HIGHER,
        formulas.cache_hit_rate,
        counted=True,
    ),
    MetricDefinition(
        "cached_tokens",
        Unit.TOKENS,
        Bilingual("cached prompt tokens, measured", "命中缓存的提示 token 数（实测）"),
        r"\sum c_i",
        Bilingual("counted by the engine at admission", "由引擎在请求进入调度时计数"),
        Better.HIGHER,
        formulas.cached_tokens,
        counted=True,
    ),
    MetricDefinition(
        "predicted_cached_tokens",
        Unit.TOKENS,
        Bilingual("cached prompt tokens, predicted", "命中缓存的提示 token 数（预测）"),
        r"b \cdot \sum h_i",
        Bilingual(
            "worked out from prompts, block size and order of admission, without the engine: whole blocks with which a "
            "prompt admitted before begins too, the block of the last token excluded",
            "不借助引擎，仅由提示内容、块大小与进入调度的次序推算：与先进入的提示从头相同的整块数，"
            "不含最后一个 token 所在的块",
        ),
        None,
        formulas.predicted_cached_tokens,
        counted=True,
    ),
    MetricDefinition(
        "cached_tokens_bound",
        Unit.TOKENS,
        Bilingual("cached prompt tokens, upper bound", "命中缓存的提示 token 数（上限）"),
        r"\sum u_i - \max u_i",
        Bilingual(
            "tokens in whole blocks of the common prefix, over all requests that share it but the one that computes it",
            "全部共享请求中公共前缀整块 token 数之和，减去必须计算该前缀的一个请求",
        ),
        None,
        formulas.cached_tokens_bound,
        counted=True,
    ),
    MetricDefinition(
        "num_cuda_graphs",
        Unit.GRAPHS,
        Bilingual("CUDA graphs captured", "捕获的 CUDA 图数量"),
        r"G",
        Bilingual("counted by the engine, one for each padded batch size", "由引擎计数，每个填充后的批大小一张"),
        None,
        formulas.num_cuda_graphs,
        counted=True,
    ),
    MetricDefinition(
        "graph_capture_time",
        Unit.SECONDS,
        Bilingual("time to capture the CUDA graphs", "捕获 CUDA 图的耗时"),
        r"C",
        Bilingual(
            "host clock of the engine around the capture, device idle at both ends, once a process",
            "引擎在捕获前后读取主机时钟，两端设备均空闲，每个进程一次",
        ),
        Better.LOWER,
        formulas.graph_capture_time,
    ),
    MetricDefinition(
        "graph_capture_memory",
        Unit.GIGABYTES,
        Bilingual("memory that the captured CUDA graphs keep", "捕获的 CUDA 图所占显存"),
        r"\frac{M}{10^9}",
        Bilingual("free device memory before the capture less after it", "捕获前后设备空闲显存之差"),
        Better.LOWER,
        formulas.graph_capture_memory,
    ),
    MetricDefinition(
        "prompt_tokens_computed",
        Unit.TOKENS,
        Bilingual("prompt tokens computed", "实际计算的提示 token 数"),
        r"\sum p_j",
        Bilingual(
            "counted by the engine, step by step, positions computed again after a preemption included",
            "引擎逐步计数，含抢占后重新计算的位置",
        ),
        Better.LOWER,
        formulas.prompt_tokens_computed,
        counted=True,
    ),
    MetricDefinition(
        "peak_concurrency",
        Unit.REQUESTS,
        Bilingual("concurrency reached", "实际达到的并发数"),
        r"\max_j N_j",
        Bilingual("most requests running in one step, counted by the engine", "同一步内运行的最大请求数，由引擎计数"),
        None,
        formulas.peak_concurrency,
        counted=True,
    ),
    MetricDefinition(
        "mean_concurrency",
        Unit.REQUESTS,
        Bilingual("mean requests in flight", "平均在途请求数"),
        r"\frac{\sum (e_i - a_i)}{T}",
        Bilingual("Little's law over the window", "按 Little 定律在整个时间窗内计算"),
        None,
        formulas.mean_concurrency,
    ),
    MetricDefinition(
        "preemptions",
        Unit.PREEMPTIONS,
        Bilingual("preemptions", "抢占次数"),
        r"\sum r_i",
        Bilingual(
            "times that a request lost its KV blocks and began again, counted by the engine",
            "请求失去 KV 块并重新开始的次数，由引擎计数",
        ),
        Better.LOWER,
        formulas.preemptions,
        counted=True,
    ),
    MetricDefinition(
        "kv_occupancy",
        Unit.PERCENT,
        Bilingual("KV cache occupancy at the peak", "KV 缓存峰值占用率"),
        r"100 \cdot \frac{B_{used}}{B_{pool}}",
        Bilingual("blocks in use at the peak over all blocks of the pool", "峰值时已用块数除以缓存池总块数"),
        None,
        formulas.kv_occupancy,
        counted=True,
    ),
)

DICTIONARY: Mapping[str, MetricDefinition] = MappingProxyType(
    {
        metric.id: metric
        for metric in (
            *(metric for definition in SAMPLES.values() for metric in _sample_metrics(definition)),
            *_RUN_METRICS,
            *_MEMORY_METRICS,
            *_MEMORY_PER_DEVICE,
        )
    }
)


def _saved(ratio: float) -> float:
    return 100 * (1 - ratio)


def _gained(ratio: float) -> float:
    return 100 * (ratio - 1)


_PAIRS = Bilingual(
    "geometric mean over the blocks of paired runs in ABBA order", "对按 ABBA 顺序成对运行的各区组取几何平均"
)
_SAVED = r"100 \cdot (1 - r)"

COMPARISONS: Mapping[str, ComparisonDefinition] = MappingProxyType(
    {
        comparison.id: comparison
        for comparison in (
            ComparisonDefinition(
                "compute_saved",
                Unit.PERCENT,
                Bilingual("prompt computation saved", "节省的提示计算量"),
                _SAVED,
                _PAIRS,
                Better.HIGHER,
                "prompt_tokens_computed",
                _saved,
            ),
            ComparisonDefinition(
                "speedup",
                Unit.TIMES,
                Bilingual("speed-up of the total time", "总耗时加速比"),
                r"\frac{1}{r}",
                _PAIRS,
                Better.HIGHER,
                "total_time",
                lambda ratio: 1 / ratio,
            ),
            ComparisonDefinition(
                "total_time_saved",
                Unit.PERCENT,
                Bilingual("total time saved", "节省的总耗时"),
                _SAVED,
                _PAIRS,
                Better.HIGHER,
                "total_time",
                _saved,
            ),
            ComparisonDefinition(
                "cpu_overhead_reduction",
                Unit.PERCENT,
                Bilingual("host time of a decode step saved", "解码步主机耗时的降幅"),
                _SAVED,
                _PAIRS,
                Better.HIGHER,
                "cpu_overhead",
                _saved,
            ),
            ComparisonDefinition(
                "throughput_improvement",
                Unit.PERCENT,
                Bilingual("end-to-end throughput gained", "端到端吞吐量的增幅"),
                r"100 \cdot (r - 1)",
                _PAIRS,
                Better.HIGHER,
                "e2e_throughput",
                _gained,
            ),
            ComparisonDefinition(
                "decode_throughput_improvement",
                Unit.PERCENT,
                Bilingual("decode throughput gained", "解码吞吐量的增幅"),
                r"100 \cdot (r - 1)",
                _PAIRS,
                Better.HIGHER,
                "decode_throughput",
                _gained,
            ),
        )
    }
)
