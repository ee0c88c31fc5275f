"""Writes docs/rpc.md from the method table, docs/cli.md from the commands, docs/problems.md from the registry of codes.

`python -m tests.support.docs --write`

A test fails when what is written differs from what would be.
"""

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from gpumodctl.cli import cli
from gpumodctl.invocation import Invocation
from gpumodd.cli import main as daemon
from gpumodd.core.problems import SECTIONS, Code, Section
from gpumodd.wire import types as t
from gpumodd.wire.codec import LINE_LIMIT
from gpumodd.wire.envelope import BATCH_LIMIT
from gpumodd.wire.errors import NUMBERS
from gpumodd.wire.methods import METHODS, NOTIFICATIONS, PROTOCOL, Method

LAYOUT: Any = {"terminal_width": 80, "max_content_width": 80, "help_option_names": ["-h", "--help"]}
DOCS = Path(__file__).parents[2] / "docs"
REGENERATE = "<!-- generated: python -m tests.support.docs --write -->\n"

RPC_INTRO = f"""# The socket

gpumodd listens on a Unix socket, `$XDG_RUNTIME_DIR/gpumodd/gpumodd.sock` unless `GPUMODD_SOCKET` names another,
and speaks JSON-RPC 2.0: one JSON object per line, UTF-8, at most {LINE_LIMIT} bytes a line in both directions.
Only the user who runs the daemon is let in.

```console
$ echo '{{"jsonrpc":"2.0","id":1,"method":"mode.switch","params":{{"id":"rag","wait":true}}}}' \\
      | nc -U "$XDG_RUNTIME_DIR/gpumodd/gpumodd.sock"
```

- Every request gets exactly one reply. Replies come when they are ready, in any order.
- Ids are strings, numbers or null and come back as they were written; a request without an id is a notification and
  gets no reply. Batches have at most {BATCH_LIMIT} members. Parameters go by name, or by position in the order below.
- A line that is no JSON-RPC gets an error with the id null, and the next line is read as if nothing had happened.
- At least 256 connections are served. A client that does not read is paused, then dropped.
- A client that goes away cancels nothing it began; only its waiting ends.
- `daemon.hello` is optional. Its `role` (`read`, `operate`, `admin`) can only lower what the connection may do; every
  connection begins with `admin`. A method that is not in `capabilities` answers -32601. The protocol is version
  {PROTOCOL}; fields are added without a new version, so ignore those you do not know.
- Names tell units: `_mib` is MiB as the driver reports it, `_s` seconds, `_at` and `since` a time in RFC 3339, UTC.

## Waiting

A method that begins an operation answers with the running Operation at once. With `wait: true` the reply comes when
the operation ends: the Operation on success, else an error, -32011 (failed or rolled back) or -32009 (cancelled or
superseded), with the Operation in `details.operation`. A refusal is an error at once in both cases, and nothing was
touched. `operation.get` and `operation.wait` always answer with the Operation, however it ended.

With `progress: true`, `mode.switch` also sends a notification `progress` for each step that changes. One operation of
this kind runs at a time: a second switch to the same mode joins the first, one to another mode supersedes it, and the
first ends `cancelled` with the error code `conflict`. `force` passes refusals for memory and quiesce only.

## Events

After `events.subscribe` each change comes as a notification `event`, of one of these topics. A subscriber that does not
keep up is dropped with a last event of the topic `daemon`, and goes on with `after` set to the cursor it names.
"""

TOPICS = {
    "service": ("a service's phase changed", "`service`, `from`, `to`"),
    "operation": (
        "an operation began, turned back or ended; with `step`, one of its steps changed",
        "`operation`, `kind`, `target`, `state`, `turned_back`, `step`: [Step](#step), `error`:"
        " [OperationError](#operationerror)",
    ),
    "mode": (
        "another mode is wanted, or was reached in full",
        "`mode` and `desired_mode` as in the status, `was`: both before",
    ),
    "device": (
        "a device is `lost` or `back`, or a `problem` of it came or is `over`; samples are no events",
        "`device`: its UUID, null for all, `index`, `name`, `state`, `code`, `message`",
    ),
    "problem": ("a problem came (`raised`) or went", "`raised`, `problem`: [Problem](#problem)"),
    "config": ("the configuration was read again", "[Reload](#reload)"),
    "daemon": ("this subscriber is dropped", "`dropped`, `hint`"),
}

ERRORS_INTRO = """## Errors

`error: {code, message, data: {code, hint, details, retry_after_s?}}`. `message` is for people, `data.code` for
programs, `hint` says what would help. A refusal lists in `details.reasons` everything that stands in the way, as
[Reason](#reason)s; an operation that failed comes whole in `details.operation`, with the service's last lines.
"""

CLI_INTRO = """# gpumodctl

The client of the daemon's socket. Every command takes `--json` and `--socket PATH`, before or behind its name. Results
go to stdout, messages to stderr, a failed start's last log lines too.

`--json` prints the result of the method as it came, or the error object, as one JSON document; `events` and
`status --watch` print one document per line. Ctrl-C while waiting detaches: the operation goes on, and how to cancel
it is said.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed without a rollback, cancelled, superseded, or any other error; `check` and `reload`: there are problems |
| 2 | usage, unknown id |
| 3 | the daemon is not reachable |
| 4 | refused, nothing was touched; `simulate`: it does not fit |
| 5 | failed and rolled back |
| 130 | Ctrl-C |

| variable | meaning |
|---|---|
| `GPUMODD_SOCKET` | the daemon's socket |
| `GPUMODCTL_TIMEOUT_S` | how long a query may take, in seconds (30); waiting for an operation has no limit |
| `NO_COLOR` | no colours |
| `COLUMNS` | how wide tables may be |
"""

DAEMON_INTRO = """# gpumodd

The daemon, and what works without it. What goes wrong is told on stderr, what would help in a line below it.

| exit code | meaning |
|---|---|
| 0 | done; `run`: ended by SIGTERM, Ctrl-C or a client |
| 1 | failed; `check`: there are errors |
| 2 | usage |
| 130 | Ctrl-C, before the daemon was up |

| variable | meaning |
|---|---|
| `GPUMODD_CONFIG_DIR` | the configuration, instead of `$XDG_CONFIG_HOME/gpumodd` |
| `GPUMODD_STATE_DIR` | the daemon's state, instead of `$XDG_STATE_HOME/gpumodd` |
| `GPUMODD_SOCKET` | the daemon's socket |
| `GPUMODD_<SECTION>__<KEY>` | a setting, instead of the one in [gpumodd.yaml](configuration.md#gpumoddyaml) |
| `GPUMODD_LOG_LEVEL` | `debug`, `info` (the default), `warning` or `error` |
| `NO_COLOR` | no colours |
"""


PROBLEMS_INTRO = """# Problems, by code

Every refusal, every failed operation and every condition that `gpumodctl status` shows has a code. The message that
comes with it names the case at hand, with numbers, and a hint; here is what each code means in general, what follows
from it, and what to do. ID stands for a service.

Where to look first:

```sh
gpumodctl status                      # who holds the memory, what is wrong, and the next command to type
gpumodctl service explain ID          # why a service is as it is, what would change that, what happened to it
gpumodctl service logs ID             # what it said itself
gpumodctl operation show ID           # what an operation did, step by step, and why
gpumodctl simulate MODE               # would it fit, and if not, why
```
"""


def rpc() -> str:
    """docs/rpc.md."""
    topics = [f"| `{topic}` | {when} | {data} |" for topic, (when, data) in TOPICS.items()]
    parts = [REGENERATE + RPC_INTRO, "| topic | when | data |\n|---|---|---|", *topics, "\n## Methods\n"]
    parts += [_method(method) for method in METHODS.values()]
    parts.append("## Notifications\n")
    parts += [f"- `{name}`: {_type(struct)}" for name, struct in NOTIFICATIONS.items()]
    parts.append("\n## Types\n")
    parts += [_struct(struct) for struct in _structs()]
    parts.append(ERRORS_INTRO)
    parts.append("| code | data.code |\n|---|---|")
    by_number: dict[int, list[str]] = {}
    for code, number in NUMBERS.items():
        by_number.setdefault(number, []).append(f"`{code}`")
    parts += [f"| {number} | {' · '.join(codes)} |" for number, codes in by_number.items()]
    return "\n".join(parts) + "\n"


def command_line() -> str:
    """docs/cli.md: what `--help` says of every command."""
    parts = [REGENERATE + CLI_INTRO, *_helps(cli, "gpumodctl"), DAEMON_INTRO, *_helps(daemon, "gpumodd")]
    return "\n".join(parts)


def problems() -> str:
    """docs/problems.md: what each code means."""
    index = [f"[{section.title}](#{section.title.lower()})" for section in SECTIONS]
    parts = [REGENERATE + PROBLEMS_INTRO, " · ".join(index) + "\n", *map(_section, SECTIONS)]
    return "\n".join(parts)


def _section(section: Section) -> str:
    entries = [_code(code, about) for code, about in sorted(section.codes.items())]
    return "\n".join([f"## {section.title}\n", f"{section.about}\n", *entries])


def _code(code: str, about: Code) -> str:
    told = " ".join(words for words in (about.meaning, about.follows) if words)
    return f"### {code}\n\n{told}\n\n**What to do:** {about.fix}\n"


def _helps(program: click.Command, name: str) -> Iterator[str]:
    for path, command in _commands(program, name):
        context = click.Context(command, info_name=path, obj=Invocation(), **LAYOUT)
        help_text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        title = path if " " in path else f"{path}, in short"
        yield f"## {title}\n\n```text\n{help_text}\n```\n"


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, f"{path} {name}")


def _method(method: Method) -> str:
    lines = [f"### {method.name}\n", f"{method.summary} Needs the role `{method.access.name.lower()}`."]
    if method.params.__doc__:
        lines.append(method.params.__doc__)
    fields = msgspec.structs.fields(method.params)
    if fields:
        hints = typing.get_type_hints(method.params, include_extras=True)
        lines.append("\n| parameter | type | default |\n|---|---|---|")
        lines += [f"| {f.name} | {_type(hints[f.name])} | {_default(f)} |" for f in fields]
    lines.append(f"\nResult: {_type(method.result)}\n")
    return "\n".join(lines)


def _struct(struct: type[msgspec.Struct]) -> str:
    hints = typing.get_type_hints(struct, include_extras=True)
    words = " ".join((struct.__doc__ or "").split())
    lines = [f"### {struct.__name__}\n", words, "\n| field | type |\n|---|---|"]
    lines += [f"| {f.name} | {_type(hints[f.name])} |" for f in msgspec.structs.fields(struct)]
    return "\n".join(lines) + "\n"


def _structs() -> list[type[msgspec.Struct]]:
    found = [
        value
        for value in vars(t).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct
    ]
    return sorted(found, key=lambda struct: struct.__name__)


_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "any"}


def _type(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is typing.Annotated:
        return _type(args[0]) + _limits(args[1:])
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(_type(arg) for arg in args)
    if origin is list:
        inner = _type(args[0])
        return f"list of {inner}"
    if origin is dict:
        return "object"
    assert issubclass(hint, msgspec.Struct), hint
    return f"[{hint.__name__}](#{hint.__name__.lower()})"


def _limits(metas: tuple[Any, ...]) -> str:
    words = []
    for meta in metas:
        if not isinstance(meta, msgspec.Meta):
            continue
        if meta.ge is not None and meta.le is not None:
            words.append(f"{meta.ge} to {meta.le}")
        elif meta.ge is not None:
            words.append(f"at least {meta.ge}")
        if meta.max_length is not None:
            words.append(f"at most {meta.max_length}")
        if meta.pattern is not None:
            words.append(f"`{meta.pattern}`".replace("\\Z", "$"))
    return f" ({', '.join(words)})" if words else ""


def _default(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return f"`{msgspec.json.encode(value).decode()}`"


PAGES = {"rpc.md": rpc, "cli.md": command_line, "problems.md": problems}


def main() -> None:
    """Write the pages, or tell which are stale."""
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if "--write" in sys.argv[1:]:
            path.write_text(text)
    sys.stdout.write(f"{'written' if '--write' in sys.argv[1:] else 'stale'}: {', '.join(stale) or 'nothing'}\n")


if __name__ == "__main__":
    main()
