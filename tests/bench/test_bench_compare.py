"""What bench/compare.py stands on: children that measure the tree they are given, and checkouts that go again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from results import ROOT
from short_form import MEASUREMENTS
from texts import first_texts
from trees import INSTALLED, Tree, build_settings, git, measuring, worktree


def test_every_short_measurement_runs_on_this_tree(tmp_path: Path) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(first_texts(50)), "utf-8")
    with measuring(Tree(ROOT, INSTALLED, tmp_path / "folder"), texts) as child:
        child.check()
        for name in MEASUREMENTS:
            seconds = child.seconds(name)
            assert isinstance(seconds, float), f"{name}: {seconds}"
            assert 0 < seconds < 60


def test_a_child_imports_the_tree_it_is_given_and_says_what_it_cannot_measure(tmp_path: Path) -> None:
    package = tmp_path / "tree" / "fletcher_core"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('noise on standard output')\n")
    (tmp_path / "texts.json").write_text('["one text"]')
    with measuring(Tree(tmp_path / "tree", INSTALLED, tmp_path / "folder"), tmp_path / "texts.json") as child:
        child.check()
        assert "Embedder" in str(child.seconds("engine"))


def test_a_child_that_imports_another_tree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text("[]")
    (tmp_path / "fletcher_core").mkdir()
    elsewhere = Tree(tmp_path / "fletcher_core", INSTALLED, tmp_path / "folder")
    with (
        measuring(elsewhere, tmp_path / "texts.json") as child,
        pytest.raises(RuntimeError, match=r"cannot be measured|was imported"),
    ):
        child.check()


def test_a_dead_child_is_an_error_and_no_hang(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text("no JSON")
    with measuring(Tree(ROOT, INSTALLED, tmp_path / "folder"), tmp_path / "texts.json") as child:
        child.check()
        assert child.seconds("engine") == "its process ended with 1"


def in_clone() -> bool:
    return git("rev-parse", "--verify", "HEAD", check=False).returncode == 0


@pytest.mark.skipif(not in_clone(), reason="not a git clone")
def test_a_checkout_goes_again_also_after_a_failure(tmp_path: Path) -> None:
    def fail_within() -> None:
        with worktree("HEAD", tmp_path / "base") as tree:
            assert build_settings(tree)
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    assert not (tmp_path / "base").exists()
    assert str(tmp_path) not in git("worktree", "list").stdout


@pytest.mark.skipif(not in_clone(), reason="not a git clone")
def test_a_missing_commit_is_said_and_fails_nothing() -> None:
    command = [sys.executable, str(ROOT / "bench" / "compare.py"), "--base", "no-such-commit"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nothing to compare with" in finished.stdout
