"""Keep engines busy for a long time with random requests, and see that nothing leaks and no token changes.

    PYTHONPATH=src python tools/soak.py --minutes 30 [--device cuda] [--model FOLDER] [--dtype float32] [--seed 0]
                                        [--json soak.json]

The time is cut into shifts. Each shift builds an engine with other settings (scheduling, prefix cache, overlap) and a
KV pool too small for its requests, and lets requests of random lengths arrive, be preempted, cancelled and refused.
Now and then all blocks are accounted for; at the end of a shift all of them must be free. Some requests are computed
again, one at a time, by a fresh engine: the tokens must be equal (of a cancelled request: as far as it came). After
each shift resident memory, device memory, open files and threads are read; since both policies have run once they must
not have grown by more than LIMITS allow. A soak in which something of this never happened has shown nothing, and says
so. Exit code 0: all well; 1: something leaked, differed, or never happened.

Without --model it is a model of the tiny one's size with random weights. In float16 and bfloat16 tokens may differ with
the batch that a request was computed in, so they are compared in float32 alone, the default. Building engines and
comparing come on top of the minutes. No package is needed but the engine's own and psutil.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from nanoinfer import LLM, ConfigError, FinishReason, RequestError, SamplingParams
from nanoinfer.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nanoinfer import RequestOutput

SHIFT_S = 60.0
MIN_SHIFTS = 4
NUM_BLOCKS, BLOCK_SIZE, MAX_LEN, MAX_SEQS = 24, 16, 256, 12
ALONE_BLOCKS = MAX_LEN // BLOCK_SIZE
UNFINISHED = 24
BOUT = 40
SAMPLED_SHARE, MAX_SAMPLED = 0.1, 64
CHECK_EVERY = 50
COMPARED_DTYPE = "float32"

# The tiny model's size. Its head is not tied to the embedding, because random weights would then repeat one token for
# ever; enough tokens end a text that some requests stop early.
MODEL: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "tie_word_embeddings": False,
    "eos_token_id": list(range(40)),
}

# How much more may be in use than when both policies had run once, which is at the end of the second shift. The
# allocator of the C library keeps what it has freed in pieces; a leak of one KB a request would pass the first limit
# within minutes.
FIRST_READING = 1
LIMITS = {"resident_bytes": 48 << 20, "device_bytes": 0, "open_files": 0, "threads": 0}

# Ordered so that the first four, the fewest there are, hold both values of each.
SETTINGS = tuple(
    {"scheduling": scheduling, "prefix_cache": prefix_cache, "overlap": prefix_cache is alike}
    for alike, prefix_cache, scheduling in product((True, False), (True, False), ("separated", "mixed"))
)


@dataclass(slots=True)
class Counts:
    """What happened, over all shifts."""

    shifts: int = 0
    steps: int = 0
    mixed_steps: int = 0
    graph_steps: int = 0
    finished: int = 0
    stopped: int = 0
    cancelled: int = 0
    refused: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    compared: int = 0
    compared_tokens: int = 0


@dataclass(slots=True)
class Soak:
    """Counts, readings at the ends of shifts, and what went wrong."""

    counts: Counts = field(default_factory=Counts)
    readings: list[dict[str, int]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def grown(self) -> dict[str, int]:
        """Return how much more is in use at the end of the last shift than when both policies had run once."""
        return {name: self.readings[-1][name] - self.readings[FIRST_READING][name] for name in LIMITS}

    def leaks(self) -> list[str]:
        """Name what grew beyond its limit."""
        return [f"{name} grew by {more:,}" for name, more in self.grown().items() if more > LIMITS[name]]

    def missed(self, *, device: str, dtype: str) -> list[str]:
        """Name what never happened though it should have."""
        excused = set() if device.startswith("cuda") else {"graph_steps"}
        if dtype != COMPARED_DTYPE:
            excused |= {"compared", "compared_tokens"}
        never = [name for name, count in asdict(self.counts).items() if count == 0 and name not in excused]
        return [f"{name} is 0: soak longer" for name in never]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was asked for."""

    prompt: tuple[int, ...]
    sampling: SamplingParams


class Traffic:
    """Random requests of a few families that share beginnings; a function of the seed.

    Requests with top_k or top_p come in bouts, because CUDA graphs replay only steps without any.
    """

    def __init__(self, vocab_size: int, seed: int) -> None:
        self.random = random.Random(seed)
        self._vocab_size = vocab_size
        self._families = [self._tokens(96) for _ in range(3)]
        self._restricted, self._left_of_bout = False, BOUT

    def request(self) -> Asked:
        """Draw a request that fits, alone, into the pool."""
        draw = self.random
        shared = draw.choice(self._families)[: draw.choice((0, 0, 20, 48, 96))]
        prompt = [*shared, *self._tokens(draw.randint(1, 64))]
        restricted = self._in_restricted_bout()
        sampling = SamplingParams(
            temperature=draw.choice((0.0, 0.7, 1.2)),
            top_k=draw.choice((None, 20)) if restricted else None,
            top_p=draw.choice((None, 0.9)) if restricted else None,
            max_tokens=draw.choice((1, 4, 16, 40, 90)),
            ignore_eos=draw.random() < 0.8,  # noqa: PLR2004  a share
            seed=draw.randrange(2**31),
        )
        return Asked(tuple(prompt), sampling)

    def impossible(self) -> Asked:
        """Draw a request that can never run: too long for the model or for the pool, or no request at all."""
        prompt = self.random.choice(((), (0,) * (MAX_LEN + 1), (self._vocab_size,), (-1,)))
        return Asked(tuple(prompt), SamplingParams(max_tokens=16))

    def chance(self, probability: float) -> bool:
        """Throw a coin."""
        return self.random.random() < probability

    def _in_restricted_bout(self) -> bool:
        if self._left_of_bout == 0:
            self._restricted, self._left_of_bout = not self._restricted, BOUT
        self._left_of_bout -= 1
        return self._restricted

    def _tokens(self, count: int) -> list[int]:
        return [self.random.randrange(self._vocab_size) for _ in range(count)]


class Shift:
    """One engine under random traffic until its time is over, then until it is empty."""

    def __init__(self, llm: LLM, traffic: Traffic, soak: Soak) -> None:
        self._llm, self._traffic, self._soak = llm, traffic, soak
        self._unfinished: dict[int, Asked] = {}
        self.sampled: list[tuple[Asked, RequestOutput]] = []

    def work(self, seconds: float) -> None:
        """Let requests come and go for so long, then let the rest finish, and require that every block is free."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._arrive()
            if self._traffic.chance(0.03):
                self._cancel()
            if self._traffic.chance(0.002):
                self._llm.reset_prefix_cache()
            self._step()
        while self._llm.has_unfinished:
            self._step()
        self._account()
        if self._unfinished:
            self._soak.faults.append(f"{len(self._unfinished)} requests never came back")
        if used := engine_of(self._llm).cache.num_used:
            self._soak.faults.append(f"{used} blocks are in use and no request holds them")

    def _arrive(self) -> None:
        if self._traffic.chance(0.02):
            self._refuse()
        while len(self._unfinished) < UNFINISHED and self._traffic.chance(0.5):
            asked = self._traffic.request()
            self._unfinished[self._llm.add_request(asked.prompt, asked.sampling)] = asked

    def _refuse(self) -> None:
        asked = self._traffic.impossible()
        try:
            self._llm.add_request(asked.prompt, asked.sampling)
        except RequestError:
            self._soak.counts.refused += 1
        else:
            self._soak.faults.append(f"a request of {len(asked.prompt)} tokens was taken that can never run")

    def _cancel(self) -> None:
        if self._unfinished:
            output = self._llm.cancel(self._traffic.random.choice(list(self._unfinished)))
            if output is not None:
                self._soak.counts.cancelled += 1
                self._take(output)

    def _step(self) -> None:
        for output in self._llm.step():
            self._soak.counts.finished += 1
            self._take(output)
        self._soak.counts.steps += 1
        if self._soak.counts.steps % CHECK_EVERY == 0:
            self._account()

    def _take(self, output: RequestOutput) -> None:
        asked, counts = self._unfinished.pop(output.request_id), self._soak.counts
        counts.preemptions += output.facts.num_preemptions
        counts.cached_tokens += output.facts.num_cached_tokens
        counts.tokens += len(output.token_ids)
        counts.stopped += output.finish_reason is FinishReason.STOP
        wanted = output.facts.num_preemptions or self._traffic.chance(SAMPLED_SHARE)
        if wanted and len(self.sampled) < MAX_SAMPLED:
            self.sampled.append((asked, output))

    def _account(self) -> None:
        for facts in self._llm.take_step_facts():
            self._soak.counts.mixed_steps += facts.phase == "mixed"
            self._soak.counts.graph_steps += facts.graph
        engine_of(self._llm).scheduler.check_invariants()


def engine_of(llm: LLM) -> Engine:
    """Return what no user needs to see: scheduler and cache of an engine in this process."""
    engine = llm._engine  # noqa: SLF001  see above
    if not isinstance(engine, Engine):
        raise TypeError(f"{type(engine).__name__} has no scheduler of its own; soak one engine")
    return engine


# --- tokens, again --------------------------------------------------------------------------------------------------


def compare(sampled: Sequence[tuple[Asked, RequestOutput]], fresh: LLM, soak: Soak) -> None:
    """Compute sampled requests again, each alone on a fresh engine, and hold the tokens against each other."""
    for asked, output in sampled:
        fresh.reset_prefix_cache()
        (again,) = fresh.generate([asked.prompt], asked.sampling)
        came = len(output.token_ids)
        whole = output.finish_reason is FinishReason.CANCELLED or came == len(again.token_ids)
        soak.counts.compared += 1
        soak.counts.compared_tokens += came
        if not whole or output.token_ids != again.token_ids[:came]:
            soak.faults.append(
                f"request {output.request_id} of shift {soak.counts.shifts} ({asked.sampling}, "
                f"{output.facts.num_preemptions} preemptions) gave {output.token_ids}, alone {again.token_ids}"
            )


# --- what is in use -------------------------------------------------------------------------------------------------


def reading(device: str) -> dict[str, int]:
    """Read what this process has in use, after giving back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # the C library keeps freed memory; a leak is what remains
    process = psutil.Process()
    device_bytes = 0
    if device.startswith("cuda"):
        torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001  one a stream is kept for ever; torch's own tests for leaks do the same
        torch.cuda.empty_cache()
        device_bytes = torch.cuda.memory_allocated()
    return {
        "resident_bytes": process.memory_info().rss,
        "device_bytes": device_bytes,
        "open_files": process.num_fds(),
        "threads": process.num_threads(),
    }


# --- the whole ------------------------------------------------------------------------------------------------------


def shifts(minutes: float) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield the seconds and the settings of each shift."""
    count = max(MIN_SHIFTS, round(60 * minutes / SHIFT_S))
    for settings in islice(cycle(SETTINGS), count):
        yield 60 * minutes / count, settings


def soak_engines(
    folder: Path, minutes: float, *, device: str = "cpu", dtype: str = "float32", seed: int = 0, loud: bool = False
) -> Soak:
    """Work through all shifts and return what was seen."""
    soak = Soak()
    weights = "checkpoint" if any(folder.glob("*.safetensors")) else "synthetic"
    common: dict[str, Any] = {"device": device, "dtype": dtype, "weights": weights, "block_size": BLOCK_SIZE}
    for number, (seconds, settings) in enumerate(shifts(minutes)):
        small = {"num_kv_blocks": NUM_BLOCKS, "max_num_seqs": MAX_SEQS, "max_num_batched_tokens": 192}
        with LLM(str(folder), max_model_len=MAX_LEN, **common, **small, **settings) as llm:
            shift = Shift(llm, Traffic(llm.vocab_size, seed * 1000 + number), soak)
            shift.work(seconds)
        if dtype == COMPARED_DTYPE:
            with LLM(str(folder), max_model_len=MAX_LEN, **common, num_kv_blocks=ALONE_BLOCKS, max_num_seqs=1) as fresh:
                compare(shift.sampled, fresh, soak)
        soak.counts.shifts += 1
        soak.readings.append(reading(device))
        if loud:
            print(f"shift {number + 1}: {settings} {soak.counts} {soak.readings[-1]}", flush=True)
    return soak


def positive(text: str) -> float:
    """Read a number above 0 from the command line."""
    minutes = float(text)
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes above 0")
    return minutes


def main() -> int:
    """Soak, say what was seen, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=positive, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", type=Path, help="a model folder; without it random weights of the tiny size")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as workshop:
        folder = options.model or Path(workshop)
        if options.model is None:
            (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        choices = {"device": options.device, "dtype": options.dtype, "seed": options.seed}
        try:
            soak = soak_engines(folder, options.minutes, **choices, loud=True)
        except ConfigError as error:
            parser.error(str(error))
    faults = [*soak.faults, *soak.leaks(), *soak.missed(device=options.device, dtype=options.dtype)]
    record = {"minutes": options.minutes, **choices, **asdict(soak), "grown": soak.grown(), "faults": faults}
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{soak.counts}\ngrown since both policies had run: {soak.grown()}")
    if options.dtype != COMPARED_DTYPE:
        print(f"tokens were not compared: in {options.dtype} they may differ with the batch")
    print("\n".join(faults) or "no leak, no difference")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
