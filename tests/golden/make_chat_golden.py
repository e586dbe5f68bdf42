"""Make chat_golden.json: conversations as transformers' apply_chat_template renders and tokenizes them.

Needs transformers and torch (not needed by the tests themselves), and the templates and tokenizers beside the project:
python tests/golden/make_chat_golden.py [folder of data]

Keys: `conversations` (name -> messages and tools), `text` (template -> case -> text, or null where the template refuses),
`ids` (tokenizer -> template -> case -> token ids of that text), `templates` (our own, which use the whole dialect) and `masks`
(case -> token ids, and which of them {% generation %} marks). A case is a conversation's name, with +prompt where the
generation prompt is added.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import transformers

ROOT = Path(__file__).resolve().parents[2]
DATE = "26 Jul 2024"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place, in °C & more.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "id": "abc123xyz", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "single": {"messages": [message("user", "Hi <there> & 'you'")]},
    "answered": {"messages": [message("user", "  2 + 2?\n"), message("assistant", " 4 \n")]},
    "several": {
        "messages": [
            message("user", "Grüße, 日本 🦙"), message("assistant", "Hallo"), message("user", "more"),
            message("assistant", "ok"),
        ]
    },
    "system": {"messages": [message("system", "Be brief."), message("user", "Why?"), message("assistant", "Because.")]},
    "system_last_user": {
        "messages": [message("system", "Be brief."), message("user", "a"), message("assistant", "b"), message("user", "c")]
    },
    "tools": {
        "messages": [
            message("user", "Weather in Zürich?"), message("assistant", None, tool_calls=[CALL]),
            message("tool", '{"degrees": 21}', tool_call_id="abc123xyz"), message("assistant", "21 degrees."),
        ],
        "tools": [TOOL],
    },
    "tools_with_system": {"messages": [message("system", "Use tools."), message("user", "Weather?")], "tools": [TOOL]},
    "two_users": {"messages": [message("user", "a"), message("user", "b")]},
    "reasoning": {
        "messages": [
            message("user", "a"), message("assistant", "b", reasoning="think"), message("user", "c"),
            message("assistant", "d", thinking="again"),
        ]
    },
}  # fmt: skip
OWN_TEMPLATES = {
    "marked": (
        "{%- for m in messages -%}\n<|{{ m.role }}|>\n{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}<end>"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{%- endfor -%}\n"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "reasons": (
        "{% for m in messages %}\n  {%- if m.role == 'assistant' and m.reasoning_content is defined and loop.last %}\n"
        "<think>{{ m.thinking }}|{{ m.reasoning_content }}</think>\n  {% endif %}\n{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "dialect": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% if m.content is none %}{% continue %}"
        "{% endif %}"
        "{{ m.content | default('-') | upper }}{% endfor %}{{ ns.n }}{{ tools is none }}{{ documents is none }}"
        "{{ dict(a=1).a }}{{ bos_token }}{{ pad_token }}{{ missing }}{{ [1, 2] | length }}\n"
    ),
}


def render(peer: Any, template: str, case: str, **options: Any) -> Any:
    conversation = CONVERSATIONS[case.removesuffix("+prompt")]
    options |= {"add_generation_prompt": case.endswith("+prompt"), "tools": conversation.get("tools"), "date_string": DATE}
    try:
        return peer.apply_chat_template(conversation["messages"], chat_template=template, **options)
    except Exception as error:
        print(f"  refused {case}: {str(error)[:70]}")
        return None


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data"
    templates = {path.stem: path.read_text(encoding="utf-8") for path in sorted((data / "chat_templates").glob("*.jinja"))}
    templates |= OWN_TEMPLATES
    folders = [ROOT / "python/lora_c/base_model", data / "stories260K_hf"]
    peers = {folder.name: transformers.AutoTokenizer.from_pretrained(folder) for folder in folders}
    cases = [name + end for name in CONVERSATIONS for end in ("", "+prompt")]
    record: dict[str, Any] = {"conversations": CONVERSATIONS, "templates": OWN_TEMPLATES, "text": {}, "ids": {}, "masks": {}}
    some = peers["stories260K_hf"]
    for name, template in templates.items():
        print(name)
        record["text"][name] = {case: render(some, template, case, tokenize=False) for case in cases}
        for peer_name, peer in peers.items():
            ids = {case: render(peer, template, case, return_dict=False) for case in ("answered", "several", "system+prompt")}
            record["ids"].setdefault(peer_name, {})[name] = ids
    for case in ("answered", "several", "system"):
        got = render(some, OWN_TEMPLATES["marked"], case, return_dict=True, return_assistant_tokens_mask=True)
        record["masks"][case] = {"ids": got["input_ids"], "mask": got["assistant_masks"]}
    path = Path(__file__).with_name("chat_golden.json")
    path.write_text(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
