"""What the other tests here rely on notices when something is wrong."""

import pytest

from tests.soak import mortal
from tests.soak.stage import RpcFailure, Stage
from tests.soak.test_daemon_killed import recover
from tests.support.daemon import until

pytestmark = pytest.mark.real

OVERCOMMITTED = "more was promised or held than there is"
SHOWS = {
    mortal.starts_wait_for_no_release: (AssertionError, OVERCOMMITTED),
    mortal.memory_is_back_when_the_process_is_gone: (AssertionError, OVERCOMMITTED),
    mortal.nothing_is_written_down: (RpcFailure, "cannot find operation"),
}


def reach(stage: Stage, mode: str) -> None:
    id = stage.switch(mode)
    assert id is not None and stage.ended(id)["state"] == "succeeded", stage.story()


def test_a_start_behind_the_daemons_back_is_seen_by_the_witness(stage: Stage):
    stage.service("guest", 9000)  # fits beside b3 alone, and nowhere beside what `a` takes
    stage.mode("g", "guest")
    with stage.running():
        reach(stage, "g")
        reach(stage, "a")
        stage.account("a")
        stage.box.systemctl("start", "gpumod-guest")
        with pytest.raises(AssertionError, match=OVERCOMMITTED):
            until(lambda: stage.witness.told() is None)  # never: it fails with what it has seen
        stage.box.systemctl("stop", "gpumod-guest")
        until(lambda: "guest" not in stage.cgroups())
        stage.witness.forget()
        with stage.daemon.table.edit() as table:
            table.refusals.clear()


@pytest.mark.long
@pytest.mark.parametrize("mutant", SHOWS)
def test_a_safeguard_that_is_missing_shows(stage: Stage, mutant):
    (stage.root / "mutant").write_text(mutant.__name__)
    what, how = SHOWS[mutant]
    with pytest.raises(what, match=how), stage.running():
        mode = "a"
        reach(stage, mode)
        for target in "baba":
            id = stage.switch(target)
            assert id is not None
            if mutant is mortal.nothing_is_written_down:
                until(lambda: {"releasing", "starting", "loading"} & set(stage.daemon.phases().values()))
                stage.kill()
                mode = recover(stage, mode, target, id)
            else:
                stage.ended(id)
                assert stage.witness is not None
                stage.witness.told()
