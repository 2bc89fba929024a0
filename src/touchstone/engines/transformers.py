"""`transformers` under the instrument: `generate` on static batches, padded on the left.

A batch holds the requests that have arrived when it starts, in order of arrival, and runs until the longest of them has
its tokens; those of a request that has enough are computed on and not counted. No request enters a batch under way.
"""

from __future__ import annotations

import gc
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import torch

from touchstone.clock import now_ns, rest, timed_region
from touchstone.engines.base import Capabilities, EngineError
from touchstone.engines.model_facts import checkpoint_folder, model_facts, read_config
from touchstone.engines.recording import Recording
from touchstone.records import EngineFacts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from touchstone.engines.base import EngineSpec, GenerationRequest
    from touchstone.engines.recording import Progress
    from touchstone.records import Scalar, Trace

_PAD = 0  # any id: what is padded is masked
_NS_PER_S = 1e9
DEFAULT_MAX_NUM_SEQS = 256


def capabilities() -> Capabilities:
    """Offer what static batches leave open: there is no schedule, no prefix cache and no pool to size."""
    return Capabilities(
        options=frozenset({"max_num_seqs", "prefix_cache", "static_cache", "attention"}),
        reports_steps=False,
        reports_cached_tokens=True,
        reports_memory_parts=False,
        unreported="`generate` tells when tokens come; what a pass computed for them, padding included, and which bytes"
        " are keys and values it does not tell",
        fixed={"prefix_cache": False},
        needs_checkpoint=True,
        what_is_wrong=_what_is_wrong,
    )


def build(spec: EngineSpec) -> TransformersEngine:
    """Load the model; EngineError when transformers refuses it."""
    return TransformersEngine(spec)


class TransformersEngine:
    """One causal language model, driven batch by batch."""

    def __init__(self, spec: EngineSpec) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig  # noqa: PLC0415  only when asked for

        self.capabilities = capabilities()
        self._spec = spec
        self._config = read_config(checkpoint_folder(spec))
        self._max_num_seqs = _limit(spec)
        self._static = bool(spec.options.get("static_cache", False))
        self._attention = str(spec.options.get("attention", "sdpa"))
        self._new_config = GenerationConfig
        try:
            model = AutoModelForCausalLM.from_pretrained(
                spec.model,
                dtype=getattr(torch, spec.dtype),
                attn_implementation=self._attention,
                use_safetensors=True,  # a pickle can run code, and so can a folder of code
                trust_remote_code=False,
            )
        except (OSError, ValueError, ImportError) as error:
            raise EngineError(f"transformers cannot load the model: {error}") from error
        self._model: Any = model.to(spec.device).eval()
        # `generate` fills what a request leaves open from here; a stop token or top_k of the model's must not get in.
        self._model.generation_config = GenerationConfig(pad_token_id=_PAD)

    @property
    def vocabulary_size(self) -> int:
        """Token ids are drawn from `0 .. vocabulary_size - 1`."""
        return int(self._config["vocab_size"])

    def facts(self) -> EngineFacts:
        """Say what ran: settings in force and the model's shape."""
        spec = self._spec
        return EngineFacts(
            name="transformers",
            version=version("transformers"),
            settings={
                "device": spec.device,
                "dtype": spec.dtype,
                "attention": self._attention,
                "batching": "static, padded on the left",
                "key_value_cache": "static, compiled" if self._static else "dynamic",
                "max_num_seqs": self._max_num_seqs,
                "prefix_cache": False,
                "torch_threads": torch.get_num_threads(),
            },
            model=model_facts(self._config, spec.dtype),
        )

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None) -> Trace:
        """Run the requests to their end, batch by batch, and tell what happened."""
        limit = self._max_num_seqs if concurrency is None else min(concurrency, self._max_num_seqs)
        batches: list[Batch] = []
        with timed_region(self._spec.device) as region:
            recording = Recording(region.begin_ns)
            waiting = deque(requests if concurrency else sorted(requests, key=lambda request: request.arrival_ns))
            while waiting:
                members = _next_batch(waiting, limit, recording, at_their_time=concurrency is None)
                batches.append(self._run_batch(members))
        for batch in batches:
            _record(batch, recording)
        largest = max((len(batch.members) for batch in batches), default=0)
        return recording.trace(requests, region, peak_concurrency=largest)

    def memory(self) -> None:
        """Tell nothing: see `Capabilities.unreported`."""

    def close(self) -> None:
        """Release the weights."""
        del self._model
        gc.collect()
        if self._spec.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _run_batch(self, members: Sequence[Progress]) -> Batch:
        """Generate for a batch of one temperature and note when its tokens were on the host."""
        batch = Batch(members, begin_ns=now_ns())
        lengths = [progress.request.num_output_tokens for progress in members]
        temperature = members[0].request.temperature
        settings: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            settings = {"do_sample": True, "temperature": temperature, "top_k": 0}
        if self._static:
            settings["cache_implementation"] = "static"
        config = self._new_config(max_new_tokens=max(lengths), pad_token_id=_PAD, **settings)
        input_ids, mask = _padded([progress.request.prompt_token_ids for progress in members], self._spec.device)
        with torch.inference_mode():
            self._model.generate(input_ids, attention_mask=mask, generation_config=config, streamer=batch)
        return batch


@dataclass(slots=True)
class Batch:
    """A batch, and the streamer that notes when each row of its new tokens was on the host.

    The first call of `put` brings the prompts.
    """

    members: Sequence[Progress]
    begin_ns: int
    rows: list[tuple[int, list[int]]] = field(default_factory=list)
    _prompts_came: bool = False

    def put(self, value: torch.Tensor) -> None:
        """Hear of one new token for each request of the batch."""
        if self._prompts_came:
            self.rows.append((now_ns(), value.reshape(-1).tolist()))
        self._prompts_came = True

    def end(self) -> None:
        """Hear that generation is over, which the rows have told already."""


def _what_is_wrong(options: Mapping[str, Scalar]) -> str | None:
    limit = options.get("max_num_seqs", DEFAULT_MAX_NUM_SEQS)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        return f"max_num_seqs is {limit!r}; use an integer of at least 1"
    if not isinstance(static := options.get("static_cache", False), bool):
        return f"static_cache is {static!r}; use true or false"
    return None


def _limit(spec: EngineSpec) -> int:
    if (fault := _what_is_wrong(spec.options)) is not None:
        raise EngineError(fault)
    return cast("int", spec.options.get("max_num_seqs", DEFAULT_MAX_NUM_SEQS))


def _next_batch(
    waiting: deque[GenerationRequest], limit: int, recording: Recording, *, at_their_time: bool
) -> list[Progress]:
    """Wait for the next arrival, and take along whoever has arrived by then and samples at the same temperature.

    Under a bound on concurrency, requests arrive when a batch can begin.
    """
    if at_their_time:
        with suppress(IndexError):
            rest(max(0, recording.begin_ns + waiting[0].arrival_ns - now_ns()) / _NS_PER_S)
    at_ns = now_ns()
    batch: list[Progress] = []
    while waiting and len(batch) < limit:
        arrival_ns = recording.begin_ns + waiting[0].arrival_ns if at_their_time else at_ns
        if batch and (arrival_ns > at_ns or waiting[0].temperature != batch[0].request.temperature):
            break
        batch.append(recording.arrive(waiting.popleft(), arrival_ns))
    return batch


def _padded(prompts: Sequence[tuple[int, ...]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack prompts (B, longest), padded on the left so that all end together, and the mask of what is no padding."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[_PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _record(batch: Batch, recording: Recording) -> None:
    """Give each request its first tokens; what a row has beyond its own length is left away."""
    for progress in batch.members:
        progress.scheduled_ns, progress.cached_tokens, progress.preemptions = batch.begin_ns, 0, 0
    for at_ns, row in batch.rows:
        moment = recording.moment(at_ns)
        for progress, token in zip(batch.members, row, strict=True):
            if not progress.is_finished:
                recording.emit(progress, (token,), moment)
