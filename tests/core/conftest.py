"""How much the property tests of the core try.

`HYPOTHESIS_PROFILE` chooses: `ci` (the default) is the same every time and fits into a minute; `dev` is quick;
`nightly` goes a hundred times as far and elsewhere each time. Fetched by name, so that no other test is affected.
"""

import os

from hypothesis import HealthCheck, Phase, settings

PROFILES = {  # examples for a pure function, runs of a machine, and how far they stray
    "dev": (200, 30, {"derandomize": True}),
    "ci": (2_000, 300, {"derandomize": True}),
    "nightly": (200_000, 30_000, {"print_blob": True}),
    "mutation": (500, 300, {"derandomize": True, "phases": [Phase.generate]}),  # it is enough to fail
}
PURE, RUNS, HOW = PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "ci")]
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
COMMON = settings(deadline=None, database=None, suppress_health_check=SLOW, **HOW)

settings.register_profile("core-pure", COMMON, max_examples=PURE)
settings.register_profile("core-runs", COMMON, max_examples=RUNS, stateful_step_count=50)
