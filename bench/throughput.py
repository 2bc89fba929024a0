"""Plan 1.1: how many tokens a second does the engine process when many requests are in flight?

Question   What are the rates of prefill, of decode and of the whole, and how long does the work take?
Compare    nothing; one engine, many fresh processes.
Workload   all requests submitted at once, fixed input and output length, random prompts (seeded), greedy.
Measure    tokens counted from what came back and step by step, host seconds, device idle at both ends.
Derived    prefill = sum p / time of pure prefill steps; decode = sum d / time of pure decode steps;
           end to end = sum (L + n) / (last token - first arrival).
Accept     every request returns exactly the tokens asked for; key numbers within +-5 % over the processes.
"""

from touchstone.experiment import Bilingual, Experiment, Measure, Profile
from touchstone.workload import fixed

EXPERIMENT = Experiment(
    plan_id="1.1",
    title=Bilingual("Throughput", "吞吐量测试"),
    question=Bilingual(
        "How many tokens a second does the engine process when many requests are in flight?",
        "许多请求同时在途时，引擎每秒处理多少 token？",
    ),
    method=Bilingual(
        "All requests are submitted at once with random prompts of fixed length; each returns a fixed number of "
        "tokens, counted from what came back. Rates come from the engine's step-by-step counts and the host clock, "
        "with the device synchronized on both sides of the timed region.",
        "所有请求同时提交，提示为固定长度的随机 token，每个请求返回固定数量的 token，按实际返回计数。"
        "速率由引擎逐步计数与主机时钟得出，计时区间两端均同步设备。",
    ),
    workload={
        Profile.SMOKE: fixed(16, 64, 32),
        Profile.QUICK: fixed(64, 512, 128),
        Profile.PAPER: fixed(256, 512, 512),
    },
    measures=(
        Measure("prefill_throughput", result="prefill_throughput", key=True),
        Measure("decode_throughput", result="decode_throughput", key=True),
        Measure("e2e_throughput", result="e2e_throughput", key=True),
        Measure("total_time", result="total_time", key=True),
        Measure("output_throughput"),
        Measure("peak_concurrency"),
        Measure("mean_concurrency"),
        Measure("preemptions"),
        Measure("kv_occupancy"),
        Measure("energy_per_output_token"),
    ),
)
