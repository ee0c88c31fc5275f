"""Every wrong key of every file, all at once, each with its place and in words."""

import pytest

from gpumodd.config.errors import ConfigProblem, Severity, did_you_mean, one_line, shown

BAD_SERVICE = """\
id: Bad/Id
driver: 3
port: "8000"
nmae: x
health: {path: x, intervall_s: 3, failures: true}
devices: [0, true]
env: {A-B: 1, D: [1]}
args: [--x, null]
pinned: 1
vram_mib: -5
sleep: l3
idle: {}
startup_timeout_s: .inf
stop_timeout_s: 0
depends_on: x
context: 1e3
priority: 50.5
host: ""
"""


def test_all_problems_of_a_file_at_once(tree):
    tree.write("services/bad.yaml", BAD_SERVICE)
    assert tree.errors() == [
        'services/bad.yaml:1:5: id: cannot use "Bad/Id": it must match ^[a-z0-9][a-z0-9_-]{0,63}$',
        "services/bad.yaml:2:9: driver: cannot use 3: text is needed",
        'services/bad.yaml:3:7: port: cannot use "8000": a whole number is needed',
        'services/bad.yaml:4:1: nmae: unknown key "nmae" (did you mean name?)',
        'services/bad.yaml:5:16: health.path: cannot use "x": it must match ^/[!-~]{0,1023}$',
        'services/bad.yaml:5:19: health.intervall_s: unknown key "intervall_s" (did you mean interval_s?)',
        "services/bad.yaml:5:45: health.failures: cannot use true: a whole number is needed",
        "services/bad.yaml:6:10: devices: cannot use a list: a device is an index such as 0, or a UUID such as GPU-4f…",
        'services/bad.yaml:7:7: env.A-B: cannot use "A-B": it must match ^[A-Za-z_][A-Za-z0-9_]{0,254}$',
        "services/bad.yaml:7:18: env.D: cannot use a list: text is needed",
        "services/bad.yaml:8:13: args[1]: cannot use null: text is needed",
        "services/bad.yaml:9:9: pinned: cannot use 1: true or false is needed",
        "services/bad.yaml:10:11: vram_mib: cannot use -5: it must be at least 0",
        "services/bad.yaml:11:8: sleep: cannot use \"l3\": 'none', 'l1', 'l2', 'router', 'stop' or 'custom' is needed",
        "services/bad.yaml:12:7: idle.after_s: the key after_s is missing",
        "services/bad.yaml:13:20: startup_timeout_s: cannot use inf: a finite number is needed",
        "services/bad.yaml:14:17: stop_timeout_s: cannot use 0: it must be more than 0.0",
        'services/bad.yaml:15:13: depends_on: cannot use "x": a list is needed',
        "services/bad.yaml:16:10: context: cannot use 1000.0: a whole number is needed",
        "services/bad.yaml:17:11: priority: cannot use 50.5: a whole number is needed",
        'services/bad.yaml:18:7: host: cannot use "": one printable word is needed',
    ]


def test_the_drivers_options_are_judged_beside_the_rest(tree):
    tree.service("a", port="x", options="{comand: [x], cwd: []}")
    assert [line.split(": ")[1] for line in tree.errors()] == ["options.comand", "options.cwd", "port"]


@pytest.mark.parametrize("host", ["127.0.0.1", "'::1'", "localhost", "my-host.local", "'fe80::1%eth0'"])
def test_hosts(tree, host):
    assert tree.service("a", host=host).errors() == []


def test_all_files_at_once_sorted(tree):
    tree.write("services/b.yaml", "id: b\n").write("services/a.yaml", "[").write("modes/m.yaml", "id: m\nx: 1\n")
    tree.write("gpumodd.yaml", "polcy: {}\n")
    assert [line.split(": ")[0] for line in tree.errors()] == [
        "gpumodd.yaml:1:1",
        "modes/m.yaml:2:1",
        "services/a.yaml:1:2",
        "services/b.yaml:1:1",
    ]


@pytest.mark.parametrize("text", ["", "3", "[]", "text", "~", "id: s\n"])
def test_a_file_that_is_no_service(tree, text):
    tree.write("services/s.yaml", text)
    assert tree.errors()
    assert dict(tree.load().catalog.services) == {}


@pytest.mark.parametrize(
    "key, value",
    [
        ("port", "0"), ("port", "65536"), ("port", "-1"), ("port", "8000.0"), ("port", "true"), ("port", "[]"),
        ("vram_mib", "1.5"), ("vram_mib", "many"), ("vram_mib", "99999999999"), ("vram_mib", "7 GiB"),
        ("ram_mib", "-1"), ("context", "0"), ("device_count", "0"), ("device_count", "true"), ("devices", "all"),
        ("devices", "[]"), ("devices", "[0, 0]"), ("devices", "[-1]"), ("devices", "0"), ("devices", "['G PU']"),
        ("health", "yes"), ("health", "{interval_s: 0}"), ("health", "{failures: 0}"), ("health", "{path: '/a b'}"),
        ("health", "{path: 'http://x/'}"), ("startup_timeout_s", "-1"), ("startup_timeout_s", ".nan"),
        ("startup_timeout_s", "1e99"), ("stop_timeout_s", "'30'"), ("pinned", "'true'"), ("pinned", "yes"),
        ("aliases", "x"), ("aliases", "['a b']"), ("aliases", '["a\\nb"]'), ("env", "[]"), ("env", "{'A=B': x}"),
        ("env", "{A: ~}"), ("env", "{A: {}}"), ("env", "{'': x}"), ("args", "--x"), ("args", "[[a]]"),
        ("args", "[{a: b}]"),
        ("host", "'a b'"), ("host", "--x"), ("host", '"a\\n"'), ("host", "'[::1]'"), ("host", "a/b"), ("host", "a:80"),
        ("name", "[]"), ("name", "3"), ("model", "''"),
        ("on_leave", "kill"), ("sleep", "L1"), ("idle", "300"), ("idle", "{after_s: 1, action: nap}"),
        ("depends_on", "[A]"), ("depends_on", "[1]"), ("options", "[]"), ("options", "{comand: x}"),
        ("options", "{command: {}}"), ("options", "{command: [~]}"), ("options", "{command: [a], cwd: 3}"),
    ],
)  # fmt: skip
def test_one_wrong_value_is_one_problem(tree, key, value):
    tree.service("s", **{key: value})
    errors = tree.errors()
    assert len(errors) == 1, errors
    assert f": {key}" in errors[0]
    assert dict(tree.load().catalog.services) == {}


def test_numbers_in_a_command_line_are_taken_as_written(tree):
    tree.service(
        "s", args="[--share, 0.90, 0x10, true, 010]", env="{A: 1, B: 1.50, C: true}", options="{command: [/bin/x, 80]}"
    )
    loaded = tree.load()
    assert loaded.errors == ()
    assert loaded.unit_files["s"].argv == ("/bin/x", "80", "--share", "0.90", "0x10", "true", "010")
    assert dict(loaded.unit_files["s"].env) == {"A": "1", "B": "1.50", "C": "true"}


def test_an_argument_too_long_for_linux(tree):
    tree.service("s", args=f"[{'x' * 131_072}]")
    assert "128 KiB" in tree.errors()[0]


def test_problems_stay_on_their_line(tree):
    tree.write("services/s.yaml", 'id: s\n"a\\nb\\u001b[31m": 1\ndriver: "x\\ny"\n')
    tree.write("services/a\nb.yaml", "id: x\n")
    for line in tree.errors():
        assert line.isprintable()


def test_a_problem_as_text():
    problem = ConfigProblem(file="services/a.yaml", line=2, column=3, path="port", message="no", hint="yes")
    assert problem.text() == "services/a.yaml:2:3: port: no (yes)"
    assert problem.text("/etc/x") == "/etc/x/services/a.yaml:2:3: port: no (yes)"
    warning = ConfigProblem(file="$GPUMODD_X", message="no", severity=Severity.WARNING)
    assert warning.text("/etc/x") == "$GPUMODD_X:1:1: .: warning: no"


def test_words():
    assert did_you_mean("prot", ["port", "host"]) == "did you mean port?"
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
    assert did_you_mean("zzz", []) == "there are none"
    assert did_you_mean("z" * 10**6, [f"k{n}" for n in range(99)]).endswith(", …")
    assert shown("x" * 200) == '"' + "x" * 58 + "…"
    assert one_line("a\nb\x1b\udcff") == "a\\nb\\x1b\\udcff"
