"""A small server that speaks the OpenAI completions protocol and streams tokens that nanoinfer has computed."""

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from nanoinfer import LLM, SamplingParams

KNOWN = {"model", "prompt", "max_tokens", "temperature", "stream", "min_tokens"}


@dataclass(frozen=True)
class Manners:
    """How a server behaves: which fields it takes beyond the protocol, and how it counts what it streams."""

    takes: frozenset = frozenset({"ignore_eos", "return_token_ids", "stream_options"})
    tells_ids: bool = True
    counts_as_it_goes: bool = True
    tokens_per_chunk: int = 1
    stops_early: int = 0
    breaks_off: bool = False


class CompletionsServer:
    def __init__(self, model_folder, manners):
        self.llm = LLM(model_folder, device="cpu", dtype="float32", kv_cache_bytes=1 << 22, prefix_cache=False)
        self.manners = manners
        self.lock = asyncio.Lock()
        self.num_completions = 0

    def app(self):
        app = web.Application()
        app.add_routes([web.get("/v1/models", self.models), web.post("/v1/completions", self.completions)])
        return app

    async def models(self, _request):
        return web.json_response({"data": [{"id": "tiny"}]}, headers={"Server": "completions-for-tests"})

    async def completions(self, request):
        body = await request.json()
        if unknown := sorted(set(body) - KNOWN - self.manners.takes):
            return web.json_response({"error": f"unknown field {unknown[0]}"}, status=400)
        self.num_completions += 1
        async with self.lock:
            tokens = await asyncio.to_thread(self.compute, body)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for line in self.lines(body, tokens[: len(tokens) - self.manners.stops_early]):
            await response.write(line)
        return response

    def compute(self, body):
        settings = SamplingParams(temperature=body["temperature"], max_tokens=body["max_tokens"], ignore_eos=True)
        return self.llm.generate([body["prompt"]], settings)[0].token_ids

    def lines(self, body, tokens):
        size, options = self.manners.tokens_per_chunk, body.get("stream_options", {})
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            choice = {"index": 0, "text": "".join(f" {token}" for token in part)}
            if self.manners.tells_ids and body.get("return_token_ids"):
                choice["token_ids"] = list(part)
            chunk = {"choices": [choice]}
            if self.manners.counts_as_it_goes and options.get("continuous_usage_stats"):
                chunk["usage"] = self.usage(body, start + len(part))
            yield self.event(chunk)
            if self.manners.breaks_off:
                yield self.event({"error": {"message": "out of luck"}})
        if options.get("include_usage"):
            yield self.event({"choices": [], "usage": self.usage(body, len(tokens))})
        yield b"data: [DONE]\n\n"

    @staticmethod
    def usage(body, num_tokens):
        details = {"cached_tokens": 0}
        return {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": num_tokens,
            "prompt_tokens_details": details,
        }

    @staticmethod
    def event(chunk):
        return b"data: " + web.json_response(chunk).body + b"\n\n"


@contextmanager
def serving(model_folder, manners=None):
    """Run a server in a thread of its own; yields its url and itself."""
    server = CompletionsServer(str(model_folder), manners or Manners())
    loop, started, address = asyncio.new_event_loop(), threading.Event(), []
    runner = web.AppRunner(server.app())

    async def start():
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append(runner.addresses[0])
        started.set()

    def work():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield f"http://127.0.0.1:{address[0][1]}/v1", server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        server.llm.close()
