"""The entry point of the command line. Only `commands.py` imports more, so that --help and --version are fast."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from fastgan import __version__

HELP = """\
usage: fastgan COMMAND [options]

Train DCGAN-style networks and generate images with them.

  train         train a preset               fastgan train --preset digits
                train on your own images     fastgan train --preset own-images --data folder:PATH
                show the settings only       fastgan train --preset own-images --data folder:PATH --dry-run
  resume        continue a run               fastgan resume runs/00000-digits --steps 8000
  sample        generate a grid of images    fastgan sample runs/00000-digits --seeds 0,1,4-6 --out grid.png
  interpolate   interpolate between latents  fastgan interpolate runs/00000-digits --seeds 0,5,7 --out walk
  evaluate      compute metrics of a run     fastgan evaluate runs/00000-digits --metrics score
  export        export the generator         fastgan export runs/00000-digits --format onnx
  presets       list the presets             fastgan presets
                describe one preset          fastgan presets tf-dcgan-mnist
  verify        compare the results on this
                device with eager PyTorch    fastgan verify --preset dcgan-64
  tune          measure which engine is
                fastest on this device       fastgan tune --preset dcgan-64 --batch 64
  report        write a run as an HTML page  fastgan report runs/00000-digits
  doctor        check the installation       fastgan doctor

`fastgan COMMAND --help` lists the options of a command, `fastgan train --preset NAME --help` with that preset's
defaults. --debug shows the traceback of an error, --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    The exit code is 0 for success, 1 for a failed certificate, 2 for an error, and 128 + signal after Ctrl-C or
    SIGTERM.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as for stderr: file names may not be valid text
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    from fastgan import extras
    from fastgan.errors import FastganError

    try:
        extras.load("tyro", "cli", "the command line")
        from fastgan.cli.commands import run

        return run(args[0], [arg for arg in args[1:] if arg != "--debug"])
    except (FastganError, KeyboardInterrupt) as error:
        if "--debug" in args:
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        print("fastgan: interrupted" if interrupted else f"fastgan: error: {_printable(error)}", file=sys.stderr)
        return 130 if interrupted else 2
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe; the flush at exit must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a file error that no command turned into a FastganError
        if "--debug" in args:
            raise
        message = f"fastgan: error: {error.filename or 'a file'}: {error.strerror or error}"
        print(_printable(message), file=sys.stderr)
        return 2


def _printable(message: object) -> str:
    """A message with line breaks and control characters, which file names may contain, escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
