"""One small process per service: the parent of everything the service starts, and its end.

Run as a script, apart from the daemon: standard library only, no threads. The script itself is a fork server: an
interpreter takes tens of milliseconds to start, a fork of one that is up takes one. For each socket that it is handed
over its standard input it forks a shim, and it ends with its standard input.

The kernel makes a shim the parent of every orphan below it (PR_SET_CHILD_SUBREAPER), so nothing gets away by forking
twice or by a session of its own, and "no child is left" is exactly "the service is gone". It ends the service when
the daemon says so, and likewise when the daemon's end of the socket closes, whatever happened to the daemon.

A shim's socket, one JSON document per line. Out: {"shim": pid}. In: the order, then "stop" or "kill". Out:
{"started": pid} or {"failed": errno}, {"exited": [how, number]} for the main process, {"timeout": true} when SIGKILL
was needed. The end of the stream means that nothing is left and all output is in the log.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True)
AGAIN_S = 0.02  # between two rounds of SIGKILL: a process may fork faster than its family is listed


class Log:
    """The service's output: two files of half the size each, so that it never grows beyond it."""

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._half = size // 2
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115, PTH123
        self._written = self._file.tell()

    def take_over(self, *descriptors: int) -> None:
        """What this process itself has to say goes to the log, too."""
        for descriptor in descriptors:
            os.dup2(self._file.fileno(), descriptor)

    def write(self, data: bytes) -> None:
        """A full disk loses output; it never holds the service up."""
        try:
            if self._written >= self._half:
                os.replace(self._path, self._path + ".1")  # noqa: PTH105
                self._file.close()
                self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115, PTH123
                self._written = 0
            self._written += len(data)
            self._file.write(data)
        except OSError:
            pass


class Shim:
    def __init__(self, control: socket.socket, order: dict[str, Any], rest: bytes, procfs: Any) -> None:
        self.control = control
        self.order = order
        self.procfs = procfs
        self.log = Log(order["log"], order["log_bytes"])
        self.main = 0
        self.deadline: float | None = None  # when to send SIGKILL (again)
        self.killing = False
        self.buffer = rest  # words that came along with the order

    def run(self) -> NoReturn:
        self.log.take_over(1, 2)
        self.record()
        output, inherited = os.pipe()
        os.set_blocking(output, False)
        error = self.spawn(inherited)
        os.close(inherited)
        if error:
            self.log.write(f"cannot run {self.order['argv'][0]}: {os.strerror(error)}\n".encode())
            self.say(failed=error)
        else:
            self.record()
            self.say(started=self.main)
        self.supervise(output)
        while self.copy(output):  # nobody can write any more: what is in the pipe is all there is
            pass
        os.unlink(self.order["record"])  # noqa: PTH108
        os._exit(0)  # taking the interpreter down properly takes longer than all the rest

    def record(self) -> None:
        """Whom the next daemon has to end if this one and this process are killed."""
        pids = {pid: self.procfs.start_time(pid) for pid in (os.getpid(), self.main) if pid}
        new = self.order["record"] + ".new"
        with open(new, "w") as file:  # noqa: PTH123
            json.dump({"boot_id": self.procfs.boot_id(), "pids": pids, "shim": os.getpid()}, file)
        os.replace(new, self.order["record"])  # noqa: PTH105

    def spawn(self, output: int) -> int:
        """Fork and execute; returns the errno of what went wrong. Safe, because there are no threads here."""
        failed, report = os.pipe()
        parent = os.getpid()
        self.main = os.fork()
        if not self.main:
            self.execute(output, report, parent)
        os.close(report)
        answer = os.read(failed, 16)  # ends when the exec closes the other end
        os.close(failed)
        return int(answer or b"0")

    def execute(self, output: int, report: int, parent: int) -> NoReturn:
        try:
            os.setsid()
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            for number in (
                signal.SIGCHLD,
                signal.SIGHUP,
                signal.SIGINT,
                signal.SIGPIPE,
                signal.SIGTERM,
                signal.SIGXFSZ,
            ):
                signal.signal(number, signal.SIG_DFL)  # an ignored signal would stay ignored
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self.order["cwd"])
            env = {text(name): text(value) for name, value in self.order["env"]}
            os.execve(self.order["program"], [text(word) for word in self.order["argv"]], env)
        except OSError as error:
            os.write(report, str(error.errno).encode())
        finally:
            os._exit(203)

    def supervise(self, output: int) -> None:
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        self.listen(b"")
        poll = select.poll()
        for descriptor in (self.control.fileno(), output, woken):
            poll.register(descriptor, select.POLLIN)
        while self.reap():
            wait = None if self.deadline is None else max(0.0, self.deadline - time.monotonic()) * 1000
            for descriptor, _ in poll.poll(wait):
                if descriptor == woken:
                    os.read(woken, 4096)
                elif descriptor == output:
                    if not self.copy(output):
                        poll.unregister(output)
                elif not self.obey():
                    poll.unregister(self.control.fileno())
            if self.deadline is not None and time.monotonic() >= self.deadline:
                if not self.killing:
                    self.say(timeout=True)
                self.kill()

    def reap(self) -> bool:
        """Is anybody left?"""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self.main:
                code = os.waitstatus_to_exitcode(status)
                how = "exited" if code >= 0 else "dumped" if os.WCOREDUMP(status) else "killed"
                self.say(exited=[how, abs(code)])
                self.stop()  # a service is over when its main process is

    def obey(self) -> bool:
        """False when the daemon is gone."""
        try:
            data = self.control.recv(4096)
        except OSError:
            data = b""
        self.listen(data)
        if not data:
            self.stop()
        return bool(data)

    def listen(self, data: bytes) -> None:
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            if line == b'"kill"':
                self.kill()
            elif line == b'"stop"':
                self.stop()

    def stop(self) -> None:
        if self.deadline is None:
            self.deadline = time.monotonic() + self.order["stop_timeout_s"]
            self.signal(self.order["kill_signal"])

    def kill(self) -> None:
        self.killing = True
        self.deadline = time.monotonic() + AGAIN_S
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        for pid in self.procfs.descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, number)
                os.kill(pid, signal.SIGCONT)  # a stopped process would not notice

    def copy(self, output: int) -> bool:
        """Move what is in the pipe to the log; False when there is no more."""
        try:
            data = os.read(output, 1 << 16)
        except BlockingIOError:
            return False
        self.log.write(data)
        return bool(data)

    def say(self, **what: Any) -> None:
        with contextlib.suppress(OSError):  # the daemon is gone
            self.control.sendall(json.dumps(what).encode() + b"\n")


def text(wire: str) -> bytes:
    """JSON has no bytes: they travel as surrogates."""
    return wire.encode("utf-8", "surrogateescape")


def prctl(option: int, value: int) -> None:
    LIBC.prctl(option, value, 0, 0, 0)


def serve(requests: socket.socket, procfs: Any) -> None:
    """Fork a shim for every socket that comes in, until nobody can send one any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a shim: its socket tells when it has ended
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
        if not data:
            return
        os.set_inheritable(descriptors[0], False)  # as received it would be passed on to the service
        with socket.socket(fileno=descriptors[0]) as control, contextlib.suppress(BlockingIOError):  # no more processes
            if not os.fork():
                requests.close()
                hold(control, procfs)


def hold(control: socket.socket, procfs: Any) -> NoReturn:
    """Be a shim from now on."""
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        control.sendall(json.dumps({"shim": os.getpid()}).encode() + b"\n")
        data = b""
        while b"\n" not in data:
            more = control.recv(1 << 20)
            if not more:
                os._exit(0)
            data += more
        order, _, rest = data.partition(b"\n")
        Shim(control, json.loads(order), rest, procfs).run()
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def main() -> None:
    sys.path.insert(0, sys.argv[1])  # where the package is: this interpreter looks nowhere else
    from gpumodd.adapters import procfs

    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    requests = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    serve(requests, procfs)


if __name__ == "__main__":
    main()
