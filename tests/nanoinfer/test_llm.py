"""The front door: prompts in, results in order, clear errors before anything runs."""

import copy
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from nanoinfer import LLM, ConfigError, FinishReason, RequestError, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny):
    with LLM(tiny("qwen3").folder, device="cpu", num_kv_blocks=64, max_model_len=100) as llm:
        yield llm


@pytest.fixture
def texts_folder(tmp_path):
    """A synthetic model with a tokenizer of whole words."""
    words = [f"w{i}" for i in range(50)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))  # noqa: S106  no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    write_config(tmp_path)
    return str(tmp_path)


def write_config(folder, **change):
    raw = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(raw | change))


def test_results_come_in_the_order_of_the_prompts_with_their_facts(tiny, llm):
    prompts = [[5, 6, 7], [9] * 30, [1]]
    lengths = [12, 2, 7]
    before = time.perf_counter_ns()
    outputs = llm.generate(prompts, [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths])
    after = time.perf_counter_ns()
    for prompt, length, output in zip(prompts, lengths, outputs, strict=True):
        facts = output.facts
        assert output.prompt_token_ids == tuple(prompt)
        assert output.token_ids == tiny("qwen3").greedy(tuple(prompt), length)
        assert (output.finish_reason, output.text) == (FinishReason.LENGTH, None)
        assert len(facts.token_times_ns) == length
        moments = [before, facts.arrival_ns, facts.scheduled_ns, *facts.token_times_ns, after]
        assert moments == sorted(moments)


def test_step_facts_account_for_every_token(llm):
    llm.reset_prefix_cache()
    llm.take_step_facts()
    llm.generate([[1, 2, 3], [4] * 9], GREEDY)
    steps = llm.take_step_facts()
    assert llm.take_step_facts() == ()
    assert sum(step.num_prefill_tokens for step in steps) == 12
    assert sum(step.num_decode_tokens for step in steps) == 14
    assert [step.phase for step in steps] == ["prefill"] + ["decode"] * 7
    assert all(step.begin_ns < step.launched_ns <= step.end_ns for step in steps)
    assert all(step.device_ns is None and not step.graph for step in steps)


def test_stop_tokens_end_a_request_and_are_part_of_its_output(tiny, llm):
    expected = tiny("qwen3").greedy((5, 6, 7), 12)
    stop = expected[4]
    cut = expected[: expected.index(stop) + 1]
    sampling = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(stop,))
    (output,) = llm.generate([[5, 6, 7]], sampling)
    assert output.token_ids == cut
    assert output.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("overlap", [True, False])
def test_end_of_sequence_ids_stop_unless_ignored(tiny, tmp_path, overlap):
    source, prompt = tiny("qwen3"), (5, 6, 7)
    expected = source.greedy(prompt, 12)
    source.model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [expected[3]]}))
    llm = LLM(str(tmp_path), device="cpu", num_kv_blocks=64, overlap=overlap)
    stopped, whole = llm.generate(
        [prompt, prompt],
        [SamplingParams(temperature=0, max_tokens=12), SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)],
    )
    assert stopped.token_ids == expected[: expected.index(expected[3]) + 1]
    assert stopped.finish_reason is FinishReason.STOP
    assert whole.token_ids == expected


def test_requests_arrive_when_they_are_said_to(llm):
    start = time.perf_counter_ns()
    outputs = llm.generate([[1, 2], [3, 4], [5]], GREEDY, arrival_s=[0.08, 0.0, 0.04])
    arrivals = [output.facts.arrival_ns for output in outputs]
    assert arrivals[0] - arrivals[1] == 80_000_000
    assert arrivals[2] - arrivals[1] == 40_000_000
    assert all(output.facts.scheduled_ns >= output.facts.arrival_ns for output in outputs)
    assert time.perf_counter_ns() - start > 80_000_000


def test_requests_added_while_others_run_and_cancelled_ones(tiny, llm):
    first = llm.add_request([5, 6, 7], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    doomed = llm.add_request([9, 9], SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
    for _ in range(4):
        assert llm.step() == []
    late = llm.add_request([1], GREEDY)
    cancelled = llm.cancel(doomed)
    assert cancelled.finish_reason is FinishReason.CANCELLED
    assert cancelled.token_ids == tiny("qwen3").greedy((9, 9), 50)[: len(cancelled.token_ids)] != ()
    assert llm.cancel(doomed) is None
    outputs = {}
    while llm.has_unfinished:
        outputs |= {output.request_id: output for output in llm.step()}
    assert set(outputs) == {first, late}
    assert outputs[first].token_ids == tiny("qwen3").greedy((5, 6, 7), 20)
    assert outputs[late].token_ids == tiny("qwen3").greedy((1,), 8)
    assert llm.step() == []


@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_cancelling_while_steps_overlap_leaves_the_others_alone(tiny, when):
    llm = LLM(tiny("qwen3").folder, device="cpu", num_kv_blocks=64, overlap=True, max_num_batched_tokens=4)
    keep = llm.add_request([5, 6, 7, 8, 9, 10], GREEDY)
    doomed = llm.add_request([9, 9, 9, 9, 9, 9, 9], GREEDY)
    outputs = {}
    for _ in range(when):
        outputs |= {output.request_id: output for output in llm.step()}
    assert llm.cancel(doomed) is not None
    again = llm.add_request([9, 9, 9], GREEDY)  # takes over what the cancelled one held, while it is still computed
    while llm.has_unfinished:
        outputs |= {output.request_id: output for output in llm.step()}
        llm._engine.scheduler.check_invariants()
    assert outputs[keep].token_ids == tiny("qwen3").greedy((5, 6, 7, 8, 9, 10), 8)
    assert outputs[again].token_ids == tiny("qwen3").greedy((9, 9, 9), 8)


def test_a_new_prompt_is_hashed_beyond_its_first_block_between_launch_and_wait(llm, monkeypatch):
    llm.reset_prefix_cache()
    engine, num_hashed = llm._engine, []
    request = engine.make_request(list(range(40)), GREEDY, 0)
    launch = engine.execution.runner.launch

    def watched(plan):
        num_hashed.append(len(request.block_digests))
        handle = launch(plan)

        def tokens():
            num_hashed.append(len(request.block_digests))
            return handle.tokens()

        return SimpleNamespace(graph=handle.graph, tokens=tokens, device_ns=handle.device_ns)

    monkeypatch.setattr(engine.execution.runner, "launch", watched)
    engine.add(request)
    engine.step()
    assert num_hashed == [1, 2]
    engine.cancel(request.request_id)


def test_an_interrupted_generate_leaves_nothing_running(llm, monkeypatch):
    def interrupt(_until_ns):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm._engine, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[1, 2], [3]], GREEDY)
    assert not llm.has_unfinished
    assert len(llm.generate([[1, 2]], GREEDY)[0].token_ids) == 8


# --- text -------------------------------------------------------------------------------------------------------------


def test_texts_are_encoded_and_results_decoded(texts_folder, capsys):
    llm = LLM(texts_folder, device="cpu", weights="synthetic", num_kv_blocks=16)
    text, ids = llm.generate(["w3 w4 w5", [3, 4, 5]], GREEDY, progress=True)
    assert text.prompt_token_ids == (3, 4, 5)
    assert text.token_ids == ids.token_ids
    assert text.text.split() == [f"w{token}" for token in text.token_ids]
    assert ids.text is None
    assert llm.generate([[3, 4, 5]], GREEDY, detokenize=True)[0].text == text.text
    assert llm.generate("w3 w4 w5", GREEDY)[0].text == text.text
    assert "generate (16 output tokens)" in capsys.readouterr().out


def test_token_ids_alone_import_no_transformers(texts_folder):
    program = (
        "import sys; from nanoinfer import LLM, SamplingParams\n"
        f"llm = LLM({texts_folder!r}, device='cpu', weights='synthetic', num_kv_blocks=16)\n"
        "print(len(llm.generate([[1, 2]], SamplingParams(max_tokens=3))[0].token_ids), 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "False"]


# --- errors before anything runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([], GREEDY, "a prompt is empty"),
        ([320], GREEDY, "token id 320 is outside the vocabulary of 320 tokens"),
        ([-1, 3], GREEDY, "token id -1 is outside"),
        ([1] * 93, GREEDY, "93 prompt \\+ 8 output = 101 tokens, over max_model_len 100"),
        ("text", GREEDY, "holds no tokenizer; give token ids"),
        (7, GREEDY, "a prompt is 7; give a text or a list of token ids"),
        (["a", "b"], GREEDY, "give a text or a list of token ids"),
    ],
)
def test_a_request_that_cannot_run_stops_all_before_the_first_runs(llm, prompt, sampling, message):
    llm.take_step_facts()
    with pytest.raises(RequestError, match=message):
        llm.generate([[1, 2], prompt], sampling)
    assert not llm.has_unfinished
    assert llm.take_step_facts() == ()


def test_a_request_larger_than_the_pool_is_refused(tiny):
    llm = LLM(tiny("qwen3").folder, device="cpu", num_kv_blocks=3)
    assert llm.max_model_len == 48
    with pytest.raises(RequestError, match="over max_model_len 48"):
        llm.generate([[1] * 41], GREEDY)


def test_lists_of_other_lengths_than_the_prompts_are_refused(llm):
    with pytest.raises(RequestError, match="2 prompts but 1 sampling_params"):
        llm.generate([[1], [2]], [GREEDY])
    with pytest.raises(RequestError, match="2 prompts but 3 arrival times"):
        llm.generate([[1], [2]], GREEDY, arrival_s=[0, 0, 0])
    with pytest.raises(RequestError, match=r"arrival_s holds -0\.5"):
        llm.generate([[1], [2]], GREEDY, arrival_s=[0, -0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7,), "prompts is 7; give a text, or a list"),
        ((None,), "prompts is None; give a text, or a list"),
        (([1, 2],), "a prompt is 1; give a text or a list of token ids"),
        (([None],), "a prompt is None; give a text or a list of token ids"),
        (([[1.5]],), r"a prompt is \[1.5\]; give a text or a list of token ids"),
        (([[1]], {"temperature": 0}), "sampling_params is {'temperature': 0}; give SamplingParams"),
        (([[1]], 3), "sampling_params is 3; give SamplingParams"),
        (([[1], [2]], [GREEDY, None]), "None.*; give SamplingParams, one for all or one a prompt"),
    ],
)
def test_arguments_of_another_kind_are_refused_before_anything_runs(llm, arguments, message):
    with pytest.raises(RequestError, match=message):
        llm.generate(*arguments)
    assert not llm.has_unfinished


def test_one_request_with_settings_of_another_kind_is_refused(llm):
    with pytest.raises(RequestError, match=r"sampling_params is 0\.5; give SamplingParams"):
        llm.add_request([1], 0.5)
    assert not llm.has_unfinished


@pytest.mark.parametrize("arrival", ["1", None, float("nan"), float("inf"), -1])
def test_an_arrival_that_is_no_moment_to_come_is_refused(llm, arrival):
    with pytest.raises(RequestError, match=f"arrival_s holds {arrival!r}; arrivals are seconds from now"):
        llm.generate([[1], [2]], GREEDY, arrival_s=[0, arrival])


def test_generate_refuses_to_swallow_requests_added_before(llm):
    request_id = llm.add_request([1], GREEDY)
    with pytest.raises(RequestError, match="unfinished"):
        llm.generate([[1]], GREEDY)
    llm.cancel(request_id)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocksize": 8}, "unknown option blocksize; known options: .*block_size"),
        ({"block_size": 12}, "block_size is 12; use a power of two"),
        ({"device": "cuda:77"}, "device 'cuda:77' is not there"),
        ({"device": "tpu"}, "device 'tpu' is not"),
        ({"max_model_len": 161}, "max_model_len is 161; the model's positions end at 160"),
        ({"max_model_len": 100, "num_kv_blocks": 6}, "one sequence of 100 tokens needs 7"),
        ({"kv_cache_bytes": 1000}, "room for 0 blocks"),
        ({"kv_cache_bytes": 1000, "num_kv_blocks": 4}, "both set"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(tiny, options, message):
    with pytest.raises(ConfigError, match=message):
        LLM(tiny("qwen3").folder, **({"device": "cpu"} | options))


def test_a_closed_engine_says_so(texts_folder):
    llm = LLM(texts_folder, device="cpu", weights="synthetic", num_kv_blocks=16)
    llm.close()
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate([[1]], GREEDY)


# --- memory and cache -------------------------------------------------------------------------------------------------


def test_memory_facts_add_up(texts_folder):
    llm = LLM(texts_folder, device="cpu", weights="synthetic", num_kv_blocks=16, block_size=4)
    facts = llm.memory()
    parameters = sum(parameter.numel() for parameter in llm._engine.execution.runner.model.parameters())
    rotary = 64 * 8
    assert facts.weights_bytes == 4 * (parameters + rotary)
    assert facts.kv_block_bytes == 2 * 1 * 4 * 1 * 8 * 4
    assert facts.kv_pool_bytes == 17 * facts.kv_block_bytes  # one for padding
    assert facts.kv_used_peak_bytes == 0
    llm.generate([[1] * 9, [2] * 3], SamplingParams(max_tokens=2, ignore_eos=True))
    assert llm.memory().kv_used_peak_bytes == 4 * facts.kv_block_bytes
    llm.reset_peaks()
    assert llm.memory().kv_used_peak_bytes == 0


def test_a_pool_given_in_bytes_is_honoured(texts_folder):
    llm = LLM(texts_folder, device="cpu", weights="synthetic", kv_cache_bytes=5000, block_size=4)
    assert llm.num_kv_blocks == 5000 // 256


def test_a_pool_of_its_own_choice_holds_all_that_can_run(texts_folder):
    llm = LLM(texts_folder, device="cpu", weights="synthetic", block_size=16, max_num_seqs=10)
    assert llm.num_kv_blocks == 10 * 64 // 16
    assert llm.max_model_len == 64


def test_resetting_the_prefix_cache_makes_the_next_run_compute_everything(tiny, ragged):
    llm = LLM(tiny("qwen3").folder, device="cpu", num_kv_blocks=64)
    prompt = list(ragged[4][0])
    cached = []
    for reset in (False, False, True):
        if reset:
            llm.reset_prefix_cache()
        cached.append(llm.generate([prompt], GREEDY)[0].facts.num_cached_tokens)
    assert cached == [0, 32, 0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_logits_are_as_close_to_float32_as_those_of_transformers(tiny, dtype):
    source = tiny("qwen3")
    llm = LLM(source.folder, device="cpu", dtype=dtype, num_kv_blocks=64)
    model, seen = llm._engine.execution.runner.model, []
    original = model.logits
    model.logits = lambda hidden: seen.append(original(hidden)) or seen[-1]
    prompt = list(range(3, 40))
    llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1))
    with torch.no_grad():
        exact = source.model(torch.tensor([prompt])).logits[0, -1]
        rounded = copy.deepcopy(source.model).to(getattr(torch, dtype))
        theirs = rounded(torch.tensor([prompt])).logits[0, -1].float()
    assert (seen[0][0].float() - exact).norm() < 1.2 * (theirs - exact).norm()
