"""`import lora_c` loads NumPy and the extension only; the rest comes when it is asked for."""

import json
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

CODE = """
import json, sys
import lora_c
lora_c.NF4Tensor, lora_c.LoRALinear, lora_c.AdamW, lora_c.ops, lora_c.reference
top = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(top - set(sys.stdlib_module_names))))
"""


def test_import_loads_numpy_and_the_extension_only():
    # -S: without the import hooks of editable installs and other packages' .pth files
    paths = [p for p in sys.path if p] + [str(__import__("lora_c").__path__[0]) + "/.."]
    code = f"import sys; sys.path[:0] = {paths!r}\n" + CODE
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    third_party = [name for name in json.loads(done.stdout) if not name.startswith("_")]
    assert set(third_party) <= {"numpy", "lora_c"}, third_party


def test_no_module_of_the_package_needs_torch():
    blocked = "import sys; sys.modules['torch'] = None\n"
    modules = "lora_c.model.opening, lora_c.training.trainer, "
    modules += "lora_c.cli, lora_c.data, lora_c.generation.answers, lora_c.adapters, lora_c.model.merge"
    subprocess.run([sys.executable, "-c", f"{blocked}import {modules}"], check=True)


# What each command line loads of others than Python itself: all of it, so that what comes to it is seen here.
LOADED = {
    "--version": {"click"},
    "--help": {"click"},
    "train --help": {"click", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"},
}


@pytest.mark.parametrize("words", LOADED)
def test_a_command_line_loads_what_it_needs_and_no_more(words: str) -> None:
    code = f"""
import json, sys
from lora_c.cli import main
sys.argv[1:] = {words.split()!r}
before = set(sys.modules)
try:
    main()
except SystemExit as error:
    assert not error.code
loaded = set(sys.modules) - before
print(json.dumps(sorted({{name.partition(".")[0] for name in loaded}} - set(sys.stdlib_module_names))), file=sys.stderr)
assert "lora_c._core" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = {name for name in json.loads(done.stderr.splitlines()[-1]) if not name.startswith("_")}
    assert found - {"lora_c"} == LOADED[words]


def test_what_is_needed_for_some_things_only_is_no_requirement() -> None:
    """What a plain `pip install` brings; test_chat.py and others run without the rest."""
    brought = {Requirement(text).name for text in metadata.requires("lora-c") or () if "extra ==" not in text}
    assert brought == {
        "numpy", "ml_dtypes", "tokenizers", "huggingface_hub", "jinja2", "rich", "click", "pyyaml", "pydantic", "regex",
    }  # fmt: skip
