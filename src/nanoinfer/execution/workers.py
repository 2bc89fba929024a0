"""The processes that work for an engine: started, talked to, watched and ended from here.

Each worker has a channel. Whatever goes wrong in one of them (it raises, dies, hangs) ends all of them within a bounded
time, and the error that is raised tells what that one said, not what its peers then complained about.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from nanoinfer.config import ConfigError
from nanoinfer.execution.channel import Channel, ChannelClosedError, Kind, Message
from nanoinfer.execution.lifeline import beat_interval_s
from nanoinfer.request import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

FIRST_SIGN_S = 300.0  # until a new process has imported its libraries
GRACE_S = 1.5  # for the others to say what happened to them, once one has failed
FAREWELL_S = 5.0  # to end in order, when asked to
_LOST_BEATS = 4

# Multicast over NVLink is never used here, and a machine that lends its GPUs to several guests may not bear it.
_ENVIRONMENT = {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NCCL_NVLS_ENABLE": "0"}
_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
_OWN_ERRORS: dict[str, type[Exception]] = {"ConfigError": ConfigError, "RequestError": RequestError}


class WorkerError(RuntimeError):
    """A process of the engine has failed; the message names it and says what happened to it."""


@dataclass(slots=True)
class Worker:
    """One worker as its front door knows it. `process` is None where another host or launcher started it."""

    name: str
    channel: Channel
    process: subprocess.Popen[bytes] | None
    last_heard_s: float | None = None
    inbox: deque[Message] = field(default_factory=deque)

    @property
    def pid(self) -> int | None:
        """The process's number, where it runs under this one."""
        return None if self.process is None else self.process.pid


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of a worker. `rank` orders causes: its own error, its death, its silence, a lost peer."""

    rank: int
    error: Exception


def spawn(name: str) -> Worker:
    """Start a process of this Python that waits for its setup."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "nanoinfer.worker", str(theirs.fileno()), str(os.getpid())]
    process = subprocess.Popen(  # noqa: S603  this Python, a module of ours
        command,
        env=_environment(),
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt from the terminal is the front door's to handle
    )
    theirs.close()
    return Worker(name, Channel(ours), process)


def _environment() -> dict[str, str]:
    """Return an environment in which a new process finds this package, and nothing of a launcher's ranks."""
    package_folder = str(Path(__file__).resolve().parents[2])
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_TORCHRUN}
    paths = [package_folder, *filter(None, [inherited.get("PYTHONPATH")])]
    return _ENVIRONMENT | inherited | {"PYTHONPATH": os.pathsep.join(paths)}


def set_environment() -> None:
    """Give this process the settings that a spawned worker has, where the user has not chosen others."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class Workers:
    """All workers of one front door; after a failure or `close` there are none."""

    def __init__(self, workers: Sequence[Worker], *, rank_timeout_s: float) -> None:
        self.all = tuple(workers)
        self._timeout_s = rank_timeout_s
        self._started_s = monotonic()
        self._index = {worker.channel.fileno(): index for index, worker in enumerate(workers)}
        self._selector = selectors.DefaultSelector()
        for worker in workers:
            worker.channel.connection.settimeout(rank_timeout_s)
            self._selector.register(worker.channel, selectors.EVENT_READ)
        self._finalizer = weakref.finalize(self, _end_at_once, self.all)  # also when the interpreter ends

    # --- talking ------------------------------------------------------------------------------------------------------

    def send(
        self, index: int, kind: Kind, facts: Mapping[str, Any] | None = None, integers: Tensor | None = None
    ) -> None:
        """Send a message to one worker."""
        worker = self.all[index]
        self._check_open()
        try:
            worker.channel.send(kind, facts, integers)
        except ChannelClosedError:
            self._fail(index, self._death(worker))
        except TimeoutError:
            self._fail(index, self._silence(worker))

    def broadcast(self, kind: Kind, facts: Mapping[str, Any] | None = None, integers: Tensor | None = None) -> None:
        """Send the same message to all workers."""
        for index in range(len(self.all)):
            self.send(index, kind, facts, integers)

    def receive(self, index: int, kind: Kind, *, limited: bool = True) -> Message:
        """Wait for a worker's next message, which must be of a kind.

        `limited` ends the wait, and with it the run, after the time that a step may take. Whatever happens to any
        worker meanwhile is noticed.
        """
        self._check_open()
        inbox, begin_s = self.all[index].inbox, monotonic()
        while not inbox:
            self.poll(beat_interval_s(self._timeout_s))
            if limited and not inbox and monotonic() - begin_s > self._timeout_s:
                self._fail(index, self._overdue(index))
        message = inbox.popleft()
        if message.kind is not kind:
            reason = f"{self.all[index].name} sent {message.kind.name} where {kind.name} was due"
            self._fail(index, Failure(0, WorkerError(reason)))
        return message

    def poll(self, timeout_s: float) -> list[int]:
        """Take in what has come, waiting at most so long for something; return who has messages in the inbox."""
        self._check_open()
        for key, _ in self._selector.select(timeout_s):
            self._take_in(self._index[key.fd])
        self._check_silence()
        return [index for index, worker in enumerate(self.all) if worker.inbox]

    def _take_in(self, index: int) -> None:
        worker = self.all[index]
        try:
            message = worker.channel.receive()
        except ChannelClosedError:
            self._fail(index, self._death(worker))
        except TimeoutError:
            self._fail(index, self._silence(worker))
        except ValueError as error:
            self._fail(index, Failure(0, WorkerError(f"{worker.name}{_pid(worker)}: {error}")))
        worker.last_heard_s = monotonic()
        if message.kind is Kind.ERROR:
            self._fail(index, _reported(worker, message))
        if message.kind is not Kind.BEAT:
            worker.inbox.append(message)

    # --- what can go wrong --------------------------------------------------------------------------------------------

    def _check_silence(self) -> None:
        now_s = monotonic()
        for index, worker in enumerate(self.all):
            if worker.last_heard_s is None:
                overdue = now_s - self._started_s > max(FIRST_SIGN_S, self._timeout_s)
            else:
                overdue = now_s - worker.last_heard_s > self._timeout_s
            if overdue:
                self._fail(index, self._silence(worker))

    def _overdue(self, index: int) -> Failure:
        """Blame, for an answer that does not come, whoever has stopped beating."""
        quiet_s = _LOST_BEATS * beat_interval_s(self._timeout_s)
        for worker in self.all:
            if worker.last_heard_s is not None and monotonic() - worker.last_heard_s > quiet_s:
                return self._silence(worker)
        return Failure(
            3,
            WorkerError(
                f"{self.all[index].name} has computed for {self._timeout_s:g} s without a result, and all processes "
                f"are alive; raise rank_timeout_s if a step may take longer"
            ),
        )

    def _silence(self, worker: Worker) -> Failure:
        since_s = self._started_s if worker.last_heard_s is None else worker.last_heard_s
        return Failure(
            2,
            WorkerError(
                f"{worker.name}{_pid(worker)} hangs: it has not given a sign of life for {monotonic() - since_s:.1f} s "
                f"(rank_timeout_s is {self._timeout_s:g})"
            ),
        )

    def _death(self, worker: Worker) -> Failure:
        return Failure(1, WorkerError(f"{worker.name}{_pid(worker)} {_how_it_ended(worker)}"))

    def _fail(self, index: int, first: Failure) -> NoReturn:
        """End all workers and raise the failure that explains the others."""
        failures = [first, *(self._last_words(index) if first.rank > 0 else ())]
        self._finalizer()
        self._selector.close()
        raise min(failures, key=lambda failure: failure.rank).error

    def _last_words(self, failed: int) -> list[Failure]:
        """Listen for a moment to the workers that have not failed yet."""
        self._selector.unregister(self.all[failed].channel)
        failures, deadline_s = list[Failure](), monotonic() + GRACE_S
        while self._selector.get_map() and (left_s := deadline_s - monotonic()) > 0:
            for key, _ in self._selector.select(left_s):
                worker = self.all[self._index[key.fd]]
                try:
                    message = worker.channel.receive()
                except (OSError, ValueError):
                    failures.append(self._death(worker))
                else:
                    if message.kind is not Kind.ERROR:
                        continue
                    failures.append(_reported(worker, message))
                self._selector.unregister(key.fileobj)
        return failures

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise WorkerError("the engine's processes have ended; make a new engine")

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ask all to end, and end those that do not; closing twice is no error."""
        if not self._finalizer.alive:
            return
        for worker in self.all:
            with suppress(OSError):
                worker.channel.send(Kind.CLOSE)
        deadline_s = monotonic() + min(FAREWELL_S, self._timeout_s)
        for worker in self.all:
            if worker.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, deadline_s - monotonic()))
        self._selector.close()
        self._finalizer()


def _end_at_once(workers: Sequence[Worker]) -> None:
    """Kill what still runs; workers elsewhere end themselves when their channel closes."""
    for worker in workers:
        if worker.process is not None and worker.process.poll() is None:
            worker.process.kill()
    for worker in workers:
        worker.channel.close()
        if worker.process is not None:
            worker.process.wait()


def _reported(worker: Worker, message: Message) -> Failure:
    """Turn a worker's last message into the error that it raised."""
    facts = message.facts
    own = _OWN_ERRORS.get(facts["type"])
    if own is not None:
        return Failure(0, own(facts["message"]))
    text = f"{worker.name}{_pid(worker)} failed with {facts['type']}: {facts['message']}\n{facts['traceback']}"
    return Failure(3 if facts["lost_peer"] else 0, WorkerError(text))


def _pid(worker: Worker) -> str:
    return "" if worker.pid is None else f" (process {worker.pid})"


def _how_it_ended(worker: Worker) -> str:
    """Say what is known of a process whose channel has closed."""
    if worker.process is None:
        return "is gone: its connection has closed"
    try:
        status = worker.process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        return "closed its channel without a word"
    if status >= 0:
        return f"ended without a word, with exit status {status}"
    name = signal.Signals(-status).name
    hint = "; the system's memory may have run out" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"
