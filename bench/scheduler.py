"""Plan 2.2: what does it cost or gain to separate prefill from decode?

Question   How do total time, time to first token and the stalls between tokens differ between the two policies?
Compare    the same requests, mixed steps (vLLM's way) against separated steps (Nano-vLLM's way); nothing else differs.
Workload   more requests than run at once, ranged input and output lengths, so that new prompts meet running decodes.
Measure    host time of every token, prefill and decode tokens step by step, wall-clock seconds.
Derived    improvement = 1 - s separated / s mixed; percentiles of TTFT and of the gaps between tokens for each arm.
Accept     both arms return equal token counts; a mixed step's time is never split into prefill and decode.
"""

from touchstone.experiment import Arm, Bilingual, Design, Experiment, Measure, Profile
from touchstone.records import Lengths, WorkloadSpec

EXPERIMENT = Experiment(
    plan_id="2.2",
    title=Bilingual("Scheduler", "调度器效率测试"),
    question=Bilingual(
        "What does it cost or gain to separate prefill from decode?", "把预填充与解码分开调度，得失如何？"
    ),
    method=Bilingual(
        "The same requests, more than can run at once and of ranged lengths, are scheduled by mixed steps and by "
        "separated steps, in paired blocks of alternating order (ABBA or BAAB by a seeded coin), each arm on an engine "
        "of its own with the same limits.",
        "同一批请求（数量超过可同时运行的上限，长度不一）分别以混合调度与分离调度运行，"
        "按成对区组交替排序（由种子决定 ABBA 或 BAAB），每一组使用独立的、上限相同的引擎。",
    ),
    workload={
        Profile.SMOKE: WorkloadSpec(
            num_requests=32, input_tokens=Lengths(low=16, high=96), output_tokens=Lengths(low=8, high=24)
        ),
        Profile.QUICK: WorkloadSpec(
            num_requests=128, input_tokens=Lengths(low=100, high=512), output_tokens=Lengths(low=32, high=256)
        ),
        Profile.PAPER: WorkloadSpec(
            num_requests=512, input_tokens=Lengths(low=100, high=1024), output_tokens=Lengths(low=100, high=1024)
        ),
    },
    arms=(Arm("mixed", {"scheduling": "mixed"}), Arm("separated", {"scheduling": "separated"})),
    engine_options={
        Profile.SMOKE: {"max_num_seqs": 8, "max_num_batched_tokens": 128},
        Profile.QUICK: {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
        Profile.PAPER: {"max_num_seqs": 256, "max_num_batched_tokens": 8192},
    },
    measures=(
        Measure("prefill_throughput", result="prefill_throughput"),
        Measure("decode_throughput", result="decode_throughput"),
        Measure("total_time_saved", result="improvement_vs_mixed_scheduler"),
        Measure("total_time"),
        Measure("e2e_throughput"),
        Measure("ttft_p50"),
        Measure("ttft_p90"),
        Measure("ttft_p99"),
        Measure("itl_p50"),
        Measure("itl_p90"),
        Measure("itl_p99"),
        Measure("itl_max"),
        Measure("mixed_tokens_per_step"),
        Measure("mixed_step_time"),
    ),
    design=Design.PAIRED_BLOCKS,
    requires=frozenset({"steps"}),
)
