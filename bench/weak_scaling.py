"""Plan 3.3: does throughput grow in step when every GPU gets the same amount of work?

Question   What is the throughput on 1, 2, 4 and 8 GPUs when the work per GPU stays the same?
Compare    data parallelism over 1, 2, 4 and 8 GPUs of one host, 32 sequences a GPU.
Workload   32 requests for each GPU, all at once, fixed lengths, random prompts (seeded), greedy.
Measure    tokens counted from what came back, host seconds, every device idle at both ends.
Derived    efficiency = throughput on p GPUs / (p x throughput on one GPU of this run).
Accept     exactly 32 x p requests are served with p GPUs; no rate more than doubles when the GPUs double.
"""

from touchstone.experiment import Arm, Bilingual, Experiment, Measure, Profile
from touchstone.workload import fixed

EXPERIMENT = Experiment(
    plan_id="3.3",
    title=Bilingual("Weak scaling", "多卡弱缩放"),
    question=Bilingual(
        "Does throughput grow in step when every GPU gets the same amount of work?",
        "每张 GPU 的工作量固定时，总吞吐量是否随 GPU 数近似线性增长？",
    ),
    method=Bilingual(
        "The workload grows with the number of GPUs, 32 sequences a GPU, with data parallelism over 1, 2, 4 and 8 GPUs "
        "of one host. The single-GPU throughput of this run is the baseline.",
        "工作量随 GPU 数增长（每张 GPU 32 个序列），以数据并行在同一主机的 1、2、4、8 张 GPU 上运行，"
        "以本次运行的单卡吞吐量为基线。",
    ),
    workload={Profile.SMOKE: fixed(32, 64, 64), Profile.QUICK: fixed(32, 512, 128), Profile.PAPER: fixed(32, 512, 512)},
    arms=tuple(Arm(f"{count} GPU", {"data_parallel_size": count}) for count in (1, 2, 4, 8)),
    measures=(
        Measure("e2e_throughput", key=True),
        Measure("output_throughput"),
        Measure("total_time"),
        Measure("peak_concurrency"),
    ),
    requires=frozenset({"GPU", "several GPUs", "workload per GPU"}),
)
