"""Time one host's GPUs together: tensor and data parallelism, strong and weak scaling, and what communication costs.

    PYTHONPATH=src python tools/parallel_speed.py --json parallel_speed.json [--repeats 3] [--dtype bfloat16]
                                                  [--only "TP 4,8B"] [--all-reduce nccl] [--kernels]

W1    256 requests of 512 prompt and 512 output tokens: strong scaling
weak  32 and 256 such requests a device, with data parallelism
W3    one request of 512 prompt and 128 output tokens, on the 0.6B and on an 8B shape, with tensor parallelism

Device counts are 1, 2, 4 and 8, as far as there are devices. Every engine runs in a process of its own, one after the
other, and what one of them cannot do leaves the others their turn: the error is printed and kept in the JSON. Each time
is wall clock around `LLM.generate` after one warm-up that is not counted; all repeats are kept, medians printed.

speedup        time of one device / time of n, for the same requests
efficiency     speedup / n; for weak scaling, throughput of n devices / (n x throughput of one)
communication  share of a rank's device time in kernels that add up between devices, waiting for peers included; from
               one more, profiled run of W1 and W3, the median over the ranks
memory         bytes in use on the device that has most, by the driver's count
first, step    median milliseconds from arrival to the first token, and from one decode step's tokens to the next one's;
               device: of the latter, what the (first) device worked
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

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
QWEN3_8B = QWEN3_06B | {
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
TINY = QWEN3_06B | {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "head_dim": 16,
}
SHAPES = {"0.6B": QWEN3_06B, "8B": QWEN3_8B, "tiny": TINY}
COUNTS = (1, 2, 4, 8)
HIGHEST_TOKEN_ID = 10_000
TEMPERATURE = 0.6
LIMIT_S = 150  # for one engine, its start included
SMALL = {"max_num_seqs": 8, "max_num_batched_tokens": 2048, "max_model_len": 2048}


@dataclass(frozen=True, slots=True)
class Work:
    """Requests of one length, and whether a further run of them is profiled."""

    name: str
    num_requests: int
    prompt_tokens: int = 512
    output_tokens: int = 512
    profiled: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One engine and what it is timed on."""

    shape: str
    tensor: int
    data: int
    works: tuple[Work, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """What stands in the table."""
        return f"{self.shape} TP {self.tensor} DP {self.data}"


def cases(num_devices: int, *, tiny: bool) -> list[Case]:
    """List the engines, the single ones first, because all shares are of theirs."""
    counts = [count for count in COUNTS if count <= num_devices]
    shape, length = ("tiny", 16) if tiny else ("0.6B", 512)
    w1 = Work("W1", 8 if tiny else 256, length, length, profiled=True)
    w3 = Work("W3", 1, length, length // 4, profiled=True)
    several = [count for count in counts if count > 1]
    options = {"num_kv_blocks": 2048, "max_model_len": 128} if tiny else {}
    listed = [Case(shape, 1, 1, (w1, _weak(32, 1, length), w3), options)]
    listed += [Case(shape, count, 1, (w1, w3), options) for count in several]
    listed += [
        Case(shape, 1, count, (w1, _weak(32, count, length), _weak(w1.num_requests, count, length)), options)
        for count in several
    ]
    if not tiny:
        listed += [Case("8B", count, 1, (w3,), SMALL) for count in counts]
    return listed


def _weak(each: int, count: int, length: int) -> Work:
    return Work(f"weak {each}", each * count, length, length)


# --- one engine, in a process of its own ------------------------------------------------------------------------------


def run_case(case: Case, repeats: int, common: dict[str, Any]) -> dict[str, Any]:
    """Build the engine, time its works, and return all that was found."""
    from nanoinfer import LLM  # noqa: PLC0415  the parent process needs neither torch nor a device

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(SHAPES[case.shape]), encoding="utf-8")
        options = common | case.options | {"tensor_parallel_size": case.tensor, "data_parallel_size": case.data}
        with LLM(folder, weights="synthetic", prefix_cache=False, **options) as llm:
            start_s = time.perf_counter() - begin
            gc.collect()
            gc.freeze()  # no timed run has to look through the libraries' objects
            works = {work.name: time_work(llm, work, repeats) for work in case.works}
            memory = [asdict(device) for device in llm.memory_by_device()]
            graphs = llm.cuda_graphs
    return {
        "start_s": start_s,
        "works": works,
        "memory": memory,
        "graphs": None if graphs is None else asdict(graphs),
    }


def time_work(llm: Any, work: Work, repeats: int) -> dict[str, Any]:  # noqa: ANN401  LLM is imported by who runs a case
    """Warm up once, time every repeat, then profile one more if that was asked for."""
    generate(llm, work, 1_000)
    llm.take_step_facts()
    runs = [generate(llm, work, seed) for seed in range(repeats)]
    seconds = [run.seconds for run in runs]
    steps = [step for step in llm.take_step_facts() if step.phase == "decode"]
    found: dict[str, Any] = {
        "num_requests": work.num_requests,
        "output_tokens": work.num_requests * work.output_tokens,
        "seconds": seconds,
        "median_s": statistics.median(seconds),
        "first_token_ms": _median_ms([first for run in runs for first in run.first_token_ns]),
        "decode_step_ms": _median_ms(_steps_apart_ns(steps)),
        "decode_device_ms": _median_ms([step.device_ns for step in steps if step.device_ns]),
        "decode_launch_ms": _median_ms([step.launched_ns - step.begin_ns for step in steps]),
        "decode_steps": len(steps),
    }
    if work.profiled:
        llm.start_profile()
        # long enough for a share, short enough for the profiler's memory
        short = Work(work.name, work.num_requests, work.prompt_tokens, min(64, work.output_tokens))
        generate(llm, short, 2_000)
        found["profiles"] = [None if one is None else asdict(one) for one in llm.stop_profile()]
    return found


@dataclass(frozen=True, slots=True)
class Timed:
    """Wall-clock seconds of one run, and how long after its arrival each request had its first token."""

    seconds: float
    first_token_ns: tuple[int, ...]


def generate(llm: Any, work: Work, seed: int) -> Timed:  # noqa: ANN401  as above
    """Run a work with prompts of a seed."""
    from nanoinfer import SamplingParams  # noqa: PLC0415  as above

    draw, highest = random.Random(seed), min(HIGHEST_TOKEN_ID, llm.vocab_size - 1)
    prompts = [[draw.randint(0, highest) for _ in range(work.prompt_tokens)] for _ in range(work.num_requests)]
    settings = SamplingParams(temperature=TEMPERATURE, max_tokens=work.output_tokens, ignore_eos=True)
    begin = time.perf_counter()
    outputs = llm.generate(prompts, settings)
    seconds = time.perf_counter() - begin
    if any(len(output.token_ids) != work.output_tokens for output in outputs):
        raise RuntimeError("a request ended at another length than it was asked for")
    return Timed(seconds, tuple(one.facts.token_times_ns[0] - one.facts.arrival_ns for one in outputs))


def _steps_apart_ns(steps: list[Any]) -> list[int]:
    """Return the time between one decode step's tokens and the next one's, of each engine by itself."""
    return [
        after.end_ns - before.end_ns
        for rank in {step.rank for step in steps}
        for before, after in pairwise(step for step in steps if step.rank == rank)
    ]


def _median_ms(values_ns: list[int]) -> float | None:
    return statistics.median(values_ns) / 1e6 if values_ns else None


# --- all of them ------------------------------------------------------------------------------------------------------


def run_apart(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a case in a fresh process, for at most LIMIT_S; an error is part of what is returned."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        command = [sys.executable, __file__, *sys.argv[1:], "--case", case.name, "--child-json", str(out)]
        command += ["--devices", str(arguments.devices)]
        try:
            done = subprocess.run(  # noqa: S603  this script itself
                command, capture_output=True, text=True, check=False, timeout=LIMIT_S, start_new_session=True
            )
        except subprocess.TimeoutExpired as error:
            return {"error": f"not done after {LIMIT_S} s", "stderr": _end_of(error.stderr)}
        if done.returncode or not out.is_file():
            return {"error": f"exit status {done.returncode}", "stderr": _end_of(done.stderr)}
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found | {"stderr": _end_of(done.stderr)}


def _end_of(text: str | bytes | None) -> str:
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    return decoded[-4000:]


def print_case(case: Case, found: dict[str, Any], single: dict[str, Any]) -> None:
    """Print one line a work, against the single device's time where there is one."""
    if "error" in found:
        print(f"{case.name:<18} FAILED: {found['error']}\n{found['stderr']}", flush=True)
        return
    count = case.tensor * case.data
    memory = max((device["bytes_in_use"] or 0) for device in found["memory"]) / 2**30
    for name, work in found["works"].items():
        rate = work["output_tokens"] / work["median_s"]
        share = compared(name, work, single.get(case.shape, {}), count)
        communication = communication_share(work)
        print(
            f"{case.name:<18} {name:<9} {work['median_s']:8.4f} s {rate:9.0f} out/s  {share:<34} "
            f"comm {'-' if communication is None else f'{communication:.1%}':<6} "
            f"first {work['first_token_ms']:6.1f}, step {work['decode_step_ms'] or 0:6.3f}, "
            f"device {work['decode_device_ms'] or 0:6.3f}, launch {work['decode_launch_ms'] or 0:5.3f} ms  "
            f"{memory:5.1f} GiB  start {found['start_s']:.1f} s",
            flush=True,
        )
    if "sums go another way" in found["stderr"]:
        print(found["stderr"], flush=True)


def compared(name: str, work: dict[str, Any], single: dict[str, Any], count: int) -> str:
    """Say how a work's time relates to one device's: the same requests, or as many a device."""
    baseline = single.get(name) or single.get("W1" if name.startswith("weak") else name)
    if count == 1 or baseline is None:
        return ""
    if name.startswith("weak"):
        rate, one = (one["output_tokens"] / one["median_s"] for one in (work, baseline))
        return f"weak efficiency {rate / one / count:.1%}"
    speedup = baseline["median_s"] / work["median_s"]
    return f"speedup {speedup:.2f}, efficiency {speedup / count:.1%}"


def communication_share(work: dict[str, Any]) -> float | None:
    """Return the median over the ranks of communication time / busy time; None where nothing was profiled."""
    profiles = [one for one in work.get("profiles", []) if one]
    return statistics.median(one["communication_ns"] / one["busy_ns"] for one in profiles) if profiles else None


def print_kernels(case: Case, found: dict[str, Any]) -> None:
    """Print where the first rank's device time went."""
    for name, work in found.get("works", {}).items():
        profiles = [one for one in work.get("profiles", []) if one]
        if not profiles:
            continue
        first = profiles[0]
        print(
            f"-- {case.name} {name}: busy {first['busy_ns'] / first['span_ns']:.1%} of {first['span_ns'] / 1e6:.1f} ms"
        )
        ranked = sorted(first["kernels_ns"].items(), key=lambda item: -item[1])
        for kernel, ns in ranked[:10]:
            print(f"   {ns / first['busy_ns']:6.1%} {ns / 1e6:9.2f} ms  {kernel[:90]}")


def main() -> int:
    """Run every case, or as a child the one that was named."""
    arguments = parse()
    listed = cases(arguments.devices, tiny=arguments.tiny)
    common = {"dtype": arguments.dtype, "all_reduce": arguments.all_reduce, "device": arguments.device}
    if arguments.case:
        case = next(case for case in listed if case.name == arguments.case)
        found = run_case(case, arguments.repeats, {name: value for name, value in common.items() if value})
        arguments.child_json.write_text(json.dumps(found), encoding="utf-8")
        return 0
    record: dict[str, Any] = {"devices": arguments.devices, "options": common, "cases": []}
    single: dict[str, Any] = {}
    for case in listed:
        if arguments.only and not any(part in case.name for part in arguments.only.split(",")):
            continue
        found = run_apart(case, arguments)
        if case.tensor * case.data == 1 and "works" in found:
            single[case.shape] = found["works"]
        print_case(case, found, single)
        if arguments.kernels:
            print_kernels(case, found)
        record["cases"].append({"name": case.name, "tensor": case.tensor, "data": case.data, "found": found})
        if arguments.json:  # after each, so that a run that is cut off leaves what it has
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in entry["found"] for entry in record["cases"]))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--all-reduce", choices=["auto", "nccl"], default="auto")
    parser.add_argument("--only", help="comma-separated parts of case names, such as 'TP 4,8B'")
    parser.add_argument("--kernels", action="store_true", help="print the profiled kernels of each case")
    parser.add_argument("--devices", type=int, help="how many to use at most; all unless given")
    parser.add_argument("--device", help="'cpu' runs all of it on gloo, which only shows that it runs")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short requests, to try the script")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--child-json", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.devices is None:
        arguments.devices = _num_devices(arguments.device)
    if arguments.devices < 1:
        parser.error("torch sees no GPU; --device cpu --tiny tries the script without one")
    return arguments


def _num_devices(device: str | None) -> int:
    """Ask the driver, without a context on any device."""
    if device == "cpu":
        return 2
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)  # noqa: S607  found on the path
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(visible.split(",")) if visible else len(listed.stdout.splitlines())


if __name__ == "__main__":
    sys.exit(main())
