"""Where processes meet: a key-value store that one of them (or torchrun) keeps.

An engine that starts its processes itself keeps the store on a port of the loopback interface that the system chooses,
so engines side by side never meet by accident. Under torchrun the store is the launcher's, and processes that were
started apart find each other's addresses in it.
"""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from nanoinfer.config import ConfigError
from nanoinfer.execution.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Iterator

JOIN_S = 300.0
LOOPBACK = "127.0.0.1"
_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Meeting:
    """The address of a store, and a prefix for the names in it."""

    host: str
    port: int
    prefix: str

    def store(self) -> Store:
        """Connect to the store."""
        timeout = timedelta(seconds=JOIN_S)
        store = TCPStore(self.host, self.port, is_master=False, timeout=timeout, wait_for_workers=False)
        return PrefixStore(self.prefix, store)

    def part(self, name: str) -> Meeting:
        """Return a place in the same store that no other part shares."""
        return replace(self, prefix=f"{self.prefix}/{name}")

    def as_facts(self) -> dict[str, str | int]:
        """Return what a process needs to know to come here."""
        return asdict(self)


def engine_meeting(meeting: Meeting, engine: int) -> Meeting:
    """Return where the ranks of one of several engines meet."""
    return meeting.part(f"engine{engine}")


class Host:
    """A meeting that lasts until `close`: one that a launcher keeps, or one of its own on the loopback interface."""

    def __init__(self, kept: Meeting | None = None) -> None:
        self._store: Store | None = None
        if kept is not None:
            self.meeting = kept
            return
        listening = socket.create_server((LOOPBACK, 0))
        port: int = listening.getsockname()[1]
        self.meeting = Meeting(LOOPBACK, port, "nanoinfer")
        self._store = TCPStore(
            LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
        )

    def close(self) -> None:
        """Give the port back; a launcher's meeting stays."""
        self._store = None


# --- processes that were started apart --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launched:
    """The place of this process among those that torchrun started."""

    rank: int
    size: int
    local_rank: int
    meeting: Meeting

    @classmethod
    def from_environment(cls, num_ranks: int) -> Launched | None:
        """Read the place from the environment; None where the engine starts its processes itself.

        A launcher that started another number of processes than the engine has ranks is a ConfigError.
        """
        if num_ranks == 1 or "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return None
        size = int(os.environ["WORLD_SIZE"])
        if size == 1:
            return None
        if size != num_ranks:
            raise ConfigError(
                f"the launcher started {size} processes (WORLD_SIZE), but tensor_parallel_size x data_parallel_size "
                f"is {num_ranks}; make them equal"
            )
        rank = int(os.environ["RANK"])
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return cls(rank, size, int(os.environ.get("LOCAL_RANK", rank)), Meeting(host, port, "nanoinfer"))


def keep_store(launched: Launched) -> Store | None:
    """Keep the launcher's store in its first process, where the launcher itself does not."""
    if launched.rank != 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        return None
    return TCPStore(
        launched.meeting.host, launched.meeting.port, is_master=True, wait_for_workers=False, multi_tenant=True
    )


def accept(meeting: Meeting, num_channels: int) -> list[Channel]:
    """Tell in the store where to connect, and wait for so many processes, in the order of their places.

    A process that does not come within JOIN_S is a ConfigError.
    """
    if num_channels == 0:
        return []
    store, token = meeting.store(), os.urandom(_TOKEN_BYTES)
    with socket.create_server((_own_address(meeting), 0)) as listening:
        host, port = listening.getsockname()[:2]
        store.set("door", f"{host} {port} {token.hex()}")
        listening.settimeout(JOIN_S)
        try:
            found = dict(_arrivals(listening, token, num_channels))
        except TimeoutError:
            raise ConfigError(
                f"not all of {num_channels} other processes have come to this one within {JOIN_S:g} s; under torchrun "
                f"every process runs the same script, and makes one LLM"
            ) from None
    return [found[place] for place in sorted(found)]


def connect(meeting: Meeting, place: int) -> Channel:
    """Connect to the process that accepts at a meeting, as number `place` of those that come."""
    door: bytes = meeting.store().get("door")  # waits until it is told
    host, port, token = door.decode().split()
    connection = socket.create_connection((host, int(port)), timeout=JOIN_S)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(bytes.fromhex(token) + place.to_bytes(4, "little"))
    return Channel(connection)


def _arrivals(listening: socket.socket, token: bytes, count: int) -> Iterator[tuple[int, Channel]]:
    """Yield (place, channel) of everyone who knows the token."""
    arrived = 0
    while arrived < count:
        connection, _ = listening.accept()
        connection.settimeout(JOIN_S)
        greeting = connection.recv(_TOKEN_BYTES + 4, socket.MSG_WAITALL)
        if greeting[:_TOKEN_BYTES] != token:
            connection.close()
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        arrived += 1
        yield int.from_bytes(greeting[_TOKEN_BYTES:], "little"), Channel(connection)


def _own_address(meeting: Meeting) -> str:
    """Return the address by which this machine is seen from the store's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((meeting.host, meeting.port))  # sends nothing: it only chooses the interface
        address: str = probe.getsockname()[0]
    return address
