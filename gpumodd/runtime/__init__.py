"""The shell around the core: the loop that owns the engine, the dispatcher of effects, and the watchers."""
