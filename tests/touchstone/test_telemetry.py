import threading

import pytest

from touchstone import telemetry as module
from touchstone.telemetry import TelemetrySampler, throttled_s

FOREIGN = (4_000_001, 4_000_002)


def work(rounds=200_000):
    return sum(number * number for number in range(rounds))


def test_a_run_is_watched_from_begin_to_end():
    with TelemetrySampler(interval_s=0.01) as sampler:
        work()
    told = sampler.result
    assert told.duration_s > 0
    assert told.interval_s == 0.01
    assert told.involuntary_switches >= 0
    assert told.gpus == ()


def test_the_sampling_thread_ends_with_the_run():
    with TelemetrySampler(interval_s=0.01):
        work()
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry"]


def test_there_is_no_result_before_the_end():
    with TelemetrySampler() as sampler, pytest.raises(RuntimeError, match="not ended yet"):
        _ = sampler.result


def test_busy_cores_of_others_are_unknown_in_a_short_run_and_never_zero_for_it():
    with TelemetrySampler() as sampler:
        work(10)
    assert sampler.result.other_busy_cores is None


def test_busy_cores_of_others_are_the_machines_time_less_our_own():
    before = module._HostCounters(0, 0, machine_busy_s=100.0, own_busy_s=10.0, throttled_s=None)
    after = module._HostCounters(0, 0, machine_busy_s=106.0, own_busy_s=12.0, throttled_s=None)
    assert module._other_busy_cores(before, after, 2.0) == pytest.approx(2.0)
    unknown = module._HostCounters(0, 0, machine_busy_s=None, own_busy_s=12.0, throttled_s=None)
    assert module._other_busy_cores(before, unknown, 2.0) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("usage_usec 5\nnr_throttled 2\nthrottled_usec 1500000\n", 1.5),
        ("nr_periods 7\nnr_throttled 1\nthrottled_time 2000000000\n", 2.0),
        ("usage_usec 5\n", None),
    ],
)
def test_throttling_is_read_from_both_versions_of_control_groups(tmp_path, text, seconds):
    (tmp_path / "cpu.stat").write_text(text)
    assert throttled_s([tmp_path]) == seconds


def test_the_group_that_was_stopped_longest_counts_and_a_missing_one_is_unknown(tmp_path):
    for name, value in (("a", 1_000_000), ("b", 3_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpu.stat").write_text(f"throttled_usec {value}\n")
    assert throttled_s([tmp_path / "a", tmp_path / "b"]) == 3.0
    assert throttled_s([tmp_path / "none"]) is None


class TestGpu:
    """NVML by a stand-in that answers like the driver: what it refuses stays None."""

    @pytest.fixture
    def driver(self, monkeypatch):
        nvml = module.pynvml

        class Value:
            nvmlReturn = nvml.NVML_SUCCESS  # noqa: N815  the name that NVML gives it

            def __init__(self, nanoseconds):
                self.value = type("Union", (), {"ullVal": nanoseconds})()

        energies, ticks = iter([1_000, 4_000]), iter([0, 2_000_000_000])

        def fields(_, ids):
            grown = next(ticks)
            return [Value(grown if index == 0 else 0) for index, _ in enumerate(ids)]

        def refuse(*_):
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)

        answers = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetIndex": lambda _: 3,
            "nvmlDeviceGetClockInfo": lambda _, kind: 1500 if kind == nvml.NVML_CLOCK_SM else 2600,
            "nvmlDeviceGetPowerUsage": refuse,
            "nvmlDeviceGetTemperature": lambda *_: 61,
            "nvmlDeviceGetComputeRunningProcesses": lambda _: [type("P", (), {"pid": pid})() for pid in FOREIGN],
            "nvmlDeviceGetTotalEnergyConsumption": lambda _: next(energies),
            "nvmlDeviceGetFieldValues": fields,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(nvml, name, answer)

    @pytest.mark.usefixtures("driver")
    def test_counters_are_differences_and_refused_values_are_none(self):
        with TelemetrySampler(["GPU-1"]) as sampler:
            work(10)
        (seen,) = sampler.result.gpus
        assert (seen.index, seen.sm_clock_min_mhz, seen.memory_clock_median_mhz) == (3, 1500, 2600)
        assert seen.energy_j == 3.0
        assert seen.power_mean_w is None
        assert seen.temperature_max_c == 61
        assert seen.slowdown_s == {"software power cap": 2.0}

    @pytest.mark.usefixtures("driver")
    def test_where_process_numbers_are_foreign_one_entry_is_ours(self):
        with TelemetrySampler(["GPU-1"]) as sampler:
            pass
        assert sampler.result.gpus[0].other_processes == 1
