"""Stand-ins for packages that need a GPU: the calls that our adapters make, answered with tokens that follow from sums.

They hold the adapters' own logic to account on any machine; the engines themselves are under the contract on a GPU.
"""

from collections import deque
from itertools import count
from types import SimpleNamespace

VOCABULARY = 2048
BLOCK = 8


def next_token(token_ids):
    return (31 * sum(token_ids) + len(token_ids)) % VOCABULARY


def expected_tokens(prompt, num_tokens):
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(next_token(ids))
    return ids[len(prompt) :]


# --- Nano-vLLM ------------------------------------------------------------------------------------------------------


class NanoSamplingParams:
    def __init__(self, temperature, max_tokens, ignore_eos):
        assert temperature > 1e-10, "greedy sampling is not permitted"
        self.max_tokens, self.ignore_eos = max_tokens, ignore_eos


class NanoSequence:
    counter = count()

    def __init__(self, token_ids, sampling):
        self.seq_id = next(NanoSequence.counter)
        self.token_ids, self.num_prompt_tokens = list(token_ids), len(token_ids)
        self.max_tokens = sampling.max_tokens
        self.num_cached_tokens = self.num_scheduled_tokens = 0

    @property
    def num_tokens(self):
        return len(self.token_ids)

    @property
    def last_token(self):
        return self.token_ids[-1]


class NanoScheduler:
    """Prefills before it decodes, in parts of `budget` tokens; preempts the newest once it holds `room` sequences."""

    def __init__(self, budget, room):
        self.waiting, self.running = deque(), deque()
        self.block_manager = SimpleNamespace(used_block_ids=set())
        self._budget, self._room = budget, room

    def schedule(self):
        chosen, left = [], self._budget
        while self.waiting and left and len(self.running) < self._room:
            sequence = self.waiting[0]
            sequence.num_scheduled_tokens = min(left, sequence.num_tokens - sequence.num_cached_tokens)
            left -= sequence.num_scheduled_tokens
            chosen.append(sequence)
            if sequence.num_cached_tokens + sequence.num_scheduled_tokens < sequence.num_tokens:
                break
            self.running.append(self.waiting.popleft())
        self.block_manager.used_block_ids = set(range(sum(each.num_tokens // BLOCK + 1 for each in self.running)))
        if chosen:
            return chosen, True
        if len(self.running) == self._room and self._room > 1:
            self.preempt(self.running.pop())
            self._room = 10**6
        return list(self.running), False

    def preempt(self, sequence):
        sequence.num_cached_tokens = 0
        self.waiting.appendleft(sequence)


class NanoLLM:
    def __init__(self, _model, *, enforce_eager, max_num_batched_tokens=64, max_num_seqs=10**6, **_options):
        self.enforce_eager = enforce_eager
        self.scheduler = NanoScheduler(max_num_batched_tokens, max_num_seqs)
        self.model_runner = SimpleNamespace(
            config=SimpleNamespace(
                kvcache_block_size=256,
                max_model_len=4096,
                max_num_batched_tokens=max_num_batched_tokens,
                max_num_seqs=max_num_seqs,
                gpu_memory_utilization=0.9,
                tensor_parallel_size=1,
                num_kvcache_blocks=99,
            )
        )
        self.closed = False

    def add_request(self, prompt, sampling):
        self.scheduler.waiting.append(NanoSequence(prompt, sampling))

    def step(self):
        sequences, is_prefill = self.scheduler.schedule()
        ended = []
        for sequence in sequences:
            if is_prefill:
                sequence.num_cached_tokens += sequence.num_scheduled_tokens
                if sequence.num_cached_tokens < sequence.num_tokens:
                    continue
            sequence.token_ids.append(next_token(sequence.token_ids))
            sequence.num_cached_tokens = sequence.num_tokens - 1
            if sequence.num_tokens - sequence.num_prompt_tokens == sequence.max_tokens:
                self.scheduler.running.remove(sequence)
                ended.append((sequence.seq_id, sequence.token_ids[sequence.num_prompt_tokens :]))
        return ended, len(sequences)

    def exit(self):
        self.closed = True


nanovllm = SimpleNamespace(LLM=NanoLLM, SamplingParams=NanoSamplingParams)


# --- vLLM -----------------------------------------------------------------------------------------------------------


class VllmSamplingParams(SimpleNamespace):
    pass


class VllmEngine:
    """Answers each step with what is new, two tokens at a time for the first request, as a scheduler ahead may do."""

    def __init__(self, max_num_seqs=10**6):
        self.live, self.was_shut_down = {}, False
        self.engine_core = SimpleNamespace(shutdown=self.shut_down)
        self.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(
                max_num_seqs=max_num_seqs, max_num_batched_tokens=16384, async_scheduling=True
            ),
            cache_config=SimpleNamespace(
                enable_prefix_caching=False, block_size=16, num_gpu_blocks=7, gpu_memory_utilization=0.9
            ),
            model_config=SimpleNamespace(dtype="torch.float32", max_model_len=2048, enforce_eager=False),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
            compilation_config=SimpleNamespace(),
        )

    def shut_down(self):
        self.was_shut_down = True

    def add_request(self, name, prompt, sampling):
        assert sampling.ignore_eos
        assert sampling.output_kind == "delta"
        assert not sampling.detokenize
        tokens = expected_tokens(prompt["prompt_token_ids"], sampling.max_tokens)
        self.live[name] = deque(tokens)

    def step(self):
        outputs = []
        for index, (name, tokens) in enumerate(list(self.live.items())):
            size = min(2 if index == 0 else 1, len(tokens))
            new = [tokens.popleft() for _ in range(size)]
            finished = not tokens
            if finished:
                del self.live[name]
            outputs.append(
                SimpleNamespace(
                    request_id=name,
                    finished=finished,
                    num_cached_tokens=0,
                    outputs=[SimpleNamespace(token_ids=new)],
                )
            )
        return outputs


class VllmLLM:
    def __init__(self, _model, **options):
        self.options, self.llm_engine = options, VllmEngine()


vllm = SimpleNamespace(LLM=VllmLLM, SamplingParams=VllmSamplingParams)
vllm_sampling_params = SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA="delta"))
