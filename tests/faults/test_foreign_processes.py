"""A foreign process on the device: refused before a published run, and an invalid attempt during one."""

from types import SimpleNamespace

import pynvml
import pytest

from touchstone.environment import EnvironmentRefusedError, gate
from touchstone.running import orchestrate
from touchstone.telemetry import TelemetrySampler

FOREIGN, OWN = 4_000_001, 4_000_002


@pytest.fixture
def driver(monkeypatch):
    """A device that answers like the driver; `pids` are the processes on it."""
    state = SimpleNamespace(pids=[], used=0, busy=0)

    def refuse(*_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetIndex": lambda _: 0,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [SimpleNamespace(pid=pid) for pid in state.pids],
        "nvmlDeviceGetMemoryInfo": lambda *_, **__: SimpleNamespace(used=state.used),
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=state.busy),
    }
    refused = ("ClockInfo", "PowerUsage", "Temperature", "TotalEnergyConsumption", "FieldValues")
    for name, answer in (answers | {f"nvmlDeviceGet{name}": refuse for name in refused}).items():
        monkeypatch.setattr(pynvml, name, answer)
    return state


@pytest.mark.parametrize(
    ("fact", "value", "reason"),
    [
        ("pids", [FOREIGN, OWN], "GPU 0 runs 2 other process(es); stop them"),
        ("used", 3 << 30, "GPU 0 has 3.2 GB in use; free it"),
        ("busy", 40, "GPU 0 is 40 % busy; wait until it is idle"),
    ],
)
def test_the_gate_refuses_a_device_that_others_use_and_says_how(driver, phased, tmp_path, fact, value, reason):
    here = phased.make_run(tmp_path).environment
    idle = gate(here, "cuda")
    assert not any("GPU 0" in line for line in idle)
    setattr(driver, fact, value)
    with pytest.raises(EnvironmentRefusedError) as refused:
        orchestrate.refuse(set(gate(here, "cuda")) - set(idle))
    assert reason in str(refused.value)


def test_an_attempt_beside_a_foreign_process_is_invalid_and_repeated_once(driver, phased, monkeypatch, tmp_path):
    measure = orchestrate._measure
    neighbours = iter([[FOREIGN, OWN], [OWN]])

    def measure_on_a_gpu(*arguments):
        results = measure(*arguments)
        driver.pids = next(neighbours)
        with TelemetrySampler(["GPU-0"]) as sampler:
            pass
        return [
            result.model_copy(
                update={
                    "measurements": tuple(
                        row.model_copy(update={"telemetry": sampler.result}) for row in result.measurements
                    )
                }
            )
            for result in results
        ]

    monkeypatch.setattr(orchestrate, "_measure", measure_on_a_gpu)
    phased.measure(phased.make_run(tmp_path, telemetry_enforced=True))
    first, second = phased.attempts(tmp_path)
    assert (first.valid, second.valid) == (False, True)
    assert first.reason == f"run 0 of arm {first.measurements[0].arm!r}: 1 other process(es) on GPU 0"
    assert second.measurements[0].telemetry.gpus[0].other_processes == 0
    assert phased.custody_faults(tmp_path) == []
