"""The pure core: facts and wishes in, decisions out. No clock, no I/O, no third-party import."""
