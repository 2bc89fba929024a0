"""Plan 2.2: what does it cost or gain to separate prefill from decode?

Question   How do total time, time to first token and the stalls between tokens differ between the two policies?
Compare    the same requests, mixed steps (vLLM's way) against separated steps (Nano-vLLM's way), equal token budgets.
Workload   more requests than run at once, ranged input and output lengths, so that new prompts meet running decodes.
Sweep      Poisson arrivals at shares of the rate that the mixed arm served all at once, measured in the same process;
           then smaller and larger token budgets, all at once. In both, the test itself is one end or the middle.
Measure    host time of every token and arrival, prefill and decode tokens step by step, wall-clock seconds.
Derived    improvement = 1 - s separated / s mixed; TTFT from arrival, queueing time in it; gaps between tokens, the
           largest of which is the longest stall.
Accept     both arms return equal token counts and see equal arrivals; a mixed step's time is never split into prefill
           and decode.
"""

from touchstone.experiment import Arm, Axis, Bilingual, Design, Experiment, Measure, Point, Profile
from touchstone.records import WorkloadSpec
from touchstone.workload import ranged

SWEPT = (
    Measure("e2e_throughput"),
    Measure("ttft_p50"),
    Measure("ttft_p90"),
    Measure("queue_time_p90"),
    Measure("itl_p50"),
    Measure("itl_p99"),
    Measure("itl_max"),
)


def chat(load: float | None = None) -> dict[Profile, WorkloadSpec]:
    """Prompts somewhat longer than answers, all at once or at a load; a smoke load is half as many."""
    return {
        Profile.SMOKE: ranged(24 if load is None else 12, (16, 96), (8, 24), load=load),
        Profile.QUICK: ranged(104, (100, 512), (32, 96), load=load),
        Profile.PAPER: ranged(104, (100, 768), (16, 104), load=load),
    }


def arriving(percent: int) -> Point:
    """Let requests arrive over time."""
    return Point(f"load-{percent}", chat(percent / 100))


def budgeted(tokens: int) -> Point:
    """Let a step compute at most so many tokens."""
    large = {profile: chat()[profile] for profile in (Profile.QUICK, Profile.PAPER)}
    return Point(f"budget-{tokens}", large, {profile: {"max_num_batched_tokens": tokens} for profile in large})


EXPERIMENT = Experiment(
    plan_id="2.2",
    title=Bilingual("Scheduler", "调度器效率测试"),
    question=Bilingual(
        "What does it cost or gain to separate prefill from decode, at which load and token budget?",
        "把预填充与解码分开调度，在不同负载与 token 预算下得失如何？",
    ),
    method=Bilingual(
        "The same requests, more than can run at once and of ranged lengths, are scheduled by mixed steps and by "
        "separated steps, in paired blocks of alternating order (ABBA or BAAB by a seeded coin), each arm on an engine "
        "of its own with the same limits. Loads are shares of the rate that the mixed arm serves all at once, measured "
        "in the same process; waiting counts from arrival.",
        "同一批请求（数量超过可同时运行的上限，长度不一）分别以混合调度与分离调度运行，"
        "按成对区组交替排序（由种子决定 ABBA 或 BAAB），每一组使用独立的、上限相同的引擎。"
        "负载为混合调度在全部同时提交时的服务速率的某一比例，在同一进程内测得；等待时间从请求到达时起算。",
    ),
    workload=chat(),
    arms=(Arm("mixed", {"scheduling": "mixed"}), Arm("separated", {"scheduling": "separated"})),
    engine_options={
        Profile.SMOKE: {"max_num_seqs": 8, "max_num_batched_tokens": 128},
        Profile.QUICK: {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
        Profile.PAPER: {"max_num_seqs": 40, "max_num_batched_tokens": 2048},
    },
    measures=(
        Measure("prefill_throughput", result="prefill_throughput"),
        Measure("decode_throughput", result="decode_throughput"),
        Measure("total_time_saved", result="improvement_vs_mixed_scheduler"),
        Measure("total_time"),
        *SWEPT,
        Measure("ttft_p99"),
        Measure("itl_p90"),
        Measure("mixed_tokens_per_step"),
        Measure("mixed_step_time"),
    ),
    design=Design.PAIRED_BLOCKS,
    requires=frozenset({"steps"}),
    sweep=(
        Axis("load", SWEPT, tuple(map(arriving, (50, 90))), includes_test=True),
        Axis("token_budget", SWEPT, tuple(map(budgeted, (512, 8192))), includes_test=True),
    ),
)
