import pytest
import torch

from touchstone.canary import CPU_SIZE, CanarySize, MachineCanaries, MachineCanary

TINY = CanarySize(matrix=32, copied_bytes=1 << 12, repetitions=2, warm_ups=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reading_holds_three_positive_rates(dtype):
    reading = MachineCanary("cpu", dtype, TINY).read()
    assert reading.flops_per_s > 0
    assert reading.bytes_per_s > 0
    assert 0 < reading.operation_s < 1


def test_rates_are_the_fixed_work_over_the_shortest_repetition(monkeypatch):
    canary = MachineCanary("cpu", "float32", TINY)
    times = {"_multiply": iter([9, 30, 20]), "_copy": iter([9, 50, 40]), "_start_operations": iter([500, 700, 800])}
    for name, values in times.items():
        monkeypatch.setattr(canary, name, lambda values=values: next(values))
    reading = canary.read()
    assert reading.flops_per_s == pytest.approx(2 * 32**3 / 20e-9), "the warm-up of 9 ns does not count"
    assert reading.bytes_per_s == pytest.approx(2 * 4096 / 40e-9)
    assert reading.operation_s == pytest.approx(7e-9)


def test_several_devices_are_read_in_their_order_and_rest_once(monkeypatch):
    rested = []
    monkeypatch.setattr("touchstone.canary.rest", rested.append)
    canaries = MachineCanaries(["cpu"] * 3, "float32", TINY)
    assert len(canaries.read(2)) == 2
    assert len(canaries.read(3)) == 3
    assert len(rested) == 2


def test_reading_leaves_the_random_numbers_of_the_engine_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    MachineCanary("cpu", "float32", TINY).read()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_copy_of_a_cpu_stays_in_its_cache_and_is_no_smaller_than_a_tiny_models_weights():
    assert 2 << 20 < CPU_SIZE.copied_bytes < 8 << 20
