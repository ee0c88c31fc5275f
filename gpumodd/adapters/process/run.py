"""One run of one service: the shim that holds it, and what the shim says about it.

Owns the shim's life and the words exchanged with it. What the service's state is called is the supervisor's matter.
"""

import asyncio
import json
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from gpumodd.adapters.process import leftovers
from gpumodd.adapters.process.forkserver import ForkServer
from gpumodd.adapters.process.log import MARK, LogFile
from gpumodd.core.facts import Ended
from gpumodd.drivers.api import UnitFile
from gpumodd.ports import JobResult

CLEAN_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)


class Run:
    """From the fork of the shim to the end of the last process. `changed` is called whenever a field has changed."""

    def __init__(
        self,
        forks: ForkServer,
        file: UnitFile,
        env: Mapping[str, str],
        log: LogFile,
        record: Path,
        changed: Callable[[], None],
    ) -> None:
        self.invocation = uuid.uuid4().hex
        self.shim_pid: int | None = None
        self.main_pid: int | None = None
        self.result = "success"
        self.exit_code: int | None = None
        self.ended: Ended | None = None
        self.exited = False  # the main process is
        self.started: JobResult | None = None  # how the start ended
        self.start_settled = anyio.Event()
        self.gone = anyio.Event()
        self._record = record
        self._changed = changed
        self._writer: asyncio.StreamWriter | None = None
        self._unsent = [encode(make_order(file, env, log, record))]
        with log.path.open("ab") as output:
            output.write(MARK + self.invocation.encode() + b"\n")
        self._socket = forks.shim()

    async def follow(self) -> None:
        """Give the order and listen until nothing of the service is left."""
        reader, writer = await asyncio.open_connection(sock=self._socket)
        with suppress(ConnectionError):
            while line := await reader.readline():
                self._heard(json.loads(line))
                if self._writer is None:  # whose processes they are must be known before there are any
                    writer.writelines(self._unsent)
                    self._writer = writer
        writer.close()
        if self._record.exists():  # somebody has killed the shim, and with it the main process
            await anyio.to_thread.run_sync(leftovers.end, self._record)
        if not self.exited:
            self._exit("killed", signal.SIGKILL)
        self._settle(JobResult.FAILED)
        self.gone.set()
        self._changed()

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those who stay; the end is a job's."""
        self.ended = self.ended or Ended.JOB
        self._changed()
        self._say("stop")

    def kill(self) -> None:
        self._say("kill")

    def _say(self, what: Any) -> None:
        if self._writer is None:
            self._unsent.append(encode(what))
        elif not self._writer.is_closing():
            self._writer.write(encode(what))

    def _heard(self, what: dict[str, Any]) -> None:
        match what:
            case {"shim": int(pid)}:
                self.shim_pid = pid
            case {"started": int(pid)}:
                self.main_pid = pid
                self._settle(JobResult.DONE)
            case {"failed": int()}:
                pass  # the job has failed when nothing is left of it
            case {"exited": [str(how), int(number)]}:
                self._exit(how, number)
            case {"timeout": True}:
                self.result = "timeout"
        self._changed()

    def _exit(self, how: str, number: int) -> None:
        self.exited = True
        self.ended = self.ended or Ended.EXIT
        self.main_pid = None
        clean = not number if how == "exited" else how == "killed" and number in CLEAN_SIGNALS
        if self.result == "success" and not clean:
            self.result = {"exited": "exit-code", "killed": "signal"}.get(how, "core-dump")
        if how == "exited" or self.result != "success":
            self.exit_code = number

    def _settle(self, result: JobResult) -> None:
        if self.started is None:
            self.started = result
            self.start_settled.set()


def make_order(file: UnitFile, env: Mapping[str, str], log: LogFile, record: Path) -> dict[str, Any]:
    """What the shim has to do."""
    program = file.argv[0]
    if "/" not in program:
        program = shutil.which(program, path=env.get("PATH", os.defpath)) or program
    if any("\0" in text for text in (*file.argv, *env, *env.values())):
        raise ValueError("a NUL byte in the command line or the environment")
    return {
        "argv": file.argv,
        "program": program,
        "env": tuple(env.items()),
        "cwd": file.working_directory or _home(env),
        "stop_timeout_s": file.stop_timeout_s,
        "kill_signal": signal.Signals[file.kill_signal].value,
        "log": str(log.path),
        "log_bytes": log.size,
        "record": str(record),
    }


def _home(env: Mapping[str, str]) -> str:
    """Nobody asked for this directory: one that does not exist is no reason not to run."""
    home = env.get("HOME", "")
    return home if home.startswith("/") and Path(home).is_dir() else "/"


def encode(what: Any) -> bytes:
    return json.dumps(what).encode() + b"\n"
