"""The memory of paged states, on the stand-in: freed with its parameter, saved and loaded, and too little of it."""

from __future__ import annotations

import copy
import gc
import io
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from optgen_optim import AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit
from runtime.training import same, snapshot, train
from support.catalogue import optimizer_class, rows
from support.paged import (
    LARGE,
    MANAGED,
    PORTIONS,
    SHAPES,
    held,
    in_turn,
    live,
    make_params,
    snapshot_of,
    taken,
    trained,
)

from optgen.codecs import PAGED_NUMEL
from optgen.runtime.cuda import paged_memory

PAGED = [name for name, row in rows().items() if row.fixed.get("is_paged")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class TestFreedMemory:
    @pytest.mark.parametrize(
        ("cls", "kind", "portion"), in_turn((PagedAdamW, PagedAdamW8bit), *PORTIONS), indirect=("kind", "portion")
    )
    def test_it_goes_with_parameter_and_optimizer(self, cls, kind, portion, driver) -> None:
        params, opt = trained(cls)
        assert len(held(driver, kind)) == 6
        kept = opt.state[params[1]]["exp_avg"]
        values = kept.clone()
        del params, opt
        gc.collect()
        assert held(driver, kind) == [kept.numel() * kept.element_size()], "what somebody holds stays"
        assert torch.equal(kept, values)
        del kept
        assert live(driver) == []
        assert not {allocation.pointer for allocation in live(driver)} & paged_memory.LOANS.keys()

    def test_another_thread_can_free_it(self, kind, driver, recwarn) -> None:
        holder = [trained(PagedAdamW, 1)]

        def drop() -> None:
            holder.clear()
            gc.collect()

        thread = threading.Thread(target=drop)
        thread.start()
        thread.join()
        assert live(driver) == []
        assert not recwarn.list

    def test_nothing_is_said_when_the_process_ends(self, kind) -> None:
        script = f"""
import torch, standin
driver = standin.load()
driver.configure(concurrent_managed_access={kind == MANAGED})
from support.gpu import install_standin
install_standin()
from optgen_optim import PagedAdamW
param = torch.ones(120_000, requires_grad=True)
param.grad = torch.ones(120_000)
opt = PagedAdamW([param], target="cuda")
opt.step()
assert opt.paged_bytes() == 960_000
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("before", "after"), [(True, True), (True, False), (False, True)], ids=["kept", "unpaged", "paged"]
    )
    @pytest.mark.parametrize("cls", [AdamW, AdamW8bit], ids=lambda c: c.__name__)
    def test_training_goes_on_as_if_never_saved(self, cls, before, after, kind, driver) -> None:
        params, opt = trained(cls, 2, is_paged=before)
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        del opt
        resumed = cls(params, target="cuda", is_paged=after)
        resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        wanted = LARGE * 2 * (1 if cls is AdamW8bit else 4) if after else 0
        assert resumed.paged_bytes() == sum(held(driver, kind)) == wanted, "from the moment of loading on"
        train(resumed, params, 3, 4)
        assert resumed.paged_bytes() == wanted
        assert same(taken(resumed, params), snapshot_of(cls, 4))

    @pytest.mark.parametrize(("name", "kind"), in_turn(PAGED), indirect=("kind",))
    def test_every_paged_class_goes_on(self, name, kind) -> None:
        """After each of three steps a new optimizer goes on from a file."""
        cls = optimizer_class(name)
        params, whole = trained(cls, 0, min_8bit_size=1)
        mine, opt = trained(cls, 0, min_8bit_size=1)
        for step in (1, 2, 3):
            train(whole, params, step, step)
            train(opt, mine, step, step)
            assert same(taken(whole, params), taken(opt, mine))
            file = io.BytesIO()
            torch.save(opt.state_dict(), file)
            mine = [param.detach().clone().requires_grad_() for param in mine]
            opt = cls(mine, target="cuda", min_8bit_size=1)
            opt.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
            assert opt.paged_bytes() == whole.paged_bytes() > 0

    def test_a_file_holds_ordinary_tensors(self, kind) -> None:
        _, opt = trained(PagedAdamW8bit, 1)
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        states = [value for entry in loaded["state"].values() for value in entry.values()]
        assert not any(map(paged_memory.is_paged, states))
        assert all(value.untyped_storage().nbytes() == value.nbytes for value in states), (
            "nothing else is dragged along"
        )
        assert len({value.untyped_storage().data_ptr() for value in states}) == len(states)
        for entry, saved in zip(opt.state.values(), loaded["state"].values(), strict=True):
            assert same(dict(entry), saved)

    def test_a_state_dict_that_was_never_saved_can_be_loaded(self, kind) -> None:
        _, opt = trained(PagedAdamW, 2)
        other = PagedAdamW(make_params(), target="cuda")
        other.load_state_dict(opt.state_dict())
        pointers = [{v.data_ptr() for e in o.state.values() for v in e.values()} for o in (opt, other)]
        assert not pointers[0] & pointers[1]
        assert opt.paged_bytes() == other.paged_bytes() == 8 * LARGE

    def test_overrides_are_honoured(self, kind) -> None:
        params, opt = trained(AdamW, 1)
        resumed = AdamW(params, target="cuda")
        resumed.override(params[3], is_paged=True)
        resumed.load_state_dict(opt.state_dict())
        assert resumed.paged_bytes() == 8 * params[3].numel()
        train(resumed, params, 2, 2)
        assert resumed.paged_bytes() == 8 * params[3].numel()

    def test_another_precision_is_taken_over(self, kind) -> None:
        params, opt = trained(PagedAdamW, 2)
        resumed = PagedAdamW8bit(params, target="cuda")
        with pytest.warns(UserWarning, match="stores states as fp32"):
            resumed.load_state_dict(opt.state_dict())
        train(resumed, params, 3, 3)
        assert resumed.paged_bytes() == 2 * LARGE

    def test_a_copy_of_an_optimizer_is_paged_too(self, kind) -> None:
        params, opt = trained(PagedAdamW, 2)
        params, opt = copy.deepcopy((params, opt))
        train(opt, params, 3, 3)
        assert opt.paged_bytes() == 8 * LARGE
        assert same(taken(opt, params), snapshot_of(AdamW, 3))

    def test_a_target_that_does_not_page_loads_ordinary_states(self, kind) -> None:
        params, opt = trained(PagedAdamW, 1)
        resumed = PagedAdamW(params, target="torch")
        resumed.load_state_dict(opt.state_dict())
        assert resumed.paged_bytes() == 0


class TestTooLittleMemory:
    """Six states are paged: those of three parameters."""

    @pytest.mark.parametrize(("fitting", "kind"), in_turn(range(6)), indirect=("kind",))
    def test_the_first_step_changes_nothing_and_can_be_repeated(self, fitting, kind, driver) -> None:
        params = make_params()
        opt = PagedAdamW(params, target="cuda")
        before = [param.detach().clone() for param in params]
        sizes = [4 * param.numel() for param in params if param.numel() >= PAGED_NUMEL for _ in range(2)]
        driver.fail_after(sum(sizes[: fitting + 1]) - 1)
        name, shape = ("exp_avg", "exp_avg_sq")[fitting % 2], (SHAPES[1], SHAPES[3], SHAPES[4])[fitting // 2]
        with pytest.raises(torch.cuda.OutOfMemoryError) as raised:
            train(opt, params, 1, 1)
        message = str(raised.value)
        assert f"out of memory for state '{name}' of a parameter of shape {shape}: {sizes[fitting]} bytes of" in message
        assert ("managed" if kind == MANAGED else "pinned") in message
        del raised
        gc.collect()
        assert all(map(torch.equal, before, params))
        assert not opt.state
        assert live(driver) == []
        driver.fail_after(None)
        train(opt, params, 1, 3)
        assert same(taken(opt, params), snapshot_of(AdamW, 3))

    @pytest.mark.parametrize("fitting", [0, 5])
    @pytest.mark.parametrize("change", ["paging", "bits", "a checkpoint"])
    def test_states_that_were_there_stay_as_they_were(self, change, fitting, kind, driver) -> None:
        params, opt = trained(AdamW, 2, optim_bits=8, is_paged=change != "paging")
        saved = copy.deepcopy(opt.state_dict())
        opt._wait_for_host()
        before = copy.deepcopy(snapshot(opt, params))
        bits = 32 if change == "bits" else 8
        numels = [param.numel() for param in params if param.numel() >= PAGED_NUMEL for _ in range(2)]
        driver.fail_after(sum(numels[: fitting + 1]) * bits // 8 - 1)
        opt.param_groups[0].update(is_paged=True, optim_bits=bits)
        with pytest.raises(torch.cuda.OutOfMemoryError, match="out of memory for state 'exp_avg"):
            if change == "a checkpoint":
                opt.load_state_dict(saved)
            else:
                train(opt, params, 3, 3)
        opt._wait_for_host()
        after = snapshot(opt, params)
        assert same(after["params"], before["params"])
        assert same(after["states"], before["states"])
        driver.fail_after(None)
        gc.collect()
        train(opt, params, 3, 4)
        opt._wait_for_host()
        reference, plain = trained(AdamW, 2, optim_bits=8)
        plain.param_groups[0]["optim_bits"] = bits
        train(plain, reference, 3, 4)
        assert same(taken(opt, params), taken(plain, reference))

    def test_memory_of_torch_is_named_too(self, driver, monkeypatch) -> None:
        params = make_params()
        opt = AdamW(params, target="cuda")

        def refuse(*arguments: Any) -> None:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 468.00 KiB")

        with monkeypatch.context() as short:
            short.setattr("optgen.runtime.states.store.zeros", refuse)
            wanted = r"state 'exp_avg' of a parameter of shape \(300,\): CUDA out of memory. Tried"
            with pytest.raises(torch.cuda.OutOfMemoryError, match=wanted):
                train(opt, params, 1, 1)
        assert not opt.state
        train(opt, params, 1, 1)
