"""The command line: --help and --version at once, commands by `commands.py`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from fastgan import __version__

HELP = """\
usage: fastgan COMMAND [options]

Train DCGAN-style networks, and draw from them.

  train         train a preset               fastgan train --preset digits
                on your own images           fastgan train --preset own-images --data folder:PATH
                or see everything first      fastgan train --preset own-images --data folder:PATH --dry-run
  resume        go on where a run stopped    fastgan resume runs/00000-digits --steps 8000
  sample        draw a grid of images        fastgan sample runs/00000-digits --seeds 0,1,4-6 --out grid.png
  interpolate   walk between latents         fastgan interpolate runs/00000-digits --seeds 0,5,7 --out walk
  evaluate      how good are its images?     fastgan evaluate runs/00000-digits --metrics score
  export        files that need no fastgan   fastgan export runs/00000-digits --format onnx
  presets       list the presets             fastgan presets
                or explain one               fastgan presets tf-dcgan-mnist
  verify        prove that this device computes
                what eager PyTorch computes  fastgan verify --preset dcgan-64
  tune          measure which engine is
                fastest here, pass by pass   fastgan tune --preset dcgan-64 --batch 64
  report        a run as one page            fastgan report runs/00000-digits
  doctor        what is installed, and whether it is ready

`fastgan COMMAND --help` lists a command's options; `fastgan train --preset NAME --help` shows that preset's values.
--debug shows the traceback of an error; --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    The exit code is 0, 1 for a failed certificate, 2 after an error, or 128 + signal after Ctrl-C or SIGTERM.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files may be no text
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
    except BrokenPipeError:  # `fastgan presets | head` has closed the pipe; the flush at exit must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # of a file without a message of its own
        if "--debug" in args:
            raise
        message = f"fastgan: error: {error.filename or 'a file'}: {error.strerror or error}"
        print(_printable(message), file=sys.stderr)
        return 2


def _printable(message: object) -> str:
    """A message with line ends and control characters written out: names of files may hold any."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
