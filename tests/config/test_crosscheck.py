"""Rules between files."""

import pytest


def test_unknown_services(tree):
    tree.service("vllm-chat").service("b", depends_on="[vllm-chta]").mode("m", "vllm-chat", "nobody")
    assert tree.errors() == [
        'modes/m.yaml:2:23: services[1]: cannot find the service "nobody" (known: b, vllm-chat)',
        'services/b.yaml:5:14: depends_on[0]: cannot find the service "vllm-chta" (did you mean vllm-chat?)',
    ]


def test_a_broken_service_is_still_known(tree):
    tree.write("services/bad.yaml", "[").service("a", depends_on="[bad]").mode("m", "bad")
    assert [line.split(":")[0] for line in tree.errors()] == ["services/bad.yaml"]


def test_a_service_twice(tree):
    tree.service("a").service("b", depends_on="[a, a]").mode("m", "a", "b", "a")
    assert tree.errors() == [
        'modes/m.yaml:2:18: services[2]: the service "a" is named twice',
        'services/b.yaml:5:17: depends_on[1]: the service "a" is named twice',
    ]


def test_blank_has_no_services(tree):
    tree.service("a").mode("blank", "a")
    assert tree.errors() == [
        "modes/blank.yaml:2:11: services: the mode blank cannot have services:"
        " it is the one that stops everything (give it another id)"
    ]
    assert tree.load().catalog.modes["blank"].services == ()


def test_blank_may_have_words_of_its_own(tree):
    tree.write("modes/blank.yaml", "id: blank\nname: Off\ndescription: d\n")
    blank = tree.load().catalog.modes["blank"]
    assert (blank.name, blank.description, blank.services) == ("Off", "d", ())


class TestCircles:
    """Circles of dependencies, each named whole and once."""

    def test_of_one(self, tree):
        tree.service("a", depends_on="[a]")
        assert tree.errors() == [
            "services/a.yaml:5:14: depends_on[0]: cannot start any of these first: a -> a (break the circle)"
        ]

    def test_of_three(self, tree):
        tree.service("b", depends_on="[x, c]").service("c", depends_on="[a]").service("a", depends_on="[b]").service(
            "x"
        )
        assert tree.errors() == [
            "services/a.yaml:5:14: depends_on[0]: cannot start any of these first: a -> b -> c -> a (break the circle)"
        ]

    def test_two_circles(self, tree):
        for one, other in (("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")):
            tree.service(one, depends_on=f"[{other}]")
        assert [line.split("first: ")[1] for line in tree.errors()] == [
            "a -> b -> a (break the circle)",
            "c -> d -> c (break the circle)",
        ]

    def test_a_diamond_is_none(self, tree):
        tree.service("a", depends_on="[b, c]").service("b", depends_on="[d]").service("c", depends_on="[d]").service(
            "d"
        )
        assert tree.errors() == []

    def test_a_long_chain_is_none(self, tree):
        for number in range(900):
            tree.service(f"s{number}", **({"depends_on": f"[s{number - 1}]"} if number else {}))
        assert tree.errors() == []


class TestAliases:
    """An alias is a name: nothing else has it."""

    @pytest.mark.parametrize("first", ["[b]", "[x]"])
    def test_taken(self, tree, first):
        tree.service("a", aliases=first).service("b", aliases="[x]")
        assert len(tree.errors()) == 1
        assert "cannot use the alias" in tree.errors()[0]

    def test_ones_own_id_and_twice(self, tree):
        tree.service("a", aliases="[a, x, x]")
        assert [line.split(": cannot")[0] for line in tree.errors()] == [
            "services/a.yaml:5:11: aliases[0]",
            "services/a.yaml:5:17: aliases[2]",
        ]

    def test_a_models_name_may_be_one(self, tree):
        assert tree.service("a", aliases="[meta-llama/Llama-3.1-8B]").errors() == []


class TestPorts:
    """One address, one server, as far as they can run together."""

    CLASH = "services/b.yaml:5:7: port: cannot use port 80: a has it and can run at the same time"

    def test_in_no_common_mode(self, tree):
        assert tree.service("a", port="80").service("b", port="80").mode("m", "a").mode("n", "b").errors() == []

    def test_in_one_mode(self, tree):
        tree.service("a", port="80").service("b", port="80").mode("m", "b", "a").mode("n", "a", "b")
        assert tree.errors() == [self.CLASH]

    def test_through_a_dependency(self, tree):
        tree.service("a", port="80").service("b", port="80").service("c", depends_on="[a]").mode("m", "b", "c")
        assert tree.errors() == [self.CLASH]

    def test_of_a_dependency_itself(self, tree):
        assert tree.service("a", port="80").service("b", port="80", depends_on="[a]").errors() == [self.CLASH]

    def test_with_a_pinned_service(self, tree):
        assert tree.service("a", port="80", pinned="true").service("b", port="80").errors() == [self.CLASH]

    @pytest.mark.parametrize(
        "one, other, clash",
        [
            ("127.0.0.1", "127.0.0.2", False),
            ("127.0.0.1", "localhost", True),
            ("127.0.0.1", "0.0.0.0", True),
            ("'::'", "127.0.0.1", True),
            ("Host", "host", True),
        ],
    )
    def test_addresses(self, tree, one, other, clash):
        tree.service("a", port="80", host=one).service("b", port="80", host=other).mode("m", "a", "b")
        assert bool(tree.errors()) is clash


def test_what_is_not_built_is_said(tree):
    tree.service("a", sleep="l1", on_leave="sleep", idle="{after_s: 9}").service("b")
    assert tree.warnings() == [
        "services/a.yaml:5:8: sleep: warning: nothing sleeps in this version: sleep, on_leave, idle has no effect"
    ]
