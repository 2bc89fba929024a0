"""The Triton attention kernels against the PyTorch reference: ragged shapes, block boundaries, dtypes, parts."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from nanoinfer.kernels import decode_attention as decode_attention_module
from nanoinfer.kernels import reference
from nanoinfer.kernels.decode_attention import Cuts, DecodeTuning, _arrivals, context_cuts, decode_attention
from nanoinfer.kernels.prefill_attention import PrefillTuning, prefill_attention

EPS = 1e-6
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# One type counts the lines; counting them for each would more than double the interpreter's time.
COUNTED_ONCE = (DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.no_cover) for dtype in DTYPES[1:]))
# ‖out - exact‖ / ‖exact‖: rounding of results, of rotated heads, and of softmax weights before the second product.
# The interpreter cuts float32 to bfloat16 where a GPU rounds, at every intermediate result.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3 if torch.cuda.is_available() else 2.5e-2}
SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 16}
QWEN3_06B = {"heads": 16, "kv_heads": 8, "head_dim": 128}


class Case:
    """New tokens of sequences with a cache, whose free places are poisoned: who lets one in returns NaN.

    A context of 0 is a row that pads a decode step: it has a token, of which nothing may be written.
    """

    def __init__(
        self, query_lens, contexts, device, *, heads, kv_heads, head_dim, block_size=16, dtype=torch.float32, norm=True
    ):
        generator = torch.Generator().manual_seed(len(contexts) + sum(contexts))

        def draw(*shape):
            return torch.randn(shape, generator=generator)

        counts = [-(-max(1, length) // block_size) for length in contexts]
        num_blocks = sum(counts) + 1
        order = torch.randperm(num_blocks - 1, generator=generator).add(1).int()
        blocks = torch.full((2, num_blocks, block_size, kv_heads, head_dim), torch.nan)
        table = torch.zeros(len(contexts), max(counts) + 1, dtype=torch.int32)
        positions, slots, begin = [], [], 0
        for row, (length, query_len) in enumerate(zip(contexts, query_lens, strict=True)):
            owned = order[begin : begin + counts[row]]
            table[row, : counts[row]] = owned
            begin += counts[row]
            places = owned.long().repeat_interleave(block_size) * block_size + torch.arange(block_size).repeat(
                counts[row]
            )
            cached = places[: max(0, length - query_len)]
            blocks.flatten(1, 2)[:, cached] = draw(2, len(cached), kv_heads, head_dim)
            new = torch.arange(max(0, length - query_len), max(1, length))
            positions.append(new)
            slots.append(places[new])
        angles = draw(max(contexts) + 1, head_dim // 2)
        self.contexts = contexts
        self.max_query_len = max(query_lens)
        self.scale = head_dim**-0.5
        self.heads_shape = heads, head_dim
        self.qkv = draw(sum(query_lens), (heads + 2 * kv_heads) * head_dim).to(dtype).to(device)
        self.norms = [draw(head_dim).abs().add(0.5).to(dtype).to(device) if norm else None for _ in range(2)]
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), -1).to(device)
        self.positions = torch.cat(positions).to(device)
        self.blocks = blocks.to(device, dtype)
        self.slots = torch.cat(slots).to(device)
        self.table = table.to(device)
        self.starts = torch.tensor([0, *query_lens]).cumsum(0).int().to(device)
        self.context_lens = torch.tensor(contexts, dtype=torch.int32, device=device)

    def _first(self, blocks):
        return (self.qkv, *self.norms, EPS, self.cos_sin, self.positions, blocks[0], blocks[1], self.slots, self.table)

    def decode(self, kernel=decode_attention, blocks=None, context_lens=None, **options):
        lens, out = self.context_lens if context_lens is None else context_lens, self.new_out()
        kernel(*self._first(self.blocks if blocks is None else blocks), lens, self.scale, out, **options)
        return out

    def prefill(self, kernel=prefill_attention, blocks=None, **options):
        first, out = self._first(self.blocks if blocks is None else blocks), self.new_out()
        kernel(*first, self.starts, self.context_lens, self.max_query_len, self.scale, out, **options)
        return out

    def new_out(self):
        return torch.full((len(self.qkv), *self.heads_shape), torch.nan, dtype=self.qkv.dtype, device=self.qkv.device)

    def check(self, found, tolerance=None):
        """Whether results and cache equal the reference's; rows of no sequence are left as they were."""
        tolerance = TOLERANCE[self.qkv.dtype] if tolerance is None else tolerance
        real = self.context_lens.repeat_interleave(self.starts.diff()) > 0
        blocks = self.blocks.nan_to_num()  # the reference would multiply the poison by zero
        expected = self._exact_decode(blocks, real) if self.max_query_len == 1 else self._exact_prefill(blocks)
        assert relative_error(found[real], expected[real]) < tolerance
        own = self.slots[real]
        assert relative_error(self.blocks.flatten(1, 2)[:, own], blocks.flatten(1, 2)[:, own]) < tolerance
        assert found[~real].isnan().all()
        assert self.blocks.flatten(1, 2)[:, self.slots[~real]].isnan().all()

    def _exact_prefill(self, blocks):
        return self.prefill(reference.prefill_attention, blocks)

    def _exact_decode(self, blocks, real):
        out, exact = self.new_out(), self.new_out()[real]
        rest = (self.positions[real], blocks[0], blocks[1], self.slots[real], self.table[real], self.context_lens[real])
        reference.decode_attention(self.qkv[real], *self.norms, EPS, self.cos_sin, *rest, self.scale, exact)
        out[real] = exact
        return out


def relative_error(out, expected):
    return ((out.float() - expected.float()).norm() / expected.float().norm()).item()


def decode_case(contexts, device, **shape):
    return Case([1] * len(contexts), contexts, device, **shape)


# --- decode -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", COUNTED_ONCE, ids=str)
@pytest.mark.parametrize(("block_size", "cuts"), [(16, Cuts(1, 1)), (1, Cuts(9, 32)), (64, Cuts(12, 2))], ids=str)
def test_decode_stores_the_new_token_and_attends_as_the_reference(dtype, block_size, cuts, device):
    contexts = [1, 0, 17, 100]
    case = decode_case(contexts, device, **SMALL, block_size=block_size, dtype=dtype)
    for preload in {False, cuts.most > 1}:  # the second launch finds the counters of parts as the first one left them
        found = case.decode(cuts=cuts, tuning=DecodeTuning(16, 4, 2, preload))
        case.check(found)
    assert not _arrivals(found.device).any()


@pytest.mark.no_cover
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (7, 1, 16), (20, 1, 16), (6, 2, 32)])
@pytest.mark.parametrize("norm", [True, False])
def test_decode_handles_every_grouping_of_heads(heads, kv_heads, head_dim, norm, device):
    case = decode_case([70, 5], device, heads=heads, kv_heads=kv_heads, head_dim=head_dim, norm=norm)
    case.check(case.decode(cuts=Cuts(3, 32)))


@pytest.mark.no_cover
@pytest.mark.parametrize("tile_keys", [16, 64])
@pytest.mark.parametrize("block_size", [16, 32, 256])
def test_decode_tile_may_be_smaller_or_larger_than_a_block(tile_keys, block_size, device):
    case = decode_case([130, 64], device, **SMALL, block_size=block_size, dtype=torch.float16)
    case.check(case.decode(cuts=Cuts(4, 32), tuning=DecodeTuning(tile_keys, 2, 2)))


@pytest.mark.no_cover
def test_more_contexts_than_are_looked_at_together_find_their_parts(device, monkeypatch):
    monkeypatch.setattr(decode_attention_module, "ROWS_AT_ONCE", 4)
    case = decode_case([65, 1, 0, 2, 33, 0, 40, 7, 90], device, heads=1, kv_heads=1, head_dim=16)
    case.check(case.decode(cuts=Cuts(7, 32)))


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [
        (1, Cuts(99, 32)),
        (4, Cuts(99, 16)),
        (33, Cuts(99, 8)),
        (34, Cuts(297, 8)),
        (132, Cuts(297, 8)),
        (133, Cuts(1, 1)),
    ],
)
def test_contexts_are_cut_until_the_device_is_full(batch_size, expected):
    assert context_cuts(batch_size, 8, 132) == expected


@pytest.mark.parametrize("batch_size", [1, 256])
def test_contexts_of_a_batch_that_may_be_mostly_padding_are_cut_for_the_few_that_are_real(batch_size):
    assert context_cuts(batch_size, 8, 132, sparse=True) == Cuts(297, 32)


@pytest.mark.no_cover
@pytest.mark.parametrize("contexts", [[0, 0, 0], [0, 33, 0, 0, 90, 0], [40] + [0] * 7])
@pytest.mark.parametrize("cuts", [Cuts(1, 1), Cuts(7, 32)], ids=str)
def test_rows_of_no_sequence_are_left_alone_wherever_they_stand(contexts, cuts, device):
    case = decode_case(contexts, device, **SMALL)
    found = case.decode(cuts=cuts)
    if any(contexts):
        case.check(found)
    else:
        assert found.isnan().all()
    assert not _arrivals(found.device).any()


def test_the_grid_has_room_for_every_part():
    assert Cuts(1, 1).num_programs(300) == 300
    assert Cuts(297, 32).num_programs(1) == 32
    assert Cuts(297, 8).num_programs(100) == 397


# --- prefill ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", COUNTED_ONCE, ids=str)
@pytest.mark.parametrize("block_size", [16, 64])
def test_prefill_equals_reference_for_prompts_chunks_and_prefix_hits(dtype, block_size, device):
    # a whole prompt, a prefix hit, a decode, a chunk, a prompt of one token
    case = Case([17, 5, 1, 16, 1], [17, 5 + block_size, 33, 48, 1], device, **SMALL, block_size=block_size, dtype=dtype)
    case.check(case.prefill())


@pytest.mark.no_cover
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (7, 1, 16), (4, 2, 128), (20, 1, 16)])
@pytest.mark.parametrize("norm", [True, False])
def test_prefill_handles_every_grouping_of_heads(heads, kv_heads, head_dim, norm, device):
    case = Case([20, 9], [20, 30], device, heads=heads, kv_heads=kv_heads, head_dim=head_dim, norm=norm)
    case.check(case.prefill())


@pytest.mark.parametrize("tile_rows", [16, 64])
@pytest.mark.parametrize("tile_keys", [16, 64])
def test_prefill_result_does_not_depend_on_the_tile(tile_rows, tile_keys, device):
    case = Case([70, 3], [70, 67], device, **SMALL, block_size=32, dtype=torch.float16)
    case.check(case.prefill(tuning=PrefillTuning(tile_rows, tile_keys, 4, 2)))


@pytest.mark.no_cover  # each kernel's lines are counted above; counting more than doubles the interpreter's time
@pytest.mark.parametrize("num_decodes", [1, 37])
def test_decode_rows_prompts_and_padding_share_one_step(num_decodes, device):
    """Decode rows, a prefix hit, a prompt, a chunk, and 11 tokens of padding; more rows than decode are said to."""
    contexts = [*range(20, 20 + num_decodes), 30, 40, 21, 11]
    case = Case([*[1] * num_decodes, 9, 40, 5, 11], contexts, device, **SMALL)
    blocks = case.blocks.nan_to_num()
    expected, found = case.prefill(reference.prefill_attention, blocks), case.new_out()
    is_decode = torch.arange(len(contexts), device=device) < num_decodes
    empty = torch.zeros(2, dtype=torch.int32, device=device)
    starts = torch.cat((case.starts[num_decodes:-1], case.starts[-2] + empty))
    prompt_lens = torch.cat((case.context_lens[num_decodes:-1], empty))
    prompt_table = torch.cat((case.table[num_decodes:], case.table[:1]))
    norms = (*case.norms, EPS, case.cos_sin)
    rows = slice(len(contexts))
    stored = (case.positions[rows], *case.blocks, case.slots[rows], case.table)
    lens = torch.where(is_decode, case.context_lens, 0)
    decode_attention(case.qkv[rows], *norms, *stored, lens, case.scale, found[rows], sparse=True)
    stored = (case.positions, *case.blocks, case.slots, prompt_table)
    prefill_attention(case.qkv, *norms, *stored, starts, prompt_lens, 40, case.scale, found)
    own = slice(len(found) - 11)
    assert relative_error(found[own], expected[own]) < TOLERANCE[torch.float32]
    assert found[-11:].isnan().all()
    assert relative_error(case.blocks.flatten(1, 2)[:, case.slots], blocks.flatten(1, 2)[:, case.slots]) < 1e-6


@pytest.mark.no_cover
def test_decode_kernel_and_prefill_kernel_agree_on_single_tokens(device):
    case = decode_case([1, 31, 50], device, **SMALL)
    assert relative_error(case.decode(), case.prefill()) < TOLERANCE[torch.float32]


def test_kernels_take_a_projection_whose_rows_are_part_of_longer_ones(device):
    case = Case([3, 1], [20, 33], device, **SMALL)
    wide = torch.full((4, 2 * case.qkv.shape[1]), torch.nan, device=device)
    wide[:, : case.qkv.shape[1]] = case.qkv
    case.qkv = wide[:, : case.qkv.shape[1]]
    found = case.prefill()
    case.qkv = case.qkv.contiguous()
    case.check(found)


# --- at the sizes of models, on a GPU ---------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 256])
@pytest.mark.parametrize("cuts", [None, Cuts(1, 1), Cuts(2000, 32)], ids=str)
def test_decode_of_long_ragged_contexts_equals_reference_on_a_gpu(dtype, block_size, cuts, device):
    generator = torch.Generator().manual_seed(block_size)
    contexts = [1, block_size, 0, *torch.randint(1, 1500, (14,), generator=generator).tolist(), 32_768]
    case = decode_case(contexts, device, **QWEN3_06B, block_size=block_size, dtype=dtype)
    case.check(case.decode(cuts=cuts))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 256])
def test_prefill_of_long_ragged_prompts_equals_reference_on_a_gpu(dtype, block_size, device):
    case = Case([1000, 1, 129, 512], [1000, 700, 1300, 513], device, **QWEN3_06B, block_size=block_size, dtype=dtype)
    case.check(case.prefill())


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "kv_heads"), [(16, 8), (32, 8), (8, 2)])
def test_decode_and_prefill_serve_the_heads_of_larger_models_on_a_gpu(heads, kv_heads, device):
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": 128, "dtype": torch.float16}
    for rows in (20, 60):  # contexts in parts and whole ones
        case = decode_case([900, 3, 4100] * rows, device, **shape)
        case.check(case.decode())
    case = Case([900, 1, 64], [900, 3000, 2000], device, **shape)
    case.check(case.prefill())


@pytest.mark.gpu
def test_decode_in_parts_repeats_bit_for_bit_in_a_cuda_graph_while_contexts_grow(device):
    case = decode_case([700, 90], device, **QWEN3_06B, block_size=64, dtype=torch.bfloat16)
    case.blocks = case.blocks.nan_to_num()  # the contexts below are cut anywhere
    lengths = case.context_lens.clone()
    case.decode(context_lens=lengths)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.decode(context_lens=lengths)
    for shorter in (0, 1, 63, 89):
        lengths.copy_(case.context_lens - shorter)
        expected = case.decode(context_lens=lengths)
        for _ in range(20):
            captured.fill_(torch.nan)
            graph.replay()
            assert torch.equal(captured, expected)
