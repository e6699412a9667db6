"""``runyard COMMAND`` runs the module runyard.cli.commands.COMMAND."""

from __future__ import annotations

import contextlib
import sys

from runyard.cli.commands import SHARED_OUTPUT_COMMANDS
from runyard.cli.parser import parse
from runyard.errors import ExitCode, ExplainedError
from runyard.ownership import keep_others_from_writing, set_umask
from runyard.printable import PrintableStream
from runyard.surroundings import open_standard_streams, settle


def main(argv: list[str] | None = None) -> int:
    """Run one command, and return its ``ExitCode``."""
    open_standard_streams()
    out, err = PrintableStream(sys.stdout), PrintableStream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):  # type: ignore[type-var]
        return _main(argv)


def _main(argv: list[str] | None) -> int:
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except ExplainedError as error:
        print(f"runyard: {error}", file=sys.stderr)
        return error.exit_code
    except MemoryError as error:
        print(f"runyard: not enough memory ({error}): ask for less, or free some", file=sys.stderr)
        return ExitCode.USER_ERROR
    except BrokenPipeError:  # the reader of the pipe has closed it
        sys.stderr.close()
        return ExitCode.FAILED
    except FileNotFoundError as error:
        if "temporary directory" not in str(error):
            raise
        print(f"runyard: {error.strerror}: set TMPDIR to a folder with room", file=sys.stderr)
        return ExitCode.USER_ERROR
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _run(argv: list[str]) -> int:
    try:
        settle()
        args = parse(argv)
        args.argv = argv
        if args.on is not None:
            from runyard.cli.ssh import run_there

            return run_there(args.on, args.command, argv[1 if "=" in argv[0] else 2 :])
        if args.command in SHARED_OUTPUT_COMMANDS:
            keep_others_from_writing()
        else:
            set_umask(group_reads=False)  # until the run's own setting is known
        return int(args.run_command(args) or 0)
    finally:
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
