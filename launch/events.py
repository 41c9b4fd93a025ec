"""Log records and tracebacks of a command, in ``events.log`` of its run folder or beside its output."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "events.log"
ROOMS = ("fm", "data_prep", "evals", "launch")


def beside(out: str | None) -> Path | None:
    """The log of a verb that writes to `out`: beside it, because the output itself is handed on to others.

    None for a verb without output, or one that writes to a URL.
    """
    if not out or "://" in out:
        return None
    path = Path(out)
    return path.with_name(f"{path.name}.{NAME}")


@contextmanager
def recorded(log: Path | None) -> Iterator[None]:
    """Send the records of our own rooms to the terminal, and to `log` where there is one."""
    handlers: list[logging.Handler] = [terminal := logging.StreamHandler()]
    terminal.setFormatter(logging.Formatter("%(message)s"))
    if log is not None:
        handlers.append(to_file := logging.FileHandler(log, encoding="utf-8", delay=True))
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(room) for room in ROOMS]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            for handler in handlers:
                logger.removeHandler(handler)
        for handler in handlers:
            handler.close()


def keep_traceback(log: Path | None) -> bool:
    """Append the traceback of the error being handled to `log`; False where there is no log or it cannot be written."""
    if log is None:
        return False
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
    except OSError:
        return False
    return True
