"""`python -m gpumodd` and the `gpumodd` command: refuses a foreign system, then hands over to `gpumodd.cli`.

Imports nothing else at the top, so that the refusal works where the dependencies cannot be installed.
"""

import os
import sys


def main() -> None:
    """Run the command line of the daemon and end the process with its exit code."""
    if not sys.platform.startswith("linux"):
        sys.stderr.write(f"gpumodd: cannot run on {sys.platform}: it needs Linux (cgroups, /proc, systemd)\n")
        sys.exit(2)
    _fill_streams()
    try:
        from gpumodd.cli import run_command

        code = run_command()
    except KeyboardInterrupt:  # during the imports
        code = 130
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Python would complain when it flushes once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _fill_streams() -> None:
    """Open what was closed at the start: else the first file of ours would become everybody's stderr."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
