import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from touchstone.records import Lengths, WorkloadSpec
from touchstone.workload import WorkloadError, build, derive_seed, num_sharing, prefix_length

VOCABULARY = 1000


def spec(**fields):
    defaults = {
        "num_requests": 10,
        "input_tokens": Lengths(low=20, high=20),
        "output_tokens": Lengths(low=5, high=5),
    }
    return WorkloadSpec(**(defaults | fields))


def common_prefix_length(left, right):
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def test_the_stream_is_the_one_that_was_published():
    """Golden ids: a change of the law would make old seeds mean other prompts."""
    requests = build(spec(num_requests=2, input_tokens=Lengths(low=3, high=6)), 100, seed=7)
    assert [request.prompt_token_ids for request in requests] == [(53, 36, 5, 50), (3, 43, 6, 9, 42)]


def test_the_same_seed_gives_the_same_requests_and_another_seed_others():
    workload = spec(request_rate_per_s=3.0, shared_fraction=0.7, prefix_fraction=0.8)
    assert build(workload, VOCABULARY, 1) == build(workload, VOCABULARY, 1)
    assert build(workload, VOCABULARY, 1) != build(workload, VOCABULARY, 2)


@given(seed=st.integers(0, 2**63), low=st.integers(1, 20), extra=st.integers(0, 20), vocabulary=st.integers(2, 200))
@settings(max_examples=50)
def test_lengths_and_ids_stay_in_their_ranges(seed, low, extra, vocabulary):
    lengths = Lengths(low=low, high=low + extra)
    requests = build(spec(input_tokens=lengths, output_tokens=lengths), vocabulary, seed)
    assert [request.request_id for request in requests] == list(range(10))
    for request in requests:
        assert lengths.low <= len(request.prompt_token_ids) <= lengths.high
        assert lengths.low <= request.num_output_tokens <= lengths.high
        assert all(0 <= token < vocabulary for token in request.prompt_token_ids)
        assert request.arrival_ns == 0


def test_ranged_lengths_are_uniform_with_both_ends_included():
    requests = build(spec(num_requests=4000, input_tokens=Lengths(low=3, high=6)), VOCABULARY, 0)
    counts = [sum(len(request.prompt_token_ids) == length for request in requests) for length in range(3, 7)]
    assert sum(counts) == 4000
    assert stats.chisquare(counts).pvalue > 0.001


def test_prompts_without_a_shared_prefix_have_no_block_in_common():
    prompts = [request.prompt_token_ids for request in build(spec(num_requests=50), VOCABULARY, 0)]
    assert max(common_prefix_length(a, b) for a, b in itertools.combinations(prompts, 2)) < 4


def test_the_plans_prefix_workload_shares_409_ids_among_exactly_70_of_100():
    lengths = Lengths(low=512, high=512)
    workload = spec(num_requests=100, input_tokens=lengths, shared_fraction=0.7, prefix_fraction=0.8)
    prompts = [request.prompt_token_ids for request in build(workload, 151_936, 5)]
    heads = [prompt[:409] for prompt in prompts]
    common = max(set(heads), key=heads.count)
    sharing = [index for index, head in enumerate(heads) if head == common]
    assert len(sharing) == 70
    assert len({prompts[index][409] for index in sharing}) > 60
    assert sharing != list(range(70))
    assert len(set(heads)) == 31


def test_a_shorter_request_shares_its_own_share_of_the_prefix():
    workload = spec(num_requests=40, input_tokens=Lengths(low=10, high=40), shared_fraction=1.0, prefix_fraction=0.5)
    prompts = [request.prompt_token_ids for request in build(workload, 50_000, 5)]
    longest = max(prompts, key=len)
    for prompt in prompts:
        assert common_prefix_length(prompt[: len(prompt) // 2], longest) == len(prompt) // 2


@pytest.mark.parametrize(
    ("fraction", "requests", "expected"), [(0.29, 100, 29), (0.7, 100, 70), (0.7, 9, 6), (1.0, 9, 9), (0.57, 100, 57)]
)
def test_sharing_counts_are_exact_floors_of_the_decimal_fraction(fraction, requests, expected):
    workload = spec(num_requests=requests, shared_fraction=fraction, prefix_fraction=fraction)
    assert num_sharing(workload) == expected
    assert prefix_length(workload, requests) == expected


def test_poisson_arrivals_begin_at_zero_and_have_exponential_gaps():
    requests = build(spec(num_requests=3000, request_rate_per_s=4.0), VOCABULARY, 3)
    arrivals = [request.arrival_ns for request in requests]
    gaps = [(later - earlier) / 1e9 for earlier, later in itertools.pairwise(arrivals)]
    assert arrivals[0] == 0
    assert min(gaps) >= 0
    assert stats.kstest(gaps, stats.expon(scale=1 / 4.0).cdf).pvalue > 0.001


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_tokens": Lengths(low=5, high=4)}, r"input_tokens is 5\.\.4"),
        ({"request_rate_per_s": 0.0}, r"request_rate_per_s is 0\.0"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": 1, "request_rate_per_s": 1.0}, "both set"),
        ({"shared_fraction": 0.5}, "prefix_fraction 0.0"),
    ],
)
def test_a_workload_without_meaning_is_refused(fields, message):
    with pytest.raises(WorkloadError, match=message):
        build(spec(**fields), VOCABULARY, 0)


def test_a_vocabulary_of_one_is_refused():
    with pytest.raises(WorkloadError, match="has 1 ids"):
        build(spec(), 1, 0)


def test_derived_seeds_differ_by_every_part_and_fit_63_bits():
    seeds = {derive_seed(seed, name, index) for seed in (0, 1) for name in ("a", "b") for index in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(math.log2(seed) for seed in seeds) > 61
