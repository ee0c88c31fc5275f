"""The entry point. Imports next to nothing itself, so that a wrong system and an early Ctrl-C end in silence."""

import gc
import os
import signal
import sys


def main() -> None:
    """Run gpumodctl with the arguments of the process and end the process with its exit code."""
    if sys.platform != "linux":
        sys.stderr.write(f"gpumodctl: cannot run on {sys.platform}: gpumodd and its client need Linux\n")
        sys.exit(2)
    # An exception in the middle of an import would be told as a traceback; where Ctrl-C is ignored, it stays so.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # modules stay; looking through them while they load finds nothing
    from gpumodctl.cli import run

    gc.freeze()
    gc.enable()
    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run()
    except KeyboardInterrupt:
        code = 130
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)  # taking the interpreter apart would cost a tenth of the run


if __name__ == "__main__":
    main()
