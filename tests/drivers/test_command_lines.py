"""The command lines of the built-in drivers, word for word."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumodd.core.specs import HealthSpec, ServiceSpec
from gpumodd.drivers import exec, fastapi, llamacpp, vllm
from gpumodd.drivers.api import DriverContext, DriverError

HOME = str(Path.home())


def argv(driver, *, args=(), command=("prog", "serve"), options=None, **spec):
    service = ServiceSpec(id="s", driver=driver.name, **spec)
    chosen = driver.options() if options is None else options
    return driver.unit_file(service, chosen, DriverContext(command=command), args=tuple(args), env={}).argv


def address(port=8000):
    return ("--host", "127.0.0.1", "--port", str(port))


def test_vllm():
    assert argv(vllm.DRIVER, model="org/m", port=8000) == ("prog", "serve", "org/m", *address())


def test_vllm_derives_context_and_parallelism():
    found = argv(vllm.DRIVER, model="m", port=8000, context=4096, device_count=2, args=("--x", "y"))
    derived = ("--max-model-len", "4096", "--tensor-parallel-size", "2")
    assert found == ("prog", "serve", "m", *address(), *derived, "--x", "y")


@pytest.mark.parametrize(
    "args",
    [
        ("--max-model-len", "1", "--tensor-parallel-size", "4"),
        ("--max-model-len=1", "--tensor-parallel-size=4"),
        ("--max_model_len", "1", "--tensor_parallel_size=4"),
        ("--max-model-len=1", "-tp", "4"),
    ],
)
def test_vllm_never_says_what_the_user_says(args):
    found = argv(vllm.DRIVER, model="m", port=8000, context=4096, device_count=2, args=args)
    assert found == ("prog", "serve", "m", *address(), *args)


@pytest.mark.parametrize(
    "model, path",
    [
        ("org/name", None),
        ("name", None),
        ("./dir", f"{HOME}/dir"),
        ("~/dir", f"{HOME}/dir"),
        ("/dir/model", "/dir/model"),
        (".hidden/x", None),
        ("models/x", None),
    ],
)
def test_vllm_knows_a_path_by_its_beginning(model, path):
    spec = ServiceSpec(id="s", driver="vllm", model=model)
    assert vllm.DRIVER.requires_file(spec, vllm.VllmOptions()) == path
    assert argv(vllm.DRIVER, model=model)[2] == (path or model)


def test_a_relative_model_starts_in_the_working_directory():
    assert argv(vllm.DRIVER, model="./m", options=vllm.VllmOptions(cwd="/srv"))[2] == "/srv/m"
    assert argv(llamacpp.DRIVER, model="m.gguf", options=llamacpp.LlamaCppOptions(cwd="/srv"))[3] == "/srv/m.gguf"


def test_llamacpp():
    found = argv(
        llamacpp.DRIVER, command=("llama-server",), model="~/m.gguf", port=8001, context=512, args=("-ngl", "9")
    )
    model = ("--model", f"{HOME}/m.gguf")
    assert found == ("llama-server", *model, *address(8001), "--ctx-size", "512", "-ngl", "9")


@pytest.mark.parametrize("args", [("--ctx-size", "1"), ("--ctx-size=1",), ("-c", "1")])
def test_llamacpp_never_says_what_the_user_says(args):
    found = argv(llamacpp.DRIVER, model="/m.gguf", port=8000, context=512, args=args)
    assert found == ("prog", "serve", "--model", "/m.gguf", *address(), *args)


def test_llamacpp_requires_the_file_and_does_not_look_at_it():
    spec = ServiceSpec(id="s", driver="llamacpp", model="/nowhere/any.name")
    assert llamacpp.DRIVER.check(spec, llamacpp.LlamaCppOptions()) == []
    assert llamacpp.DRIVER.requires_file(spec, llamacpp.LlamaCppOptions()) == "/nowhere/any.name"


def test_fastapi():
    found = argv(fastapi.DRIVER, command=("uvicorn",), model="a.b:app", port=8000, args=("--factory",))
    assert found == ("uvicorn", "a.b:app", *address(), "--factory")


@pytest.mark.parametrize("model", ["a.b", ":app", "a:", "", None, "--reload"])
def test_fastapi_needs_an_import_path(model):
    with pytest.raises(DriverError):
        argv(fastapi.DRIVER, model=model)


def test_exec_adds_nothing():
    options = exec.ExecOptions(command=("python3", "-m", "x"))
    assert argv(exec.DRIVER, options=options, port=8000, context=5, args=("a",)) == ("python3", "-m", "x", "a")


def test_exec_splits_a_text_without_a_shell():
    options = exec.ExecOptions(command="python3 -c 'print(1)' $HOME ; ls")
    assert argv(exec.DRIVER, options=options) == ("python3", "-c", "print(1)", "$HOME", ";", "ls")


@pytest.mark.parametrize(
    "command, cwd, program",
    [("~/bin/x", None, f"{HOME}/bin/x"), ("./x", "/srv", "/srv/x"), ("bin/x", "~", f"{HOME}/bin/x")],
)
def test_exec_makes_paths_absolute(command, cwd, program):
    assert argv(exec.DRIVER, options=exec.ExecOptions(command=(command,), cwd=cwd)) == (program,)


@pytest.mark.parametrize("command", [(), "", "'open", ("",), ("./x",), ("a/b",)])
def test_exec_refuses_a_command_that_cannot_run(command):
    with pytest.raises(DriverError) as caught:
        argv(exec.DRIVER, options=exec.ExecOptions(command=command))
    assert caught.value.field == "options.command"
    assert caught.value.hint


@pytest.mark.parametrize("driver", [vllm.DRIVER, llamacpp.DRIVER, fastapi.DRIVER], ids=lambda d: d.name)
def test_a_port_comes_from_one_place(driver):
    with pytest.raises(DriverError, match="--port") as caught:
        argv(driver, model="a:b", port=8000, args=("--port", "9000"))
    assert caught.value.field == "args"
    assert "--port" not in argv(driver, model="a:b")
    assert argv(driver, model="a:b", args=("--port=9000",))[-1] == "--port=9000"


@pytest.mark.parametrize("cwd", ["relative", "./x", "/a\n", "/a ", "/a\\", ""])
@pytest.mark.parametrize("driver", [vllm.DRIVER, llamacpp.DRIVER, fastapi.DRIVER, exec.DRIVER], ids=lambda d: d.name)
def test_a_working_directory_systemd_cannot_be_told(driver, cwd):
    options = exec.ExecOptions(command=("x",), cwd=cwd) if driver is exec.DRIVER else driver.options(cwd=cwd)
    with pytest.raises(DriverError) as caught:
        argv(driver, model="a:b", options=options)
    assert caught.value.field == "options.cwd"


def test_the_probe_asks_where_the_server_can_be_reached():
    def probe(host):
        spec = ServiceSpec(
            id="s", driver="vllm", model="m", port=81, host=host, health=HealthSpec(path="/h", timeout_s=2)
        )
        return vllm.DRIVER.probe(spec, vllm.VllmOptions())

    assert (probe("0.0.0.0").host, probe("::").host, probe("10.0.0.1").host) == ("127.0.0.1", "::1", "10.0.0.1")
    assert (probe("x").port, probe("x").path, probe("x").timeout_s) == (81, "/h", 2)


def test_devices_by_uuid():
    assert vllm.DRIVER.device_env(("GPU-a", "MIG-b")) == {"CUDA_VISIBLE_DEVICES": "GPU-a,MIG-b"}
    assert vllm.DRIVER.device_env(()) == {}


@given(args=st.lists(st.text(), max_size=5), context=st.integers(1, 10**6) | st.none())
def test_the_users_words_come_last_and_unchanged(args, context):
    for driver, model in ((vllm.DRIVER, "m"), (llamacpp.DRIVER, "/m"), (fastapi.DRIVER, "a:b")):
        found = argv(driver, model=model, context=context, args=args)
        assert found[len(found) - len(args) :] == tuple(args)
