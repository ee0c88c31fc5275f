"""Configuration directories for tests, written from short texts."""

from pathlib import Path

from gpumodd.config.load import Loaded, load
from gpumodd.drivers import registry

BUILT_IN = registry.load([])  # without what happens to be installed


class Tree:
    """A configuration directory under construction."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: str | bytes) -> "Tree":
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self

    def service(self, id: str, /, **keys: str) -> "Tree":
        """An exec service that can run; `keys` are YAML texts that replace or add."""
        lines = {"id": id, "driver": "exec", "vram_mib": "100", "options": "{command: [/bin/true]}", **keys}
        return self.write(f"services/{id}.yaml", "".join(f"{k}: {v}\n" for k, v in lines.items() if v is not None))

    def mode(self, id: str, *services: str) -> "Tree":
        return self.write(f"modes/{id}.yaml", f"id: {id}\nservices: [{', '.join(services)}]\n")

    def load(self, registry=BUILT_IN, **environ: str) -> Loaded:
        return load(self.directory, environ=environ, registry=registry)

    def errors(self, **environ: str) -> list[str]:
        """What is wrong, one line each."""
        return [problem.text() for problem in self.load(**environ).errors]

    def warnings(self) -> list[str]:
        return [problem.text() for problem in self.load().warnings]
