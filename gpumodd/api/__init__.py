"""The JSON-RPC server on the daemon's Unix socket."""
