"""What llama-server's command line and environment say about its memory.

Owns the names of the flags, the old ones too. What does not parse is left out: the program itself will refuse it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpumodd.estimate.llamacpp import CACHE_TYPES, Run
from gpumodd.estimate.quantization import BY_NAME, Quantization


def run(args: Iterable[str], env: Mapping[str, str], *, devices: int = 1) -> Run:
    """How a server with this command line runs."""
    changes: dict[str, Any] = {}
    for flag, word in _said(tuple(args), env):
        value = flag.parse(word)
        if value is not None:
            changes[flag.field] = value
    return replace(Run(devices=devices), **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Models that a server loads beside its own, as the command line names them."""

    projector: str | None = None  # makes tokens of pictures
    draft: str | None = None  # guesses what the model will say


def beside(args: Iterable[str], env: Mapping[str, str]) -> Beside:
    """The other models of a server with this command line."""
    said = {flag.field: word for flag, word in _said(tuple(args), env, BESIDE) if word}
    return Beside(projector=said.get("projector"), draft=said.get("draft"))


def _count(word: str) -> int | None:
    number = _number(word)
    return number if number is not None and number > 0 else None


def _number(word: str) -> int | None:
    try:
        number = int(word)
    except ValueError:
        return None
    return number if 0 <= number <= 1 << 40 else None


def _type(word: str) -> Quantization | None:
    return BY_NAME[word] if word in CACHE_TYPES else None


def _switch(word: str) -> bool | None:
    """The words for yes and no; `auto` is yes wherever it can be."""
    if word in ("on", "enabled", "true", "1", "auto", "-1"):
        return True
    return False if word in ("off", "disabled", "false", "0") else None


def _layers(word: str) -> int | None:
    """So many layers; more than any model has means all of them, and so do the words for it."""
    return _number(word) if word not in ("auto", "all", "-1") else EVERY


def _yes(_word: str) -> bool:
    return True


def _no(_word: str) -> bool:
    return False


def _every(_word: str) -> int:
    return EVERY


def _none(word: str) -> bool:
    return word == "none"


EVERY = 1 << 20  # layers


@dataclass(frozen=True, slots=True)
class _Flag:
    """One setting of Run, and how it is said."""

    field: str
    variable: str  # the environment variable that stands for it
    names: tuple[str, ...]
    parse: Callable[[str], object]
    alone: bool = False  # no word follows


FLAGS = (
    _Flag("context", "LLAMA_ARG_CTX_SIZE", ("-c", "--ctx-size"), _number),
    _Flag("slots", "LLAMA_ARG_N_PARALLEL", ("-np", "--parallel"), _count),
    _Flag("batch", "LLAMA_ARG_BATCH", ("-b", "--batch-size"), _count),
    _Flag("micro_batch", "LLAMA_ARG_UBATCH", ("-ub", "--ubatch-size"), _count),
    _Flag("key_type", "LLAMA_ARG_CACHE_TYPE_K", ("-ctk", "--cache-type-k"), _type),
    _Flag("value_type", "LLAMA_ARG_CACHE_TYPE_V", ("-ctv", "--cache-type-v"), _type),
    _Flag("flash", "LLAMA_ARG_FLASH_ATTN", ("-fa", "--flash-attn"), _switch),
    _Flag("offloaded", "LLAMA_ARG_N_GPU_LAYERS", ("-ngl", "--gpu-layers", "--n-gpu-layers"), _layers),
    _Flag("experts_on_host", "LLAMA_ARG_N_CPU_MOE", ("-ncmoe", "--n-cpu-moe"), _number),
    _Flag("experts_on_host", "LLAMA_ARG_CPU_MOE", ("-cmoe", "--cpu-moe"), _every, alone=True),
    _Flag("unified", "LLAMA_ARG_KV_UNIFIED", ("-kvu", "--kv-unified"), _yes, alone=True),
    _Flag("unified", "", ("-no-kvu", "--no-kv-unified"), _no, alone=True),
    _Flag("whole_windows", "LLAMA_ARG_SWA_FULL", ("--swa-full",), _yes, alone=True),
    _Flag("cache_on_host", "", ("-nkvo", "--no-kv-offload"), _yes, alone=True),
    _Flag("cache_on_host", "", ("-kvo", "--kv-offload"), _no, alone=True),
    _Flag("no_device", "LLAMA_ARG_DEVICE", ("-dev", "--device"), _none),
)
BESIDE = (
    _Flag("projector", "LLAMA_ARG_MMPROJ", ("-mm", "--mmproj"), str),
    _Flag("draft", "LLAMA_ARG_SPEC_DRAFT_MODEL", ("-md", "--model-draft", "--spec-draft-model"), str),
)


def _said(
    args: tuple[str, ...], env: Mapping[str, str], flags: tuple[_Flag, ...] = FLAGS
) -> Iterator[tuple[_Flag, str]]:
    """Environment first, then the flags in their order: what comes later wins."""
    by_name = {name: flag for flag in flags for name in flag.names}
    for flag in flags:
        if flag.variable in env and not (flag.alone and _switch(env[flag.variable]) is not True):
            yield flag, env[flag.variable]
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if name in by_name:
            flag = by_name[name]
            yield flag, value if equals or flag.alone else next(words, "")
