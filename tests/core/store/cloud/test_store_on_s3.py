"""A store on a real S3 server, from several machines."""

from cloud.conftest import Machine
from store_contents import check_invariants, generation_of, live_texts, write


def test_what_one_machine_commits_another_reads(on: Machine) -> None:
    here = generation_of(on("here"))
    write(here, "p", {"a": "one", "b": "two"})
    write(here, "p", {"a": "three", "b": None})
    there = on("there")
    assert live_texts(generation_of(there)) == {("p", "a"): "three"}
    check_invariants(there)
    write(generation_of(there), "p", {"c": "four"})
    assert live_texts(generation_of(on("a third"))) == {("p", "a"): "three", ("p", "c"): "four"}
