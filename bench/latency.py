"""Plan 1.2: how long does a single user wait for the first token, and for each one after it?

Question   What are time to first token, time per output token and total latency without other load?
Compare    nothing; one request after the other, each arriving when the one before has ended.
Workload   fixed input and output length, another random prompt for every request (seeded), greedy.
Measure    host time of arrival and of every token of every request.
Derived    TTFT = f - a; TPOT = (e - f) / (n - 1); total = e - a, measured and equal to TTFT + TPOT x (n - 1).
Accept     the identity above holds for the means; key numbers within +-5 % over the processes.
"""

from touchstone.experiment import Bilingual, Experiment, Measure, Profile
from touchstone.workload import fixed

EXPERIMENT = Experiment(
    plan_id="1.2",
    title=Bilingual("Latency", "延迟测试"),
    question=Bilingual(
        "How long does a single user wait for the first token, and for each one after it?",
        "单个用户等待首个 token 以及其后每个 token 需要多久？",
    ),
    method=Bilingual(
        "Requests run one after the other, each with a fresh random prompt. The host clock is read at arrival and when "
        "each token is on the host. TPOT covers the n - 1 tokens after the first.",
        "请求逐个运行，每个请求使用新的随机提示。在请求到达时以及每个 token 到达主机时读取主机时钟。"
        "TPOT 只覆盖首个之后的 n - 1 个 token。",
    ),
    workload={
        Profile.SMOKE: fixed(4, 64, 16, concurrency=1),
        Profile.QUICK: fixed(8, 512, 128, concurrency=1),
        Profile.PAPER: fixed(10, 512, 128, concurrency=1),
    },
    measures=(
        Measure("ttft_mean", result="first_token_latency_ms", key=True),
        Measure("tpot_mean", result="time_per_output_token_ms", key=True),
        Measure("total_latency_mean", result="total_latency_ms", key=True),
        Measure("ttft_p50"),
        Measure("ttft_p90"),
        Measure("ttft_p99"),
        Measure("itl_p50"),
        Measure("itl_p90"),
        Measure("itl_p99"),
        Measure("total_latency_p50"),
        Measure("total_latency_p90"),
    ),
)
