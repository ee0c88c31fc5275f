"""Memory figures for services that declare none: the driver's estimate, from the heads of the model's files.

Owns who is asked and when there is no figure. It blocks on the disk: call it in a worker thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpumodd.config.model_files import MODEL_FILES, Unusable
from gpumodd.core.specs import ServiceSpec
from gpumodd.drivers.api import Driver, Estimating

MAX_MIB = 1 << 30
CONTEXTS = tuple(n << k for k in range(17, 9, -1) for n in (3, 2))  # 384k, 256k, … 3k, 2k


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How one service's memory follows from its model: all that its driver wants to know."""

    driver: Estimating
    spec: ServiceSpec
    options: object
    args: tuple[str, ...]
    env: Mapping[str, str]
    models: Mapping[str, Any]

    def mib(self, context: int | None = None) -> int:
        """What it takes, or would take with this context length in tokens; raises Unusable."""
        try:
            figure: Any = self.driver.estimate_mib(
                self.spec, self.options, args=self.args, env=self.env, models=self.models, context=context
            )
        except ValueError as error:
            raise Unusable(str(error)) from None
        except Exception as error:  # a driver may come from anywhere
            raise Unusable(f"driver {self.spec.driver} failed: {type(error).__name__}: {error}") from None
        if not isinstance(figure, int) or not 0 <= figure <= MAX_MIB:
            raise Unusable(f"driver {self.spec.driver} estimated {figure!r:.40}")
        return figure

    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Smaller contexts that it could have, the largest first, and what it would take with each."""
        found: list[tuple[int, int]] = []
        least = self.mib()
        for context in CONTEXTS:
            if self.spec.context is None or context < self.spec.context:
                try:
                    mib = self.mib(context)
                except Unusable:
                    continue
                if mib < least:
                    found.append((context, mib))
                    least = mib
        return tuple(found)


def memory(
    driver: Driver, spec: ServiceSpec, options: object, args: tuple[str, ...], env: Mapping[str, str]
) -> Memory | None:
    """How this service's memory can be estimated; None when its driver cannot. Raises Unusable, with the reason."""
    if not isinstance(driver, Estimating):
        return None
    try:
        files: Any = driver.model_files(spec, options, args=args, env=env)
        names = tuple(files)
    except Exception as error:
        raise Unusable(f"driver {spec.driver} failed: {type(error).__name__}: {error}") from None
    if not names:
        return None
    models = {name: MODEL_FILES.model(name) for name in names}
    return Memory(driver=driver, spec=spec, options=options, args=args, env=env, models=models)
