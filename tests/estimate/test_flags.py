"""What llama-server's command line says about its memory."""

import re
import subprocess

import pytest

from gpumodd.estimate import flags
from gpumodd.estimate.flags import Beside
from gpumodd.estimate.llamacpp import CACHE_TYPES, Run
from gpumodd.estimate.quantization import BY_NAME
from tests.support.llama import llama_server

Q8 = BY_NAME["q8_0"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("", Run()),
        ("--ctx-size 4096 --parallel 2", Run(context=4096, slots=2)),
        ("--ctx-size=4096 -np=2", Run(context=4096, slots=2)),
        ("-c 1 -c 2", Run(context=2)),
        ("-np -1", Run()),
        ("-ctk q8_0 --cache-type-v q8_0", Run(key_type=Q8, value_type=Q8)),
        ("-ub 64 -b 128", Run(micro_batch=64, batch=128)),
        ("-fa off", Run(flash=False)),
        ("--flash-attn auto", Run(flash=True)),
        ("-ngl 20", Run(offloaded=20)),
        ("--n-gpu-layers all", Run(offloaded=flags.EVERY)),
        ("-kvu -np 8", Run(unified=True, slots=8)),
        ("-no-kvu", Run(unified=False)),
        ("--swa-full --no-kv-offload", Run(whole_windows=True, cache_on_host=True)),
        ("--cpu-moe", Run(experts_on_host=flags.EVERY)),
        ("-ncmoe 10", Run(experts_on_host=10)),
        ("--device none", Run(no_device=True)),
        ("--jinja -c 77 --temp 0.5", Run(context=77)),
        ("-c", Run()),
        ("-c many -np 0 -ctk q9 -fa maybe -ngl few", Run()),
        ("-c 99999999999999999999", Run()),
    ],
)
def test_the_command_line(args: str, expected: Run):
    assert flags.run(args.split(), {}) == expected


def test_the_environment_says_it_too_and_a_flag_wins():
    env = {"LLAMA_ARG_CTX_SIZE": "100", "LLAMA_ARG_N_PARALLEL": "3", "LLAMA_ARG_KV_UNIFIED": "1", "HOME": "/"}
    assert flags.run(["-c", "200"], env) == Run(context=200, slots=3, unified=True)
    assert flags.run([], {"LLAMA_ARG_SWA_FULL": "0"}) == Run()


def test_models_beside_the_model():
    assert flags.beside([], {}) == Beside()
    assert flags.beside(["-md", "d.gguf", "--mmproj=p.gguf", "-c", "7"], {}) == Beside(
        projector="p.gguf", draft="d.gguf"
    )
    assert flags.beside(["--mmproj"], {"LLAMA_ARG_SPEC_DRAFT_MODEL": "d"}) == Beside(draft="d")


@pytest.mark.real
def test_the_server_knows_every_flag_and_type():
    answer = subprocess.run([llama_server(), "--help"], capture_output=True, text=True, timeout=20, check=True).stdout
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", answer))
    ours = (*flags.FLAGS, *flags.BESIDE)
    assert {name for flag in ours for name in flag.names} <= known
    assert {flag.variable for flag in ours if flag.variable} <= set(re.findall(r"LLAMA_ARG_\w+", answer))
    (types,) = set(
        re.findall(r"allowed values: ([^\n]+)", answer.partition("--cache-type-k")[2].partition("(default")[0])
    )
    assert set(types.split(", ")) == CACHE_TYPES
