"""One foreign system per module, each behind a port; adapters know nothing of each other."""
