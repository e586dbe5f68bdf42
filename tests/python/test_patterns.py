"""Regular expressions of adapter configurations: PEFT's meaning, in bounded time."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time

import pytest

from lora_c.adapters import patterns
from lora_c.adapters.patterns import Matcher
from lora_c.adapters.targets import find_targets
from lora_c.adapters.unused import refuse_unused_options
from lora_c.configs import LoraConfig
from lora_c.errors import AdapterError
from lora_c.families.architectures import architecture_of

WITHOUT_END = [
    r"(([a-z]|[._]|[a-z0-9_.])+)+[QX]", r"(?:.*?){50}\b\B", r"(.{0,9}){0,9}\b\B", r"((.)|b|c|(?:.|.|.))*\b\B",
    r"(?:(?:.?){50}){50}\b\B",
]  # fmt: skip
PATTERNS = [
    "q_proj", r".*\.q_proj", r"model\.layers\.\d+\.self_attn\.(q|v)_proj", r".*(q|k|v|o)_proj$", r"(?!.*mlp).*proj", "",
    r".*layers\.([02468]|1[0-9])\..*", r".*\.(?P<what>gate|up)_proj", r"(?i)MODEL.*", r".*_proj(?<!q_proj)",
    "lm_head|.*embed.*",
    r"^model[.]layers[.]0[.]mlp[.]up_proj", r".*\.\d{1,2}\..*", r"[^.]*", r".+?\.mlp\..+", r"\w+\.\w+\.1\..*", "[a-z.]*",
]  # fmt: skip
NAMES = [
    "model.layers.0.self_attn.q_proj", "model.layers.11.self_attn.v_proj", "model.layers.1.mlp.up_proj", "lm_head",
    "model.layers.0.mlp.up_proj", "model.embed_tokens", "transformer.h.0.attn.c_attn",
]  # fmt: skip


@pytest.fixture
def architecture(tiny):
    return architecture_of(tiny.config)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_what_it_means_in_re(pattern: str) -> None:
    for name, (before, after) in itertools.product(NAMES, [("", ""), (r"(.*\.)?(", ")$"), (r"(^|.*\.)", r"($|\..*)")]):
        full, begun = re.fullmatch(pattern, name), re.match(before + pattern + after, name) if "(?i)" not in pattern else None
        assert bool(Matcher().fullmatch("f", pattern, name)) == bool(full), name
        if "(?i)" not in pattern:
            found = Matcher().match("f", pattern, name, before, after)
            assert (found and found.groups()) == (begun and begun.groups()), name


@pytest.mark.parametrize(
    "field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern", "modules_to_save"]
)
@pytest.mark.parametrize("pattern", WITHOUT_END)
def test_a_pattern_without_end_is_refused_in_time(architecture, field: str, pattern: str, monkeypatch) -> None:
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.2)
    value = {"rank_pattern": {pattern: 4}, "alpha_pattern": {pattern: 4}, "modules_to_save": [pattern]}.get(field, pattern)
    options = {"r": 2, "target_modules": "all-linear"} | {field: value}
    if field == "layers_pattern":
        options["layers_to_transform"] = [0]
    started = time.perf_counter()
    with pytest.raises(AdapterError, match=f"{field}: expected a regular expression that ends, got .*; list the names"):
        find_targets(LoraConfig(**options), architecture)
    assert time.perf_counter() - started < 10


def test_many_slow_patterns_share_one_limit(architecture, monkeypatch) -> None:
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.3)
    slow = {rf"(?:.*?){{5}}\b\B(?#{n})": 4 for n in range(1000)}
    started = time.perf_counter()
    with pytest.raises(AdapterError, match="rank_pattern: expected a regular expression that ends"):
        find_targets(LoraConfig(r=2, target_modules="all-linear", rank_pattern=slow), architecture)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "pattern",
    [
        "(", "a)|(b", "*", "[", r"\1", "(?:(?:(?:.?){1000}){1000}){1000}Q", "(" * 3000 + ")" * 3000, "x" * 200_000,
        "a{e<=1}b*", "[[:alpha:]]*",
    ],
)  # fmt: skip
def test_what_is_no_expression_or_too_large_is_refused_in_one_line(architecture, pattern: str) -> None:
    for field in ("target_modules", "rank_pattern"):
        value = pattern if field == "target_modules" else {pattern: 4}
        options = {"r": 2, "target_modules": "all-linear"} | {field: value}
        with pytest.raises(AdapterError, match=f"{field}: expected valid regular expressions, got: ") as refusal:
            find_targets(LoraConfig(**options), architecture)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "table",
    [
        {f"x{i}": 4 for i in range(300_000)}, {f"x{i}.*": 4 for i in range(20_000)},
        {"(a|b)*" * 16_000 + str(i): 4 for i in range(9)},
    ],
    ids=["names", "expressions", "long"],
)  # fmt: skip
def test_more_patterns_than_any_adapter_has_are_refused_in_time(architecture, table: dict[str, int]) -> None:
    config = LoraConfig(rank_pattern=table)
    for strict in (False, True):
        started = time.monotonic()
        with pytest.raises(AdapterError, match="rank_pattern: expected at most 10,000 patterns"):
            find_targets(config, architecture, strict)
        assert time.monotonic() - started < 60


def test_options_of_a_fresh_adapter_are_matched_within_the_limit(architecture, monkeypatch) -> None:
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.2)
    with pytest.raises(AdapterError, match="expected a regular expression that ends"):
        refuse_unused_options(LoraConfig(exclude_modules=WITHOUT_END[0]), ["model.layers.0.self_attn.q_proj"], architecture)


def test_names_alone_need_no_other_package() -> None:
    code = (
        "import sys; from lora_c.adapters.patterns import Matcher; "
        "assert Matcher().match('f', 'q_proj', 'a.q_proj', r'(.*\\.)?(', ')$'); assert 'regex' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("alpha", [1e308, -1e308, 1e39])
@pytest.mark.parametrize("field", ["lora_alpha", "alpha_pattern"])
def test_a_scale_beyond_float32_is_refused(architecture, field: str, alpha: float) -> None:
    try:
        config = LoraConfig(r=1, target_modules=["q_proj"], **{field: alpha if field == "lora_alpha" else {"q_proj": alpha}})
    except ValueError as error:
        assert alpha < 0 and "lora_alpha" in str(error) or field in str(error)
        return
    with pytest.raises(AdapterError, match="lora_alpha: expected a scale .* that float32 can hold"):
        find_targets(config, architecture)
