"""Messages between the processes of an engine: a few named facts and an array of integers, over one stream socket.

What runs in every step travels as integers and is neither pickled nor parsed; facts are JSON, for what is rare.
"""

from __future__ import annotations

import json
import struct
import threading
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from torch import Tensor

_HEADER = struct.Struct("<IIQ")  # kind, bytes of facts, number of integers
_JOINED_BYTES = 1 << 16  # up to here one system call that copies is cheaper than two that do not
_MOST_FACTS = 1 << 26
_MOST_INTEGERS = 1 << 32


class ChannelClosedError(ConnectionError):
    """The other end is gone."""


class Kind(IntEnum):
    """What a message is about. A worker sends BEAT, READY, ERROR and answers; the rest are commands to it."""

    BEAT = 0
    SETUP = 1
    READY = 2
    ERROR = 3
    STEP = 4
    TOKENS = 5
    ADD = 6
    CANCEL = 7
    FINISHED = 8
    CANCELLED = 9
    STEP_FACTS = 10
    MEMORY = 11
    RESET_PEAKS = 12
    RESET_PREFIX_CACHE = 13
    CLOCK = 14
    START_PROFILE = 15
    STOP_PROFILE = 16
    PROGRESS = 17
    CLOSE = 18


def _no_integers() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `integers` (n,) int64 on the host."""

    kind: Kind
    facts: Mapping[str, Any] = field(default_factory=dict)
    integers: Tensor = field(default_factory=_no_integers)


class Channel:
    """One end of a stream socket. Several threads may send, one may receive.

    `pin_memory` receives integers into pinned memory, from which a GPU copies without a stop.
    """

    def __init__(self, connection: socket.socket, *, pin_memory: bool = False) -> None:
        self.connection = connection
        self.pin_memory = pin_memory
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """Return the socket's descriptor, so that a selector can watch the channel."""
        return self.connection.fileno()

    def send(self, kind: Kind, facts: Mapping[str, Any] | None = None, integers: Tensor | None = None) -> None:
        """Send one message; ChannelClosedError when the other end is gone, TimeoutError when it does not take it."""
        text = json.dumps(facts).encode() if facts else b""
        array = integers.numpy().data.cast("B") if integers is not None and len(integers) else b""
        head = _HEADER.pack(kind, len(text), len(array) // 8) + text
        try:
            with self._sending:
                if len(array) <= _JOINED_BYTES:
                    self.connection.sendall(head + bytes(array))
                else:
                    self.connection.sendall(head)
                    self.connection.sendall(array)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosedError(str(error)) from error

    def receive(self) -> Message:
        """Wait for one message; ChannelClosedError when the other end is gone, ValueError when it is no message."""
        kind, num_bytes, count = _HEADER.unpack(self._read(_HEADER.size))
        if num_bytes > _MOST_FACTS or count > _MOST_INTEGERS:
            raise ValueError(f"a message announces {num_bytes} bytes and {count} integers; the stream is damaged")
        facts = json.loads(self._read(num_bytes)) if num_bytes else {}
        integers = torch.empty(count, dtype=torch.int64, pin_memory=self.pin_memory and count > 0)
        if count:
            self._read_into(integers.numpy().data.cast("B"))
        return Message(Kind(kind), facts, integers)

    def close(self) -> None:
        """Close this end; closing twice is no error."""
        self.connection.close()

    def _read(self, count: int) -> bytearray:
        buffer = bytearray(count)
        self._read_into(memoryview(buffer))
        return buffer

    def _read_into(self, view: memoryview) -> None:
        while view:
            try:
                count = self.connection.recv_into(view)
            except ConnectionResetError as error:
                raise ChannelClosedError(str(error)) from error
            if count == 0:
                raise ChannelClosedError("the other end closed the channel")
            view = view[count:]
