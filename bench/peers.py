"""Engines 5.1: how does this engine stand beside others, on the same machine, in the same run, on the same requests?

Question   How long do engines take for the same requests, and what share of the machine's bound does each reach?
Compare    the engines named by --engine, each in processes of its own that take turns; the first is the baseline.
Workload   W1 many requests of one length (this test itself); its points: W2 ranged lengths, prefill alone with one
           token out, W3 one request, W4 a shared prefix. Same prompt ids for every engine, forced lengths, greedy.
Measure    host time of every token as a user of the engine sees it, device idle at both ends.
Derived    ratio of total times from one log-ratio a round; share = least time for the work at this machine's B and F.
Accept     equal token counts; prefix cache off but in W4 where an engine has the switch, and no hits but in W4.
"""

from touchstone.experiment import Arm, Axis, Bilingual, Experiment, Measure, Point, Profile
from touchstone.workload import fixed, ranged

CACHE_OFF = {profile: {"prefix_cache": False} for profile in Profile}
CACHE_ON = {profile: {"prefix_cache": True} for profile in Profile}
MEASURES = (
    Measure("total_time", key=True),
    Measure("output_throughput"),
    Measure("e2e_throughput"),
    Measure("ttft_p50"),
    Measure("tpot_p50"),
    Measure("cache_hit_rate"),
)
STATIC_BATCH = Bilingual(
    "a static batch runs every request to the longest length of the batch, which says little where lengths range",
    "静态批处理会把每个请求都算到批内最长的长度，在长度不一的负载上没有可比性",
)

EXPERIMENT = Experiment(
    plan_id="5.1",
    title=Bilingual("Engines side by side", "引擎对比"),
    question=Bilingual(
        "How does this engine stand beside others, on the same machine, in the same run, on the same requests?",
        "在同一台机器、同一次运行、同一批请求上，本引擎与其他引擎相比如何？",
    ),
    method=Bilingual(
        "Each engine runs in processes of its own, which take turns in a seeded order; one process of an engine serves "
        "all workloads. Prompts are the same token ids for each engine, output lengths are forced, sampling is greedy. "
        "The prefix cache is off except in W4, where an engine has the switch. A warm-up asks for few output tokens, "
        "since its prompts touch every shape. A token's time is when its id has reached the process that asked.",
        "每个引擎在各自的进程中运行，按种子决定的顺序交替进行；同一引擎的一个进程依次完成全部负载。"
        "所有引擎的提示是相同的 token，输出长度固定，贪心采样。除 W4 外，有开关的引擎均关闭前缀缓存。"
        "预热只要求少量输出 token，因为其提示已覆盖所有形状。token 的时间是其编号到达提问进程的时间。",
    ),
    workload={
        Profile.SMOKE: fixed(16, 64, 32),
        Profile.QUICK: fixed(64, 512, 128),
        Profile.PAPER: fixed(256, 512, 512),
    },
    engine_options=CACHE_OFF,
    arms=tuple(Arm(name, engine=name) for name in ("nanoinfer", "vllm", "nano-vllm", "transformers", "openai-server")),
    measures=MEASURES,
    warmup_output_tokens=32,
    sweep=(
        Axis(
            id="engines",
            measures=MEASURES,
            points=(
                Point(
                    "w2",
                    {
                        Profile.SMOKE: ranged(16, (16, 96), (8, 48)),
                        Profile.QUICK: ranged(64, (100, 1024), (32, 256)),
                        Profile.PAPER: ranged(256, (100, 1024), (100, 1024)),
                    },
                    engine_options=CACHE_OFF,
                    without={"transformers": STATIC_BATCH},
                ),
                Point(
                    "first-token",
                    {
                        Profile.SMOKE: fixed(16, 64, 1),
                        Profile.QUICK: fixed(64, 512, 1),
                        Profile.PAPER: fixed(256, 512, 1),
                    },
                    engine_options=CACHE_OFF,
                ),
                Point(
                    "w3",
                    {
                        Profile.SMOKE: fixed(1, 64, 32),
                        Profile.QUICK: fixed(1, 512, 128),
                        Profile.PAPER: fixed(1, 512, 128),
                    },
                    engine_options=CACHE_OFF,
                ),
                Point(
                    "w4",
                    {
                        Profile.SMOKE: fixed(20, 128, 8, shared_fraction=0.7, prefix_fraction=0.8),
                        Profile.QUICK: fixed(100, 512, 32, shared_fraction=0.7, prefix_fraction=0.8),
                        Profile.PAPER: fixed(100, 512, 128, shared_fraction=0.7, prefix_fraction=0.8),
                    },
                    engine_options=CACHE_ON,
                ),
            ),
        ),
    ),
)
