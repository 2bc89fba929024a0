from __future__ import annotations

import torch

from touchstone.engines.live_bytes import LiveBytes


def test_peak_is_what_was_alive_together_not_what_was_made_in_all() -> None:
    with LiveBytes() as meter, torch.inference_mode():
        for _ in range(5):
            big = torch.empty(1000, dtype=torch.float32)
            del big
        first, second = torch.empty(200, dtype=torch.float32), torch.empty(300, dtype=torch.float32)
        del first, second

    assert meter.peak_bytes == 4000


def test_views_and_writes_into_older_storages_add_nothing() -> None:
    weights = torch.ones(1000)

    with LiveBytes() as meter, torch.inference_mode():
        weights.add_(1)
        view = weights[:10].reshape(2, 5)
        view.mul_(2)

    assert meter.peak_bytes == 0


def test_a_storage_lives_as_long_as_its_last_view() -> None:
    with LiveBytes() as meter, torch.inference_mode():
        made = torch.empty(1000, dtype=torch.uint8)
        view = made[:10]
        del made
        other = torch.empty(500, dtype=torch.uint8)
        del view, other

    assert meter.peak_bytes == 1500


def test_results_of_operators_count_at_their_size() -> None:
    left = torch.ones(100, 100)

    with LiveBytes() as meter, torch.inference_mode():
        product = left @ left
        total = product.sum()
        del product, total

    assert meter.peak_bytes == 100 * 100 * 4 + 4
