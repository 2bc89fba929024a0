"""Plan 3.1: what does one GPU do? The baseline of both scaling tests, measured here and never typed in.

Question   How many tokens a second does one GPU process on the work that the scaling tests give to each of theirs?
Compare    nothing; one GPU, with as many requests as fill it, and with the plan's 32.
Workload   as in 3.2 and 3.3: all requests at once, fixed lengths, random prompts (seeded), greedy.
Measure    tokens counted from what came back, host seconds, device idle at both ends.
Derived    throughput = sum (L + n) / (last token - first arrival).
Accept     key numbers within +-5 % over the processes.
"""

from touchstone.experiment import Arm, Bilingual, Experiment, Measure, Profile
from touchstone.workload import fixed

EXPERIMENT = Experiment(
    plan_id="3.1",
    title=Bilingual("Single-GPU baseline", "单卡基准"),
    question=Bilingual("What does one GPU do?", "单张 GPU 的性能基线是多少？"),
    method=Bilingual(
        "GPU 0 alone runs the workload of the strong-scaling test (arm full) and the 32 sequences that weak scaling "
        "gives to each GPU (arm light); all requests are submitted at once and tokens are counted from what came "
        "back. Both scaling tests take their denominator from here.",
        "仅用 GPU 0，分别运行强缩放测试的工作负载（full 组）与弱缩放中每张 GPU 的 32 个序列（light 组）；"
        "所有请求同时提交，token 按实际返回计数。两项缩放测试的分母均取自此处。",
    ),
    workload={
        Profile.SMOKE: fixed(64, 64, 32),
        Profile.QUICK: fixed(64, 512, 128),
        Profile.PAPER: fixed(256, 512, 512),
    },
    arms=(Arm("full"), Arm("light", requests_per_gpu=dict.fromkeys(Profile, 32))),
    measures=(
        Measure("e2e_throughput", result="1gpu_throughput", key=True),
        Measure("output_throughput", key=True),
        Measure("total_time", key=True),
        Measure("peak_concurrency"),
        Measure("kv_cache_per_device"),
        Measure("peak_memory_per_device"),
        Measure("communication_share"),
        Measure("device_busy_share"),
    ),
    requires=frozenset({"GPU"}),
    measure_memory=True,
    profile_devices=True,
)
