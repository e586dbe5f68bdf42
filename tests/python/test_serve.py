"""The official OpenAI client against a real server: answers, streams, log-probabilities, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from serving import HELLO, Server, serving, write_adapter  # noqa: E402

import lora_c as lc  # noqa: E402
from lora_c.demo.run import BASE_MODEL  # noqa: E402

NAMES = ("red", "green", "blue")
LONG_TEXT = "There was a young goat. " * 40


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        write_adapter(folder / name, seed)
    (folder / "no adapter").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(adapters: Path) -> Iterator[Server]:
    with serving("--adapters", adapters, "--prompt-block", 64) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return server.client()


@pytest.fixture(scope="module")
def model(adapters: Path) -> lc.Model:
    made = lc.load_model(BASE_MODEL, progress=False)
    for name in NAMES:
        made.load_adapter(adapters / name, name)
    return made


def alone(model: lc.Model, prompt: Any, adapter: str | None, **options: Any) -> Any:
    """What a batch without anybody else says."""
    batch = lc.Batch(model, 1, prompt_block=64)
    answer = batch.add(prompt, adapter=adapter, **options)
    batch.run()
    return answer


def test_models_are_the_base_and_the_adapters(client: Any) -> None:
    assert [m.id for m in client.models.list()] == ["base_model", "blue", "green", "red"]
    assert client.models.retrieve("red").id == "red"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no adapter")


def test_an_answer_is_that_of_the_library(client: Any, model: lc.Model) -> None:
    said = set()
    for name in ("base_model", *NAMES):
        adapter = None if name == "base_model" else name
        found = client.chat.completions.create(model=name, messages=HELLO, temperature=0, max_tokens=12)
        expected = alone(model, HELLO, adapter, max_new_tokens=12)
        choice = found.choices[0]
        assert choice.message.content == expected.text and choice.finish_reason == expected.finish_reason == "length"
        assert choice.message.role == "assistant" and found.model == name and found.object == "chat.completion"
        assert found.usage.completion_tokens == 12 and found.usage.prompt_tokens == len(expected.prompt)
        said.add(choice.message.content)
    assert len(said) == 4


def test_a_stream_is_the_answer_in_pieces(client: Any, model: lc.Model) -> None:
    options: Any = {"model": "red", "messages": HELLO, "temperature": 0, "max_tokens": 12}
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == alone(model, HELLO, "red", max_new_tokens=12).text
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12 and chunks[0].usage is None
    assert len(chunks) > 10 and len({c.id for c in chunks}) == 1


def test_seed_n_and_draws(client: Any, model: lc.Model) -> None:
    options: Any = {"model": "blue", "messages": HELLO, "temperature": 1.2, "top_p": 0.9, "max_tokens": 10}
    first = client.chat.completions.create(seed=7, n=3, **options)
    texts = [choice.message.content for choice in first.choices]
    drawn = [
        alone(model, HELLO, "blue", temperature=1.2, top_p=0.9, max_new_tokens=10, seed=7, repetition=i) for i in range(3)
    ]
    assert texts == [answer.text for answer in drawn] and len(set(texts)) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2] and first.usage.completion_tokens == 30
    parts: dict[int, str] = {}
    for chunk in client.chat.completions.create(seed=7, n=3, stream=True, **options):
        for choice in chunk.choices:
            parts[choice.index] = parts.get(choice.index, "") + (choice.delta.content or "")
    assert [parts[i] for i in range(3)] == texts
    others = {client.chat.completions.create(**options).choices[0].message.content for _ in range(5)}
    assert len(others) > 1  # without a seed each draws anew


def test_stop_texts_end_an_answer_and_are_not_in_it(client: Any, model: lc.Model) -> None:
    whole = alone(model, HELLO, None, max_new_tokens=30).text
    stop = whole.split()[3]
    for given in (stop, ["never written", stop]):
        options: Any = {"model": "base_model", "messages": HELLO, "temperature": 0, "max_tokens": 30, "stop": given}
        found = client.chat.completions.create(**options)
        assert found.choices[0].message.content == whole[: whole.index(stop)] and found.choices[0].finish_reason == "stop"
        pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(stream=True, **options)]
        assert "".join(pieces) == whole[: whole.index(stop)]


def test_log_probabilities(client: Any, model: lc.Model) -> None:
    options: Any = {
        "model": "green",
        "messages": HELLO,
        "temperature": 0,
        "max_tokens": 6,
        "logprobs": True,
        "top_logprobs": 3,
    }
    found = client.chat.completions.create(**options).choices[0]
    expected = alone(model, HELLO, "green", max_new_tokens=6, top_logprobs=3)
    content = found.logprobs.content
    assert [token.logprob for token in content] == [token.logprob for token in expected.logprobs]
    assert "".join(token.token for token in content) == found.message.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == found.message.content
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token for token in content)
    streamed = [t for c in client.chat.completions.create(stream=True, **options) if c.choices and c.choices[0].logprobs
                for t in c.choices[0].logprobs.content]  # fmt: skip
    assert [(t.token, t.logprob) for t in streamed] == [(t.token, t.logprob) for t in content]
    legacy = client.completions.create(model="green", prompt="Once upon", temperature=0, max_tokens=5, logprobs=2).choices[0]
    assert "".join(legacy.logprobs.tokens) == legacy.text and len(legacy.logprobs.top_logprobs[0]) == 2
    assert [legacy.text[at:][: len(t)] for at, t in zip(legacy.logprobs.text_offset, legacy.logprobs.tokens, strict=True)] == (
        legacy.logprobs.tokens
    )


def test_completions_of_texts_and_ids(client: Any, model: lc.Model) -> None:
    ids = model.tokenizer.encode("Once upon a time")
    found = client.completions.create(model="red", prompt=["Hello", "Once upon a time"], temperature=0, max_tokens=8, n=2)
    expected = [alone(model, text, "red", max_new_tokens=8).text for text in ("Hello", "Once upon a time")]
    assert [choice.text for choice in found.choices] == [expected[0]] * 2 + [expected[1]] * 2
    assert client.completions.create(model="red", prompt=ids, temperature=0, max_tokens=8).choices[0].text == (
        alone(model, ids, "red", max_new_tokens=8).text
    )
    default = client.completions.create(model="red", prompt=[ids], temperature=0)
    assert default.usage.completion_tokens <= 16
    pieces = [c.choices[0].text for c in client.completions.create(
        model="red", prompt="Hello", temperature=0, max_tokens=8, stream=True, echo=True
    )]  # fmt: skip
    assert "".join(pieces) == "Hello" + expected[0]


def test_embeddings_are_the_means_of_hidden_states(client: Any, model: lc.Model) -> None:
    found = client.embeddings.create(model="red", input=["Hello", LONG_TEXT[:200]])  # the client asks for base64
    model.set_adapter("red")
    expected = [model.embed(text, normalize=True) for text in ("Hello", LONG_TEXT[:200])]
    model.set_adapter(None)
    assert np.array_equal(np.array([d.embedding for d in found.data], np.float32), expected)
    plain = client.embeddings.create(model="base_model", input="Hello", encoding_format="float").data[0].embedding
    assert np.array_equal(np.array(plain, np.float32), model.embed("Hello", normalize=True))
    assert not np.array_equal(expected[0], np.array(plain, np.float32)) and found.usage.prompt_tokens > 2


def test_tokens_there_and_back(server: Server, model: lc.Model) -> None:
    found = server.post("/tokenize", {"prompt": "Hello there", "return_token_strs": True}).json()
    assert found["tokens"] == model.tokenizer.encode("Hello there") and found["count"] == len(found["tokens"])
    assert "".join(found["token_strs"]).endswith("Hello there")
    chat = server.post("/tokenize", {"messages": HELLO}).json()["tokens"]
    assert chat == alone(model, HELLO, None, max_new_tokens=1).prompt
    for wrong in ({}, {"messages": []}, {"prompt": "x", "messages": HELLO}):
        assert server.post("/tokenize", wrong).status_code == 400
    text = server.post("/detokenize", {"tokens": found["tokens"]}).json()["prompt"]
    assert text.endswith("Hello there")


def test_a_shared_beginning_is_read_once_and_changes_nothing(client: Any, model: lc.Model) -> None:
    system = {"role": "system", "content": LONG_TEXT}
    reused = []
    for text in ("What is red?", "What is blue?", "Who is young?"):
        messages: Any = [system, {"role": "user", "content": text}]
        found = client.chat.completions.create(model="red", messages=messages, temperature=0, max_tokens=8)
        expected = alone(model, messages, "red", max_new_tokens=8)
        assert expected.n_reused == 0 and found.choices[0].message.content == expected.text
        reused.append(found.usage.prompt_tokens_details.cached_tokens)
    shared = len(expected.prompt) // 64 * 64
    assert reused[0] == 0 and reused[1] == reused[2] >= shared - 64 > 0


def test_many_at_once_are_answered_as_each_alone(client: Any, model: lc.Model) -> None:
    asked = [(f"{LONG_TEXT[: 40 * (i % 5)]}What about {i}?", (*NAMES, None)[i % 4]) for i in range(24)]

    def ask(one: tuple[str, str | None]) -> str:
        text, name = one
        messages: Any = [{"role": "user", "content": text}]
        found = client.chat.completions.create(
            model=name or "base_model", messages=messages, temperature=0.9, seed=5, max_tokens=16
        )
        return str(found.choices[0].message.content)

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(ask, asked))
    for (text, name), answer in zip(asked, found, strict=True):
        message = [{"role": "user", "content": text}]
        assert answer == alone(model, message, name, temperature=0.9, seed=5, max_new_tokens=16).text


@pytest.mark.parametrize(("options", "param"), [
    ({"model": "nobody"}, "model"), ({"temperature": -1}, "temperature"), ({"n": 0}, "n"), ({"top_p": 2.0}, "top_p"),
    ({"frequency_penalty": 1.0}, "frequency_penalty"), ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"messages": []}, "messages"), ({"messages": [{"role": "user", "content": LONG_TEXT * 9}]}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages"), ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_in_the_form_of_openai(client: Any, options: dict[str, Any], param: str | None, stream: bool) -> None:
    given: Any = {"model": "red", "messages": HELLO, "max_tokens": 4, "stream": stream} | options
    kind = openai.NotFoundError if param == "model" else openai.BadRequestError
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**given)
    assert caught.value.param == param and "expected" in caught.value.message
    assert caught.value.type in ("invalid_request_error", "not_found_error")


@pytest.mark.parametrize(("body", "message"), [
    ({}, "messages: expected a value, got none"),
    ({"messages": "Hello"}, 'messages: expected a valid list, got "Hello"'),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: expected a valid string, got 5"),
    ({"messages": [{"role": "user", "content": {}}]}, "messages.0.content: expected a valid string, got an object of 0"),
    ({"messages": HELLO, "temperature": -1}, "temperature: expected greater than or equal to 0, got -1"),
    ({"messages": HELLO, "seed": "x" * 99}, 'seed: expected a valid integer, got "' + "x" * 79 + "..."),
    ({"messages": HELLO, "stop": ["x"] * 17}, "stop: expected at most 16 texts, got 17"),
])  # fmt: skip
def test_a_wrong_field_is_said_with_what_it_got(server: Server, body: dict[str, Any], message: str) -> None:
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400 and response.json()["error"]["message"] == message


def test_a_prompt_that_is_too_long_is_called_as_its_field(server: Server) -> None:
    for path, field, given in (("chat/completions", "messages", [{"role": "user", "content": LONG_TEXT * 9}]),
                               ("completions", "prompt", LONG_TEXT * 9)):  # fmt: skip
        error = server.post(f"/v1/{path}", {field: given}).json()["error"]
        assert error["param"] == field and error["message"].startswith(f"{field}: expected fewer than")


def test_what_fails_as_http_has_the_form_too(server: Server) -> None:
    import httpx

    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/health", 405)):
        response = httpx.request(method, server.url + path)
        assert response.status_code == status and "expected" in response.json()["error"]["message"]
    for body in (b"{", b"[]", b"null", b'{"model": NaN}', b'"\xff"', b"[" * 100_000, b'{"prompt": "\\ud800"}', b"1" * 9999):
        response = httpx.post(f"{server.url}/v1/completions", content=body)
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error", body[:20]


def test_metrics_and_health(server: Server) -> None:
    import httpx

    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    text = httpx.get(f"{server.url}/metrics").text
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    assert float(numbers["lora_c_generation_tokens_total"]) > 100 and float(numbers["lora_c_adapters_loaded"]) == 3
    assert float(numbers["lora_c_prompt_tokens_reused_total"]) > 0 and float(numbers["lora_c_answers_running"]) == 0
    assert 'path="/v1/chat/completions",status="200"' in text and "lora_c_time_to_first_token_seconds_bucket" in text


TEMPLATE = """{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for message in messages %}<|{{ message['role'] }}|>
{{- message['content'] }}{% for call in message['tool_calls'] %}<tool_call>{{ call['function'] | tojson }}</tool_call>
{%- endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"at": "sea"})}}


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter that has learned one call by heart."""
    folder = tmp_path_factory.mktemp("caller")
    (folder / "template.jinja").write_text(TEMPLATE)
    record = {"messages": [*HELLO, {"role": "assistant", "content": "Sure.", "tool_calls": [CALL]}], "tools": TOOLS}
    (folder / "chat.jsonl").write_text(json.dumps(record) + "\n")
    from command_lines import called

    words = "train --model model --data chat.jsonl --output-dir adapters/caller --max-steps 200 --lr 3e-3 --batch-size 1"
    words += " --r 16 --lora-alpha 32"
    (folder / "model").symlink_to(BASE_MODEL)
    done = called(folder, [*words.split(), "--chat-template", "template.jinja", "--target-modules", "all-linear"])
    assert done.returncode == 0, done.stderr
    return folder


def test_tools_reach_the_template_and_calls_come_back(caller: Path) -> None:
    with serving("--adapters", caller / "adapters", "--chat-template", caller / "template.jinja") as server:
        client = server.client()
        options: Any = {"model": "caller", "messages": HELLO, "temperature": 0, "max_tokens": 120}
        found = client.chat.completions.create(tools=TOOLS, **options)
        choice = found.choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content == "Sure."
        assert [(c.type, c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls] == [
            ("function", "weather", {"at": "sea"})
        ]
        chunks = [c.choices[0] for c in client.chat.completions.create(tools=TOOLS, stream=True, **options)]
        assert "".join(c.delta.content or "" for c in chunks) == "Sure." and chunks[-1].finish_reason == "tool_calls"
        calls = [call for c in chunks for call in c.delta.tool_calls or ()]
        assert [(c.index, c.function.name, c.function.arguments) for c in calls] == [(0, "weather", '{"at": "sea"}')]
        none = client.chat.completions.create(tools=TOOLS, tool_choice="none", **options)
        assert none.usage.prompt_tokens < found.usage.prompt_tokens and none.choices[0].message.tool_calls is None
        said = [choice.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]
        after = client.chat.completions.create(tools=TOOLS, **(options | {"messages": HELLO + said, "max_tokens": 3}))
        assert after.usage.prompt_tokens > found.usage.prompt_tokens
