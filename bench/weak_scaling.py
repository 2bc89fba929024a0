"""Plan 3.3: does throughput grow in step when every GPU gets the same amount of work?

Question   What is the throughput on 1, 2, 4 and 8 GPUs when the work per GPU stays the same?
Compare    data and tensor parallelism over 2, 4 and 8 GPUs of one host, each against one GPU of test 3.1.
Workload   32 requests for each GPU (the plan), and as many as fill it; all at once, fixed lengths, seeded, greedy.
Measure    tokens counted from what came back, host seconds, every device idle at both ends.
Derived    efficiency = throughput on p GPUs / (p x throughput of 3.1); Gustafson's law fitted to the scaled speed-up.
Accept     each GPU has exactly the requests of its baseline and the same KV pool; no efficiency above 105 %.
"""

from touchstone.experiment import Arm, Bilingual, Experiment, Law, Measure, Profile, Scaling, Series
from touchstone.workload import fixed

COUNTS = (2, 4, 8)
LIGHT = dict.fromkeys(Profile, 32)
FULL = {Profile.SMOKE: 64, Profile.QUICK: 64, Profile.PAPER: 256}


def data(load: str, requests: dict[Profile, int]) -> tuple[Arm, ...]:
    """Replicas of the engine, each with the requests of one GPU."""
    return tuple(
        Arm(f"DP {count} {load}", {"data_parallel_size": count}, num_gpus=count, requests_per_gpu=requests)
        for count in COUNTS
    )


def tensor(load: str, requests: dict[Profile, int]) -> tuple[Arm, ...]:
    """One engine over all GPUs, which may run as many requests at a time as its GPUs could one by one.

    The limit is the same at either load and in 3.2, so that one engine can serve them all.
    """
    return tuple(
        Arm(
            f"TP {count} {load}",
            {"tensor_parallel_size": count, "max_num_seqs": count * max(FULL.values())},
            num_gpus=count,
            requests_per_gpu=requests,
        )
        for count in COUNTS
    )


def series(identifier: str, name: Bilingual, arms: tuple[Arm, ...], load: str) -> Series:
    """Hold arms against the baseline's arm of the same load."""
    return Series(identifier, name, tuple(arm.name for arm in arms), load)


DATA_LIGHT, DATA_FULL = data("light", LIGHT), data("full", FULL)
TENSOR_LIGHT, TENSOR_FULL = tensor("light", LIGHT), tensor("full", FULL)

EXPERIMENT = Experiment(
    plan_id="3.3",
    title=Bilingual("Weak scaling", "多卡弱缩放"),
    question=Bilingual(
        "Does throughput grow in step when every GPU gets the same amount of work?",
        "每张 GPU 的工作量固定时，总吞吐量是否随 GPU 数近似线性增长？",
    ),
    method=Bilingual(
        "The workload grows with the number of GPUs: 32 sequences a GPU (light), and as many as fill a GPU (full), "
        "with data parallelism and with tensor parallelism over 2, 4 and 8 GPUs of one host. The denominator is what "
        "test 3.1 measured on GPU 0 in this run with the requests of one GPU.",
        "工作量随 GPU 数增长：每张 GPU 32 个序列（light），或足以占满一张 GPU 的序列数（full），"
        "分别以数据并行与张量并行在同一主机的 2、4、8 张 GPU 上运行。"
        "分母为本次运行中测试 3.1 在 GPU 0 上以单卡工作量得到的实测值。",
    ),
    workload={Profile.SMOKE: fixed(32, 64, 32), Profile.QUICK: fixed(32, 512, 128), Profile.PAPER: fixed(32, 512, 512)},
    arms=(*DATA_LIGHT, *DATA_FULL, *TENSOR_LIGHT, *TENSOR_FULL),
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
        Law.WEAK,
        (
            series("data", Bilingual("data parallel, light load", "数据并行，轻载"), DATA_LIGHT, "light"),
            series("data_full", Bilingual("data parallel, full load", "数据并行，满载"), DATA_FULL, "full"),
            series("tensor", Bilingual("tensor parallel, light load", "张量并行，轻载"), TENSOR_LIGHT, "light"),
            series("tensor_full", Bilingual("tensor parallel, full load", "张量并行，满载"), TENSOR_FULL, "full"),
        ),
    ),
)
