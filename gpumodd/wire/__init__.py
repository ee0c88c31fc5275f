"""The wire: what the daemon and its clients say to each other. A leaf: stdlib and msgspec only, no I/O."""
