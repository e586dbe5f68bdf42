"""Each optimizer against its definition, over many steps; its bits with threads, pages and after loading."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c import reference

STEPS = 200
SHAPES = [(5, 7), (1,), (70, 130), (17, 1), (1, 9), (4099,), (300, 3)]
LR = 1e-3
Make = Callable[[list[lc.Parameter]], Any]
# As users make them; `paged_folder` is filled in where it is None.
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "AdamW": (lc.AdamW, {"weight_decay": 0.1}),
    "AdamW8bit": (lc.AdamW8bit, {"weight_decay": 0.1}),
    "AdamW paged": (lc.AdamW, {"weight_decay": 0.1, "paged_folder": None}),
    "AdamW8bit paged": (lc.AdamW8bit, {"weight_decay": 0.1, "paged_folder": None}),
    "SGD": (lc.SGD, {}),
    "SGD with momentum": (lc.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "Lion": (lc.Lion, {"weight_decay": 0.1}),
    "Adafactor": (lc.Adafactor, {}),
    "Adafactor with m": (lc.Adafactor, {"lr": LR, "relative_step": False, "scale_parameter": False, "beta1": 0.9}),
    "Muon": (lc.Muon, {}),
}


def parameters() -> list[lc.Parameter]:
    rng = np.random.default_rng(0)
    return [lc.Parameter(rng.standard_normal(s).astype(np.float32), name=str(s)) for s in SHAPES]


def gradients(step: int) -> list[np.ndarray]:
    rng = np.random.default_rng(step)
    return [rng.standard_normal(s).astype(np.float32) * 10.0 ** rng.integers(-3, 2) for s in SHAPES]


def put_gradients(params: list[lc.Parameter], step: int) -> None:
    for p, g in zip(params, gradients(step), strict=True):
        p.grad[...] = g


def make(kind: str, params: list[lc.Parameter], tmp_path: Path) -> Any:
    cls, options = KINDS[kind]
    options = {k: tmp_path if k == "paged_folder" else v for k, v in options.items()}
    return cls(params, **{"lr": LR} | options) if cls is not lc.Adafactor else cls(params, **options)


def run(optimizer: Any, params: list[lc.Parameter], first: int, last: int) -> list[np.ndarray]:
    for step in range(first, last):
        put_gradients(params, step)
        optimizer.step(grad_scale=0.5)
    return [np.array(p.data) for p in params]


def expected(step_of: Callable[[int, int, Any, Any, Any], tuple[Any, Any]], new_state: Callable[[Any], Any]) -> list[Any]:
    """What float64 gives, array by array; step_of(array, step, p, g, state)."""
    start = [np.array(p.data, np.float64) for p in parameters()]
    states = [new_state(p) for p in start]
    for step in range(1, STEPS + 1):
        for i, g in enumerate(gradients(step)):
            start[i], states[i] = step_of(i, step, start[i], 0.5 * g.astype(np.float64), states[i])
    return start


def assert_near(got: list[np.ndarray], want: list[Any], lr: float) -> None:
    """Within what float32 leaves of STEPS steps of about lr: two roundings of p for each, and 60 u of the step itself."""
    u = 2.0**-24
    for a, b in zip(got, want, strict=True):
        bound = STEPS * (2 * u * (np.abs(b) + STEPS * lr) + 60 * u * lr)
        assert (np.abs(a - b) <= bound).all(), float((np.abs(a - b) / bound).max())


def test_adamw_is_its_definition(tmp_path: Path) -> None:
    params = parameters()
    got = run(make("AdamW", params, tmp_path), params, 1, STEPS + 1)

    def step_of(_: int, step: int, p: Any, g: Any, s: Any) -> tuple[Any, Any]:
        p, m, v = reference.adamw_step(p, g, *s, step=step, lr=LR, weight_decay=0.1)
        return p, (m, v)

    assert_near(got, expected(step_of, lambda p: (np.zeros_like(p), np.zeros_like(p))), 4 * LR)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
                                     {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}])  # fmt: skip
def test_sgd_is_its_definition(options: dict[str, Any]) -> None:
    params = parameters()
    got = run(lc.SGD(params, LR, **options), params, 1, STEPS + 1)
    want = expected(lambda i, step, p, g, m: reference.sgd_step(p, g, m, step=step, lr=LR, **options), np.zeros_like)
    assert_near(got, want, 60 * LR)  # of gradients up to 6 with momentum 0.9


def test_lion_is_its_definition() -> None:
    params = parameters()
    got = run(lc.Lion(params, LR, weight_decay=0.1), params, 1, STEPS + 1)
    want = expected(lambda i, step, p, g, m: reference.lion_step(p, g, m, lr=LR, weight_decay=0.1), np.zeros_like)
    assert_near(got, want, LR)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"warmup_init": True, "weight_decay": 0.1, "beta1": 0.9},
        {"lr": LR, "relative_step": False, "scale_parameter": False, "clip_threshold": 0.7},
    ],
)
def test_adafactor_is_its_definition(options: dict[str, Any]) -> None:
    params = parameters()
    got = run(lc.Adafactor(params, **options), params, 1, STEPS + 1)

    def new_state(p: Any) -> dict[str, Any]:
        sides = {"row": np.zeros(p.shape[0]), "col": np.zeros(p.shape[1])} if p.ndim == 2 else {"col": np.zeros(p.shape)}
        return sides | {"m": np.zeros(p.shape)}

    want = expected(lambda i, step, p, g, s: reference.adafactor_step(p, g, s, step=step, **options), new_state)
    assert_near(got, want, 2e-2)


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": False, "momentum": 0.8, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}]
)
def test_muon_is_its_definition(options: dict[str, Any]) -> None:
    """Products of float32 lose more than elementwise steps do: each matrix is compared by its norm, with two roundings of p
    a step and 1e-5 of the way that it went."""
    params = parameters()
    got = run(lc.Muon(params, LR, **options), params, 1, STEPS + 1)

    def step_of(_: int, step: int, p: Any, g: Any, s: Any) -> tuple[Any, Any]:
        if p.ndim == 2:
            p, m = reference.muon_step(p, g, s[0], lr=LR, **options)
            return p, (m, None)
        p, m, v = reference.adamw_step(p, g, *s, step=step, lr=LR, weight_decay=0.1)
        return p, (m, v)

    want = expected(step_of, lambda p: (np.zeros_like(p), np.zeros_like(p)))
    start = [np.array(p.data, np.float64) for p in parameters()]
    for a, b, begin in zip(got, want, start, strict=True):
        assert np.linalg.norm(a - b) <= STEPS * 2 * 2.0**-24 * np.linalg.norm(b) + 1e-5 * np.linalg.norm(b - begin)


def test_adamw_8bit_is_its_definition() -> None:
    """A moment within rounding of the middle of two codes may get the other one, which is one step of the map away."""
    params = parameters()
    optimizer = lc.AdamW8bit(params, LR, min_8bit_size=0, weight_decay=0.1)
    maps = reference.dynamic_map(), reference.dynamic_map(signed=False)
    for step in range(1, 21):
        before = optimizer.state_dict()
        held = [np.array(p.data) for p in params]
        put_gradients(params, step)
        optimizer.step()
        for i, g in enumerate(gradients(step)):
            moments = [reference.dynamic_decode(before[f"{k}_codes"][i], before[f"{k}_absmax"][i], code)
                       for k, code in zip("mv", maps, strict=True)]  # fmt: skip
            p, m, v = reference.adamw_step(held[i], g, *moments, step=step, lr=LR, weight_decay=0.1)
            np.testing.assert_allclose(params[i].data, p, rtol=1e-6, atol=2e-7)
            for key, want, code in (("m", m, maps[0]), ("v", v, maps[1])):
                codes, absmax = reference.dynamic_encode(want.astype(np.float32), code)
                np.testing.assert_allclose(optimizer.moment(i, f"{key}_absmax"), absmax, rtol=1e-6)
                away = np.abs(optimizer.moment(i, f"{key}_codes").astype(int) - codes.astype(int))
                assert away.max() <= 1
                assert (away > 0).mean() <= 2e-3 or (away > 0).sum() <= 1


def test_8bit_moments_take_a_quarter_of_the_memory() -> None:
    params = [lc.Parameter(np.ones((512, 1024), np.float32))]

    def taken(cls: type) -> int:
        before = lc.memory_report()["optimizer"]["live"]
        optimizer = cls(params)
        after = lc.memory_report()["optimizer"]["live"]
        assert optimizer.step_count == 0
        return int(after - before)

    assert 3.9 < taken(lc.AdamW) / taken(lc.AdamW8bit) < 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_one_thread(kind: str, tmp_path: Path) -> None:
    threads = lc.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            lc.set_num_threads(n)
            params = parameters()
            found.append(run(make(kind, params, tmp_path), params, 1, 6))
    finally:
        lc.set_num_threads(threads)
    assert all(np.array_equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kind", ["AdamW", "AdamW8bit"])
def test_a_paged_state_gives_the_bits_of_one_in_memory(kind: str, tmp_path: Path) -> None:
    """With arrays that are larger than a window, in windows that end inside of them."""
    shapes = [(3_000_001,), (2000, 1100), (5,), (1_048_576,)]
    found = []
    for name in (kind, f"{kind} paged"):
        rng = np.random.default_rng(0)
        params = [lc.Parameter(rng.standard_normal(s, np.float32)) for s in shapes]
        optimizer = make(name, params, tmp_path)
        for _ in range(3):
            for p in params:
                p.grad[...] = rng.standard_normal(p.shape, np.float32)
            optimizer.step(max_grad_norm=1.0)
        state = optimizer.state_dict()
        found.append([*(np.array(p.data) for p in params), *(a for k in optimizer.moment_names for a in state[k])])
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)
    assert os.name == "nt" or list(tmp_path.iterdir()) == []  # the file has no name; that of Windows goes with its handle


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_goes_out_and_in_again(kind: str, tmp_path: Path) -> None:
    whole = parameters()
    straight = run(make(kind, whole, tmp_path), whole, 1, 9)
    params = parameters()
    first = make(kind, params, tmp_path)
    run(first, params, 1, 5)
    state = first.state_dict()
    second, third = make(kind, params, tmp_path), make(kind, parameters(), tmp_path)
    second.load_state_dict(state)
    for name in third.moment_names:
        for i in range(len(params)):
            third.set_moment(i, name, state[name][i])
            assert third.moment_shape(i, name) == (None if state[name][i] is None else state[name][i].shape)
    third.set_step_count(4)
    assert all(np.array_equal(a, b) for a, b in zip(run(second, params, 5, 9), straight, strict=True))
    again = third.state_dict()
    assert again.keys() == state.keys()
    for name in third.moment_names:
        assert all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(again[name], state[name], strict=True))


# Adafactor has rates of its own; a paged state is stepped by the same code.
WITH_A_RATE = [kind for kind, (cls, options) in KINDS.items() if cls is not lc.Adafactor and "paged_folder" not in options]


@pytest.mark.parametrize("kind", WITH_A_RATE)
def test_a_ratio_of_one_array_is_a_rate_of_its_own(kind: str) -> None:
    cls, options = KINDS[kind]
    for ratio in (0.0, 0.25):
        params = parameters()
        run(cls(params, LR, lr_ratios=[ratio] * len(params), **options), params, 1, 4)
        plain = parameters()
        run(cls(plain, LR * ratio, **options), plain, 1, 4)
        assert all(np.array_equal(a.data, b.data) for a, b in zip(params, plain, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_above_skip_grad_norm_nothing_changes(kind: str, tmp_path: Path) -> None:
    params, plain = parameters(), parameters()
    skipping, other = (make(kind, some, tmp_path) for some in (params, plain))
    for some in (params, plain):
        for p in some:
            p.grad[...] = 1
    norm = skipping.step(skip_grad_norm=1e-3)
    assert norm == pytest.approx(math.sqrt(sum(p.size for p in params)), rel=1e-6) and skipping.step_count == 0
    assert skipping.step(skip_grad_norm=2 * norm) == norm == other.step() and skipping.step_count == 1
    assert all(np.array_equal(a.data, b.data) for a, b in zip(params, plain, strict=True))
    with pytest.raises(ValueError, match="skip_grad_norm: expected a finite number > 0"):
        skipping.step(skip_grad_norm=0.0)


def test_matrices_that_are_left_to_adamw_get_it() -> None:
    params, plain = parameters(), parameters()
    run(lc.Muon(params, LR, adamw=params, weight_decay=0.1), params, 1, 4)
    run(lc.AdamW(plain, LR, weight_decay=0.1), plain, 1, 4)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(params, plain, strict=True))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (lc.SGD, {"momentum": 1.0}, "momentum: expected 0 <= momentum < 1, got 1"),
        (lc.SGD, {"nesterov": True}, "nesterov: expected momentum above 0"),
        (lc.SGD, {"weight_decay": -1.0}, "weight_decay: expected"),
        (lc.Lion, {"betas": (1.0, 0.9)}, "betas: expected two numbers"),
        (lc.AdamW8bit, {"min_8bit_size": -1}, "min_8bit_size: expected >= 0, got -1"),
        (lc.Adafactor, {"lr": 1.0}, "lr: expected none with relative_step"),
        (lc.Adafactor, {"relative_step": False}, "lr: expected a finite number"),
        (lc.Adafactor, {"lr": 1.0, "relative_step": False, "warmup_init": True}, "warmup_init: expected"),
        (lc.Adafactor, {"eps": (0.0, 0.0)}, "eps: expected"),
        (lc.Adafactor, {"decay_rate": 0.5}, "decay_rate: expected"),
        (lc.Adafactor, {"clip_threshold": 0.0}, "clip_threshold: expected"),
        (lc.Muon, {"ns_steps": 100}, "ns_steps: expected 0 to 99, got 100"),
        (lc.Muon, {"adjust_lr_fn": "other"}, "adjust_lr_fn: expected original or match_rms_adamw, got other"),
        (lc.Muon, {"adamw": [lc.Parameter(np.ones(1, np.float32))]}, "adamw: expected members of params"),
        (lc.AdamW, {"lr_ratios": [1.0]}, "lr_ratios: expected 7 numbers, got 1"),
        (lc.AdamW, {"lr_ratios": [-1.0] * 7}, "lr_ratio: expected a finite number >= 0, got -1"),
        (lc.AdamW, {"paged_folder": "/does/not/exist"}, "folder: expected one that can be written, got /does/not/exist"),
    ],
)
def test_what_cannot_be_is_refused(cls: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(parameters(), **options)


def test_a_disk_without_room_is_refused_at_once(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(MemoryError, match=r"folder: expected room for \d+ MiB in .*; choose a folder on another disk"):
            lc.AdamW([lc.Parameter(np.ones(1 << 20, np.float32))], paged_folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_does_not_fit_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Mutations of a state: every one is refused, and the state stays as it was."""
    params = parameters()
    optimizer = make(kind, params, tmp_path)
    run(optimizer, params, 1, 3)
    good = optimizer.state_dict()
    rng = np.random.default_rng(1)
    for _ in range(60):
        bad = {k: (v if k == "step" else list(v)) for k, v in good.items()}
        spoil(bad, rng)
        with pytest.raises((ValueError, TypeError)):
            optimizer.load_state_dict(bad)
        now = optimizer.state_dict()
        for name in optimizer.moment_names:
            assert all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(now[name], good[name], strict=True))
        assert now["step"] == good["step"]


def spoil(state: dict[str, Any], rng: np.random.Generator) -> None:
    """One change that makes a state another's."""
    names = [k for k in state if k != "step"]
    what = rng.integers(0, 7) if names else rng.integers(0, 3)
    if what == 0:
        state["step"] = rng.choice([-1, 2**62])
        return
    if what == 1:
        del state[rng.choice(list(state))]
        return
    if what == 2:
        state["other"] = []
        return
    name = str(rng.choice(names))
    i = int(rng.integers(0, len(state[name])))
    array = state[name][i]
    if array is None:
        state[name][i] = np.zeros(3, np.float32)
    elif what == 3:
        state[name][i] = None
    elif what == 4:
        state[name][i] = array.astype(np.float64)
    elif what == 5 or array.dtype == np.uint8:
        state[name][i] = np.zeros((*array.shape, 2), array.dtype)
    else:
        state[name][i] = array.copy()
        state[name][i].flat[int(rng.integers(0, array.size))] = np.nan


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_step_its_parents_file(tmp_path: Path) -> None:
    params = parameters()
    optimizer = lc.AdamW(params, paged_folder=tmp_path)
    put_gradients(params, 1)
    child = os.fork()
    if child == 0:
        try:
            optimizer.step()
        except RuntimeError as error:
            os._exit(0 if "expected the process that made its paged state" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    optimizer.step()
