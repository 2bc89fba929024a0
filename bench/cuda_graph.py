"""Plan 2.3: what do CUDA graphs save in decode steps?

Question   How much host time does a decode step cost with and without graphs, and what does that do to the rate?
Compare    the same requests, CUDA graphs off against on; nothing else differs.
Workload   short prompts and long outputs, so that nearly all steps are pure decode; all submitted at once.
Sweep      batches from one request to 256.
Measure    host time from the beginning of a decode step until its launch has returned; decode tokens step by step; the
           time between the device events at both ends of each step; seconds and bytes that capturing the graphs took,
           once, before the first run; the share of time with a kernel on the device, by a profiler after all that.
Derived    overhead reduction = 1 - host time on / host time off; improvement = decode rate on / decode rate off - 1;
           earned back after capture seconds / (seconds a token off - seconds a token on) tokens, or never.
Accept     both arms return equal token counts; the "on" arm's decode steps were replayed from graphs.
"""

from touchstone.experiment import Arm, Axis, Bilingual, Design, Experiment, Measure, Point, Profile
from touchstone.records import WorkloadSpec
from touchstone.workload import fixed

SWEPT = (
    Measure("decode_throughput"),
    Measure("decode_step_time"),
    Measure("cpu_overhead"),
    Measure("device_idle_between_steps"),
    Measure("device_busy_share"),
)


def batch(requests: int) -> dict[Profile, WorkloadSpec]:
    """Let so many requests decode together from beginning to end."""
    return {
        Profile.SMOKE: fixed(requests, 16, 32),
        Profile.QUICK: fixed(requests, 32, 64),
        Profile.PAPER: fixed(requests, 32, 64),
    }


EXPERIMENT = Experiment(
    plan_id="2.3",
    title=Bilingual("CUDA graphs", "CUDA 图捕获效益测试"),
    question=Bilingual(
        "What do CUDA graphs save in decode steps, and when is their capture earned back?",
        "CUDA 图能为解码步节省多少 CPU 开销？捕获成本何时收回？",
    ),
    method=Bilingual(
        "The same requests run with CUDA graphs off and on, in paired blocks of alternating order (ABBA or BAAB by a "
        "seeded coin), each arm on an engine of its own. Host time until the launch has returned is measured for every "
        "decode step, and so is the time between the device events at its ends, which holds the gaps between its "
        "kernels. The engine times the capture of its graphs and reads the device's free memory before and after it. "
        "How much of the time the device runs a kernel is told by one more run of each arm under the engine's "
        "profiler, after all timed runs of the process and not timed itself: decode steps, and the few prompt steps "
        "before them.",
        "同一批请求分别在 CUDA 图关闭与开启时运行，按成对区组交替排序（由种子决定 ABBA 或 BAAB），"
        "每一组使用独立的引擎。对每个解码步单独测量主机耗时（直到启动调用返回），以及该步首尾设备事件之间的时间（含核函数之间的空隙）。"
        "引擎对捕获过程计时，并在前后读取设备的空闲显存。"
        "设备执行核函数的时间占比，取自该进程全部计时运行之后、各组在引擎剖析器下不计时的另一次运行："
        "其中是解码步，以及之前的少数预填充步。",
    ),
    workload=batch(8),
    arms=(Arm("off", {"cuda_graphs": False}), Arm("on", {"cuda_graphs": True})),
    measures=(
        Measure("cpu_overhead_reduction", result="cpu_overhead_reduction"),
        Measure("decode_throughput_improvement", result="throughput_improvement"),
        *SWEPT,
        Measure("num_cuda_graphs"),
        Measure("graph_capture_time"),
        Measure("graph_capture_memory"),
    ),
    design=Design.PAIRED_BLOCKS,
    profile_devices=True,
    requires=frozenset({"GPU", "steps"}),
    sweep=(
        Axis(
            "batch", SWEPT, tuple(Point(f"batch-{size}", batch(size)) for size in (1, 32, 128, 256)), includes_test=True
        ),
    ),
)
