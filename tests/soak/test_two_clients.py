"""Two clients that want different things, over and over."""

import threading
from typing import Any

import pytest

from tests.soak.stage import Stage, chance, pause, rounds
from tests.system.talk import Talk

pytestmark = pytest.mark.real


class Client(threading.Thread):
    """Asks for one mode after the other on one connection and keeps each reply."""

    def __init__(self, stage: Stage, name: str, count: int) -> None:
        super().__init__(name=name)
        self.stage = stage
        self.count = count
        self.replies: list[tuple[str, list[dict[str, Any]]]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            luck = chance(self.name)
            with Talk(self.stage.daemon.socket, patience_s=60) as talk:
                for _ in range(self.count):
                    mode = luck.choice(["a", "b", "c", "blank"])
                    wait = luck.random() < 0.5
                    number = talk.ask("mode.switch", id=mode, wait=wait)
                    reply = talk.reply(number)
                    assert not wait or reply.get("result", {"state": "succeeded"})["state"] == "succeeded", reply
                    talk.call("daemon.hello")  # a second reply to that question would have come by now
                    self.replies.append((mode, [reply, *(m for m in talk._early if m["id"] == number)]))
                    pause(luck.random() * 0.15)
        except BaseException as error:
            self.error = error


def outcome(reply: dict[str, Any]) -> dict[str, Any]:
    """The operation that this reply speaks of."""
    if "result" in reply:
        return dict(reply["result"])
    assert (reply["error"]["code"], reply["error"]["data"]["code"]) == (-32009, "conflict"), reply
    operation: dict[str, Any] = reply["error"]["data"]["details"]["operation"]
    assert operation["state"] == "cancelled"
    return operation


def test_the_newest_wish_wins_and_everyone_gets_one_answer(stage: Stage):
    stage.mode("c", "a1", "b3")
    with stage.running():
        clients = [Client(stage, name, rounds(12, 100)) for name in ("one", "two")]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
            assert client.error is None, client.error
        operations = {op["id"]: op for op in stage.daemon.rpc("operation.list", limit=1000)}
        newest = operations[str(max(map(int, operations)))]
        assert stage.ended(newest["id"])["state"] == "succeeded"
        for client in clients:
            for mode, replies in client.replies:
                assert len(replies) == 1, replies
                told = outcome(replies[0])
                stage.asked.append(told["id"])
                ended = stage.ended(told["id"])
                assert ended["target"] == mode
                assert ended["state"] in ("succeeded", "cancelled")
                assert told["state"] in ("running", ended["state"]), "what was told stays true"
        seen = stage.account(newest["target"])
        ends = [stage.ended(id)["state"] for id in operations]
        print(f"{len(operations)} operations, {ends.count('cancelled')} superseded, {len(seen['runs'])} runs")
