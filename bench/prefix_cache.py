"""Plan 2.1: what does the prefix cache save when requests share a prefix?

Question   How many prompt tokens are not recomputed, and how much sooner does the work end?
Compare    the same requests, prefix cache off against on; nothing else differs.
Workload   70 % of the prompts begin with one common prefix of 80 % of their length (seeded), all submitted at once.
Measure    prompt tokens computed and cached (counted by the engine), wall-clock seconds, device idle at both ends.
Derived    hit rate = cached / prompt tokens; compute saved = 1 - computed on / computed off; speed-up = s off / s on.
Accept     the cold arm hits exactly 0; the warm arm's hits stay below the upper bound for its block size.
"""

from touchstone.experiment import Arm, Bilingual, Design, Experiment, Measure, Profile
from touchstone.workload import fixed

EXPERIMENT = Experiment(
    plan_id="2.1",
    title=Bilingual("Prefix cache", "前缀缓存收益测试"),
    question=Bilingual(
        "What does the prefix cache save when requests share a prefix?", "请求共享前缀时，前缀缓存能节省多少计算？"
    ),
    method=Bilingual(
        "The same requests run with the prefix cache off and on, in paired blocks of alternating order (ABBA or BAAB "
        "by a seeded coin), each arm on an engine of its own, cold at the start. Cached and computed prompt tokens are "
        "counted by the engine.",
        "同一批请求分别在前缀缓存关闭与开启时运行，按成对区组交替排序（由种子决定 ABBA 或 BAAB），"
        "每一组使用独立的、初始为空缓存的引擎。命中与实际计算的提示 token 由引擎计数。",
    ),
    workload={
        Profile.SMOKE: fixed(40, 128, 8, shared_fraction=0.7, prefix_fraction=0.8),
        Profile.QUICK: fixed(100, 512, 32, shared_fraction=0.7, prefix_fraction=0.8),
        Profile.PAPER: fixed(100, 512, 128, shared_fraction=0.7, prefix_fraction=0.8),
    },
    arms=(Arm("off", {"prefix_cache": False}), Arm("on", {"prefix_cache": True})),
    measures=(
        Measure("cache_hit_rate", result="cache_hit_rate"),
        Measure("compute_saved", result="compute_saved_pct"),
        Measure("speedup", result="actual_speedup_ratio"),
        Measure("prompt_tokens_computed"),
        Measure("total_time"),
        Measure("e2e_throughput"),
        Measure("ttft_p50"),
        Measure("ttft_p90"),
    ),
    design=Design.PAIRED_BLOCKS,
    requires=frozenset({"cached tokens"}),
)
