"""Old module paths answer, through one table, with a warning that names the new one."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest

import lora_c
from lora_c import _moved

PACKAGE = Path(lora_c.__file__).parent


@pytest.mark.parametrize("old", sorted(_moved._MOVED))
def test_an_old_path_gives_the_module_of_the_new_one(old: str) -> None:
    new = import_module(f"lora_c.{_moved._MOVED[old]}")
    spec = new.__spec__
    sys.modules.pop(f"lora_c.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"lora_c\.{old} is now lora_c\.{_moved._MOVED[old]};") as told:
        assert import_module(f"lora_c.{old}") is new
    assert new.__spec__ is spec and spec is not None and new.__loader__ is spec.loader
    assert new.__name__ == f"lora_c.{_moved._MOVED[old]}"
    assert len(told) == 1
    assert attrgetter(old)(lora_c) is new or old in lora_c.__all__


@pytest.mark.parametrize("old", sorted(_moved._MOVED))
def test_no_file_stands_at_an_old_path(old: str) -> None:
    assert not (PACKAGE / f"{old.replace('.', '/')}.py").exists() and not (PACKAGE / old).is_dir()


OLD_NAMES = [(package, name, new) for package, names in _moved._MOVED_NAMES.items() for name, new in names.items()]


@pytest.mark.parametrize(("package", "name", "new"), OLD_NAMES)
def test_a_package_has_the_names_of_the_module_that_it_was(package: str, name: str, new: str) -> None:
    module = import_module(f"lora_c.{package}")
    with pytest.warns(DeprecationWarning, match=rf"lora_c\.{package}\.{name} is now") as told:
        found = getattr(module, name)
    assert found is getattr(import_module(f"lora_c.{new}"), name)
    assert Path(told[0].filename) == Path(__file__)
    with pytest.raises(AttributeError, match=f"'lora_c.{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_the_warning_names_the_line_of_the_import(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("import lora_c\n\nfrom lora_c.trainer import Trainer\nassert Trainer is lora_c.Trainer\n")
    done = subprocess.run([sys.executable, "-W", "always", "old.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "old.py:3: DeprecationWarning: lora_c.trainer is now lora_c.training.trainer" in done.stderr


def test_an_attribute_of_the_package_names_the_line_that_reads_it() -> None:
    sys.modules.pop("lora_c.leaving", None)
    vars(lora_c).pop("leaving", None)
    with pytest.warns(DeprecationWarning, match="lora_c.leaving is now lora_c.training.leaving") as told:
        assert lora_c.leaving is import_module("lora_c.training.leaving")
    assert [Path(warning.filename) for warning in told] == [Path(__file__)]


def test_what_never_was_is_not_found() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModuleNotFoundError, match="lora_c.trainers"):
            import_module("lora_c.trainers")


def test_at_most_twelve_files_stand_directly_below_the_package() -> None:
    files = [path.name for path in PACKAGE.iterdir() if path.is_file() and not path.name.startswith("_core.cpython")]
    assert len(files) <= 12, sorted(files)
