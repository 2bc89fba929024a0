"""The worker's side of a channel: setup, lifeline, and the report of what goes wrong."""

from __future__ import annotations

import gc
import traceback
from typing import TYPE_CHECKING, Any

import torch

from nanoinfer.execution.channel import ChannelClosedError, Kind
from nanoinfer.execution.group import LostPeerError
from nanoinfer.execution.lifeline import ORPHANED, beat_interval_s, start_lifeline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nanoinfer.execution.channel import Channel

    Role = Callable[[Channel, Mapping[str, Any]], None]

INNERMOST = 10  # frames of an error, and of each that led to it


def serve(
    channel: Channel, roles: Mapping[str, Role], *, parent: int | None, own: Mapping[str, Any] | None = None
) -> int:
    """Do the work that the setup names until the front door has enough; returns the exit status.

    An error is reported and ends the work. So does the end of the front door, at once. `own` overrides what the setup
    says, for a process that knows better: on another machine the model lies elsewhere.
    """
    try:
        setup = channel.receive()
    except ChannelClosedError:
        return ORPHANED
    facts = {**setup.facts, **(own or {})}
    start_lifeline(channel, interval_s=beat_interval_s(facts["rank_timeout_s"]), parent=parent)
    torch.set_num_threads(facts["num_threads"])
    try:
        roles[facts["role"]](channel, facts)
    except ChannelClosedError:
        return ORPHANED
    except BaseException as error:  # noqa: BLE001  whatever it is, the front door must hear of it
        report_failure(channel, error)
        return 1
    return 0


def settle() -> None:
    """Keep what exists by now, libraries and model, out of all later garbage collections.

    One that looks through all of it takes a tenth of a second, in which no step is launched.
    """
    gc.collect()
    gc.freeze()


def report_failure(channel: Channel, error: BaseException) -> None:
    """Tell the front door what went wrong, if it still listens."""
    facts = {
        "type": type(error).__name__,
        "message": str(error),
        "lost_peer": isinstance(error, LostPeerError),
        "traceback": "".join(traceback.format_exception(error, limit=-INNERMOST)),
    }
    try:
        channel.send(Kind.ERROR, facts)
    except OSError:
        return
