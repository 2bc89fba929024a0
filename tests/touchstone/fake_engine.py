"""An adapter without a model: deterministic tokens, real clock, and faults on demand. Measured by the tests."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from touchstone.clock import timed_region
from touchstone.engines.base import Capabilities, EngineError
from touchstone.records import EngineFacts, RequestTrace, Trace
from touchstone.trace import outputs_sha256, tokens_sha256

VOCABULARY = 101


def capabilities():
    options = frozenset({"fault", "marker", "pace_s", "color", "size"})
    return Capabilities(options, reports_steps=False, reports_cached_tokens=False, reports_memory_parts=False)


def build(spec):
    return FakeEngine(spec)


def next_tokens(prompt, count):
    return [(sum(prompt) + 7 * index) % VOCABULARY for index in range(count)]


class FakeEngine:
    def __init__(self, spec):
        self.capabilities = capabilities()
        self.options = dict(spec.options)
        self.vocabulary_size = VOCABULARY
        self.answered = set()
        if self.options.get("fault") == "refuse":
            raise EngineError("the fake engine refuses option fault=refuse; leave it away")

    def facts(self):
        return EngineFacts(name="fake", version="1", settings=self.options, model={})

    def generate(self, requests, *, concurrency=None):
        self.misbehave()
        with timed_region("cpu") as region:
            arrival_ns = time.perf_counter_ns()
            if not self.knows(requests):
                time.sleep(self.options.get("pace_s", 0))
            token_ns = time.perf_counter_ns()
        short = 1 if self.options.get("fault") == "short" else 0
        traces = tuple(self.tell(request, arrival_ns - region.begin_ns, short) for request in requests)
        return Trace(
            duration_ns=region.duration_ns,
            emission_times_ns=(token_ns - region.begin_ns,),
            requests=traces,
            steps=None,
            peak_concurrency=concurrency,
            peak_kv_blocks_used=None,
            output_sha256=outputs_sha256(trace.output_sha256 for trace in traces),
        )

    def tell(self, request, arrival_ns, short):
        tokens = next_tokens(request.prompt_token_ids, request.num_output_tokens - short)
        return RequestTrace(
            request_id=request.request_id,
            arrival_ns=arrival_ns,
            scheduled_ns=None,
            prompt_tokens=len(request.prompt_token_ids),
            cached_tokens=None,
            requested_tokens=request.num_output_tokens,
            emissions=(0,) * len(tokens),
            finish_reason="length",
            output_sha256=tokens_sha256(tokens),
            distinct_tokens=len(set(tokens)),
            preemptions=None,
        )

    def knows(self, requests):
        prompts = tuple(request.prompt_token_ids for request in requests)
        known = self.options.get("fault") == "keeps answers" and prompts in self.answered
        self.answered.add(prompts)
        return known

    def misbehave(self):
        fault, marker = self.options.get("fault"), Path(self.options.get("marker", "."))
        if fault == "crash":
            os._exit(7)
        if fault == "once" and not marker.exists():
            marker.touch()
            raise RuntimeError("a fault that comes once")
        if fault == "hang":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
            marker.write_text(f"{os.getpid()} {child.pid}")
            time.sleep(300)

    def memory(self):
        return None

    def close(self):
        pass


class ProfilingFake(FakeEngine):
    """Serves several units of a process, because it forgets prompts; a test gives it a profiler."""

    def __init__(self, spec):
        super().__init__(spec)
        self.capabilities = replace(self.capabilities, profiles_devices=True, forgets_prompts=True)

    def forget_prompts(self):
        return True
