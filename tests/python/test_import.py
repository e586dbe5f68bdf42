"""`import lora_c` loads NumPy and the extension only; the rest comes when it is asked for."""

import json
import subprocess
import sys

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


def test_help_and_version_need_neither_numpy_nor_the_extension():
    code = """
import sys
from lora_c.cli import main
for words in ("--help", "--version"):
    sys.argv[1:] = [words]
    try:
        main()
    except SystemExit as error:
        assert not error.code
heavy = {"numpy", "lora_c._core"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
