"""A step that fails or is interrupted: all requests end, nothing half computed is found again, the engine goes on."""

import pytest

from nanoinfer import LLM, SamplingParams
from nanoinfer.execution.runner import Runner, StepHandle

PROMPTS = [[5] * 40, [6] * 40, [5] * 33]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def fail_at(monkeypatch, owner, name, number, fault):
    """Let the call with this number fail, after or in place of its work."""
    good, calls = getattr(owner, name), []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise fault
        return good(*arguments)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.no_cover
@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RuntimeError("out of memory")])
@pytest.mark.parametrize(("owner", "name"), [(Runner, "launch"), (StepHandle, "tokens")])
@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.parametrize("overlap", [False, True])
def test_after_a_failed_step_the_same_prompts_give_the_same_tokens(
    folder, monkeypatch, overlap, number, owner, name, fault
):
    with LLM(folder, device="cpu", max_model_len=64, num_kv_blocks=12, max_num_seqs=3, overlap=overlap) as llm:
        with monkeypatch.context() as patch:
            fail_at(patch, owner, name, number, fault)
            with pytest.raises(type(fault)):
                llm.generate(PROMPTS, GREEDY)
        assert not llm.has_unfinished
        after = [output.token_ids for output in llm.generate(PROMPTS, GREEDY)]
    with LLM(folder, device="cpu", max_model_len=64, num_kv_blocks=12, max_num_seqs=3, prefix_cache=False) as fresh:
        assert after == [output.token_ids for output in fresh.generate(PROMPTS, GREEDY)]
