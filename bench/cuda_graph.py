"""Plan 2.3: what do CUDA graphs save in decode steps?

Question   How much host time does a decode step cost with and without graphs, and what does that do to the rate?
Compare    the same requests, CUDA graphs off against on; nothing else differs.
Workload   short prompts and long outputs, so that nearly all steps are pure decode; all submitted at once.
Measure    host time from the beginning of a decode step until its launch has returned; decode tokens step by step.
Derived    overhead reduction = 1 - host time on / host time off; improvement = decode rate on / decode rate off - 1.
Accept     both arms return equal token counts; the "on" arm's decode steps were replayed from graphs.
"""

from touchstone.experiment import Arm, Bilingual, Design, Experiment, Measure, Profile
from touchstone.workload import fixed

EXPERIMENT = Experiment(
    plan_id="2.3",
    title=Bilingual("CUDA graphs", "CUDA 图捕获效益测试"),
    question=Bilingual("What do CUDA graphs save in decode steps?", "CUDA 图能为解码步节省多少 CPU 开销？"),
    method=Bilingual(
        "The same requests run with CUDA graphs off and on, in paired blocks of alternating order (ABBA or BAAB by a "
        "seeded coin), each arm on an engine of its own. Host time until the launch has returned is measured for every "
        "decode step, apart from the wall-clock time.",
        "同一批请求分别在 CUDA 图关闭与开启时运行，按成对区组交替排序（由种子决定 ABBA 或 BAAB），"
        "每一组使用独立的引擎。对每个解码步单独测量主机耗时（直到启动调用返回），与墙钟时间分开。",
    ),
    workload={
        Profile.SMOKE: fixed(8, 16, 32),
        Profile.QUICK: fixed(8, 32, 128),
        Profile.PAPER: fixed(8, 32, 512),
    },
    arms=(Arm("off", {"cuda_graphs": False}), Arm("on", {"cuda_graphs": True})),
    measures=(
        Measure("cpu_overhead_reduction", result="cpu_overhead_reduction"),
        Measure("decode_throughput_improvement", result="throughput_improvement"),
        Measure("cpu_overhead"),
        Measure("decode_throughput"),
        Measure("decode_step_time"),
        Measure("device_idle_share"),
    ),
    design=Design.PAIRED_BLOCKS,
    requires=frozenset({"GPU", "steps"}),
)
