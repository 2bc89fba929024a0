"""Plan 3.2: how much faster is the same work on more GPUs?

Question   What are throughput and efficiency on 1, 2, 4 and 8 GPUs when the amount of work stays the same?
Compare    tensor parallelism and data parallelism over 2, 4 and 8 GPUs of one host, each against one GPU of test 3.1.
Workload   the very requests of 3.1: all at once, fixed lengths, random prompts (seeded), greedy.
Measure    tokens counted from what came back, host seconds, every device idle at both ends.
Derived    speed-up S = throughput on p GPUs / throughput of 3.1, efficiency = S / p; Amdahl's law fitted to 1 / S.
Accept     the same requests and the same KV pool a device in every arm; no efficiency above 105 %.
"""

from touchstone.experiment import Arm, Bilingual, Experiment, Law, Measure, Profile, Scaling, Series
from touchstone.workload import fixed

COUNTS = (2, 4, 8)
# As many requests may run as in 3.3, so that one engine can serve both.
TENSOR = tuple(
    Arm(f"TP {count}", {"tensor_parallel_size": count, "max_num_seqs": 256 * count}, num_gpus=count) for count in COUNTS
)
DATA = tuple(Arm(f"DP {count}", {"data_parallel_size": count}, num_gpus=count) for count in COUNTS)

EXPERIMENT = Experiment(
    plan_id="3.2",
    title=Bilingual("Strong scaling", "多卡强缩放"),
    question=Bilingual("How much faster is the same work on more GPUs?", "问题规模固定时，增加 GPU 能快多少？"),
    method=Bilingual(
        "The same requests as in test 3.1 run with tensor parallelism and with data parallelism over 2, 4 and 8 GPUs "
        "of one host, with the same KV pool on each GPU. The denominator is what test 3.1 measured on GPU 0 in this "
        "run.",
        "与测试 3.1 相同的请求，分别以张量并行与数据并行在同一主机的 2、4、8 张 GPU 上运行，"
        "每张 GPU 的 KV 缓存池相同。分母为本次运行中测试 3.1 在 GPU 0 上的实测值。",
    ),
    workload={
        Profile.SMOKE: fixed(64, 64, 32),
        Profile.QUICK: fixed(64, 512, 128),
        Profile.PAPER: fixed(256, 512, 512),
    },
    arms=(*TENSOR, *DATA),
    measures=(
        Measure("e2e_throughput", key=True),
        Measure("output_throughput"),
        Measure("total_time"),
        Measure("peak_concurrency"),
        Measure("kv_cache_per_device"),
        Measure("peak_memory_per_device"),
        Measure("communication_share"),
    ),
    requires=frozenset({"GPU", "several GPUs"}),
    measure_memory=True,
    profile_devices=True,
    scaling=Scaling(
        Law.STRONG,
        (
            Series("tensor", Bilingual("tensor parallel", "张量并行"), tuple(arm.name for arm in TENSOR), "full"),
            Series("data", Bilingual("data parallel", "数据并行"), tuple(arm.name for arm in DATA), "full"),
        ),
    ),
)
