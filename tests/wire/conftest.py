"""A busy machine is no finding: examples have no deadline of their own."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
