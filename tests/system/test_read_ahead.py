"""While a service drains, the model that comes after it is brought into the page cache."""

import os
import sys
from pathlib import Path

from tests.support.daemon import Daemon, free_port, until
from tests.support.page_cache import cached, make_cold


def test_a_model_is_read_while_its_memory_is_still_on_the_way_back(tmp_path: Path):
    d = Daemon(tmp_path / "d")
    server = [sys.executable, "-m", "gpumodd.demo.model_server", "--table", str(d.table.path), "--vram-mib", "20000"]
    d.settings["drivers"] = {"llamacpp": {"command": server}}
    d.service("old", 20000, "--term-s", "3")
    model = tmp_path / "new.gguf"
    model.write_bytes(os.urandom(1 << 20) * 24)
    d.write(
        "services/new.yaml",
        {"id": "new", "driver": "llamacpp", "model": str(model), "port": free_port(), "vram_mib": 20000},
    )
    d.mode("old", "old")
    d.mode("new", "new")
    with d:
        d.switch("old")
        make_cold(model)
        operation = d.rpc("mode.switch", id="new")
        until(lambda: cached(model) > 0.95, why="the model is not read ahead")
        assert d.phases() == {"old": "stopping", "new": "stopped"}  # so nobody but the daemon can have read it
        assert d.rpc("operation.wait", id=operation["id"])["state"] == "succeeded"
        assert "read_ahead" in d.log
        d.switch("blank")
