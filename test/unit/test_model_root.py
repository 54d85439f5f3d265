"""Which folders a request for a model can name."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnn_perception.net.checks import ModelError
from bnn_perception.resources import find_model
from bnn_perception.ros.model_root import model_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a model, links that stay inside and leave it, and a neighbour whose name begins as the root's."""
    for folder in ("root/signs", "root/deep/er", "root-other", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "root" / "alias").symlink_to("signs")
    (tmp_path / "root" / "exit").symlink_to(tmp_path / "outside")
    return tmp_path / "root"


@pytest.mark.parametrize("name", ["signs", "deep/er", "deep/../signs", "alias", "./signs", "missing"])
def test_what_lies_inside_can_be_named(root: Path, name: str) -> None:
    expected = (root / name).resolve()
    assert model_folder(name, str(root)) == expected
    assert model_folder(str(root / name), str(root)) == expected
    assert model_folder(name, f"{root}/../root/") == expected


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../outside",
        "../root-other",
        "exit",
        "signs/../../outside",
        "/",
        "/etc",
        "~",
        "~nosuchuser/x/..",
    ],
)
def test_what_lies_outside_is_refused(root: Path, name: str) -> None:
    if name == "~nosuchuser/x/..":  # no user: a folder of that name, inside
        assert model_folder(name, str(root)) == root / "~nosuchuser"
        return
    with pytest.raises(ModelError, match=f"model '.*' does not lie in model_root, {root}$"):
        model_folder(name, str(root))


def test_a_path_from_elsewhere_is_refused_whatever_it_holds(root: Path) -> None:
    with pytest.raises(ModelError, match="does not lie in model_root"):
        model_folder(str(find_model("road_signs")), str(root))


def test_models_of_the_package_can_be_named_but_those_of_the_root_come_first(root: Path) -> None:
    assert model_folder("road_signs", str(root)) == find_model("road_signs")
    (root / "road_signs").mkdir()
    assert model_folder("road_signs", str(root)) == root / "road_signs"


def test_without_a_root_anything_can_be_named(root: Path) -> None:
    assert model_folder(str(root / "exit"), "") == root / "exit"
    assert model_folder("road_signs", "") == find_model("road_signs")


def test_the_working_folder_is_no_way_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a root a name is looked for there first."""
    (root.parent / "outside" / "mine").mkdir()
    monkeypatch.chdir(root.parent / "outside")
    assert model_folder("mine", "") == Path("mine")
    assert model_folder("mine", str(root)) == root / "mine"  # which is not there, as reading it says
