"""Any server that speaks the OpenAI completions protocol, by its URL: SGLang, TensorRT-LLM, llama.cpp, vLLM and others.

Times are those of the client: a token counts when the chunk that carries it has been read here, so the network, the
server's own buffering and this process's event loop are part of every number. What happens inside the server (steps,
memory, whether its device is idle) cannot be seen from here.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from touchstone.clock import now_ns, reach, timed_region
from touchstone.engines.base import Capabilities, EngineError, GenerationRequest
from touchstone.engines.model_facts import model_facts, read_config
from touchstone.engines.recording import Recording
from touchstone.records import EngineFacts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence

    from touchstone.engines.base import EngineSpec
    from touchstone.engines.recording import Progress
    from touchstone.records import Scalar, Trace

_CONNECT_TIMEOUT_S = 10
_MAX_TOKEN_ID = 2**31
_SILENCE_TIMEOUT_S = 600
_DATA, _DONE = b"data:", b"[DONE]"
_OK, _REFUSED = 200, (400, 422)
_BROKEN_OFF = (aiohttp.ClientError, OSError)
# What comes of reading JSON that is none, or whose parts are of other kinds than a completion's.
_ODD_ANSWERS = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
# Fields beyond the protocol, the most telling set first; a server that refuses one is asked with the next.
_EXTRAS: tuple[dict[str, Any], ...] = (
    {
        "ignore_eos": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    {"ignore_eos": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"ignore_eos": True, "stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True}},
)
_PROBE = GenerationRequest(request_id=0, prompt_token_ids=(1, 2, 3, 4), num_output_tokens=3)


class _RefusedError(EngineError):
    """The server does not take a field of the request."""


def capabilities() -> Capabilities:
    """Name the server and the model; what runs behind the URL is set up by whoever started it."""
    return Capabilities(
        options=frozenset({"url", "served_model"}),
        reports_steps=False,
        reports_cached_tokens=True,
        reports_memory_parts=False,
        unreported="a server tells tokens and counts, seen from the client; its steps and its memory stay its own",
        what_is_wrong=_what_is_wrong,
    )


def build(spec: EngineSpec) -> OpenAIServerEngine:
    """Find the server and what it takes; EngineError when it does not answer or cannot be measured."""
    return OpenAIServerEngine(spec)


@dataclass(frozen=True, slots=True)
class Server:
    """Who answered, and which fields beyond the protocol it takes."""

    name: str
    served_model: str
    extras: dict[str, Any]
    tells_ids: bool


class OpenAIServerEngine:
    """One server, asked by one client process; the server itself is neither started nor ended."""

    def __init__(self, spec: EngineSpec) -> None:
        self.capabilities = capabilities()
        self._spec = spec
        self._config = read_config(spec.model)
        self._loop = asyncio.new_event_loop()
        self._client: _Client | None = None
        try:
            self._client = self._wait(_connect(spec))
        except BaseException:
            self.close()
            raise

    @property
    def vocabulary_size(self) -> int:
        """Token ids are drawn from `0 .. vocabulary_size - 1` of the model whose config.json was given."""
        return int(self._config["vocab_size"])

    def facts(self) -> EngineFacts:
        """Say which server answered and how it was asked; its own settings are known to whoever started it."""
        server = self._open_client().server
        return EngineFacts(
            name="openai-server",
            version=server.name,
            settings={
                "served_model": server.served_model,
                "extra_fields": ", ".join(sorted(server.extras)),
                "tells_token_ids": server.tells_ids,
                "timing": "client side",
            },
            model=model_facts(self._config, self._spec.dtype),
        )

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None) -> Trace:
        """Run the requests to their end and tell what the client saw."""
        client = self._open_client()
        with timed_region("cpu") as region:
            recording = Recording(region.begin_ns)
            self._wait(client.run(requests, concurrency, recording))
        try:
            return recording.trace(requests, region)
        except ValueError as error:  # counts that are none
            raise EngineError(f"the server tells what cannot be: {error}") from error

    def memory(self) -> None:
        """Tell nothing: see `Capabilities.unreported`."""

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._wait(self._client.session.close())
            self._client = None
        if not self._loop.is_closed():
            self._loop.close()

    def _open_client(self) -> _Client:
        if self._client is None:
            raise EngineError("the connection to the server was closed; build the engine anew")
        return self._client

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401  whatever the work returns
        try:
            return self._loop.run_until_complete(work)
        except _BROKEN_OFF as error:
            raise EngineError(f"the server broke the exchange off: {type(error).__name__}: {error}") from error
        except _ODD_ANSWERS as error:
            raise EngineError(
                f"the server answers in another shape than the completions protocol has ({type(error).__name__}: "
                f"{str(error)[:200]}); correct the url, or ask another server"
            ) from error


class _Client:
    """A session with a server whose ways are known."""

    def __init__(self, session: aiohttp.ClientSession, url: str, server: Server) -> None:
        self.session, self.server = session, server
        self._url = url

    async def run(self, requests: Sequence[GenerationRequest], concurrency: int | None, recording: Recording) -> None:
        """Ask for every request at its arrival, or whenever fewer than `concurrency` are in flight."""
        if concurrency is None:
            asking = [self._at_its_arrival(request, recording) for request in requests]
        else:
            free = asyncio.Semaphore(concurrency)
            asking = [self._when_free(request, recording, free) for request in requests]
        try:
            async with asyncio.TaskGroup() as group:
                for work in asking:
                    group.create_task(work)
        except BaseExceptionGroup as errors:  # one request that fails ends the others; its own error says why
            raise errors.exceptions[0] from errors

    async def _at_its_arrival(self, request: GenerationRequest, recording: Recording) -> None:
        at_ns = recording.begin_ns + request.arrival_ns
        await reach(at_ns)
        await self.ask(recording.arrive(request, at_ns), recording)

    async def _when_free(self, request: GenerationRequest, recording: Recording, free: asyncio.Semaphore) -> None:
        async with free:
            await self.ask(recording.arrive(request, now_ns()), recording)

    async def ask(self, progress: Progress, recording: Recording) -> None:
        """Stream one completion; EngineError when it has not exactly the tokens asked for."""
        answer = _Answer(progress, recording)
        async with self.session.post(f"{self._url}/completions", json=self._body(progress.request)) as response:
            if response.status != _OK:
                text = (await response.text())[:200]
                kind = _RefusedError if response.status in _REFUSED else EngineError
                raise kind(f"the server answers {response.status} to a completion: {text}")
            async for chunk in _chunks(response):
                answer.hear(chunk, now_ns())
        answer.end()

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        wanted = request.num_output_tokens
        return {
            "model": self.server.served_model,
            "prompt": list(request.prompt_token_ids),
            "max_tokens": wanted,
            "min_tokens": wanted,
            "temperature": request.temperature,
            "stream": True,
            **self.server.extras,
        }


class _Answer:
    """One completion as its chunks come in.

    How many tokens a chunk carries is told by its ids, else by the server's running count, else by there being as many
    chunks as tokens; a server that tells none of these cannot be measured token by token, and is not.
    """

    def __init__(self, progress: Progress, recording: Recording) -> None:
        self._progress, self._recording = progress, recording
        self._num_texts = 0
        self._num_told: int | None = None

    def hear(self, chunk: dict[str, Any], at_ns: int) -> None:
        """Record the tokens of a chunk."""
        usage = chunk.get("usage") or {}
        self._num_told = usage.get("completion_tokens", self._num_told)
        if "prompt_tokens" in usage:
            self._progress.prompt_tokens = usage["prompt_tokens"]
            details = usage.get("prompt_tokens_details") or {}
            self._progress.cached_tokens = details.get("cached_tokens")
        if not chunk.get("choices"):
            return
        choice = chunk["choices"][0]
        if choice.get("token_ids"):
            self._recording.emit(self._progress, choice["token_ids"], self._recording.moment(at_ns))
        elif (choice.get("text") or usage) and not self._progress.token_ids:
            self._hear_text(choice.get("text") or "", usage.get("completion_tokens"), at_ns)

    def end(self) -> None:
        """Hold what came against what was asked for and against the server's own count."""
        for token_id in self._progress.token_ids:
            if not isinstance(token_id, int) or not 0 <= token_id < _MAX_TOKEN_ID:
                raise ValueError(f"a token id is {token_id!r}")
        asked, got, told = self._progress.request.num_output_tokens, len(self._progress.emissions), self._num_told
        if told is not None and got != told:
            raise EngineError(
                f"the server counts {told} tokens and sent {got} pieces without saying how many tokens each holds; "
                "let it tell token ids or running usage, or stream every token"
            )
        if got != asked:
            raise EngineError(
                f"the server returned {got} tokens instead of {asked}; it must ignore stop tokens (ignore_eos or "
                "min_tokens) to be measured"
            )

    def _hear_text(self, text: str, running_count: int | None, at_ns: int) -> None:
        """Count a piece of text: by the running count where there is one, else as one token."""
        if not isinstance(text, str):
            raise TypeError(f"a text is {text!r}")
        known = len(self._progress.emissions)
        count = 1 if running_count is None else running_count - known
        if count > self._progress.request.num_output_tokens:
            raise ValueError(f"it counts {running_count} tokens of {self._progress.request.num_output_tokens}")
        if text:
            self._progress.texts.append(text)
        if count > 0:
            self._progress.emissions.extend([self._recording.moment(at_ns)] * count)


async def _connect(spec: EngineSpec) -> _Client:
    """Open a session, read which model is served, and try which fields beyond the protocol the server takes."""
    url = _base_url(spec)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),  # all requests are in flight at once; none waits for a connection
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_SILENCE_TIMEOUT_S),
    )
    try:
        name, served = await _find(session, url, spec.options.get("served_model"))
        return await _try(session, url, name, served)
    except BaseException:
        await session.close()
        raise


async def _find(session: aiohttp.ClientSession, url: str, wanted: object) -> tuple[str, str]:
    """Return the server's name of itself and the model to ask for."""
    try:
        async with session.get(f"{url}/models") as response:
            name, listed = response.headers.get("Server", "unknown"), await response.json()
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise EngineError(f"no server answers at {url}: {error}; start it, or correct the url") from error
    models = [str(entry["id"]) for entry in listed.get("data", [])]
    if not models or (wanted is not None and wanted not in models):
        raise EngineError(f"the server offers {', '.join(models) or 'no model'}; served_model is {wanted}")
    return name, models[0] if wanted is None else str(wanted)


async def _try(session: aiohttp.ClientSession, url: str, name: str, served: str) -> _Client:
    """Ask for a few tokens with ever fewer fields beyond the protocol, until the server takes the request."""
    refusal: EngineError | None = None
    for extras in _EXTRAS:
        recording = Recording(now_ns())
        progress = recording.arrive(_PROBE, now_ns())
        client = _Client(session, url, Server(name, served, extras, tells_ids=False))
        try:
            await client.ask(progress, recording)
        except _RefusedError as error:
            refusal = error
            continue
        return _Client(session, url, Server(name, served, extras, tells_ids=bool(progress.token_ids)))
    raise EngineError(f"the server takes no prompt of token ids, which requests are made of: {refusal}")


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Read the server-sent events of a completion up to their end mark."""
    async for line in response.content:
        if not line.startswith(_DATA):
            continue
        data = line[len(_DATA) :].strip()
        if data == _DONE:
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise EngineError(f"the server broke a completion off: {str(chunk['error'])[:200]}")
        yield chunk


def _what_is_wrong(options: Mapping[str, Scalar]) -> str | None:
    url = options.get("url")
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        return None
    return f"url is {url!r}; say where the server listens, as in --option openai-server.url=http://localhost:8000/v1"


def _base_url(spec: EngineSpec) -> str:
    if (fault := _what_is_wrong(spec.options)) is not None:
        raise EngineError(fault)
    return str(spec.options["url"]).rstrip("/")
