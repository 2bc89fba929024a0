"""Time the engine's own workloads on this GPU, each beside what the machine could do at best.

    PYTHONPATH=src python tools/engine_speed.py --json engine_speed.json [--only w1,prefill] [--repeats 5] [--profile]

W1       256 requests of 512 prompt and 512 output tokens
W2       256 requests of 100 to 1,024 prompt and output tokens each, uniformly drawn: 142,827 and 133,966 in all
W3       one request of 512 prompt and 128 output tokens
W4       100 requests of 512 prompt and 128 output tokens, 70 of which share their first 80 %, prefix cache off and on
prefill  256 requests of 512 prompt tokens and 1 output token
startup  from the start of the process to the first token, weights read from disk, compiled kernels cached or not

Every repeat draws new prompts, repeat i from random.Random(i) (W2: 0 always), token ids 0 to 10,000; temperature 0.6,
the stop token ignored. Time is wall clock around `LLM.generate`, after one warm-up that is not counted; all repeats are
printed, and their median. The model is Qwen3-0.6B's shape with random weights, unless a folder is given.

Floor    (weights once a step + every key and value attended to) / read bandwidth + prompt FLOPs / matrix rate, the two
         peaks measured here just before. `share` is floor / median: 100 % would be a perfect program.
--profile runs decode steps of W1 under the profiler: share of the time in which the device works, time by kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nanoinfer import LLM, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nanoinfer.model.config import ModelConfig

QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 151_645,
}
HIGHEST_TOKEN_ID = 10_000
TEMPERATURE = 0.6
SECTIONS = ("startup", "w3", "prefill", "w1", "w2", "w4")
PROFILED_STEPS = 40
KERNELS_SHOWN = 20


# --- workloads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts, and how many tokens to generate for each."""

    prompts: list[list[int]]
    output_lengths: list[int]

    @property
    def settings(self) -> list[SamplingParams]:
        """One for each request."""
        return [
            SamplingParams(temperature=TEMPERATURE, max_tokens=length, ignore_eos=True)
            for length in self.output_lengths
        ]


def token_ids(draw: random.Random, count: int) -> list[int]:
    """Draw so many token ids."""
    return [draw.randint(0, HIGHEST_TOKEN_ID) for _ in range(count)]


def fixed(seed: int, num_requests: int, prompt_tokens: int, output_tokens: int) -> Workload:
    """Make requests of one length."""
    draw = random.Random(seed)
    return Workload([token_ids(draw, prompt_tokens) for _ in range(num_requests)], [output_tokens] * num_requests)


def ranged(seed: int) -> Workload:
    """Make W2: all prompts are drawn first, then the output lengths."""
    draw = random.Random(seed)
    prompts = [token_ids(draw, draw.randint(100, 1024)) for _ in range(256)]
    return Workload(prompts, [draw.randint(100, 1024) for _ in range(256)])


def shared(seed: int) -> Workload:
    """Make W4: 70 of 100 prompts begin with the same 80 %."""
    draw = random.Random(seed)
    prefix = token_ids(draw, 512 * 4 // 5)
    prompts = [prefix + token_ids(draw, 512 - len(prefix)) for _ in range(70)]
    prompts += [token_ids(draw, 512) for _ in range(30)]
    draw.shuffle(prompts)
    return Workload(prompts, [128] * len(prompts))


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "w1": lambda seed: fixed(seed, 256, 512, 512),
    "w2": lambda _seed: ranged(0),
    "w3": lambda seed: fixed(seed, 1, 512, 128),
    "w4": shared,
    "prefill": lambda seed: fixed(seed, 256, 512, 1),
}


# --- what the machine can do ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peaks:
    """What the machine reaches in the simplest cases."""

    read_bytes_per_s: float
    copy_bytes_per_s: float
    flops_per_s: float


def measure_peaks(dtype: torch.dtype) -> Peaks:
    """Read and copy 4 GiB, and multiply matrices of 8,192; medians of 10."""
    big = torch.randn(2**30, dtype=torch.float32, device="cuda")
    other = torch.empty_like(big)
    a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
    num_bytes = big.numel() * big.itemsize
    return Peaks(
        read_bytes_per_s=num_bytes / device_seconds(lambda: torch.amax(big)),
        copy_bytes_per_s=2 * num_bytes / device_seconds(lambda: other.copy_(big)),
        flops_per_s=2 * 8192**3 / device_seconds(lambda: torch.mm(a, b)),
    )


def device_seconds(work: Callable[[], object]) -> float:
    """Median device time of a piece of work."""
    for _ in range(3):
        work()
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) / 1e3)
    return statistics.median(times)


def floor_seconds(workload: Workload, model: ModelConfig, weights_bytes: int, itemsize: int, peaks: Peaks) -> float:
    """Return the least time that the workload needs if nothing is cached."""
    num_steps = max(workload.output_lengths) - 1
    attended = sum(
        (outputs - 1) * len(prompt) + (outputs - 1) * outputs // 2
        for prompt, outputs in zip(workload.prompts, workload.output_lengths, strict=True)
    )
    num_bytes = num_steps * weights_bytes + attended * model.kv_bytes_per_token(itemsize)
    num_flops = sum(prompt_flops(len(prompt), model) for prompt in workload.prompts)
    return num_bytes / peaks.read_bytes_per_s + num_flops / peaks.flops_per_s


def prompt_flops(num_tokens: int, model: ModelConfig) -> float:
    """Products with all layers' matrices, visible pairs in attention, one row of logits."""
    attention = (model.qkv_heads + model.num_heads) * model.head_dim * model.hidden_size
    mlp = 3 * model.hidden_size * model.intermediate_size
    pairs = num_tokens * (num_tokens + 1) // 2
    layer = 2 * num_tokens * (attention + mlp) + 4 * pairs * model.num_heads * model.head_dim
    return model.num_layers * layer + 2 * model.hidden_size * model.vocab_size


# --- timing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timing:
    """All repeats of one workload. `floor_s` is None where a cache makes it meaningless."""

    name: str
    seconds: list[float]
    median_s: float
    prompt_tokens: int
    output_tokens: int
    floor_s: float | None
    decode_launch_ms: float | None
    decode_device_ms: float | None
    replayed_steps: float


def time_workload(name: str, llm: LLM, repeats: int, peaks: Peaks) -> Timing:
    """Warm up once, then time every repeat."""
    make = WORKLOADS[name]
    run(llm, make(1_000))
    llm.take_step_facts()
    seconds = [run(llm, make(seed)) for seed in range(repeats)]
    first = make(0)
    decodes = [step for step in llm.take_step_facts() if step.phase == "decode"]
    floor_s = None
    if not llm.config.prefix_cache:
        floor_s = floor_seconds(first, llm.model_config, llm.memory().weights_bytes, llm.dtype.itemsize, peaks)
    timing = Timing(
        name=name,
        seconds=seconds,
        median_s=statistics.median(seconds),
        prompt_tokens=sum(map(len, first.prompts)),
        output_tokens=sum(first.output_lengths),
        floor_s=floor_s,
        decode_launch_ms=_median((step.launched_ns - step.begin_ns) / 1e6 for step in decodes),
        decode_device_ms=_median((step.device_ns or 0) / 1e6 for step in decodes),
        replayed_steps=sum(step.graph for step in decodes) / max(1, len(decodes)),
    )
    print_timing(timing)
    return timing


def run(llm: LLM, workload: Workload) -> float:
    """Run a workload from an empty prefix cache; wall-clock seconds."""
    llm.reset_prefix_cache()
    settings = workload.settings
    torch.cuda.synchronize()
    begin = time.perf_counter()
    outputs = llm.generate(workload.prompts, settings)
    seconds = time.perf_counter() - begin
    if [len(output.token_ids) for output in outputs] != workload.output_lengths:
        raise RuntimeError("a request ended at another length than it was asked for")
    return seconds


def _median(values: Iterable[float]) -> float | None:
    listed = list(values)
    return statistics.median(listed) if listed else None


def print_timing(timing: Timing) -> None:
    """Print one line."""
    share = f"{timing.floor_s / timing.median_s:6.1%} of floor" if timing.floor_s else ""
    spread = " ".join(f"{seconds:.4f}" for seconds in timing.seconds)
    rate = (timing.output_tokens if timing.output_tokens > len(timing.seconds) else 0) / timing.median_s
    step = (
        f"host {timing.decode_launch_ms:.2f} device {timing.decode_device_ms:.2f} ms/step"
        if timing.decode_launch_ms
        else ""
    )
    print(f"{timing.name:<12} {timing.median_s:8.4f} s  {rate:9.0f} out/s  {share}  {step}  [{spread}]", flush=True)


# --- profile ----------------------------------------------------------------------------------------------------------


def profile_decode(llm: LLM, num_requests: int) -> dict[str, Any]:
    """Trace decode steps of a full batch: share of the time in which the device works, and time by kernel."""
    workload = fixed(0, num_requests, 512, 512)
    llm.reset_prefix_cache()
    for prompt, settings in zip(workload.prompts, workload.settings, strict=True):
        llm.add_request(prompt, settings)
    for _ in range(240):
        llm.step()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        for _ in range(PROFILED_STEPS):
            llm.step()
        torch.cuda.synchronize()
    while llm.has_unfinished:
        llm.step()
    return summarize(trace, f"decode of {num_requests} rows", PROFILED_STEPS)


def profile_prefill(llm: LLM) -> dict[str, Any]:
    """Trace the prefill workload."""
    workload = WORKLOADS["prefill"](0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        run(llm, workload)
        torch.cuda.synchronize()
    return summarize(trace, "prefill", 1)


def summarize(trace: torch.profiler.profile, label: str, num_steps: int) -> dict[str, Any]:
    """Unite the intervals of everything that ran on the device, and print them by name."""
    events = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in trace.events()  # type: ignore[no-untyped-call]
        if event.device_type.name == "CUDA" and event.time_range.elapsed_us() > 0
    ]
    events.sort()
    busy, reached = 0.0, events[0][0]
    by_name: dict[str, list[float]] = defaultdict(list)
    for begin, end, name in events:
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
        by_name[name].append(end - begin)
    span = reached - events[0][0]
    print(f"-- {label}: device busy {busy / span:.2%} of {span / 1e3:.1f} ms, {len(events)} events", flush=True)
    ranked = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    for name, durations in ranked[:KERNELS_SHOWN]:
        print(
            f"   {sum(durations) / num_steps:9.1f} us/step {len(durations) / num_steps:7.1f} x "
            f"{statistics.median(durations):8.2f} us  {name[:80]}"
        )
    return {
        "label": label,
        "busy_share": busy / span,
        "span_us": span,
        "kernels": {name: {"count": len(times), "total_us": sum(times)} for name, times in ranked},
    }


# --- start-up ---------------------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, source: Path) -> None:
    """Write random weights of the model in `source` as a checkpoint in bfloat16."""
    from safetensors.torch import save_file  # noqa: PLC0415  only this section needs it

    from nanoinfer.model.destinations import destinations  # noqa: PLC0415  likewise

    (folder / "config.json").write_text((source / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    options = {"weights": "synthetic", "dtype": "bfloat16", "num_kv_blocks": 4096, "cuda_graphs": False}
    with LLM(str(source), **options, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64) as llm:
        model = llm._engine.execution.runner.model  # noqa: SLF001  no public way leads to the weights
        tensors = {
            name: place.view.cpu().contiguous().clone()
            for name, place in destinations(model, llm.model_config).items()
        }
    save_file(tensors, str(folder / "model.safetensors"))


def time_startup(source: Path, dtype: str | None, repeats: int) -> list[dict[str, Any]]:
    """Start fresh processes: one with no compiled kernels, then so many with those of the first."""
    results = []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        write_checkpoint(Path(folder), source)
        for kind in ("cold", *["warm"] * repeats):
            environment = os.environ | {"TRITON_CACHE_DIR": cache}
            command = [sys.executable, __file__, "--startup-child", folder, "--spawned-s", repr(time.time())]
            command += ["--dtype", dtype] if dtype else []
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603  this script itself
            if done.returncode:
                raise RuntimeError(done.stderr)
            found = {"cache": kind} | json.loads(done.stdout.splitlines()[-1])
            print("startup", json.dumps(found), flush=True)
            results.append(found)
    return results


def startup_child(folder: str, spawned_s: float, dtype: str | None) -> None:
    """Load, generate one token, and tell what took how long."""
    imported_s = time.time()
    llm = LLM(folder, dtype=dtype)
    built_s = time.time()
    llm.generate([list(range(16))], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
    first_token_s = time.time()
    llm.generate([list(range(16))], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    graphs = llm.cuda_graphs
    print(
        json.dumps(
            {
                "to_first_token_s": first_token_s - spawned_s,
                "to_second_token_s": time.time() - spawned_s,
                "imports_s": imported_s - spawned_s,
                "build_s": built_s - imported_s,
                "graphs": None if graphs is None else asdict(graphs),
            }
        )
    )


# --- the script -------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the chosen sections."""
    arguments = parse()
    if not torch.cuda.is_available():
        print("torch sees no GPU; this script only makes sense on one", file=sys.stderr)
        return 2
    if arguments.startup_child:
        startup_child(arguments.startup_child, arguments.spawned_s, arguments.dtype)
        return 0
    with tempfile.TemporaryDirectory() as own:
        if arguments.model is None:
            Path(own, "config.json").write_text(json.dumps(QWEN3_06B), encoding="utf-8")
        record = measure(arguments, arguments.model or Path(own))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder with a config.json")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"comma-separated: {', '.join(SECTIONS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], help="float16 unless given")
    parser.add_argument("--scheduling", choices=["separated", "mixed"], default="separated")
    parser.add_argument("--no-cuda-graphs", action="store_true")
    parser.add_argument("--block-size", type=int, help="the engine's default unless given")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--startup-child", help=argparse.SUPPRESS)
    parser.add_argument("--spawned-s", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.only.split(",")) - set(SECTIONS)):
        parser.error(f"unknown section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    return arguments


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the chosen sections and return everything that was found."""
    chosen = [section for section in SECTIONS if section in arguments.only.split(",")]
    record: dict[str, Any] = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__}
    if "startup" in chosen:
        record["startup"] = time_startup(folder, arguments.dtype, arguments.repeats)
    if not set(chosen) & set(WORKLOADS):
        return record
    options: dict[str, Any] = {
        "weights": "synthetic",
        "dtype": arguments.dtype,
        "scheduling": arguments.scheduling,
        "cuda_graphs": not arguments.no_cuda_graphs,
    }
    if arguments.block_size:
        options["block_size"] = arguments.block_size
    peaks = measure_peaks(getattr(torch, arguments.dtype or "float16"))
    torch.cuda.empty_cache()
    record |= {"options": options, "peaks": asdict(peaks), "timings": []}
    print(f"{record['device']}, torch {torch.__version__}, {options}, {peaks}", flush=True)
    with LLM(str(folder), prefix_cache=False, **options) as llm:
        print(f"{llm.cuda_graphs}, {llm.memory()}", flush=True)
        for name in (name for name in chosen if name in WORKLOADS):
            record["timings"].append(asdict(time_workload(name, llm, arguments.repeats, peaks)))
        if arguments.profile:
            record["profiles"] = [profile_decode(llm, 256), profile_decode(llm, 1), profile_prefill(llm)]
    if "w4" in chosen:
        with LLM(str(folder), prefix_cache=True, **options) as llm:
            record["timings"].append(
                asdict(time_workload("w4", llm, arguments.repeats, peaks)) | {"prefix_cache": True}
            )
    return record


if __name__ == "__main__":
    sys.exit(main())
