"""Paged states of the cuda target, on the stand-in: what steps compute with them, where they lie, how they move."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from optgen_optim import LAMB, AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit
from runtime.training import same, snapshot, train
from support.paged import (
    LARGE,
    PINNED,
    PORTIONS,
    SHAPES,
    SMALL_PORTION,
    engine_of,
    held,
    in_turn,
    live,
    make_params,
    small_portions,
    snapshot_of,
    taken,
    trained,
)

import optgen
from optgen.codecs import PAGED_NUMEL
from optgen.runtime.cuda import cuda_device, paged_memory, paging
from optgen.runtime.cuda.paging import StreamedPager
from optgen.runtime.engines.cuda_engine import CudaEngine
from optgen.runtime.optimizer import Optimizer

SPECS = Path(__file__).parents[1] / "specs"

RULES = {
    "fp32": (AdamW, {}),
    "amsgrad": (AdamW, {"amsgrad": True}),
    "int8": (AdamW8bit, {}),
    "int8 of the tensor": (AdamW8bit, {"block_wise": False}),
    "two passes": (LAMB, {"max_unorm": 0.5}),
    "windows": (AdamW, {"percentile_clipping": 90}),
}


class TestResults:
    @pytest.mark.parametrize(("rule", "kind", "portion"), in_turn(RULES, *PORTIONS), indirect=("kind", "portion"))
    def test_they_equal_those_of_ordinary_states(self, rule, kind, portion) -> None:
        cls, settings = RULES[rule]
        assert same(snapshot_of(cls, is_paged=True, **settings), snapshot_of(cls, is_paged=False, **settings))

    @pytest.mark.parametrize(
        ("dtype", "kind", "portion"), in_turn((torch.bfloat16, torch.float16), *PORTIONS), indirect=("kind", "portion")
    )
    def test_of_parameters_of_16_bits(self, dtype, kind, portion) -> None:
        assert same(
            snapshot_of(AdamW8bit, dtype=dtype, is_paged=True), snapshot_of(AdamW8bit, dtype=dtype, is_paged=False)
        )

    @pytest.mark.parametrize(
        ("codec", "kind", "portion"), in_turn(("bf16", "fp16"), *PORTIONS), indirect=("kind", "portion")
    )
    def test_of_states_of_16_bits(self, codec, kind, portion, tmp_path) -> None:
        spec = tmp_path / "sixteen.yaml"
        spec.write_text(SIXTEEN.format(codec=codec))
        cls = optgen.load(spec).Sixteen
        paged, plain = (snapshot_of(cls, is_paged=flag) for flag in (True, False))
        assert same(paged, plain)
        assert paged["states"][1]["average"].element_size() == 2

    def test_of_passes_that_walk_bands(self, kind, monkeypatch) -> None:
        small_portions(monkeypatch)
        cls = optgen.load(SPECS / "adafactor.yaml").Adafactor
        settings = {"beta1": 0.9, "lr": 0.01, "relative_step": False}
        params, opt = trained(cls, is_paged=True, **settings)
        assert opt.paged_bytes() > 0
        assert len(engine_with_bands(opt).paged.portions[True]) > 1, "bands are in portions too"
        assert same(taken(opt, params), snapshot_of(cls, is_paged=False, **settings))

    def test_a_parameter_is_split(self, kind, monkeypatch, driver) -> None:
        small_portions(monkeypatch)
        _, opt = trained(AdamW, 1, is_paged=True)
        portions = engine_of(opt).paged.portions[False]
        assert sum(any(part.tensor == 1 for part in p.parts) for p in portions) == 15, "chunks of 8192 elements"
        assert [launch.name for launch in driver.launches()].count("step_apply") == len(portions)

    def test_states_that_fit_into_one_portion_are_one_launch(self, kind, driver) -> None:
        for paged in (False, True):
            driver.clear_logs()
            trained(AdamW, 1, is_paged=paged)
            assert len(driver.launches()) == 3

    def test_chunks_are_launched_once_each_in_their_order(self, kind, monkeypatch) -> None:
        small_portions(monkeypatch)
        _, opt = trained(AdamW, 1, is_paged=True)
        engine = engine_of(opt)
        chunks = [number for p in engine.paged.portions[False] for number in range(p.first, p.first + p.chunks)]
        assert chunks == list(range(len(engine.chunks)))

    def test_a_step_that_is_skipped_changes_nothing(self, kind, portion) -> None:
        params, opt = trained(AdamW8bit, 2, is_paged=True)
        before = copy.deepcopy(snapshot(opt, params))
        opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(1.0)
        train(opt, params, 3, 3)
        opt._wait_for_host()
        assert same(snapshot(opt, params), before)


SIXTEEN = """
name: sixteen
hyperparameters:
  lr: {{default: 1e-3, range: "[0, inf)", doc: Step size.}}
states:
  average: {{codecs: [{codec}, fp32], doc: Average of the gradient.}}
blocks:
  step: |
    average = 0.9 * average + 0.1 * grad
    update = average
  apply: |
    param = param - lr * update
"""


def engine_with_bands(opt: Optimizer) -> CudaEngine:
    return next(
        engine for engine in opt._kept.of_all[0].engines if isinstance(engine, CudaEngine) and engine.band_table
    )


class TestPlacement:
    def test_large_states_are_paged_and_nothing_else(self, kind, driver) -> None:
        params, opt = trained(PagedAdamW8bit, 1)
        for param in params:
            entry = opt.state[param]
            paged = {key for key, value in entry.items() if paged_memory.is_paged(value)}
            assert paged == ({"exp_avg", "exp_avg_sq"} if param.numel() >= PAGED_NUMEL else set())
        sizes = [param.numel() for param in params if param.numel() >= PAGED_NUMEL]
        assert held(driver, kind) == sorted(sizes * 2)
        assert opt.paged_bytes() == 2 * LARGE
        assert opt.state_bytes() > 2 * sum(param.numel() for param in params)

    def test_a_group_and_a_parameter_can_differ(self, kind) -> None:
        params = make_params(shapes=((PAGED_NUMEL,),) * 4)
        groups = [{"params": params[:2]}, {"params": params[2:], "is_paged": False}]
        opt = PagedAdamW(groups, target="cuda")
        opt.override(params[0], is_paged=False)
        opt.override(params[3], is_paged=True)
        train(opt, params, 1, 2)
        assert [paged_memory.is_paged(opt.state[param]["exp_avg"]) for param in params] == [False, True, False, True]

    def test_states_move_when_the_setting_changes(self, kind, driver) -> None:
        params, opt = trained(AdamW8bit, 2)
        reference, plain = trained(AdamW8bit, 2)
        for step, paged in enumerate((True, True, False, False, True), start=3):
            opt.param_groups[0]["is_paged"] = paged
            train(opt, params, step, step)
            train(plain, reference, step, step)
            assert opt.paged_bytes() == (2 * LARGE if paged else 0)
            gc.collect()
            assert sum(held(driver, kind)) == opt.paged_bytes(), "what was left is freed"
        assert same(taken(opt, params), taken(plain, reference))

    def test_states_change_their_bits_where_they_are(self, kind, driver) -> None:
        results = []
        for paged in (True, False):
            params, opt = trained(AdamW, 2, is_paged=paged, optim_bits=8)
            for step, bits in ((3, 32), (4, 8)):
                opt.param_groups[0]["optim_bits"] = bits
                train(opt, params, step, step)
                assert opt.paged_bytes() == (2 * LARGE * bits // 8 if paged else 0)
                gc.collect()
                assert sum(held(driver, kind)) == opt.paged_bytes(), "what was left is freed"
            results.append(taken(opt, params))
        assert same(*results)

    @pytest.mark.parametrize("target", ["torch", "cpu"])
    def test_another_target_takes_them_back(self, target, kind) -> None:
        params, opt = trained(PagedAdamW, 1)
        opt.param_groups[0]["target"] = target
        train(opt, params, 2, 2)
        assert opt.engines() == {target: len(params)}
        assert opt.paged_bytes() == 0

    def test_one_state_that_a_user_puts_there_is_paged_too(self, kind) -> None:
        params, opt = trained(PagedAdamW, 1)
        opt.state[params[1]]["exp_avg"] = torch.ones(SHAPES[1])
        train(opt, params, 2, 2)
        opt._wait_for_host()
        assert paged_memory.is_paged(opt.state[params[1]]["exp_avg"])
        reference, plain = trained(AdamW, 1)
        plain.state[reference[1]]["exp_avg"] = torch.ones(SHAPES[1])
        train(plain, reference, 2, 2)
        assert torch.equal(params[1], reference[1])

    def test_a_state_on_another_device_is_refused(self, kind) -> None:
        params, opt = trained(PagedAdamW, 1)
        opt.state[params[1]]["exp_avg"] = torch.ones(SHAPES[1], device="meta")
        with pytest.raises(ValueError, match="state 'exp_avg' is on the device meta, without values"):
            train(opt, params, 2, 2)

    def test_steps_that_are_captured_cannot_have_them(self, kind) -> None:
        params = make_params()
        opt = PagedAdamW(params, target="cuda", capturable=True)
        before = [param.detach().clone() for param in params]
        with pytest.raises(RuntimeError, match=r"PagedAdamW: capturable=True is not for paged states.*120000 elements"):
            train(opt, params, 1, 1)
        assert all(map(torch.equal, before, params))
        assert not opt.state
        for param in params:
            opt.override(param, is_paged=False)
        train(opt, params, 1, 1)


class TestManagedMemory:
    def test_it_prefers_the_host_and_is_open_to_the_device(self, driver) -> None:
        _, opt = trained(PagedAdamW, 1)
        advices = driver.advices()
        for allocation in live(driver):
            given = [(a.advice, a.location_type, a.bytes) for a in advices if a.pointer == allocation.pointer]
            assert given == [(3, 2, allocation.bytes), (5, 1, allocation.bytes)]
        assert len(advices) == 2 * len(live(driver)) == 12
        del opt

    @pytest.mark.parametrize("cls", [AdamW, LAMB], ids=lambda c: c.__name__)
    def test_a_portion_is_asked_for_before_the_launch_before(self, cls, driver, monkeypatch) -> None:
        small_portions(monkeypatch)
        params, opt = trained(cls, 1, is_paged=True)
        paged = engine_of(opt).paged
        asked: list[list[tuple[int, int]]] = []
        launch = CudaEngine._launch

        def noted(self: CudaEngine, name: str, *rest: Any) -> None:
            if not name.endswith(("_prepare", "_finish")):
                asked.append([(p.pointer, p.pointer + p.bytes) for p in driver.prefetches()])
            launch(self, name, *rest)

        monkeypatch.setattr(CudaEngine, "_launch", noted)
        driver.clear_logs()
        train(opt, params, 2, 2)
        moves = paged.moves[False]
        assert len(asked) == len(moves) * (2 if cls is LAMB else 1)
        for number, ranges in enumerate(asked):
            seen, place = set(ranges), number % len(moves)
            for portion in range(min(place + 2, len(moves))):
                wanted = {(m.array.ctypes.data + m.begin, m.array.ctypes.data + m.end) for m in moves[portion]}
                assert wanted <= seen, f"portion {portion} before launch {place}"
        assert {(p.location_type, p.location_id, p.stream) for p in driver.prefetches()} == {(1, 0, paged.into.handle)}

    def test_all_of_every_state_is_asked_for_once_a_pass(self, driver, monkeypatch) -> None:
        small_portions(monkeypatch)
        params, opt = trained(AdamW, 1, is_paged=True)
        driver.clear_logs()
        train(opt, params, 2, 2)
        for allocation in live(driver):
            inside = sorted(
                (p.pointer, p.bytes)
                for p in driver.prefetches()
                if allocation.pointer <= p.pointer < allocation.pointer + allocation.bytes
            )
            assert inside[0][0] == allocation.pointer
            assert all(a + size == b for (a, size), (b, _) in pairwise(inside))
            assert sum(size for _, size in inside) == allocation.bytes

    def test_a_hint_that_is_refused_is_warned_of(self, driver, monkeypatch) -> None:
        params, opt = trained(PagedAdamW, 1)
        reference, _ = trained(AdamW, 2)
        monkeypatch.setattr(paging._hints(), "prefetch_function", lambda *arguments: 101)
        with pytest.warns(RuntimeWarning, match=r"cuMemPrefetchAsync returned the error 101; steps are right"):
            train(opt, params, 2, 2)
        assert all(map(torch.equal, params, reference))

    def test_drivers_that_know_no_locations(self) -> None:
        calls: list[tuple[Any, ...]] = []

        class Old:
            def __getattr__(self, name: str) -> Any:
                if name.endswith("_v2"):
                    raise AttributeError(name)

                def call(*arguments: Any) -> int:
                    calls.append((name, *(argument.value for argument in arguments)))
                    return 0

                return call

        hints = paging.Hints(Old())
        hints.advise(4096, 10, paging.PREFERRED_LOCATION, None)
        hints.advise(4096, 10, paging.ACCESSED_BY, 1)
        hints.prefetch(4096, 10, 1, 77)
        assert calls == [
            ("cuMemAdvise", 4096, 10, 3, -1),
            ("cuMemAdvise", 4096, 10, 5, 1),
            ("cuMemPrefetchAsync", 4096, 10, 1, 77),
        ]

    def test_torch_must_share_it(self, driver, monkeypatch) -> None:
        import numpy

        memory = numpy.zeros(8, numpy.uint8)
        exported: list[Any] = []
        shared = torch.from_numpy(memory)
        monkeypatch.setattr(torch, "as_tensor", lambda it, device: exported.append((it, device)) or shared)
        gpu = cuda_device.CudaDevice(0)
        assert gpu.tensor_over(memory) is shared
        ((it, device),) = exported
        assert device == torch.device("cuda", 0)
        assert it.array is memory, "which lives as long as what torch holds"
        assert it.__cuda_array_interface__ == {
            "shape": (8,),
            "typestr": "|u1",
            "data": (memory.ctypes.data, False),
            "version": 2,
        }
        monkeypatch.setattr(torch, "as_tensor", lambda it, device: shared.clone())
        with pytest.raises(RuntimeError, match="copies managed memory instead of sharing it"):
            gpu.tensor_over(memory)


class TestPinnedMemory:
    def test_the_device_has_two_portions_at_most(self, driver, monkeypatch) -> None:
        driver.configure(concurrent_managed_access=False)
        for size, count in ((SMALL_PORTION, 2), (64 << 20, 1)):
            small_portions(monkeypatch, size)
            _, opt = trained(PagedAdamW, 1)
            buffers = engine_of(opt).paged.buffers
            assert len(buffers) == count
            assert all(len(buffer) <= min(size, 8 * LARGE + 2048) for buffer in buffers)
        assert driver.prefetches() == []

    def test_nothing_is_copied_back_before_the_pass_that_writes(self, driver, monkeypatch) -> None:
        driver.configure(concurrent_managed_access=False)
        copies: list[str] = []
        for name in ("bring", "take_back"):
            method = getattr(StreamedPager, name)
            monkeypatch.setattr(StreamedPager, name, lambda *rest, n=name, m=method: (copies.append(n), m(*rest))[1])
        trained(LAMB, 1, is_paged=True)
        assert copies == ["bring"] * 12 + ["take_back"] * 6, "two passes over two states of three parameters"

    @pytest.mark.parametrize("read", ["state_dict", "deepcopy", "a change of bits", "unpaging"])
    def test_the_host_waits_before_it_reads(self, read, driver, monkeypatch) -> None:
        driver.configure(concurrent_managed_access=False)
        params, opt = trained(PagedAdamW, 1)
        waits: list[int] = []
        monkeypatch.setattr(cuda_device.CudaDevice, "wait", lambda self: waits.append(1))
        train(opt, params, 2, 3)
        assert not waits, "no step waits"
        match read:
            case "state_dict":
                opt.state_dict()
            case "deepcopy":
                copy.deepcopy(opt)
            case _:
                opt.param_groups[0].update({"is_paged": False} if read == "unpaging" else {"optim_bits": 8})
                train(opt, params, 4, 4)
        assert waits


class Clock:
    """A stream, or what an event has seen of streams: how many operations of each have ended by then."""

    def __init__(self, name: str = "") -> None:
        self.name, self.seen = name, {name: 0} if name else {}

    def step(self) -> dict[str, int]:
        self.seen[self.name] += 1
        return dict(self.seen)

    def record(self, stream: Clock) -> None:
        self.seen = dict(stream.seen)

    def wait_for_event(self, event: Clock) -> None:
        self.seen |= {name: max(count, self.seen.get(name, 0)) for name, count in event.seen.items()}


def before(first: tuple[str, dict[str, int]], then: dict[str, int]) -> bool:
    """Check whether an operation, by its stream and time, has ended when another one begins."""
    stream, time = first
    return then.get(stream, 0) >= time[stream]


@pytest.mark.parametrize("passes", ["rw", "w", "rrw", "wR", "rW"])
@pytest.mark.parametrize("size", [SMALL_PORTION, 1_500_000, 64 << 20], ids=["many", "two", "one"])
def test_every_operation_waits_for_what_it_needs(passes, size, kind, monkeypatch) -> None:
    """Streams and events are acted, since the stand-in has no order.

    A pass reads (r) or writes (w) states; capital letters have other portions, as passes that walk bands have.
    """
    small_portions(monkeypatch, size)
    _, opt = trained(AdamW, 1, is_paged=True)
    paged = engine_of(opt).paged
    paged.events = [tuple(Clock() for _ in range(2)) for _ in range(3)]
    paged.into, paged.out, stream = Clock("in"), Clock("out"), Clock("compute")
    written: dict[tuple[int, int], tuple[str, dict[str, int]]] = {}  # the last operation that wrote a state's bytes
    brought: dict[tuple[int, int], tuple[str, dict[str, int]]] = {}
    used: dict[int, list[tuple[str, dict[str, int]]]] = {}  # operations that use a slot

    class Acted:
        buffered = kind == PINNED

        def bring(self, array: Any, begin: int, end: int, slot: int, on: Clock) -> None:
            time, key = on.step(), (array.ctypes.data, begin)
            brought[key] = (on.name, time)
            if self.buffered:  # managed memory is the same wherever it lies
                assert key not in written or before(written[key], time), "the memory holds what the last pass wrote"
                assert all(before(use, time) for use in used.get(slot, ())), "the slot is free"
                used[slot] = [(on.name, time)]

        def take_back(self, array: Any, begin: int, end: int, slot: int, on: Clock) -> None:
            time, key = on.step(), (array.ctypes.data, begin)
            assert all(before(use, time) for use in used[slot]), "the launch is over"
            used[slot].append((on.name, time))
            written[key] = (on.name, time)

    paged.pager = Acted()
    portions = paged.moves[False]
    for bands, order in ((False, portions), (True, portions[::-1])):
        paged.moves[bands] = [[replace(move, slot=n % 2) for move in moves] for n, moves in enumerate(order)]
        paged.launches[bands] = paged.launches[False]
    for each in passes * 2:
        bands, writes = each.isupper(), each in "wW"
        for number, _ in enumerate(paged.walk(bands, writes, stream)):
            time = stream.step()
            for move in paged.moves[bands][number]:
                assert before(brought[move.array.ctypes.data, move.begin], time), "the states are there"
                if kind == PINNED:
                    used[move.slot].append((stream.name, time))
                elif writes:
                    written[move.array.ctypes.data, move.begin] = (stream.name, time)
        after = stream.step()
        assert all(before(write, after) for write in written.values()), "what follows finds all states"
        if kind == PINNED and writes:
            assert len(written) == sum(map(len, paged.moves[False]))


def test_beside_the_default_stream_a_step_has_one_that_can_wait(driver, monkeypatch) -> None:
    class Acted:
        def __init__(self, handle: int, name: str) -> None:
            self.cuda_stream, self.name = handle, name

        def wait_stream(self, other: Acted) -> None:
            log.append(f"{self.name} waits for {other.name}")

    log: list[str] = []
    gpu = cuda_device.CudaDevice(0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: Acted(0, "torch's"))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: Acted(handle, "PyCUDA's"))
    with gpu.stream(apart=True) as stream:
        assert stream is not None
        assert stream.handle not in {other.handle for other in gpu.copy_streams}
    assert log == ["PyCUDA's waits for torch's", "torch's waits for PyCUDA's"]
