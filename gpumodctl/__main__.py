"""The entry point. Imports next to nothing, so that even an early Ctrl-C and a wrong system end in one line."""

import sys


def main() -> int:
    """Run gpumodctl with the arguments of the process; the exit code."""
    if sys.platform != "linux":
        sys.stderr.write(f"gpumodctl: cannot run on {sys.platform}: gpumodd and its client need Linux\n")
        return 2
    try:
        from gpumodctl.cli import run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
