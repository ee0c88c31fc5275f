"""`python -m gpumodd` and the `gpumodd` command: refuses a foreign system, then hands over to `gpumodd.cli`.

Imports nothing else at the top, so that the refusal works where the dependencies cannot be installed.
"""

import sys


def main() -> None:
    """Run the command line of the daemon."""
    if not sys.platform.startswith("linux"):
        sys.stderr.write(f"gpumodd: cannot run on {sys.platform}: it needs Linux (cgroups, /proc, systemd)\n")
        sys.exit(2)
    from gpumodd.cli import main as cli_main

    cli_main()


if __name__ == "__main__":
    main()
