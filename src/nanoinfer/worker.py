"""What a spawned process of an engine runs: it gets a socket, waits for its setup, and serves until it is told to end.

python -m nanoinfer.worker DESCRIPTOR PARENT
"""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

from nanoinfer.engine_process import serve_engine
from nanoinfer.execution.channel import Channel
from nanoinfer.execution.rank import serve_rank
from nanoinfer.execution.serving import serve

ROLES = {"rank": serve_rank, "engine": serve_engine}


def main() -> NoReturn:
    """Serve the process that started this one, then leave without the interpreter's and the libraries' farewells.

    A device that waits for a lost peer, or a process group that does, would hold them up for ever.
    """
    descriptor, parent = map(int, sys.argv[1:])
    status = serve(Channel(socket.socket(fileno=descriptor)), ROLES, parent=parent)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
