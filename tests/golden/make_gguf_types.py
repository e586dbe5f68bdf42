"""Make gguf_types.json: number, name, values and bytes of a block of every type of tensor that the gguf package knows, and
the numbers of the types of metadata.

Needs the gguf package (not needed by the tests themselves): python tests/golden/make_gguf_types.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import gguf

rows = [[kind.value, kind.name, *gguf.GGML_QUANT_SIZES[kind]] for kind in gguf.GGMLQuantizationType]
lines = ",\n".join(f"  {json.dumps(row)}" for row in sorted(rows))
kinds = json.dumps({kind.name: kind.value for kind in gguf.GGUFValueType})
text = f'{{"made_with": "gguf {version("gguf")}", "kinds": {kinds}, "types": [\n{lines}\n]}}\n'
Path(__file__).with_name("gguf_types.json").write_text(text, encoding="utf-8")
