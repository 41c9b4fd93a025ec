"""The nodes of a job meet before any process group exists, to agree on what one of them says."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from torch import distributed

from fm.config.errors import UserError


class MeetingError(UserError):
    """A node that did not come, or left."""


class Meeting:
    """Every node's entrypoint at one TCP port of node 0."""

    def __init__(self, master: str, port: int, nodes: int, rank: int, timeout_s: int = 600) -> None:
        """Meet; returns when all nodes are there. A node alone opens no port.

        Args:
            master: name or address of node 0.
            port: port that node 0 opens.
            nodes: nodes of the job.
            rank: this node.
            timeout_s: seconds to wait, here and at each :meth:`share`.

        Raises:
            MeetingError: not all nodes came in time, or the port is taken.
        """
        self._nodes, self._rank = nodes, rank
        self._store: Any = None
        if nodes == 1:
            return
        try:
            self._store = distributed.TCPStore(  # type: ignore[attr-defined]  # torch leaves it out of __all__
                "localhost" if rank == 0 else master,
                port,
                nodes,
                is_master=rank == 0,
                timeout=timedelta(seconds=timeout_s),
            )
        except (distributed.DistError, OSError, RuntimeError) as err:
            raise MeetingError(
                f"node {rank} could not meet the others at {master}:{port} within {timeout_s} s: are all nodes up, is "
                "the port open and free (launch.port)?"
            ) from err

    def share(self, topic: str, value: Any = None, timeout_s: int | None = None) -> Any:
        """What node 0 says on a topic, to all nodes; node 0 returns once all have read it.

        Args:
            topic: name, used once.
            value: what node 0 says, of plain JSON; other nodes leave it out.
            timeout_s: seconds to wait instead of the meeting's.

        Raises:
            MeetingError: node 0, or on node 0 another one, is gone.
        """
        said = self.gather(topic, value if self._rank == 0 else None, timeout_s)
        return said[0]

    def gather(self, topic: str, value: Any, timeout_s: int | None = None) -> list[Any]:
        """What every node says on a topic, in the order of the nodes; returns when all have said it and read it.

        Raises:
            MeetingError: a node is gone.
        """
        if self._store is None:
            return [json.loads(json.dumps(value))]
        wait = [] if timeout_s is None else [timedelta(seconds=timeout_s)]
        try:
            self._store.set(f"{topic}/{self._rank}", json.dumps(value))
            names = [f"{topic}/{rank}" for rank in range(self._nodes)]
            self._store.wait(names, *wait)
            found = [json.loads(self._store.get(name)) for name in names]
            # Node 0 holds the store: it may leave only when the others have read.
            self._store.set(f"{topic}/read/{self._rank}", "")
            if self._rank == 0:
                self._store.wait([f"{topic}/read/{rank}" for rank in range(self._nodes)], *wait)
        except (distributed.DistError, OSError, RuntimeError) as err:
            raise MeetingError(f"node {self._rank}: another node left before all had agreed on {topic}") from err
        return found
