"""Make conversation_golden.json: token ids and assistant masks of random conversations as transformers has them.

Needs transformers (not needed by the tests themselves), and the templates and the tokenizer beside the project:
python tests/golden/make_conversation_golden.py [folder of data]

The templates are tagged copies: {% generation %} stands around the assistant's answer, its end marker included. The file
holds, per tokenizer and template, one digest per conversation of (ids, mask), or null where the template refuses it.
Conversations, tags, tokenizers and the digest are in random_conversations.py, for this script and for the test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import transformers
from random_conversations import N_CONVERSATIONS, conversation, digest, make_byte_level, tagged

ROOT = Path(__file__).resolve().parents[2]


def golden(peer: Any, template: str, seed: int) -> str | None:
    record = conversation(seed)
    try:
        got = peer.apply_chat_template(
            record["messages"], tools=record.get("tools"), chat_template=template, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
    except Exception:
        return None
    return digest(got["input_ids"], got["assistant_masks"])


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data"
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    peers = {
        "stories260K": transformers.AutoTokenizer.from_pretrained(data / "stories260K_hf"),
        "byte_level": transformers.PreTrainedTokenizerFast(tokenizer_object=make_byte_level(), **special),
    }
    record: dict[str, dict[str, list[str | None]]] = {}
    for peer_name, peer in peers.items():
        for path in sorted((data / "chat_templates").glob("*.jinja")):
            source = tagged(path.stem, path.read_text(encoding="utf-8"))
            digests = [golden(peer, source, seed) for seed in range(N_CONVERSATIONS)]
            record.setdefault(peer_name, {})[path.stem] = digests
            print(peer_name, path.stem, sum(d is None for d in digests), "refused")
    path = Path(__file__).with_name("conversation_golden.json")
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
