from dataclasses import replace

import pytest
import torch

from touchstone.canary import CPU_SIZE, CanarySize, MachineCanaries, MachineCanary
from touchstone.records import CanaryReading

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


def speeds(canary, monkeypatch, *flops):
    """Let the readings of a canary have these rates of products, one after the other."""
    told = (CanaryReading(flops_per_s=rate, bytes_per_s=1e11, operation_s=1e-6) for rate in flops)
    monkeypatch.setattr(canary, "_measure_once", lambda: next(told))


@pytest.fixture
def patient(monkeypatch):
    """A canary that may read again, and how long it rested."""
    rested = []
    monkeypatch.setattr("touchstone.canary.rest", rested.append)
    size = replace(TINY, rest_s=0.5, most_again=3)
    return MachineCanary("cpu", "float32", size), rested


def test_a_reading_that_dips_is_taken_again_after_a_longer_rest_and_the_count_recorded(patient, monkeypatch):
    canary, rested = patient
    speeds(canary, monkeypatch, 100.0, 95.0, 96.0, 99.0)
    assert canary.measure().read_again == 0
    again = canary.measure()
    assert (again.flops_per_s, again.read_again) == (99.0, 2)
    assert rested == [0.5, 1.0]


def test_a_neighbour_that_stays_is_still_seen(patient, monkeypatch):
    canary, _ = patient
    speeds(canary, monkeypatch, 100.0, 90.0, 91.0, 89.0, 90.0)
    canary.measure()
    found = canary.measure()
    assert (found.flops_per_s, found.read_again) == (91.0, 3)


def test_a_reading_within_the_noise_and_the_first_are_taken_once(patient, monkeypatch):
    canary, rested = patient
    speeds(canary, monkeypatch, 100.0, 98.5, 103.0, 101.5)
    assert [canary.measure().read_again for _ in range(4)] == [0, 0, 0, 0]
    assert rested == []


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
