"""Holds a process at the door of death: `python grip.py PID` traces it and stops it where it exits, SIGKILL or not.

What is held so lives on for everyone else, as a process does that sleeps uninterruptibly in a driver: it is in its
cgroup, it keeps its memory, and no signal ends it. When standard input ends it may go.
"""

import ctypes
import os
import sys

PTRACE_SEIZE = 0x4206
PTRACE_O_TRACEEXIT = 0x40


def main() -> None:
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, PTRACE_O_TRACEEXIT):
        sys.exit(f"cannot trace {sys.argv[1]}: {os.strerror(ctypes.get_errno())}")
    print("held", flush=True)
    sys.stdin.read()  # this process's end lets go


if __name__ == "__main__":
    main()
