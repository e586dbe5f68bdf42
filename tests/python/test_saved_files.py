"""A save replaces the files that the save before it wrote, and nothing else; what it copies is the model's own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lora_c.configs import LoraConfig
from lora_c.errors import SaveError
from lora_c.files.aside import name_aside
from lora_c.files.atomic import atomic_file, atomic_folder, recover_folder, write_json, write_text
from lora_c.model.opening import load_model
from lora_c.notices import LoraCWarning

IDS = np.arange(3, 20, dtype=np.int32)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_files_of_the_user_stay_whatever_they_are_called(tiny_model_dir: Path, tmp_path: Path) -> None:
    names = (
        "model_before.safetensors", "model-ema.safetensors", "model-00001-of-00009.safetensors", "model.safetensors.bak",
        "pytorch_model.bin", "adapter_model.bin", "base_model/config.json", "checkpoint-7/notes.txt", "merges.txt",
        "vocab.json",
    )  # fmt: skip
    out = tmp_path / "out"
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    model = load_model(tiny_model_dir)
    with pytest.warns(LoraCWarning, match="vocab.json, merges.txt|merges.txt, vocab.json"):
        model.save(out)
    with pytest.warns(LoraCWarning):
        model.save(out, max_shard_bytes=20_000)
    model.add_adapter(r=2)
    model.save_adapter(out)
    model.save_adapter(out)
    assert {name for name in names if (out / name).read_text() != "mine"} == set()


def test_the_weights_of_the_save_before_go_away(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tiny_model_dir / "chat_template.jinja").write_text("{{ messages }}")
    model = load_model(tiny_model_dir)
    model.save(out, max_shard_bytes=20_000)
    assert len(list(out.glob("model-*.safetensors"))) > 1 and (out / "chat_template.jinja").exists()
    (tiny_model_dir / "chat_template.jinja").unlink()
    with pytest.warns(LoraCWarning, match="chat_template.jinja was there before and is kept: remove it"):
        load_model(tiny_model_dir).save(out)
    (out / "chat_template.jinja").unlink()
    fresh = tmp_path / "fresh"
    load_model(tiny_model_dir).save(fresh)
    assert contents(out) == contents(fresh)
    model.save(out, max_shard_bytes=20_000)
    assert not (out / "model.safetensors").exists()  # it would be read instead of the shards
    np.testing.assert_array_equal(load_model(out).decoder.logits(IDS), model.decoder.logits(IDS))


def test_the_shards_of_another_program_are_known_by_its_index(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model-00001-of-00001.safetensors", "model-00002-of-00002.safetensors"):
        shutil.copy(tiny_model_dir / "model.safetensors", out / name)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors", "x": "../../away.safetensors", "y": 3}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "away.safetensors").write_text("mine")
    load_model(tiny_model_dir).save(out)
    assert sorted(p.name for p in out.glob("model*")) == ["model-00002-of-00002.safetensors", "model.safetensors"]
    assert (tmp_path / "away.safetensors").read_text() == "mine"


def test_a_base_that_an_adapter_brought_goes_with_it_and_a_model_of_that_name_stays(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    loftq = load_model(tiny_model_dir, quantize="nf4")
    loftq.add_adapter(LoraConfig(r=2, init_lora_weights="loftq"))
    loftq.save_adapter(tmp_path / "out")
    (tmp_path / "out/base_model/notes.txt").write_text("mine")
    again = load_model(tiny_model_dir, quantize="nf4")
    again.load_adapter(tmp_path / "out")
    assert np.array_equal(again.decoder.logits(IDS), loftq.decoder.logits(IDS))
    plain = load_model(tiny_model_dir)
    plain.add_adapter(r=2)
    plain.save_adapter(tmp_path / "out")
    assert list(contents(tmp_path / "out/base_model").values()) == [b"mine"]

    shutil.copytree(tiny_model_dir, tmp_path / "work/base_model")
    before = contents(tmp_path / "work/base_model")
    for _ in range(2):
        plain.save_adapter(tmp_path / "work")
    with pytest.raises(SaveError, match="got a model that no adapter wrote"):
        loftq.save_adapter(tmp_path / "work")
    assert contents(tmp_path / "work/base_model") == before


def test_adapters_of_two_formats_do_not_share_a_folder(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_dir)
    model.add_adapter(r=2, target_modules="all-linear")
    for first, second in (("peft", "mlx"), ("mlx", "peft")):
        model.save_adapter(tmp_path / first, format=first)  # type: ignore[arg-type]
        before = contents(tmp_path / first)
        with pytest.raises(SaveError, match="expected a folder without an adapter of"):
            model.save_adapter(tmp_path / first, format=second)  # type: ignore[arg-type]
        assert contents(tmp_path / first) == before


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_changes(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out/config.json").mkdir(parents=True)
    with pytest.raises(SaveError, match="out/config.json: expected a file or a free name, got a folder"):
        load_model(tiny_model_dir).save(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["config.json"] and sorted(os.listdir(tmp_path)) == ["model", "out"]


@pytest.mark.parametrize("why", ["working directory", "inside it", "mount", "parent"])
def test_a_folder_that_cannot_be_exchanged_is_filled_where_it_is(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    model = load_model(tiny_model_dir)
    if why in ("working directory", "inside it"):
        monkeypatch.chdir(out if why == "working directory" else out / "sub")
    elif why == "mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    before = out.stat().st_ino
    model.save(out, max_shard_bytes=20_000)
    model.save("." if why == "working directory" else out, dtype="bfloat16")
    model.add_adapter(LoraConfig(r=2, init_lora_weights="loftq"))
    model.save_adapter(out)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(out / "base_model")
    monkeypatch.undo()
    assert out.stat().st_ino == before and (out / "notes.txt").read_text() == "mine"
    assert not list(out.glob(".*")) and len(list(out.glob("model*"))) == 1
    with pytest.warns(LoraCWarning, match="an adapter lies beside the model's weights"):
        assert load_model(out).weights["lm_head"].dtype.name == "bfloat16"


def test_a_kill_while_a_folder_is_filled_where_it_is_is_finished_by_the_next_reader(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "out", load_model(tiny_model_dir)
    model.save(out, max_shard_bytes=20_000)
    real, moved = os.replace, []

    def killed(source: Path, target: Path) -> None:
        moved.append(target)
        if len(moved) == 2:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.chdir(out)
        patch.setattr(os, "replace", killed)
        model.save(out, dtype="bfloat16")
    assert len(list(out.glob(".in-place.*.ready"))) == 1
    load_model(out)
    model.save(tmp_path / "whole", dtype="bfloat16")
    assert contents(out) == contents(tmp_path / "whole")


def test_only_names_of_unfinished_saves_are_removed_or_moved_back(tmp_path: Path) -> None:
    mine = [".out.0123abcd.part", ".out.part", ".out.previous", ".out.lora-c-0123abcd.part.txt"]
    for name in mine:
        (tmp_path / name).mkdir()
    stale = name_aside(tmp_path / "out", "part")
    stale.write_text("half")
    recover_folder(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == sorted(mine)


def test_a_name_of_any_length_can_be_saved(tmp_path: Path) -> None:
    name = "ä" * 125 + "12345"  # 255 bytes
    write_text(tmp_path / name, "text")
    with atomic_folder(tmp_path / name[:-1]) as folder:
        (folder / "a").write_text("b")
    with pytest.raises(SaveError, match="a name that the file system can hold, got File name too long"):
        write_text(tmp_path / (name + "6"), "text")
    assert (tmp_path / name).read_text() == "text" and len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "loop":
            place.symlink_to("place")
        case "device":
            place.symlink_to("/dev/null")
    before = os.lstat(place)
    with pytest.raises(SaveError, match=r"place: expected .*, got .*choose another name"), atomic_file(place):
        pass
    assert os.lstat(place) == before and os.listdir(tmp_path) == ["place"]


def test_links_that_lead_out_of_the_model_are_left_out(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("SECRET")
    (tmp_path / "secret.json").write_text('{"token": "SECRET"}')
    for name, to in (("merges.txt", "secret"), ("vocab.json", "secret.json"), ("tokenizer.model", "secret")):
        (tiny_model_dir / name).symlink_to(tmp_path / to)
    model = load_model(tiny_model_dir)
    (tiny_model_dir / "added_tokens.json").write_text("SECRET")
    with pytest.warns(LoraCWarning) as told:
        model.save(tmp_path / "out")
    assert sum("left out" in str(w.message) for w in told) == 4
    assert not any(b"SECRET" in data for data in contents(tmp_path / "out").values())


def test_a_tokenizer_behind_a_link_is_written_from_what_was_loaded(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(tiny_model_dir / name, tmp_path / name)
        (tiny_model_dir / name).symlink_to(tmp_path / name)
        model = load_model(tiny_model_dir)
        with pytest.warns(LoraCWarning, match=f"{name}: left out"):
            model.save(tmp_path / "out")
        again = load_model(tmp_path / "out").tokenizer
        assert again.backend.to_str() == model.tokenizer.backend.to_str()
        assert again.special_tokens == model.tokenizer.special_tokens and again.eos_token_id == 2
        (tiny_model_dir / name).unlink()
        shutil.move(tmp_path / name, tiny_model_dir / name)


def test_a_snapshot_of_a_hugging_face_cache_is_saved_with_all_its_files(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tiny_model_dir / "chat_template.jinja").write_text("{{ messages }}")
    (tiny_model_dir / "merges.txt").write_text("#version: 0.2\na b\nĠ t\n", encoding="utf-8")
    (tiny_model_dir / "additional_chat_templates").mkdir()
    (tiny_model_dir / "additional_chat_templates/tool_use.jinja").write_text("{{ tools }}")
    snapshot, blobs = tmp_path / "hub/models--a--b/snapshots/1234", tmp_path / "hub/models--a--b/blobs"
    blobs.mkdir(parents=True)
    for i, file in enumerate(sorted(p for p in tiny_model_dir.rglob("*") if p.is_file())):
        shutil.copy(file, blobs / f"{i:040x}")
        link = snapshot / file.relative_to(tiny_model_dir)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / f"{i:040x}", link.parent))
    load_model(snapshot).save(tmp_path / "from_cache")
    load_model(tiny_model_dir).save(tmp_path / "from_folder")
    assert contents(tmp_path / "from_cache") == contents(tmp_path / "from_folder")
    assert "merges.txt" in contents(tmp_path / "from_cache")


def test_a_save_inside_of_a_save_leaves_nothing_of_its_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_dir)
    model.add_adapter(LoraConfig(r=2, init_lora_weights="loftq"))
    with atomic_folder(tmp_path / "out") as folder:
        model.save_adapter(folder)
        assert {path.name for path in tmp_path.iterdir()} == {"model", folder.name}  # all that a kill could leave here
        assert not list(folder.rglob(".*"))
    model.save_adapter(tmp_path / "plain")
    written = contents(tmp_path / "out")
    assert written.keys() == contents(tmp_path / "plain").keys() and "base_model/config.json" in written
    assert json.loads(written["adapter_config.json"])["base_model_name_or_path"] == str(tmp_path / "out/base_model")


def test_a_kill_while_a_finished_save_is_tidied_leaves_nothing_for_ever(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "out", load_model(tiny_model_dir)
    out.mkdir()
    monkeypatch.chdir(out)

    def killed(folder: Path, **options: object) -> None:
        (Path(folder) / ".dropped.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_c.files.in_place.shutil.rmtree", killed)
        model.save(".")
    assert len(list(out.glob(".*"))) == 1
    model.save(".")
    assert not list(out.glob(".*"))


def test_an_adapter_that_stays_beside_a_model_is_told(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_dir)
    model.add_adapter(LoraConfig(r=2))
    model.save_adapter(tmp_path / "out")
    with pytest.warns(LoraCWarning, match=r"adapter_config\.json was there before and is kept"):
        load_model(tiny_model_dir).save(tmp_path / "out")
    assert (tmp_path / "out/adapter_model.safetensors").is_file()


def test_json_is_written_for_people(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": ["ü", None]})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "b": 1,\n  "a": [\n    "ü",\n    null\n  ]\n}\n'.encode()
