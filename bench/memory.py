"""Plan 1.3: where are the bytes?

Question   How much memory do weights, KV cache and activations take, and what is the total at the peak?
Compare    nothing; the parts must close to the total.
Workload   as in 1.1: all requests at once, fixed lengths, random prompts (seeded), greedy.
Measure    unique parameter storages; the KV pool and its blocks in use; temporaries at the peak; CUDA graphs; what
           was in use before the engine existed, the instrument's own buffers apart; the device's own total without
           them (resident memory of the process without a GPU).
Derived    residual = total at the peak - all parts; printed, never hidden in another part.
Accept     the residual is small against the total.
"""

from touchstone.experiment import Bilingual, Experiment, Measure, Profile
from touchstone.workload import fixed

EXPERIMENT = Experiment(
    plan_id="1.3",
    title=Bilingual("Memory", "内存使用测试"),
    question=Bilingual("Where are the bytes?", "内存都用在了哪里？"),
    method=Bilingual(
        "Each part is measured by itself: unique parameter storages, the KV pool allocated in advance and its blocks "
        "in use, temporaries at the peak, CUDA graphs, and what was in use before the engine existed, the buffers of "
        "this instrument among it. Their sum is held against the device's own total at the peak, and the residual is "
        "printed; the total is given without the instrument's buffers.",
        "各部分分别测量：去重后的参数存储、预先分配的 KV 池及其已用块、临时张量峰值、CUDA 图，"
        "以及引擎创建之前已占用的内存（其中包括本仪器自身的缓冲区）。各部分之和与设备自身统计的总峰值对账，并列出余量；"
        "给出的总量不含本仪器的缓冲区。",
    ),
    workload={
        Profile.SMOKE: fixed(16, 64, 32),
        Profile.QUICK: fixed(64, 512, 128),
        Profile.PAPER: fixed(256, 512, 512),
    },
    measures=(
        Measure("model_weight_memory", result="model_weight_memory_gb", key=True),
        Measure("kv_cache_memory", result="kv_cache_memory_gb", key=True),
        Measure("activation_memory", result="activation_memory_gb", key=True),
        Measure("total_peak_memory", result="total_peak_memory_gb", key=True),
        Measure("kv_used_memory"),
        Measure("cuda_graph_memory"),
        Measure("context_memory"),
        Measure("instrument_memory"),
        Measure("residual_memory"),
    ),
    measure_memory=True,
    requires=frozenset({"memory parts"}),
    steady=True,
)
