"""Time the engine's own workloads on this GPU, each beside what the machine could do at best.

    PYTHONPATH=src python tools/engine_speed.py --json engine_speed.json [--only w1,prefill] [--size 4B] [--profile]

W1       256 requests of 512 prompt and 512 output tokens
W2       256 requests of 100 to 1,024 prompt and output tokens each, uniformly drawn: 142,827 and 133,966 in all
W3       one request of 512 prompt and 128 output tokens
W4       100 requests of 512 prompt and 128 output tokens, 70 of which share their first 80 %, prefix cache off and on
prefill  256 requests of 512 prompt tokens and 1 output token
long     four requests of 32,000 prompt and 128 output tokens
many     512 requests of 512 prompt and 256 output tokens, all 512 at a time
ttft     one request of 16 to 8,192 prompt tokens and 1 output token, each length by itself
startup  from the start of the process to the first token, weights read from disk, compiled kernels cached or not

Every repeat draws new prompts, repeat i from random.Random(i) (W2: 0 always), token ids 0 to 10,000; temperature 0.6,
the stop token ignored. Time is wall clock around `LLM.generate`, after one warm-up that is not counted; all repeats are
printed, and their median. The model is Qwen3-0.6B's shape with random weights, or another size's, or a folder's.

Floor    (weights once a step + every key and value attended to) / read bandwidth + FLOPs of prompt tokens that were not
         cached / matrix rate (or the weights once, where that takes longer), the two peaks measured here just before.
         `share` is floor / median: 100 % would be a perfect program. Start-up has none: most of it is the import of
         libraries.
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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from nanoinfer import LLM, SamplingParams
from nanoinfer.config import EngineConfig
from nanoinfer.execution.build import load_model
from nanoinfer.model.config import ModelConfig
from nanoinfer.model.destinations import destinations
from nanoinfer.model.ops import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoinfer.execution.profile import DeviceProfile
    from nanoinfer.request import StepFacts

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151_936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "eos_token_id": 151_645,
}
SIZES: dict[str, dict[str, int]] = {
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "4B": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
HIGHEST_TOKEN_ID = 10_000
TEMPERATURE = 0.6
PROMPT_LENGTHS = (16, 100, 256, 512, 1000, 2048, 4096, 8192)
SECTIONS = ("startup", "w3", "ttft", "prefill", "w1", "w2", "long", "w4", "many")
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
    "long": lambda seed: fixed(seed, 4, 32_000, 128),
    "many": lambda seed: fixed(seed, 512, 512, 256),
}
ENGINES: dict[str, dict[str, Any]] = {"w4": {"prefix_cache": True}, "many": {"max_num_seqs": 512}}
PROMPTS: dict[str, Callable[[int], Workload]] = {
    f"ttft-{length}": partial(fixed, num_requests=1, prompt_tokens=length, output_tokens=1) for length in PROMPT_LENGTHS
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


def floor_seconds(
    workload: Workload, cached: list[int], model: ModelConfig, weights_bytes: int, itemsize: int, peaks: Peaks
) -> float:
    """Return the least time that the workload needs if so many tokens of each prompt are cached."""
    num_steps = max(workload.output_lengths) - 1
    attended = sum(
        (outputs - 1) * len(prompt) + (outputs - 1) * outputs // 2
        for prompt, outputs in zip(workload.prompts, workload.output_lengths, strict=True)
    )
    num_bytes = num_steps * weights_bytes + attended * model.kv_bytes_per_token(itemsize)
    num_flops = sum(
        prompt_flops(len(prompt), num_cached, model)
        for prompt, num_cached in zip(workload.prompts, cached, strict=True)
    )
    prompts_s = max(num_flops / peaks.flops_per_s, weights_bytes / peaks.read_bytes_per_s)
    return num_bytes / peaks.read_bytes_per_s + prompts_s


def prompt_flops(num_tokens: int, num_cached: int, model: ModelConfig) -> float:
    """Products with all layers' matrices, visible pairs in attention, one row of logits."""
    attention = (model.qkv_heads + model.num_heads) * model.head_dim * model.hidden_size
    mlp = 3 * model.hidden_size * model.intermediate_size
    pairs = (num_tokens * (num_tokens + 1) - num_cached * (num_cached + 1)) // 2
    layer = 2 * (num_tokens - num_cached) * (attention + mlp) + 4 * pairs * model.num_heads * model.head_dim
    return model.num_layers * layer + 2 * model.hidden_size * model.vocab_size


# --- timing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of a kind: medians of the host's time to launch one and of the device's own; the share of replayed ones."""

    count: int
    launch_ms: float | None
    device_ms: float | None
    replayed: float | None

    @classmethod
    def of(cls, facts: list[StepFacts]) -> Steps:
        """Sum steps up."""
        if not facts:
            return cls(0, None, None, None)
        return cls(
            count=len(facts),
            launch_ms=statistics.median((step.launched_ns - step.begin_ns) / 1e6 for step in facts),
            device_ms=statistics.median((step.device_ns or 0) / 1e6 for step in facts),
            replayed=sum(step.graph for step in facts) / len(facts),
        )

    def __str__(self) -> str:
        """Return what a line has room for."""
        if not self.count:
            return "none"
        return f"{self.count} x host {self.launch_ms:.2f} device {self.device_ms:.2f} ms, {self.replayed:.0%} replayed"


@dataclass(frozen=True, slots=True)
class Timing:
    """All repeats of one workload; `share` is floor_s / median_s."""

    name: str
    seconds: list[float]
    median_s: float
    prompt_tokens: int
    output_tokens: int
    floor_s: float
    share: float
    decode_steps: Steps
    prompt_steps: Steps


def time_workload(name: str, llm: LLM, repeats: int, peaks: Peaks) -> Timing:
    """Warm up once, then time every repeat."""
    make = (WORKLOADS | PROMPTS)[name]
    run(llm, make(1_000))
    llm.take_step_facts()
    runs = [run(llm, make(seed)) for seed in range(repeats)]
    seconds, first = [run.seconds for run in runs], make(0)
    steps = llm.take_step_facts()
    weights_bytes, itemsize = llm.memory().weights_bytes, llm.dtype.itemsize
    floor_s = floor_seconds(first, runs[0].cached, llm.model_config, weights_bytes, itemsize, peaks)
    timing = Timing(
        name=name,
        seconds=seconds,
        median_s=statistics.median(seconds),
        prompt_tokens=sum(map(len, first.prompts)),
        output_tokens=sum(first.output_lengths),
        floor_s=floor_s,
        share=floor_s / statistics.median(seconds),
        decode_steps=Steps.of([step for step in steps if step.phase == "decode"]),
        prompt_steps=Steps.of([step for step in steps if step.phase != "decode"]),
    )
    print_timing(timing)
    return timing


class Run(NamedTuple):
    """Wall-clock seconds of a workload, and how many tokens of each prompt were found in the prefix cache."""

    seconds: float
    cached: list[int]


def run(llm: LLM, workload: Workload) -> Run:
    """Run a workload from an empty prefix cache."""
    llm.reset_prefix_cache()
    settings = workload.settings
    torch.cuda.synchronize()
    begin = time.perf_counter()
    outputs = llm.generate(workload.prompts, settings)
    seconds = time.perf_counter() - begin
    if [len(output.token_ids) for output in outputs] != workload.output_lengths:
        raise RuntimeError("a request ended at another length than it was asked for")
    return Run(seconds, [output.facts.num_cached_tokens for output in outputs])


def print_timing(timing: Timing) -> None:
    """Print one line."""
    share = f"{timing.share:6.1%} of the floor's speed"
    spread = " ".join(f"{seconds:.4f}" for seconds in timing.seconds)
    rate = (timing.output_tokens if timing.output_tokens > len(timing.seconds) else 0) / timing.median_s
    steps = f"decodes {timing.decode_steps}; prompts {timing.prompt_steps}"
    print(f"{timing.name:<12} {timing.median_s:8.4f} s  {rate:9.0f} out/s  {share}  [{spread}]  {steps}", flush=True)


# --- profile ----------------------------------------------------------------------------------------------------------


def profile_decode(llm: LLM, num_requests: int) -> dict[str, Any]:
    """Trace decode steps of a full batch: share of the time in which the device works, and time by kernel."""
    workload = fixed(0, num_requests, 512, 512)
    llm.reset_prefix_cache()
    for prompt, settings in zip(workload.prompts, workload.settings, strict=True):
        llm.add_request(prompt, settings)
    for _ in range(240):
        llm.step()
    llm.start_profile()
    for _ in range(PROFILED_STEPS):
        llm.step()
    profile = llm.stop_profile()[0]
    while llm.has_unfinished:
        llm.step()
    return summarize(profile, f"decode of {num_requests} rows", PROFILED_STEPS)


def profile_prefill(llm: LLM) -> dict[str, Any]:
    """Trace the prefill workload."""
    llm.start_profile()
    run(llm, WORKLOADS["prefill"](0))
    return summarize(llm.stop_profile()[0], "prefill", 1)


def summarize(profile: DeviceProfile | None, label: str, num_steps: int) -> dict[str, Any]:
    """Print the share of the time in which the device works, and its time by kernel."""
    if profile is None:
        raise RuntimeError("nothing was recorded; profiles need a GPU")
    busy_share = profile.busy_ns / profile.span_ns
    print(f"-- {label}: device busy {busy_share:.2%} of {profile.span_ns / 1e6:.1f} ms", flush=True)
    ranked = sorted(profile.kernels_ns.items(), key=lambda item: -item[1])
    for name, nanoseconds in ranked[:KERNELS_SHOWN]:
        print(f"   {nanoseconds / 1e3 / num_steps:9.1f} us/step  {name[:80]}")
    return {"label": label, "steps": num_steps, "busy_share": busy_share} | asdict(profile)


# --- start-up ---------------------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, source: Path) -> None:
    """Write random weights of the model in `source` as a checkpoint in bfloat16."""
    from safetensors.torch import save_file  # noqa: PLC0415  only this section needs it

    (folder / "config.json").write_text((source / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    config, model_config = EngineConfig(model=str(source), weights="synthetic"), ModelConfig.from_folder(source)
    device, dtype = torch.device("cuda"), torch.bfloat16
    model = load_model(config, model_config, source, device=device, dtype=dtype, num_positions=1, ops=REFERENCE)
    places = destinations(model, model_config)
    tensors = {name: place.view.cpu().contiguous().clone() for name, place in places.items()}
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
            Path(own, "config.json").write_text(json.dumps(QWEN3 | SIZES[arguments.size]), encoding="utf-8")
        record = measure(arguments, arguments.model or Path(own))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder with a config.json")
    parser.add_argument("--size", choices=SIZES, default="0.6B", help="of Qwen3, where no folder is given")
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
    record["model"] = str(arguments.model or f"Qwen3 {arguments.size}, random weights")
    if "startup" in chosen:
        record["startup"] = time_startup(folder, arguments.dtype, arguments.repeats)
    if chosen == ["startup"]:
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
        print(f"{llm.cuda_graphs}, {llm.memory_by_device()}", flush=True)
        for section in chosen:
            special: dict[str, list[str]] = {"startup": [], "ttft": list(PROMPTS), "many": []}
            for name in special.get(section, [section]):
                record["timings"].append(asdict(time_workload(name, llm, arguments.repeats, peaks)))
        if arguments.profile:
            record["profiles"] = [profile_decode(llm, 256), profile_decode(llm, 1), profile_prefill(llm)]
    for section in [each for each in ENGINES if each in chosen]:
        with LLM(str(folder), **({"prefix_cache": False} | options | ENGINES[section])) as llm:
            timing = asdict(time_workload(section, llm, arguments.repeats, peaks))
            record["timings"].append(timing | ENGINES[section])
    return record


if __name__ == "__main__":
    sys.exit(main())
