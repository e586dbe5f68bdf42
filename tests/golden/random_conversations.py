"""Random conversations, tagged copies of real chat templates, and a byte-level tokenizer with their special tokens.

Used by the tests and by tests/golden/make_conversation_golden.py, which has transformers render the same; it needs neither
lora_c nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

N_CONVERSATIONS = 500
SPECIAL = [
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|eot_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
]  # fmt: skip
_WORDS = [
    "yes",
    "no",
    "Zürich",
    "日本",
    "🦙🦙",
    "2 + 2 = 4",
    "don't",
    "a\nb",
    "  spaced  ",
    "<b>",
    "{x}",
    "naïve",
    "end.",
    "\t",
]
_TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"The {name} of °C & more", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
    for name in ("get_weather", "get_time")
]  # fmt: skip
_TAGS = {  # (what stands in the template, the same with tags), in turn
    "Qwen-Qwen2.5-7B-Instruct": [
        ('{%- if (message.role == "user") or (message.role == "system" and not loop.first) or '
         '(message.role == "assistant" and not message.tool_calls) %}',
         '{%- if message.role == "assistant" and not message.tool_calls %}\n'
         "        {{- '<|im_start|>assistant\\n' }}{% generation %}{{- message.content + '<|im_end|>' + '\\n' }}"
         "{% endgeneration %}\n"
         '    {%- elif (message.role == "user") or (message.role == "system" and not loop.first) %}'),
        ("""        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
""", """        {{- '<|im_start|>' + message.role + '\\n' }}{% generation %}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if message.content or not loop.first %}{{- '\\n' }}{%- endif %}
"""),
        ("""{{- '\\n<tool_call>\\n{"name": "' }}""", """{{- '<tool_call>\\n{"name": "' }}"""),
        ("""        {%- endfor %}
        {{- '<|im_end|>\\n' }}
""", """        {%- endfor %}
        {{- '<|im_end|>\\n' }}{% endgeneration %}
"""),
    ],
    "google-gemma-2-2b-it": [
        ("{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}",
         "{{ '<start_of_turn>' + role + '\n' }}{% if role == 'model' %}{% generation %}"
         "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endgeneration %}{% else %}"
         "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endif %}"),
    ],
    "meta-llama-Llama-3.2-3B-Instruct": [
        ("        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
         "message['content'] | trim + '<|eot_id|>' }}",
         "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
         "        {%- if message.role == 'assistant' %}{% generation %}{{- message['content'] | trim + '<|eot_id|>' }}"
         "{% endgeneration %}{%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}"),
        ("""        {{- '{"name": "' + tool_call.name + '", ' }}""",
         """        {%- generation %}{{- '{"name": "' + tool_call.name + '", ' }}"""),
        ("""        {{- "}" }}
        {{- "<|eot_id|>" }}""", """        {{- "}" }}
        {{- "<|eot_id|>" }}{% endgeneration %}"""),
    ],
    "microsoft-Phi-3.5-mini-instruct": [
        ("{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}",
         "{{'<|assistant|>\n'}}{% generation %}{{ message['content'] + '<|end|>\n'}}{% endgeneration %}"),
        ("{% else %}{{ eos_token }}{% endif %}",
         "{% elif messages[-1]['role'] == 'assistant' %}{% generation %}{{ eos_token }}{% endgeneration %}"
         "{% else %}{{ eos_token }}{% endif %}"),
    ],
    "mistralai-Mistral-Nemo-Instruct-2407": [
        ('{{- "[TOOL_CALLS][" }}', '{% generation %}{{- "[TOOL_CALLS][" }}'),
        ("""                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
""", """                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}{% endgeneration %}
"""),
        ('{{- message["content"] + eos_token}}', '{% generation %}{{- message["content"] + eos_token}}{% endgeneration %}'),
    ],
}  # fmt: skip


def tagged(name: str, source: str) -> str:
    """A copy of a template with {% generation %} around the assistant's answers; its text is the same."""
    for plain, with_tags in _TAGS[name]:
        assert source.count(plain) == 1, (name, plain)
        source = source.replace(plain, with_tags)
    # the date is that of the day otherwise
    return source.replace('strftime_now("%d %b %Y")', '"26 Jul 2024"')


def conversation(seed: int) -> dict[str, Any]:
    """A random record: turns, some with a system message, tools and their results, reasoning, empty turns."""
    rng = random.Random(f"conversation {seed}")

    def text(empty: float = 0.0) -> str:
        return "" if rng.random() < empty else " ".join(rng.choices(_WORDS, k=rng.randint(1, 6)))

    messages: list[dict[str, Any]] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": text()})
    tools = _TOOLS[: rng.randint(1, 2)] if rng.random() < 0.3 else None
    for _ in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": text(0.05)})
        if tools and rng.random() < 0.6:
            arguments = {"city": text(), "days": rng.randint(0, 9)}
            call = {"type": "function", "id": f"call{rng.randint(10000, 99999)}"}
            call |= {"function": {"name": rng.choice(tools)["function"]["name"], "arguments": arguments}}
            messages.append({"role": "assistant", "tool_calls": [call]} | ({"content": text()} if rng.random() < 0.3 else {}))
            messages.append(
                {"role": "tool", "tool_call_id": call["id"], "content": json.dumps({"degrees": rng.randint(0, 30)})}
            )
        answer: dict[str, Any] = {"role": "assistant", "content": text(0.1)}
        if rng.random() < 0.2:
            answer["content"] = f"<think>{text()}</think>{answer['content']}"
        elif rng.random() < 0.15:
            answer["reasoning_content"] = text()
        messages.append(answer)
    return {"messages": messages} | ({"tools": tools} if tools else {})


def make_byte_level() -> tokenizers.Tokenizer:
    """A byte-level BPE with merges over white space, trained here, with the templates' special tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [json.dumps(conversation(seed), ensure_ascii=False) for seed in range(1000, 1100)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return backend


def digest(ids: list[int], mask: list[Any]) -> str:
    """Twelve characters for a sequence of ids and their mask."""
    joined = json.dumps([list(map(int, ids)), list(map(int, mask))], separators=(",", ":"))
    return hashlib.sha256(joined.encode()).hexdigest()[:12]
