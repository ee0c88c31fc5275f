"""Jinja2 for strangers' templates: no Python, no files, and an end.

Owns the language that unit templates are written in: a small part of Jinja2, chosen so that every template ends
soon. It can print given values through given filters, choose with `if`, go once through a list, and fill the
blocks of the built-in template. Macros, includes, arithmetic and nested loops are refused when the template is
read: a sandbox alone keeps a template away from Python, but not from running for ever. Every failure is a
TemplateProblem with the place in the template.
"""

from collections.abc import Callable, Mapping
from traceback import walk_tb
from typing import Any

from jinja2 import DictLoader, StrictUndefined, TemplateNotFound, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

BUILT_IN = "builtin.j2"  # the one template that others may extend
MAX_SOURCE = 16 * 1024  # characters of a template
MAX_TEXT = 64 * 1024  # characters of a result, and of anything a filter is given
MAX_PIECES = 20_000  # pieces of output, empty ones too

_PLAIN = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem,
    nodes.Slice, nodes.Filter, nodes.Test, nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.Not,
    nodes.And, nodes.Or, nodes.Assign, nodes.Block, nodes.Keyword,
)  # fmt: skip
_TESTS = ("defined", "undefined", "none", "string", "number", "true", "false", "eq", "ne", "in")


class TemplateProblem(Exception):
    """A template that cannot be used; `line` counts from 1, 0 when no line is to blame."""

    def __init__(self, name: str, line: int, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.line = line
        self.message = message


class Templates:
    """A set of template sources by name, and the filters they may use."""

    def __init__(self, sources: Mapping[str, str], filters: Mapping[str, Callable[[Any], str]]) -> None:
        self._sources = dict(sources)
        self._environment = _Environment(
            loader=DictLoader(self._sources),
            undefined=StrictUndefined,
            finalize=_printable,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._environment.globals = {}
        self._environment.tests = {name: self._environment.tests[name] for name in _TESTS}
        self._environment.filters = {
            "default": self._environment.filters["default"],
            "join": _join,
            "lower": _bounded(lambda value: str(value).lower()),
            "upper": _bounded(lambda value: str(value).upper()),
            **{name: _bounded(function) for name, function in filters.items()},
        }

    def render(self, name: str, values: Mapping[str, Any]) -> str:
        """The template's text; raises TemplateProblem, whatever the template does."""
        size, pieces = 0, []
        try:
            for piece in self._environment.get_template(name).generate(values):
                size += len(piece)
                pieces.append(piece)
                if size > MAX_TEXT or len(pieces) > MAX_PIECES:
                    raise TemplateProblem(name, 0, f"cannot use this: it writes more than {MAX_TEXT // 1024} KiB")
        except TemplateProblem:
            raise
        except TemplateSyntaxError as error:
            raise TemplateProblem(error.name or name, error.lineno, str(error.message)) from None
        except TemplateNotFound as error:
            raise TemplateProblem(name, 0, f"cannot find the template {error.name!r}") from None
        except Exception as error:  # a template can make Jinja2, and the Python it compiles to, raise anything
            raise TemplateProblem(name, _line(error), _words(error)) from None
        return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """Reads a template only if it keeps to the small language."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise TemplateSyntaxError(f"cannot use this: longer than {MAX_SOURCE // 1024} KiB", 1, name)
        template = super()._parse(source, name, filename)
        _check(template, name)
        return template

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return not callable(value) and super().is_safe_attribute(obj, attr, value)


def _check(node: nodes.Node, name: str | None, *, in_loop: bool = False) -> None:
    """Refuses what is not in the small language; raises TemplateSyntaxError."""
    if (what := _refused(node, in_loop)) is not None:
        raise TemplateSyntaxError(f"cannot use {what} in a unit template", node.lineno, name)
    for child in node.iter_child_nodes():
        _check(child, name, in_loop=in_loop or isinstance(node, nodes.For))


def _refused(node: nodes.Node, in_loop: bool) -> str | None:
    """What is wrong with this node by itself, or None."""
    match node:
        case nodes.For():
            return "a loop inside a loop" if in_loop or node.recursive else None
        case nodes.Block():
            return "a block inside a loop" if in_loop else None
        case nodes.Extends():
            known = isinstance(node.template, nodes.Const) and node.template.value == BUILT_IN
            return None if known else f"extends with anything but {BUILT_IN!r}"
        case nodes.Call():
            plain = isinstance(node.node, nodes.Name) and node.node.name == "super"
            bare = not any((node.args, node.kwargs, node.dyn_args, node.dyn_kwargs))
            return None if plain and bare else "a call"
        case nodes.List() | nodes.Tuple():
            # A list of lists could double with every line and then be printed.
            flat = all(isinstance(item, (nodes.Const, nodes.Name)) for item in node.items)
            names = any(isinstance(item, nodes.Name) and item.ctx == "load" for item in node.items)
            return None if flat and not names else "a list of anything but constants"
        case _:
            return None if isinstance(node, _PLAIN) else type(node).__name__.lower()


def _bounded(function: Callable[[Any], str]) -> Callable[[Any], str]:
    """A filter that takes no more than MAX_TEXT: what it returns may be a few times as long, once."""

    def filtered(value: Any) -> str:
        items = value if isinstance(value, (tuple, list)) else (value,)
        if sum(len(str(item)) for item in items) > MAX_TEXT:
            raise ValueError("this text is too long")
        return function(value)

    return filtered


def _join(value: Any, between: Any = " ") -> str:
    if isinstance(value, str) or not isinstance(between, str) or len(between) > 20:
        raise ValueError("join takes a list and a short text")
    return between.join(str(item) for item in value)


def _printable(value: Any) -> Any:
    """Only text and numbers are printed: a list as Python writes it means nothing to systemd."""
    if isinstance(value, (str, int, float, StrictUndefined)):
        return value  # an undefined value complains by itself, in better words
    raise TypeError(f"cannot print a {type(value).__name__}: use a filter")


def _line(error: BaseException) -> int:
    """The innermost line of a template in the traceback, which Jinja2 has rewritten to template lines."""
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == "<template>"]
    return lines[-1] if lines else 0


def _words(error: BaseException) -> str:
    if isinstance(error, (RecursionError, MemoryError, SyntaxError)):
        return "cannot use this: nested too deeply"
    if isinstance(error, SecurityError):
        return f"cannot use this: {error}".rstrip(".")
    text = " ".join(str(error).split())[:200]
    return text if text.startswith("cannot ") else f"cannot use this: {text or type(error).__name__}"
