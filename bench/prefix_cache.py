"""Plan 2.1: what does the prefix cache save when requests share a prefix?

Question   How many prompt tokens are not recomputed, how much sooner does the work end, and what if nothing is shared?
Compare    the same requests, prefix cache off against on; nothing else differs.
Workload   70 % of the prompts begin with one common prefix of 80 % of their length (seeded), all submitted at once.
Sweep      all prompts share 0 to 100 % of their tokens; then prompts from short to long, shared as in the test itself.
Measure    prompt tokens computed and cached (counted by the engine), wall-clock seconds, device idle at both ends.
Derived    hit rate = cached / prompt tokens; compute saved = 1 - computed on / computed off; speed-up = s off / s on;
           cached tokens predicted from prompts, block size and order of admission, and the most that can be had.
Accept     off hits exactly 0; on hits exactly what is predicted, within the bound; both passes of a block agree.
"""

from touchstone.experiment import Arm, Axis, Bilingual, Design, Experiment, Measure, Point, Profile
from touchstone.records import WorkloadSpec
from touchstone.workload import fixed

SWEPT = (
    Measure("cache_hit_rate"),
    Measure("predicted_cached_tokens"),
    Measure("cached_tokens"),
    Measure("total_time"),
    Measure("ttft_p50"),
)


def as_planned(requests: int, input_tokens: int, output_tokens: int) -> WorkloadSpec:
    """Let 70 % of the prompts share 80 % of their length."""
    return fixed(requests, input_tokens, output_tokens, shared_fraction=0.7, prefix_fraction=0.8)


def sharing(percent: int) -> Point:
    """Let all prompts begin with the same tokens, so many per cent of their length."""
    requests = 1.0 if percent else 0.0
    large = fixed(40, 512, 32, shared_fraction=requests, prefix_fraction=percent / 100)
    workload = {Profile.QUICK: large, Profile.PAPER: large}
    if percent in {0, 100}:
        workload[Profile.SMOKE] = fixed(16, 128, 4, shared_fraction=requests, prefix_fraction=percent / 100)
    return Point(f"hit-{percent}", workload)


def prompts_of(tokens: int) -> Point:
    """Make all prompts of one length."""
    return Point(f"input-{tokens}", dict.fromkeys((Profile.QUICK, Profile.PAPER), as_planned(40, tokens, 32)))


EXPERIMENT = Experiment(
    plan_id="2.1",
    title=Bilingual("Prefix cache", "前缀缓存收益测试"),
    question=Bilingual(
        "What does the prefix cache save when requests share a prefix, and what does it cost when they do not?",
        "请求共享前缀时，前缀缓存能节省多少计算？没有共享时又要付出多少代价？",
    ),
    method=Bilingual(
        "The same requests run with the prefix cache off and on, in paired blocks of alternating order (ABBA or BAAB "
        "by a seeded coin), each arm on an engine of its own, cold at the start. Cached and computed prompt tokens are "
        "counted by the engine, and predicted from the prompts, the block size and the order of admission.",
        "同一批请求分别在前缀缓存关闭与开启时运行，按成对区组交替排序（由种子决定 ABBA 或 BAAB），"
        "每一组使用独立的、初始为空缓存的引擎。命中与实际计算的提示 token 由引擎计数，"
        "并根据提示内容、块大小与进入调度的次序独立预测。",
    ),
    workload={
        Profile.SMOKE: as_planned(24, 128, 8),
        Profile.QUICK: as_planned(100, 512, 32),
        Profile.PAPER: as_planned(100, 512, 128),
    },
    arms=(Arm("off", {"prefix_cache": False}), Arm("on", {"prefix_cache": True})),
    measures=(
        Measure("cache_hit_rate", result="cache_hit_rate"),
        Measure("compute_saved", result="compute_saved_pct"),
        Measure("speedup", result="actual_speedup_ratio"),
        Measure("predicted_cached_tokens"),
        Measure("cached_tokens"),
        Measure("cached_tokens_bound"),
        Measure("prompt_tokens_computed"),
        Measure("total_time"),
        Measure("e2e_throughput"),
        Measure("ttft_p50"),
        Measure("ttft_p90"),
    ),
    design=Design.PAIRED_BLOCKS,
    requires=frozenset({"cached tokens"}),
    sweep=(
        Axis("shared", SWEPT, tuple(map(sharing, (0, 25, 50, 75, 100)))),
        Axis("input_length", SWEPT, tuple(map(prompts_of, (128, 512, 2048)))),
    ),
)
