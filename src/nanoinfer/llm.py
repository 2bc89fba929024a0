"""LLM: the front door. Text or token ids in, finished requests out."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Self

import torch

from nanoinfer.config import EngineConfig
from nanoinfer.data_parallel import DataParallelEngine
from nanoinfer.engine_process import start_engine
from nanoinfer.execution.devices import consecutive_devices
from nanoinfer.execution.meeting import Launched, engine_meeting, keep_store
from nanoinfer.launched import serve_launched
from nanoinfer.model.config import ModelConfig
from nanoinfer.model.hub import resolve_folder
from nanoinfer.request import RequestError, RequestOutput, SamplingParams
from nanoinfer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from nanoinfer.engine import Engine
    from nanoinfer.execution.cuda_graphs import GraphFacts
    from nanoinfer.execution.devices import DeviceMemory
    from nanoinfer.execution.memory import MemoryFacts
    from nanoinfer.execution.profile import DeviceProfile
    from nanoinfer.request import Request, StepFacts


class LLM:
    """A model ready to generate.

    `model` is a local folder or a hub id; `options` are the fields of EngineConfig. Requests run either all at once
    (`generate`) or over time (`add_request`, `step`, `cancel`). Use it as a context manager, or call `close`.

    With `tensor_parallel_size` or `data_parallel_size` above 1 other processes compute, one a device; they are started
    here, unless torchrun has started them: then this call returns in rank 0 alone, and the others serve it to its end.
    """

    def __init__(self, model: str, **options: Any) -> None:  # noqa: ANN401  EngineConfig checks names and values
        self.config = EngineConfig.from_options(str(model), **options)
        with_weights = self.config.weights == "checkpoint"
        self._folder = resolve_folder(self.config.model, revision=self.config.revision, with_weights=with_weights)
        self.model_config = ModelConfig.from_folder(self._folder)
        self._live_engine: Engine | DataParallelEngine | None = self._start()
        self._live_tokenizer: Tokenizer | None = None

    def _start(self) -> Engine | DataParallelEngine:
        config = self.config
        num_ranks = config.tensor_parallel_size * config.data_parallel_size
        launched = Launched.from_environment(num_ranks)
        if launched is None:
            devices, meeting = consecutive_devices(config.device, num_ranks), None
        else:
            if launched.rank > 0:
                serve_launched(launched, config, self._folder)
            devices = [consecutive_devices(config.device, launched.local_rank + 1)[-1]] * num_ranks
            meeting, self._store = launched.meeting, keep_store(launched)
        if config.data_parallel_size > 1:
            return DataParallelEngine(config, self.model_config, self._folder, devices=devices, launched=meeting)
        ranks_meeting = None if meeting is None else engine_meeting(meeting, 0)
        return start_engine(config, self.model_config, self._folder, devices=devices, launched=ranks_meeting)

    # --- facts -------------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 .. vocab_size - 1."""
        return self.model_config.vocab_size

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output."""
        return self._engine.max_model_len

    @property
    def num_kv_blocks(self) -> int:
        """Blocks that requests can hold together, over all engines."""
        return self._engine.num_blocks

    @property
    def device(self) -> torch.device:
        """Where the model runs; the first of several devices."""
        return self._engine.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, activations and KV cache."""
        return self._engine.dtype

    def memory(self) -> MemoryFacts:
        """Where the bytes are on the (first) device; the peak of used KV blocks counts from the last `reset_peaks`."""
        return self._engine.memory()

    def memory_by_device(self) -> list[DeviceMemory]:
        """Where the bytes are on every device, in the order of the ranks."""
        return self._engine.memory_by_device()

    @property
    def cuda_graphs(self) -> GraphFacts | None:
        """What the capture of CUDA graphs cost on the (first) device; None where steps are launched by kernel."""
        return self._engine.graphs

    def take_step_facts(self) -> tuple[StepFacts, ...]:
        """Return what each step since the last call did and when, and forget it."""
        return self._engine.take_step_facts()

    def start_profile(self) -> None:
        """Record from now on what every GPU does, kernel by kernel; recording slows the host a little."""
        self._engine.start_profile()

    def stop_profile(self) -> list[DeviceProfile | None]:
        """Return what each GPU did since `start_profile`, in the order of the ranks; None for a CPU."""
        return self._engine.stop_profile()

    def reset_peaks(self) -> None:
        """Count the peak of used KV blocks from now on."""
        self._engine.reset_peaks()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes, so that the next requests compute their whole prompts."""
        self._engine.reset_prefix_cache()

    # --- all at once -------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        arrival_s: Sequence[float] | None = None,
        detokenize: bool | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Run prompts to their end and return the results in the order of the prompts.

        `prompts` is a text, or a sequence of texts and token id lists. `sampling_params` is one for all or one a
        prompt. `arrival_s[i]` is when prompt i arrives, in seconds from now; without it all arrive at once.
        `detokenize` says whether results carry text; by default those do whose prompt was text. Whatever can be wrong
        with a request is an error before the first one runs.
        """
        if self._engine.has_unfinished:
            raise RequestError("requests added before are unfinished; `step` them to their end or `cancel` them first")
        listed = _listed(prompts)
        settings = _one_for_each(listed, sampling_params)
        arrivals_ns = _arrivals_ns(listed, arrival_s)
        ids = [self._token_ids(prompt) for prompt in listed]
        start_ns = perf_counter_ns()
        requests = [
            self._engine.make_request(token_ids, sampling, start_ns + arrival_ns)
            for token_ids, sampling, arrival_ns in zip(ids, settings, arrivals_ns, strict=True)
        ]
        with _progress_bar(len(requests)) if progress else nullcontext(_ignore) as advance:
            outputs = self._run(requests, advance)
        wanted = [isinstance(prompt, str) if detokenize is None else detokenize for prompt in listed]
        return [
            self._with_text(outputs[request.request_id]) if text else outputs[request.request_id]
            for request, text in zip(requests, wanted, strict=True)
        ]

    def _run(self, requests: list[Request], advance: Callable[[RequestOutput], None]) -> dict[int, RequestOutput]:
        """Feed requests to the engine as they arrive and step it until all have finished."""
        engine, outputs = self._engine, dict[int, RequestOutput]()
        coming = deque(sorted(requests, key=lambda request: request.arrival_ns))
        try:
            while coming or engine.has_unfinished:
                while coming and coming[0].arrival_ns <= perf_counter_ns():
                    engine.add(coming.popleft())
                if not engine.has_unfinished:
                    time.sleep(max(0, coming[0].arrival_ns - perf_counter_ns()) / 1e9)
                    continue
                for output in engine.step(coming[0].arrival_ns if coming else None):
                    outputs[output.request_id] = output
                    advance(output)
        except BaseException:
            for request in requests:
                engine.cancel(request.request_id)
            raise
        return outputs

    # --- over time ---------------------------------------------------------------------------------------------------

    def add_request(
        self,
        prompt: str | Sequence[int],
        sampling_params: SamplingParams | None = None,
        *,
        arrival_ns: int | None = None,
    ) -> int:
        """Queue a request and return its number. `arrival_ns` is a `perf_counter_ns` reading, by default now."""
        now_ns = perf_counter_ns() if arrival_ns is None else arrival_ns
        (sampling,) = _one_for_each([prompt], sampling_params)
        request = self._engine.make_request(self._token_ids(prompt), sampling, now_ns)
        self._engine.add(request)
        return request.request_id

    def step(self) -> list[RequestOutput]:
        """Compute one step and return the requests that it finished; their text is `decode`'s to make.

        An error or an interrupt in a step ends all requests; new ones may be added afterwards.
        """
        return self._engine.step()

    def cancel(self, request_id: int) -> RequestOutput | None:
        """End a request and return what it has so far; None when no such request is unfinished."""
        return self._engine.cancel(request_id)

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` still has something to do."""
        return self._engine.has_unfinished

    # --- text --------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return self._tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return self._tokenizer.decode(token_ids)

    @property
    def _tokenizer(self) -> Tokenizer:
        if self._live_tokenizer is None:
            name = self.config.tokenizer
            folder = self._folder if name is None else resolve_folder(name, revision=None, with_weights=False)
            self._live_tokenizer = Tokenizer(folder, vocab_size=self.vocab_size)
        return self._live_tokenizer

    def _token_ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if isinstance(prompt, str):
            return self.encode(prompt)
        try:
            return array("q", prompt)  # refuses what is no integer, in a tenth of the time of `int` on each
        except (TypeError, OverflowError):
            raise RequestError(f"a prompt is {prompt!r}; give a text or a list of token ids") from None

    def _with_text(self, output: RequestOutput) -> RequestOutput:
        return replace(output, text=self.decode(output.token_ids))

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def _engine(self) -> Engine | DataParallelEngine:
        if self._live_engine is None:
            raise RuntimeError("this LLM is closed; make a new one")
        return self._live_engine

    def close(self) -> None:
        """Release weights and KV cache, and end the processes that compute; closing twice is no error."""
        if self._live_engine is None:
            return
        device, computes_here = self.device, self.config.tensor_parallel_size * self.config.data_parallel_size == 1
        self._live_engine.close()
        self._live_engine = None
        if device.type == "cuda" and computes_here:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _listed(prompts: str | Sequence[str | Sequence[int]]) -> Sequence[str | Sequence[int]]:
    if isinstance(prompts, str):
        return [prompts]
    try:
        return list(prompts)
    except TypeError:
        raise RequestError(f"prompts is {prompts!r}; give a text, or a list of texts and token id lists") from None


def _one_for_each(
    prompts: Sequence[object], sampling_params: SamplingParams | Sequence[SamplingParams] | None
) -> Sequence[SamplingParams]:
    if sampling_params is None:
        sampling_params = SamplingParams()
    if isinstance(sampling_params, SamplingParams):
        return [sampling_params] * len(prompts)
    if not isinstance(sampling_params, Sequence) or not all(isinstance(one, SamplingParams) for one in sampling_params):
        raise RequestError(f"sampling_params is {sampling_params!r}; give SamplingParams, one for all or one a prompt")
    if len(sampling_params) != len(prompts):
        raise RequestError(
            f"there are {len(prompts)} prompts but {len(sampling_params)} sampling_params; give one each"
        )
    return sampling_params


def _arrivals_ns(prompts: Sequence[object], arrival_s: Sequence[float] | None) -> list[int]:
    if arrival_s is None:
        return [0] * len(prompts)
    if len(arrival_s) != len(prompts):
        raise RequestError(f"there are {len(prompts)} prompts but {len(arrival_s)} arrival times; give one each")
    for arrival in arrival_s:
        if not isinstance(arrival, int | float) or not 0 <= arrival < float("inf"):
            raise RequestError(f"arrival_s holds {arrival!r}; arrivals are seconds from now, 0 or later")
    return [round(arrival * 1e9) for arrival in arrival_s]


def _ignore(_output: RequestOutput) -> None:
    """Show no progress."""


@contextmanager
def _progress_bar(num_requests: int) -> Iterator[Callable[[RequestOutput], None]]:
    """Show finished requests and output tokens on the terminal."""
    from rich.progress import Progress  # noqa: PLC0415  only who wants a bar pays for it

    with Progress() as bar:
        task = bar.add_task("generate", total=num_requests)
        tokens = 0

        def advance(output: RequestOutput) -> None:
            nonlocal tokens
            tokens += len(output.token_ids)
            bar.update(task, advance=1, description=f"generate ({tokens} output tokens)")

        yield advance
