"""What all commands share: how they print, and how an error becomes a message and an exit code."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kdpipe.pipeline.conclusion import Conclusion

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]


@contextmanager
def errors(debug: bool, as_json: bool) -> Iterator[None]:
    """Print an error as a person wants it, on stderr, and exit with its code."""
    from kdpipe.pipeline.conclusion import INTERRUPTED, STAGE_FAILED, Conclusion
    from kdpipe.targets.errors import KdpipeError

    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads any more, as behind `| head`: no error of the command, and not told
    except (KdpipeError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}".replace("error: error: ", "error: ", 1), file=sys.stderr)
        known = error if isinstance(error, KdpipeError) else None
        what = known.what if known else str(error)
        code = known.exit_code if known else STAGE_FAILED
        raise ended(Conclusion("FAILED", code, what), as_json) from None
    except KeyboardInterrupt:
        print(
            "\ninterrupted: what is finished is kept; run the same again to resume", file=sys.stderr
        )
        kept = "interrupted; what is finished is kept"
        raise ended(Conclusion("FAILED", INTERRUPTED, kept), as_json) from None


def ended(conclusion: Conclusion, as_json: bool) -> typer.Exit:
    """The last line on stdout of a command that could not do its work, and the exit to raise."""
    code, reason = conclusion.exit_code, conclusion.reason
    say(json.dumps({"error": reason, "exit_code": code}) if as_json else conclusion.line)
    return typer.Exit(code)


def say(text: str) -> None:
    """One or more lines on stdout."""
    print(text)


def say_lines(lines: Iterable[str], indent: int) -> None:
    """Lines on stdout; a terminal gets those that are too long on several, indented."""
    width = shutil.get_terminal_size().columns
    for line in lines:
        if not sys.stdout.isatty() or len(line) <= width:
            say(line)
            continue
        inner = " " * (len(line) - len(line.lstrip()) + indent)
        say(
            textwrap.fill(
                line, width, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False
            )
        )


def say_json(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
