"""`python -m benchmarks [NAME …]`: run benchmarks, print what they found and write the report."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import idle, planner, reaction, report, rpc, startup, switching
from benchmarks.figures import Figure
from benchmarks.stage import Stage

BENCHMARKS: dict[str, Callable[[Stage], Iterator[Figure]]] = {
    "startup": startup.measure,
    "rpc": rpc.measure,
    "planner": planner.measure,
    "reaction": reaction.measure,
    "switching": switching.measure,
    "idle": idle.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure against baselines of the same run."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; all if none is named: {' '.join(BENCHMARKS)}")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds: does everything work? The figures say nothing"
    )
    parser.add_argument("--imports", action="store_true", help="also tell what gpumodctl spends its start on")
    parser.add_argument("--out", type=Path, help="folder for the report (of a full run: this package's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(BENCHMARKS)):
        parser.error(f"cannot find benchmark {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    figures: list[Figure] = []
    with Stage(quick=options.quick) as stage:
        if stage.left_out:
            print(f"without systemd and NVML: {stage.left_out}", file=sys.stderr)
        for name in options.names or BENCHMARKS:
            begun = time.monotonic()
            print(f"{name} …", end=" ", file=sys.stderr, flush=True)
            figures += BENCHMARKS[name](stage)
            print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
        if options.imports:
            print(startup.imports(stage), end="\n\n")
    print(report.table(figures))
    if options.quick:
        print("a quick run: too few and too short repetitions to say anything about speed", file=sys.stderr)
    complete = not options.quick and not options.names
    out = options.out or (Path(__file__).parent if complete else None)
    if out is not None:
        report.write(out, figures, stage.plots, quick=options.quick)
        print(f"written: {out / 'report.md'}", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(report.document(figures, quick=options.quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())
