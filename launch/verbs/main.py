"""The ``fm`` command: ``fm VERB [SUBVERB] key=value …`` with Hydra's flags; verbs are imported only when they run."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fm.config import registry
from fm.config.errors import UserError
from fm.config.root import JOBS

if TYPE_CHECKING:
    from fm.config.compose import Request

FLAGS = ("--help", "--cfg", "--config-dir", "-m", "--multirun", "--version")
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 done, 1 refused or failed, 75 run me again, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except UserError as err:
        print(f"fm: {one_line(err)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


@dataclass(slots=True)
class CommandLine:
    """A command line taken apart."""

    verb: str | None = None
    words: list[str] = field(default_factory=list)
    config_dirs: list[Path] = field(default_factory=list)
    help: bool = False
    show_config: bool = False
    sweep: bool = False
    version: bool = False


def read(words: Sequence[str]) -> CommandLine:
    """Take a command line apart into verb, ``key=value`` words and flags.

    Raises:
        UserError: an unknown verb or flag; the message names the nearest.
    """
    line = CommandLine()
    plain: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word in ("--help", "-h"):
            line.help = True
        elif word in ("-m", "--multirun"):
            line.sweep = True
        elif word == "--version":
            line.version = True
        elif name in ("--cfg", "--config-dir"):
            value = value if equals else next(rest, "")
            if name == "--config-dir" and value:
                line.config_dirs.append(Path(value))
            elif name == "--cfg" and value == "job":
                line.show_config = True
            else:
                raise UserError("--cfg takes job" if name == "--cfg" else "--config-dir takes a folder")
        elif word.startswith("-"):
            raise UserError(f"unknown flag {word}; {registry.hint(word, FLAGS)}")
        else:
            plain.append(word)
    if plain:
        line.verb, line.words = _verb(plain)
    return line


def verbs() -> list[str]:
    """The verbs that this installation has, in the order of the help."""
    return [verb for verb in JOBS if importlib.util.find_spec(_module(verb)) is not None]


def one_line(err: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(err).split()) or type(err).__name__


def _module(verb: str) -> str:
    return f"launch.verbs.{verb.split()[0]}"


def _verb(plain: Sequence[str]) -> tuple[str, list[str]]:
    known = verbs()
    for length in (2, 1):
        if (verb := " ".join(plain[:length])) in known and len(plain) >= length:
            return verb, list(plain[length:])
    if plain[0] == "completion":
        return "completion", list(plain[1:])
    subverbs = [verb for verb in known if verb.split()[0] == plain[0]]
    if subverbs:
        raise UserError(f"{' '.join(plain[:2])}: no such verb; write fm {' or fm '.join(subverbs)}")
    raise UserError(f"unknown verb {plain[0]}; {registry.hint(plain[0], [*known, 'completion'], 'see fm --help')}")


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["_complete"]:
        from launch.completion import complete

        print("\n".join(complete(" ".join(words[1:]), verbs())))
        return 0
    line = read(words)
    if line.version:
        print(f"fm {version('fm')}")
        return 0
    if line.verb is None or line.help:
        from launch.help import overview, verb_help

        known = line.verb in JOBS
        print(verb_help(line.verb, line.config_dirs) if line.verb is not None and known else overview(verbs()))
        return 0
    if line.verb == "completion":
        from launch.completion import script

        print(script(line.words))
        return 0
    return _run(line.verb, line)


def _run(verb: str, line: CommandLine) -> int:
    from fm.config import compose

    if verb == "submit" and not line.show_config:
        from launch.verbs.submit import submit

        return submit(line.words, line.config_dirs, line.sweep)
    request = compose.parse(verb, line.words, line.config_dirs)
    if line.show_config:
        print(compose.composed_yaml(request), end="")
        return 0
    if line.sweep:
        return _sweep(request)
    if swept := [item for item in request.overrides if item.choices is not None]:
        raise UserError(f"{swept[0]}: several values are a sweep; add -m, or write [a,b] for a list")
    return execute(request)


def _sweep(request: Request) -> int:
    """Run every job of a sweep in its own folder below ``run``; the worst exit code counts."""
    from fm.config import compose
    from launch import runs

    if "run" not in registry.keys(JOBS[request.verb]):
        raise UserError(f"-m: fm {request.verb} has no run folder to put several jobs in")
    jobs = compose.expand(request)
    parent = runs.sweep_parent(request)
    worst = 0
    for number, job in enumerate(jobs):
        child = runs.sweep_child(parent, number, job, request)
        print(f"[{number + 1}/{len(jobs)}] {child.chosen('run')}", flush=True)
        code = execute(child)
        if code == INTERRUPTED:
            return code
        worst = max(worst, code)
    return worst


def execute(request: Request) -> int:
    """Compose one job, open its folder and run its verb; errors after this point leave their traceback in a log."""
    from fm.config.compose import compose_values
    from fm.config.load import build
    from launch import events, runs

    job_type = JOBS[request.verb]
    if "run" in registry.keys(job_type):
        job: Any = runs.open_run(request)
        log: Path | None = Path(job.run) / events.NAME
        print(f"run folder: {job.run}", flush=True)
    else:
        job = build(job_type, compose_values(request))
        log = events.beside(getattr(job, "out", None))
    with events.recorded(log):
        try:
            module = importlib.import_module(_module(request.verb))
            return int(module.run(job))
        except KeyboardInterrupt:
            raise
        except (UserError, OSError) as err:
            if isinstance(err, BrokenPipeError) and log is None:
                raise  # a verb that only prints, and whose reader has seen enough
            events.keep_traceback(log)
            print(f"fm: {_os_line(err, job) if isinstance(err, OSError) else one_line(err)}", file=sys.stderr)
        except Exception as err:
            if not events.keep_traceback(log):
                traceback.print_exc()
            print(f"fm {request.verb} failed: {type(err).__name__}: {one_line(err)}{_seen(log)}", file=sys.stderr)
    return 1


def _seen(log: Path | None) -> str:
    return f" (traceback in {log})" if log is not None and log.is_file() else ""


def _os_line(err: OSError, job: Any) -> str:
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        where = err.filename or getattr(job, "run", None) or getattr(job, "out", None) or "the output folder"
        return f"the disk is full while writing {where}: free some space and run the same command again; it goes on"
    return one_line(err)


if __name__ == "__main__":
    sys.exit(main())
