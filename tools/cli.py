"""The command line: `graphwright COMMAND ...`.

Whatever a user can cause ends in one line on standard error and exit code 2, an interruption in 130; anything
else is a bug of ours, says so, and exits with 70. Commands import what they need when they run, so that help
is quick.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from ..ir.errors import GraphwrightError
from .commands.bench import bench
from .commands.bisect import bisect
from .commands.compile import compile_model
from .commands.coverage import coverage
from .commands.diff import diff
from .commands.inspect import inspect_model
from .commands.opt import opt
from .commands.passes import passes
from .commands.reduce import reduce
from .commands.run import run
from .commands.sensitivity import sensitivity
from .commands.targets import targets
from .commands.tune import tune
from .console import print_any_text
from .once import OnceCommand

EXIT_TROUBLE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="graphwright",
    help="Makes neural networks smaller and faster, and puts them on devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: dict[str, Callable[..., Any]] = {
    "compile": compile_model,
    "tune": tune,
    "opt": opt,
    "run": run,
    "bench": bench,
    "inspect": inspect_model,
    "diff": diff,
    "sensitivity": sensitivity,
    "coverage": coverage,
    "bisect": bisect,
    "reduce": reduce,
    "passes": passes,
    "targets": targets,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=OnceCommand)(_command)


class Interruption(KeyboardInterrupt):
    """What Ctrl-C and SIGTERM raise.

    A plain KeyboardInterrupt that passes through `exec`, as in the imports of some libraries, makes Python
    kill itself at the end although it was handled; it does not recognize a subclass.
    """


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"graphwright {importlib.metadata.version('graphwright')}")
        raise typer.Exit()


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["GRAPHWRIGHT_DEBUG"] = "1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; the process's own where None.

    Returns:
        The exit code.
    """
    with _unwinding_on_signals() as signals:
        try:
            return _run(arguments)
        except KeyboardInterrupt:
            return _interrupted()
        except Exception as error:
            # An interruption inside native code may surface as any error of the library it hit.
            return _interrupted() if signals else _failed(error)


def _run(arguments: Sequence[str] | None) -> int:
    print_any_text()
    code = typer.main.get_command(app).main(arguments, prog_name="graphwright", standalone_mode=False)
    sys.stdout.flush()
    if code == EXIT_INTERRUPTED:
        return _interrupted()
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    if isinstance(error, typer.Abort):
        return _interrupted()
    if isinstance(error, BrokenPipeError):
        # Whoever read our output is gone; a flush at exit would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, GraphwrightError | OSError | MemoryError | typer.TyperException):
        return _trouble(error)
    return _bug(error)


def _interrupted() -> int:
    print("graphwright: interrupted", file=sys.stderr)
    return EXIT_INTERRUPTED


def _trouble(error: BaseException) -> int:
    _traceback_if_debugging()
    print(f"graphwright: error: {_one_line(_text_of(error))}", file=sys.stderr)
    return EXIT_TROUBLE


def _text_of(error: BaseException) -> str:
    if isinstance(error, typer.TyperException):
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: '{error.filename}'" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"out of memory {error}".rstrip()
    return str(error) or type(error).__name__


def _bug(error: Exception) -> int:
    _traceback_if_debugging()
    print(
        f"graphwright: bug: {type(error).__name__}: {_one_line(str(error))} "
        "(please report it; `graphwright --debug ...` shows the traceback)",
        file=sys.stderr,
    )
    return EXIT_BUG


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _traceback_if_debugging() -> None:
    if os.environ.get("GRAPHWRIGHT_DEBUG"):
        import traceback

        traceback.print_exc()


@contextlib.contextmanager
def _unwinding_on_signals() -> Iterator[list[int]]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that temporary files are removed.

    Yields:
        The signals that came, in order.
    """
    came: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise Interruption

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
