"""Plan 3.1: what does one GPU do? The baseline of both scaling tests, measured here and never typed in.

Question   How many tokens a second does one GPU process on the workload of the strong-scaling test?
Compare    nothing; one GPU.
Workload   as in 3.2: all requests at once, fixed lengths, random prompts (seeded), greedy.
Measure    tokens counted from what came back, host seconds, device idle at both ends.
Derived    throughput = sum (L + n) / (last token - first arrival).
Accept     key numbers within +-5 % over the processes.
"""

from touchstone.experiment import Bilingual, Experiment, Measure, Profile
from touchstone.workload import fixed

EXPERIMENT = Experiment(
    plan_id="3.1",
    title=Bilingual("Single-GPU baseline", "单卡基准"),
    question=Bilingual("What does one GPU do?", "单张 GPU 的性能基线是多少？"),
    method=Bilingual(
        "The workload of the strong-scaling test on one GPU; all requests are submitted at once and tokens are counted "
        "from what came back.",
        "在单张 GPU 上运行强缩放测试的工作负载；所有请求同时提交，token 按实际返回计数。",
    ),
    workload={
        Profile.SMOKE: fixed(16, 64, 32),
        Profile.QUICK: fixed(64, 512, 128),
        Profile.PAPER: fixed(256, 512, 512),
    },
    measures=(
        Measure("e2e_throughput", result="1gpu_throughput", key=True),
        Measure("output_throughput", key=True),
        Measure("total_time", key=True),
        Measure("peak_concurrency"),
    ),
    requires=frozenset({"GPU"}),
)
