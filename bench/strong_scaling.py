"""Plan 3.2: how much faster is the same work on more GPUs?

Question   What are throughput and efficiency on 1, 2, 4 and 8 GPUs when the amount of work stays the same?
Compare    tensor parallelism over 1, 2, 4 and 8 GPUs of one host on the same requests.
Workload   as in 3.1: all requests at once, fixed lengths, random prompts (seeded), greedy.
Measure    tokens counted from what came back, host seconds, every device idle at both ends.
Derived    speed-up S = T1 / Tp, efficiency = S / p; T1 is measured in this run.
Accept     equal token counts in every arm; no rate more than doubles when the GPUs double.
"""

from touchstone.experiment import Arm, Bilingual, Experiment, Measure, Profile
from touchstone.workload import fixed

EXPERIMENT = Experiment(
    plan_id="3.2",
    title=Bilingual("Strong scaling", "多卡强缩放"),
    question=Bilingual("How much faster is the same work on more GPUs?", "问题规模固定时，增加 GPU 能快多少？"),
    method=Bilingual(
        "The same requests run with tensor parallelism over 1, 2, 4 and 8 GPUs of one host. The single-GPU time of "
        "this run is the baseline.",
        "同一批请求以张量并行在同一主机的 1、2、4、8 张 GPU 上运行，以本次运行的单卡时间为基线。",
    ),
    workload={
        Profile.SMOKE: fixed(16, 64, 32),
        Profile.QUICK: fixed(64, 512, 128),
        Profile.PAPER: fixed(256, 512, 512),
    },
    arms=tuple(Arm(f"{count} GPU", {"tensor_parallel_size": count}) for count in (1, 2, 4, 8)),
    measures=(
        Measure("e2e_throughput", key=True),
        Measure("output_throughput"),
        Measure("total_time"),
        Measure("peak_concurrency"),
    ),
    requires=frozenset({"GPU", "several GPUs"}),
)
