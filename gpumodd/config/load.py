"""A configuration directory as one value.

Owns the order of things: read every file, judge each by its schema, ask the drivers, look across files, try the
templates. All problems of all files come out at once; nothing here raises for what stands in a file. It blocks on
the disk: call it in a worker thread.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from gpumodd.config import crosscheck, document, estimates, schema, settings, translate, validate
from gpumodd.config.document import Document, Place, Unreadable
from gpumodd.config.errors import ConfigProblem, Severity, did_you_mean, reason, shown
from gpumodd.config.estimates import Memory
from gpumodd.config.model_files import Unusable
from gpumodd.config.render import DEFAULT, FOLDER, Renderer, resolve
from gpumodd.config.sandbox import BUILT_IN, TemplateProblem
from gpumodd.config.settings import Setting, SettingsRead
from gpumodd.config.stamp import MAIN, Stamp, stamp
from gpumodd.config.translate import Runnable
from gpumodd.config.validate import problem_at
from gpumodd.core.specs import BLANK, Catalog, VramSource
from gpumodd.drivers import registry as driver_registry
from gpumodd.drivers.api import Driver, ProbeSpec, UnitFile
from gpumodd.drivers.registry import NOT_BUILT, Registry

MAX_FILES = 1000  # in one folder

M = TypeVar("M", bound=schema.Section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Everything a configuration directory says.

    With errors, `catalog` holds only the services and modes that are sound; whether to use it is the caller's
    decision. `unit_files`, `probes` and `drivers` go by service id, for the services of the catalog; `memory` for those
    whose figure is an estimate.
    """

    directory: Path
    catalog: Catalog = field(default_factory=Catalog)
    settings: schema.Settings = field(default_factory=schema.Settings)
    unit_files: Mapping[str, UnitFile] = field(default_factory=dict)
    probes: Mapping[str, ProbeSpec | None] = field(default_factory=dict)
    drivers: Mapping[str, Driver] = field(default_factory=dict)
    memory: Mapping[str, Memory] = field(default_factory=dict)
    renderer: Renderer = field(default_factory=Renderer)
    problems: tuple[ConfigProblem, ...] = ()
    by_key: Mapping[str, Setting] = field(default_factory=dict)  # every key of gpumodd.yaml, and who set it
    stamp: Stamp = frozenset()  # of the files, from before they were read: what changed since shows

    @property
    def errors(self) -> tuple[ConfigProblem, ...]:
        return tuple(p for p in self.problems if p.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[ConfigProblem, ...]:
        return tuple(p for p in self.problems if p.severity is Severity.WARNING)

    def device_env(self, service: str, uuids: tuple[str, ...]) -> Mapping[str, str]:
        """The environment that pins a service to these devices; raises DriverError."""
        return translate.device_env(self.drivers[service], uuids)

    def vram_at(self, service: str, context: int) -> int | None:
        """The memory a service would take with this context length; None when its figure does not follow from it."""
        try:
            return self.memory[service].mib(context) if service in self.memory else None
        except Unusable:
            return None


def load(directory: Path, *, environ: Mapping[str, str] | None = None, registry: Registry | None = None) -> Loaded:
    """The configuration in this directory, under this environment (the process's own by default)."""
    seen = stamp(directory)
    if (missing := _no_directory(directory)) is not None:
        return Loaded(directory=directory, problems=(missing,), stamp=seen)
    loading = _Loading(directory, registry or driver_registry.load())
    return replace(loading.load(os.environ if environ is None else environ), stamp=seen)


@dataclass(slots=True)
class _File:
    """One service or mode file on its way."""

    stem: str
    document: Document


class _Loading:
    """One run of `load`; collects problems as it goes."""

    def __init__(self, directory: Path, registry: Registry) -> None:
        self.directory = directory
        self.registry = registry
        self.problems: list[ConfigProblem] = []

    def load(self, environ: Mapping[str, str]) -> Loaded:
        for text in self.registry.problems:
            self.problems.append(
                ConfigProblem(
                    file=MAIN, path="drivers", message=text, code="driver_unavailable", severity=Severity.WARNING
                )
            )
        main = self._document(MAIN) if os.path.lexists(self.directory / MAIN) else Document(file=MAIN)
        read = settings.read(main, environ, self.registry)
        self.problems += read.problems
        services = self._files("services")
        modes = self._files("modes")
        models = {f.stem: model for f in services if (model := self._service(f)) is not None}
        bundles = {f.stem: mode for f in modes if (mode := self._model(schema.Mode, f)) is not None}
        documents = {f.stem: f.document for f in services}
        self.problems += crosscheck.check(
            crosscheck.Services(models=models, documents=documents, known=frozenset(documents)),
            crosscheck.Modes(models=bundles, documents={f.stem: f.document for f in modes}),
        )
        found = self._runnables(models, documents, read)
        renderer = self._renderer(found)
        self._try_templates(found, documents, renderer)
        self._programs(found, documents)
        return self._loaded(found, bundles, renderer, read)

    # ---- services and modes

    def _files(self, folder: str) -> list[_File]:
        return [
            _File(stem=Path(name).stem, document=self._document(f"{folder}/{name}"))
            for name in self._names(folder, ".yaml")
        ]

    def _names(self, folder: str, suffix: str) -> list[str]:
        """The file names in a folder that may be missing; hidden ones are editors' business."""
        try:
            names = sorted(path.name for path in (self.directory / folder).iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._note(folder, f"cannot list this folder: {reason(error)}")
            return []
        for name in names:
            if suffix == ".yaml" and name.endswith(".yml") and not name.startswith("."):
                self._note(f"{folder}/{name}", "this file is not read", hint="rename it to .yaml", warning=True)
        names = [name for name in names if name.endswith(suffix) and not name.startswith(".")]
        if len(names) > MAX_FILES:
            self._note(folder, f"cannot use this folder: more than {MAX_FILES} files")
        return names[:MAX_FILES]

    def _document(self, file: str) -> Document:
        try:
            found, wrong = document.parse(document.read(self.directory / file, file), file)
        except Unreadable as error:
            found, wrong = Document(file=file), [error.problem]
        self.problems += wrong
        return found

    def _model(self, kind: type[M], file: _File) -> M | None:
        """The file's model, whose id is the file's name."""
        if self._broken(file.document):
            return None
        value = file.document.value
        model: M | None
        model, wrong = validate.model(kind, file.document, value, as_written=[("args",), ("env",)])
        self.problems += wrong
        id = value.get("id") if isinstance(value, dict) else None
        if isinstance(id, str) and id != file.stem and not any(p.path == "id" for p in wrong):
            message = f"cannot use the id {shown(id)}: the file is called {shown(file.stem)}"
            self.problems.append(problem_at(file.document, ("id",), message, hint="make them equal"))
            return None
        return model

    def _service(self, file: _File) -> schema.Service | None:
        file.document, wrong = _one_vram_key(file.document)
        self.problems += wrong
        model = self._model(schema.Service, file)
        value = file.document.value
        name = value.get("driver") if isinstance(value, dict) else None
        if isinstance(name, str) and name not in self.registry.drivers:
            self.problems.append(self._unknown_driver(file.document, name))
        elif isinstance(name, str) and model is None and isinstance(value.get("options"), dict):
            # The driver is not asked about a service that is wrong by itself; its options are judged all the same.
            self._options(self.registry.drivers[name], file.document, value["options"])
        return model

    def _unknown_driver(self, where: Document, name: str) -> ConfigProblem:
        if name in NOT_BUILT:
            message, hint = f"the driver {name} is not built yet in this version", "use exec to start it yourself"
        else:
            message = f"cannot find the driver {shown(name)}"
            hint = did_you_mean(name, self.registry.drivers)
        return problem_at(where, ("driver",), message, hint=hint, code="driver_unknown")

    def _runnables(
        self, models: Mapping[str, schema.Service], documents: Mapping[str, Document], read: SettingsRead
    ) -> dict[str, Runnable]:
        found: dict[str, Runnable] = {}
        for id, model in sorted(models.items()):
            driver = self.registry.drivers.get(model.driver)
            if driver is None:
                continue
            where = documents[id]
            options = self._options(driver, where, model.options)
            if options is None:
                continue
            made, errors = translate.runnable(model, driver, options, read.context(driver.name))
            for error in errors:
                place: Place = tuple(error.field.split(".")) if error.field else ()
                self.problems.append(problem_at(where, place, str(error), hint=error.hint))
            if made is not None:
                found[id] = made if model.vram_mib is not None else self._estimated(made, options, model, where)
        return found

    def _estimated(self, made: Runnable, options: object, model: schema.Service, where: Document) -> Runnable:
        """The service with an estimate of its memory, or as it is, and why there is none."""
        try:
            memory = estimates.memory(made.driver, made.spec, options, model.args, model.env)
            if memory is None:
                return made
            spec = replace(made.spec, vram_mib=memory.mib(), vram_source=VramSource.ESTIMATED, sizes=memory.sizes())
        except Unusable as error:
            message = f"cannot estimate its memory: {error}"
            hint = "a start is refused until this is mended, or vram_mib declared"
            self.problems.append(
                problem_at(where, ("model",), message, hint=hint, code="vram_unknown", severity=Severity.WARNING)
            )
            return made
        return replace(made, spec=spec, memory=memory)

    def _options(self, driver: Driver, where: Document, value: object) -> object | None:
        """The service's `options:` as the driver's own dataclass."""
        below: Place = ("options",)
        options: object | None
        try:
            options, wrong = validate.model(driver.options, where, value, below, as_written=[below])
        except Exception as error:  # a driver's options type that pydantic cannot make sense of
            message = f"driver {driver.name} failed: {type(error).__name__} in its options"
            options, wrong = None, [problem_at(where, ("driver",), message, hint="this is a bug in the driver")]
        self.problems += wrong
        return options

    # ---- templates and programs

    def _renderer(self, found: Mapping[str, Runnable]) -> Renderer:
        sources = {}
        used = {DEFAULT, *(f"{id}.j2" for id in found), *(f"{made.spec.driver}.j2" for made in found.values())}
        for name in self._names(FOLDER, ".j2"):
            file = f"{FOLDER}/{name}"
            if name == BUILT_IN or name not in used:
                self._note(
                    file, "nothing uses this template", hint="name it after a service, a driver, or unit", warning=True
                )
                continue
            try:
                sources[name] = document.read(self.directory / file, file)
            except Unreadable as error:
                self.problems.append(error.problem)
        return Renderer(sources, {id: made.spec.driver for id, made in found.items()})

    def _try_templates(
        self, found: Mapping[str, Runnable], documents: Mapping[str, Document], renderer: Renderer
    ) -> None:
        """Every unit is written once here, so that no template can fail in the middle of a switch."""
        for id, made in found.items():
            try:
                renderer.text(made.unit, environment_file="/run/environment")
                renderer.render_environment(dict(made.unit.env))
            except TemplateProblem as problem:
                if problem.name == BUILT_IN:
                    wrong = problem_at(documents[id], ("driver",), problem.message)
                else:
                    wrong = ConfigProblem(
                        file=f"{FOLDER}/{problem.name}", line=problem.line or 1, message=problem.message
                    )
                if wrong not in self.problems:
                    self.problems.append(wrong)

    def _programs(self, found: Mapping[str, Runnable], documents: Mapping[str, Document]) -> None:
        """A missing program is no error: it may be installed before the first start. Told once per program."""
        missing: dict[str, list[str]] = {}
        for id, made in found.items():
            if resolve(made.unit.argv[0], dict(made.unit.env).get("PATH")) is None:
                missing.setdefault(made.unit.argv[0], []).append(id)
        for program, ids in missing.items():
            message = f"cannot find the program {shown(program)}: {', '.join(ids)} cannot start"
            hint = f"install it, or set drivers.{found[ids[0]].spec.driver}.command in {MAIN}"
            if found[ids[0]].spec.driver == "exec":
                hint = "install it, or give its whole path"
            self.problems.append(
                problem_at(
                    documents[ids[0]],
                    ("driver",),
                    message,
                    hint=hint,
                    code="program_missing",
                    severity=Severity.WARNING,
                )
            )

    # ---- the result

    def _loaded(
        self,
        found: Mapping[str, Runnable],
        bundles: Mapping[str, schema.Mode],
        renderer: Renderer,
        read: SettingsRead,
    ) -> Loaded:
        sound = {id: made for id, made in found.items() if not self._wrong(f"services/{id}.yaml")}
        while lame := [id for id, made in sound.items() if not sound.keys() >= set(made.spec.depends_on)]:
            for id in lame:
                del sound[id]
        modes = {
            id: translate.mode(bundle)
            for id, bundle in bundles.items()
            if not self._wrong(f"modes/{id}.yaml") and sound.keys() >= set(bundle.services)
        }
        specs = {
            id: replace(made.spec, fingerprint=translate.fingerprint(made, renderer.source(id)))
            for id, made in sound.items()
        }
        catalog = Catalog(
            services=MappingProxyType(dict(sorted(specs.items()))),
            modes=MappingProxyType(dict(sorted({"blank": BLANK, **modes}.items()))),
            policy=translate.policy(read.settings.policy),
        )
        return Loaded(
            directory=self.directory,
            catalog=catalog,
            settings=read.settings,
            unit_files=MappingProxyType({id: made.unit for id, made in sound.items()}),
            probes=MappingProxyType({id: made.probe for id, made in sound.items()}),
            drivers=MappingProxyType({id: made.driver for id, made in sound.items()}),
            memory=MappingProxyType({id: made.memory for id, made in sound.items() if made.memory is not None}),
            renderer=renderer,
            problems=tuple(sorted(self.problems)),
            by_key=MappingProxyType(dict(read.by_key)),
        )

    def _wrong(self, file: str) -> bool:
        return any(p.file == file and p.severity is Severity.ERROR for p in self.problems)

    def _broken(self, where: Document) -> bool:
        """The file could not be read as YAML at all: nothing more is to be said about it."""
        return where.value is None and self._wrong(where.file)

    def _note(self, file: str, message: str, *, hint: str = "", warning: bool = False) -> None:
        severity = Severity.WARNING if warning else Severity.ERROR
        self.problems.append(ConfigProblem(file=file, message=message, hint=hint, severity=severity))


def _no_directory(directory: Path) -> ConfigProblem | None:
    """The one problem of a directory that is not there."""
    code, hint = "invalid_config", ""
    try:
        next(directory.iterdir(), None)
        return None
    except FileNotFoundError:
        code, hint = "no_configuration", "gpumodd init makes one"
        message = "there is no configuration directory"
    except OSError as error:
        message = f"cannot read the configuration directory: {reason(error)}"
    return ConfigProblem(file=str(directory), message=message, hint=hint, code=code)


def _one_vram_key(where: Document) -> tuple[Document, list[ConfigProblem]]:
    """`vram_mb` is another name for `vram_mib`; the place keeps the name that was written."""
    value = where.value
    if not isinstance(value, dict) or "vram_mb" not in value:
        return where, []
    if "vram_mib" in value:
        problem = problem_at(where, ("vram_mb",), "vram_mb and vram_mib are the same key: keep one", key=True)
        return replace(where, value={key: item for key, item in value.items() if key != "vram_mb"}), [problem]
    renamed = {("vram_mib" if key == "vram_mb" else key): item for key, item in value.items()}
    marks = {**where.marks, ("vram_mib",): where.mark(("vram_mb",))}
    return replace(where, value=renamed, marks=marks), []
