"""Which machine, which versions, which code: captured, never typed; and the gate before a run is published."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pynvml

from touchstone.canonical import canonical_json, sha256_hex
from touchstone.clock_use import clock_use
from touchstone.records import Environment, Gpu, Hardware, Software, Source
from touchstone.source_tree import read_stamp, tree_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]

_PACKAGES = (
    "flash-attn",
    "lizard",
    "nano-vllm",
    "numpy",
    "nvidia-ml-py",
    "psutil",
    "pydantic",
    "radon",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "touchstone-bench",
    "transformers",
    "triton",
    "vllm",
)
_UNLIMITED_V1_BYTES = 1 << 60  # control groups of version 1 write "no limit" as the largest page-aligned number
_IDLE_GPU_PERCENT = 5
_IDLE_GPU_BYTES = 1 << 30
_IDLE_CPU_PERCENT = 10.0
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)")


class EnvironmentRefusedError(RuntimeError):
    """The machine is not fit for the run that was asked for; the message lists every reason."""


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """What the control groups allow this process; None without a limit."""

    cpu_cores: float | None
    memory_bytes: int | None


def capture(repository: Path = REPOSITORY, *, output: Path | None = None) -> Environment:
    """Look at this machine, its software and the source tree, and fingerprint what was found.

    `output` is the folder that the run itself writes; its files are no part of the source tree.
    """
    hardware = capture_hardware()
    software = _capture_software()
    source = capture_source(repository, output=output)
    parts = {
        "hardware": hardware.model_dump(mode="json"),
        "software": software.model_dump(mode="json"),
        "source": source.model_dump(mode="json"),
    }
    fingerprint = sha256_hex(canonical_json(parts))
    return Environment(hardware=hardware, software=software, source=source, fingerprint=fingerprint)


def differences(left: Environment, right: Environment) -> tuple[str, ...]:
    """Name the fields in which two environments differ, with both values."""
    one = dict(_leaves(left.model_dump(mode="json", exclude={"fingerprint"})))
    other = dict(_leaves(right.model_dump(mode="json", exclude={"fingerprint"})))
    names = sorted(one.keys() | other.keys())
    return tuple(
        f"{name}: {one.get(name)!r} -> {other.get(name)!r}" for name in names if one.get(name) != other.get(name)
    )


def gate(environment: Environment, device: str, repository: Path = REPOSITORY) -> tuple[str, ...]:
    """List every reason why this machine is not fit for a published run now; empty when it is."""
    reasons = [*_tree_reasons(environment.source), *_version_reasons(environment.software, repository)]
    return (*reasons, *(_busy_gpu_reasons() if device.startswith("cuda") else _busy_cpu_reasons()))


# --- hardware -------------------------------------------------------------------------------------------------------


def capture_hardware() -> Hardware:
    """Describe the machine as the kernel and the driver tell it."""
    limits = cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return Hardware(
        host_id=sha256_hex(_machine_id().encode())[:12],
        cpu_model=cpu_model(Path("/proc/cpuinfo")),
        cpu_physical_cores=psutil.cpu_count(logical=False),
        cpu_logical_cores=os.cpu_count() or 1,
        cpu_usable_cores=len(os.sched_getaffinity(0)),
        cgroup_cpu_cores=limits.cpu_cores,
        cgroup_memory_bytes=limits.memory_bytes,
        memory_bytes=psutil.virtual_memory().total,
        gpus=_gpus(),
    )


def usable_threads(hardware: Hardware) -> int:
    """Count the threads that can really run at once: affinity and control-group quota together, at least 1."""
    quota = hardware.cgroup_cpu_cores
    return max(1, min(hardware.cpu_usable_cores, int(quota) if quota is not None else hardware.cpu_usable_cores))


def usable_memory_bytes(hardware: Hardware) -> int:
    """Return the memory that this process may fill: the machine's or the control group's, whichever is less."""
    limit = hardware.cgroup_memory_bytes
    return hardware.memory_bytes if limit is None else min(hardware.memory_bytes, limit)


def cpu_model(cpuinfo: Path) -> str:
    """Return the processor's name from /proc/cpuinfo, or the architecture where the kernel gives no name (ARM)."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.machine()


def cgroup_limits(membership: Path, mount: Path) -> CgroupLimits:
    """Read the tightest CPU and memory limits of this process's control groups, version 2 or 1.

    A limit may stand at any level from the process's own group up to the mount, so all are read. Inside a container
    the path in /proc/self/cgroup may lie outside the mount; the mount's own files then tell the limit.
    """
    groups = group_directories(membership, mount)
    cores = [value for group in groups if (value := _cpu_limit(group)) is not None]
    memory = [value for group in groups if (value := _memory_limit(group)) is not None]
    return CgroupLimits(min(cores, default=None), min(memory, default=None))


def group_directories(membership: Path, mount: Path) -> list[Path]:
    """Every directory that may limit this process: each line of /proc/self/cgroup, itself and all levels above."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    directories = [mount]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = [controllers, *controllers.split(",")] if controllers else [""]
        for top in dict.fromkeys(mount / name for name in names):
            own = top / path.lstrip("/")
            directories += [own, *(parent for parent in own.parents if parent.is_relative_to(top))]
    return [directory for directory in dict.fromkeys(directories) if directory.is_dir()]


def _cpu_limit(group: Path) -> float | None:
    if (text := _read(group / "cpu.max")) is not None:
        quota, _, period = text.partition(" ")
        return None if quota == "max" else int(quota) / int(period or 100_000)
    quota_us, period_us = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    if quota_us is None or period_us is None or int(quota_us) < 0:
        return None
    return int(quota_us) / int(period_us)


def _memory_limit(group: Path) -> int | None:
    if (text := _read(group / "memory.max")) is not None:
        return None if text == "max" else int(text)
    text = _read(group / "memory.limit_in_bytes")
    return None if text is None or int(text) >= _UNLIMITED_V1_BYTES else int(text)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _machine_id() -> str:
    """Return the installation's id; a machine without one is known by its host name. Only its hash is ever written."""
    return _read(Path("/etc/machine-id")) or _read(Path("/var/lib/dbus/machine-id")) or platform.node()


def _gpus() -> tuple[Gpu, ...]:
    """List the NVIDIA GPUs of the driver; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        power_limit_w = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
    except pynvml.NVMLError:  # some virtual GPUs do not tell
        power_limit_w = None
    return Gpu(
        index=index,
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        compute_capability=f"{major}.{minor}",
        power_limit_w=power_limit_w,
    )


def _text(value: str | bytes) -> str:
    """Read an NVML string, which older bindings give as bytes."""
    return value.decode() if isinstance(value, bytes) else value


# --- software and source --------------------------------------------------------------------------------------------


def _capture_software() -> Software:
    return Software(
        os=_os_name(),
        kernel=platform.release(),
        python=platform.python_version(),
        driver=_driver(),
        cuda=_torch_cuda(),
        packages=dict(_installed_packages()),
    )


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _driver() -> str | None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return _text(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _torch_cuda() -> str | None:
    """Return the CUDA version that torch was built with; None for a build without CUDA."""
    import torch  # noqa: PLC0415  the command line must not load torch to print its help

    return torch.version.cuda


def _installed_packages() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def capture_source(repository: Path, *, output: Path | None = None) -> Source:
    """Tell commit, dirtiness and pins of a tree: a git repository, or what `git archive` made of one.

    Elsewhere the commit is None and nothing is guessed. The difference that is hashed is `git diff HEAD` and the
    content of every untracked file that git does not ignore; without git it is the hash of the tree as it is.
    """
    lock_sha256 = _lock_sha256(repository)
    commit = _git(repository, "rev-parse", "HEAD")
    if commit is None:
        return _archived_source(repository, output, lock_sha256)
    scope = _scope(repository, output)
    changes = (_git(repository, "diff", "HEAD", *scope) or b"") + b"".join(_untracked(repository, scope))
    return Source(
        commit=commit.decode().strip(),
        dirty=bool(changes),
        diff_sha256=sha256_hex(changes) if changes else None,
        lock_sha256=lock_sha256,
        clock=clock_use(),
    )


def _archived_source(folder: Path, output: Path | None, lock_sha256: str | None) -> Source:
    """Tell what the stamp of `git archive` says, and whether the files are still those of its commit."""
    stamp = read_stamp(folder)
    if stamp is None:
        return Source(commit=None, dirty=None, diff_sha256=None, lock_sha256=lock_sha256, clock=clock_use())
    tree = tree_hash(folder, None if output is None else output.resolve())
    return Source(
        commit=stamp.commit,
        dirty=tree != stamp.tree,
        diff_sha256=None if tree == stamp.tree else sha256_hex(tree.encode()),
        lock_sha256=lock_sha256,
        clock=clock_use(),
    )


def has_commit(commit: str, repository: Path = REPOSITORY) -> bool:
    """Tell whether a commit is the repository's present one or lies behind it."""
    return _git(repository, "merge-base", "--is-ancestor", commit, "HEAD") is not None


def _scope(repository: Path, output: Path | None) -> tuple[str, ...]:
    """Say in git's words: the whole tree without the run's own folder."""
    if output is None or not output.resolve().is_relative_to(repository.resolve()):
        return ("--", ".")
    return ("--", ".", f":(exclude){output.resolve().relative_to(repository.resolve())}")


def _untracked(repository: Path, scope: tuple[str, ...]) -> Iterator[bytes]:
    names = _git(repository, "ls-files", "--others", "--exclude-standard", "-z", *scope) or b""
    for name in sorted(filter(None, names.split(b"\0"))):
        path = repository / os.fsdecode(name)
        yield name + b"\0" + (path.read_bytes() if path.is_file() else b"")


def _git(repository: Path, *arguments: str) -> bytes | None:
    """Run git on the tree; None where there is no git or no repository of its own."""
    if not (repository / ".git").exists():
        return None
    command = ["git", "-C", str(repository), "-c", "core.quotepath=off", *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603  fixed words, no shell
    except (OSError, subprocess.CalledProcessError):
        return None


def _locks(repository: Path) -> list[Path]:
    """List the files that pin this project's dependencies, as one set."""
    return sorted((repository / "requirements").glob("*.txt"))


def _host_locks(repository: Path) -> list[Path]:
    """List the files that pin, each alone, what a host has whose software cannot be changed."""
    return sorted((repository / "requirements" / "hosts").glob("*.txt"))


def _lock_sha256(repository: Path) -> str | None:
    locks = [*_locks(repository), *_host_locks(repository)]
    return sha256_hex(b"".join(path.read_bytes() for path in locks)) if locks else None


# --- the gate -------------------------------------------------------------------------------------------------------


def _tree_reasons(source: Source) -> Iterator[str]:
    if source.commit is None:
        yield (
            "the source tree is no git repository and has no stamp of `git archive`, so no commit can be recorded; "
            "run from a clone, or from an archive of a commit"
        )
    elif source.dirty:
        yield "the git tree has uncommitted changes; commit them first"


def _version_reasons(software: Software, repository: Path) -> Iterator[str]:
    """Compare installed versions with each set of locks, and tell what keeps them from being the nearest one."""
    sets = [_locks(repository), *([path] for path in _host_locks(repository))]
    yield from min((_differences_from(locks, software, repository) for locks in sets), key=len)


def _differences_from(locks: Sequence[Path], software: Software, repository: Path) -> list[str]:
    pins, place = _pins(locks), _place(locks, repository)
    return [
        f"{name} is {version}, {place} pins {' or '.join(sorted(expected))}; install from there"
        for name, version in software.packages.items()
        if (expected := pins.get(_normalized(name))) and version.partition("+")[0] not in expected
    ]


def _place(locks: Sequence[Path], repository: Path) -> str:
    """Name a file, or the folder of several."""
    path = locks[0] if len(locks) == 1 else repository / "requirements"
    return path.relative_to(repository).as_posix()


def _pins(locks: Sequence[Path]) -> dict[str, set[str]]:
    pins: dict[str, set[str]] = {}
    for lock in locks:
        for line in lock.read_text().splitlines():
            if match := _PIN.match(line):
                pins.setdefault(_normalized(match[1]), set()).add(match[2].partition("+")[0])
    return pins


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _busy_cpu_reasons() -> Iterator[str]:
    busy = psutil.cpu_percent(interval=1.0)
    if busy > _IDLE_CPU_PERCENT:
        yield f"the processor is {busy:.0f} % busy with other work (at most {_IDLE_CPU_PERCENT:.0f} % is idle); stop it"


def _busy_gpu_reasons() -> Iterator[str]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield f"the NVIDIA driver does not answer ({error}); check nvidia-smi"
        return
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            yield from _one_busy_gpu(index)
    finally:
        pynvml.nvmlShutdown()


def _one_busy_gpu(index: int) -> Iterator[str]:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    if processes := pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
        yield f"GPU {index} runs {len(processes)} other process(es); stop them"
    if (used := pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used) > _IDLE_GPU_BYTES:
        yield f"GPU {index} has {used / 1e9:.1f} GB in use; free it"
    if (busy := pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) > _IDLE_GPU_PERCENT:
        yield f"GPU {index} is {busy} % busy; wait until it is idle"


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Walk nested dictionaries to their values, with dotted names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value
