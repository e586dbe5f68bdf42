"""Chat templates and training data beside transformers, live: text, token ids and the assistant's mask."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from lora_c.data import samples_from_record
from lora_c.text import chat_template
from lora_c.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT.parent / "shared" / "data" / "chat_templates"
spec = importlib.util.spec_from_file_location("make_chat_golden", ROOT / "tests/golden/make_chat_golden.py")
assert spec is not None and spec.loader is not None
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)
CASES = [name + end for name in golden.CONVERSATIONS for end in ("", "+prompt")]


@pytest.fixture(scope="module")
def peer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(ROOT / "python/lora_c/base_model")


def test_the_golden_file_is_what_this_version_renders(peer) -> None:
    record = json.loads((ROOT / "tests/golden/chat_golden.json").read_text(encoding="utf-8"))
    for name, template in golden.OWN_TEMPLATES.items():
        for case in CASES:
            theirs = golden.render(peer, template, case, tokenize=False)
            ours = record["text"][name][case]  # rendered with another tokenizer's special tokens
            assert (theirs is None) == (ours is None)


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_text_of_every_template(peer, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    variables = peer.special_tokens_map | {"date_string": golden.DATE}
    for case in CASES:
        theirs = golden.render(peer, source, case, tokenize=False)
        conversation = golden.CONVERSATIONS[case.removesuffix("+prompt")]
        if theirs is not None:
            ours = chat_template.render(
                source, conversation["messages"], case.endswith("+prompt"), conversation.get("tools"), variables
            )
            assert ours == theirs, case


def test_loss_mask_is_theirs_where_the_template_marks(peer) -> None:
    tokenizer = Tokenizer.from_folder(ROOT / "python/lora_c/base_model")
    tokenizer.chat_template = golden.OWN_TEMPLATES["marked"]
    for case in ("answered", "several", "system"):
        messages = golden.CONVERSATIONS[case]["messages"]
        theirs = peer.apply_chat_template(
            messages, chat_template=tokenizer.chat_template, return_dict=True, return_assistant_tokens_mask=True
        )
        sample = samples_from_record({"messages": messages}, tokenizer, case)[0]
        assert sample.input_ids.tolist() == theirs["input_ids"]
        assert sample.loss_mask.astype(int).tolist() == theirs["assistant_masks"]
