"""Resident heads: what is held stays, what is not is dropped oldest first, and nothing of it is left behind."""

import os
import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from models.heads.head import Head
from service.engine.head_bank import SECOND_CHANCES, SPARE_SLOTS, HeadBank, capacity_of
from service.engine.head_table import SHARED, HeadMoved, HeadReader, head_bytes
from service.engine.memory import Layout, ModelMemory
from service.errors import TooManyRequests

K, D = 3, 4
HEAD_BYTES = head_bytes(K, D)
Z = np.arange(1, D + 1, dtype=np.float32)[None]


def head(value):
    return Head(np.full((K, D), float(value)), np.full(K, -float(value)))


def applied(bank, slot):
    return bank.table.logits(Z, np.array([slot])).tolist()


def expected(value):
    return [[value * 10.0 - value] * K]


def held(bank, user, version=1):
    """Whether a head is resident; lets go of it again."""
    slot = bank.pin((user, version))
    if slot is None:
        return False
    bank.unpin([slot])
    return True


def filled(bank, count):
    for i in range(count):
        bank.unpin([bank.insert((f"u{i}", 1), head(i))])
    return bank


@pytest.mark.parametrize(
    "limits", [{"heads": 3, "max_bytes": 1 << 30}, {"heads": 100, "max_bytes": 4 * HEAD_BYTES - 1}]
)
def test_the_least_recently_used_is_evicted_by_count_or_by_bytes(limits):
    bank = filled(HeadBank(head(0), capacity_of(K, D, **limits)), 3)
    assert bank.capacity == 3
    assert bank.nbytes == 3 * HEAD_BYTES
    assert held(bank, "u0")
    bank.unpin([bank.insert(("new", 1), head(9))])
    assert (len(bank), bank.evictions, bank.nbytes) == (3, 1, 3 * HEAD_BYTES)
    assert [held(bank, user) for user in ("u0", "u1", "u2", "new")] == [True, False, True, True]
    assert bank.hits == 4


def test_a_limit_smaller_than_one_head_still_holds_one():
    assert HeadBank(head(0), capacity_of(K, D, 10, 1)).capacity == 1


def test_what_is_held_survives_eviction_and_forgetting_until_it_is_let_go():
    bank = filled(HeadBank(head(7), 2), 0)
    first, second = bank.insert(("ana", 1), head(1)), bank.insert(("ana", 2), head(2))
    bank.insert(("bo", 1), head(3))  # both places are held: the bank grows past its capacity
    assert len(bank) == 3
    assert bank.pin(("ana", 1)) == first
    assert bank.forget("ana") == 2
    assert bank.forget("ana") == 0
    assert bank.pin(("ana", 1)) is None
    assert (applied(bank, first), applied(bank, second)) == (expected(1), expected(2))
    assert bank.nbytes == 3 * HEAD_BYTES
    bank.unpin([second, first])
    assert applied(bank, second) == [[0.0] * K]
    assert applied(bank, first) == expected(1)  # held twice
    bank.unpin([first])
    assert applied(bank, first) == [[0.0] * K]
    assert bank.nbytes == HEAD_BYTES
    bank.unpin([SHARED])
    assert applied(bank, SHARED) == expected(7)


def test_a_head_that_comes_anew_while_its_old_self_is_held_has_a_place_of_its_own():
    bank = HeadBank(head(0), 4)
    old = bank.insert(("ana", 1), head(1))
    bank.forget("ana")
    new = bank.insert(("ana", 1), head(5))
    assert new != old
    assert (applied(bank, old), applied(bank, new)) == (expected(1), expected(5))
    bank.unpin([old])
    assert (applied(bank, old), applied(bank, new)) == ([[0.0] * K], expected(5))


def test_a_bank_that_grew_because_all_was_held_shrinks_again():
    bank = HeadBank(head(0), 2)
    slots = [bank.insert((f"u{i}", 1), head(i)) for i in range(8)]
    assert len(bank) == 8
    bank.unpin(slots)
    bank.unpin([bank.insert(("new", 1), head(9))])
    assert len(bank) == 2
    assert [held(bank, user) for user in ("new", "u7", "u6")] == [True, True, False]


def test_more_held_heads_than_places_are_refused_and_nothing_is_lost():
    bank = HeadBank(head(0), 2)
    slots = [bank.insert((f"u{i}", 1), head(1)) for i in range(2 + SPARE_SLOTS - 1)]
    assert len(set(slots)) == len(slots)
    with pytest.raises(TooManyRequests, match="places of resident heads are held"):
        bank.insert(("late", 1), head(1))
    assert bank.pin(("late", 1)) is None
    bank.unpin(slots[:1])
    assert bank.insert(("late", 1), head(4)) == slots[0]
    assert applied(bank, slots[0]) == expected(4)


def lines_run(action):
    """Lines of Python that a call runs: a count of its work that no clock disturbs."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def test_a_hundred_thousand_heads_cost_no_more_steps_than_ten():
    few, many = filled(HeadBank(head(0), 10), 10), filled(HeadBank(head(0), 100_000), 100_000)
    assert len(many) == 100_000
    assert many.nbytes == 100_000 * HEAD_BYTES
    steps = [
        (
            lines_run(lambda bank=bank: bank.unpin([bank.pin(("u3", 1))])),
            lines_run(lambda bank=bank: bank.pin(("nobody", 1))),
            lines_run(lambda bank=bank: bank.unpin([bank.insert(("new", 1), head(1))])),
            lines_run(lambda bank=bank: bank.forget("u5")),
        )
        for bank in (few, many)
    ]
    assert steps[0] == steps[1]
    some = np.array([many.pin((f"u{i}", 1)) for i in (7, 50_000, 99_999, 7)])
    z = np.repeat(Z, 4, 0)
    assert many.table.logits(z, some).tolist() == [expected(i)[0] for i in (7, 50_000, 99_999, 7)]
    one = np.repeat(some[1], 4)
    assert many.table.logits(z, one).tolist() == expected(50_000) * 4


class BankAgainstDict(RuleBasedStateMachine):
    """The bank beside plain dictionaries: who is resident in which order, and which head each held slot must have."""

    pins = Bundle("pins")
    keys = st.tuples(st.sampled_from("abcd"), st.integers(1, 3))

    @initialize(capacity=st.integers(1, 5))
    def start(self, capacity):
        self.bank, self.capacity = HeadBank(head(77), capacity), capacity
        self.resident = {}  # key -> (value, slot)
        self.idle = []  # keys of residents that nobody holds, the one let go first in front
        self.held = {}  # slot -> [value, times]
        self.value = 0

    def hold(self, key):
        value, slot = self.resident[key]
        if key in self.idle:
            self.idle.remove(key)
        entry = self.held.setdefault(slot, [value, 0])
        assert entry[0] == value, "a held slot was given to another head"
        entry[1] += 1

    @rule(target=pins, key=keys)
    def insert(self, key):
        if key in self.resident:
            value, slot = self.resident.pop(key)
            assert self.bank.insert(key, head(-1)) == slot  # a version's head does not change
        else:
            while len(self.resident) >= self.capacity:
                if not self.idle:
                    break
                del self.resident[self.idle.pop(0)]
            self.value = value = self.value + 1
            slot = self.bank.insert(key, head(value))
            assert slot not in {s for _, s in self.resident.values()}
        self.resident[key] = (value, slot)
        self.hold(key)
        return slot

    @rule(target=pins, key=keys)
    def pin(self, key):
        slot = self.bank.pin(key)
        if key not in self.resident:
            assert slot is None
            return SHARED  # which may be let go at any time
        assert slot == self.resident[key][1]
        self.hold(key)
        return slot

    @rule(slot=consumes(pins))
    def unpin(self, slot):
        self.bank.unpin([slot])
        if slot != SHARED:
            self.held[slot][1] -= 1
            if not self.held[slot][1]:
                del self.held[slot]
                key = next((k for k, (_, s) in self.resident.items() if s == slot), None)
                if key is not None:
                    self.idle.append(key)
                else:
                    assert applied(self.bank, slot) == [[0.0] * K]

    @rule(user=st.sampled_from("abcd"))
    def forget(self, user):
        gone = [key for key in self.resident if key[0] == user]
        assert self.bank.forget(user) == len(gone)
        for key in gone:
            _, slot = self.resident.pop(key)
            if slot not in self.held:
                self.idle.remove(key)
                assert applied(self.bank, slot) == [[0.0] * K]

    @invariant()
    def the_same(self):
        assert len(self.bank) == len(self.resident)
        slots = {slot for _, slot in self.resident.values()} | set(self.held)
        assert self.bank.nbytes == len(slots) * HEAD_BYTES
        for slot, (value, _) in self.held.items():
            assert applied(self.bank, slot) == expected(value)
        for value, slot in self.resident.values():
            assert applied(self.bank, slot) == expected(value)
        assert applied(self.bank, SHARED) == expected(77)


BankAgainstDict.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestBankAgainstDict = BankAgainstDict.TestCase


def read(table, *handles):
    return HeadReader(table).scores(np.repeat(Z, len(handles), 0), np.array(handles))[:, :K].tolist()


def test_a_reader_elsewhere_sees_heads_by_handles_and_never_what_took_their_place():
    layout = Layout(slots=8 + SPARE_SLOTS, k=K, d=D, largest_batch=4, processes=2)
    memory = ModelMemory.shared(layout)
    there = ModelMemory(layout, os.dup(memory.fd))
    bank = HeadBank(head(0), 8, table=memory.table)
    slots = [bank.insert((user, 1), head(value)) for value, user in enumerate(("ana", "bo"), 1)]
    ana, bo = (memory.table.handle(slot) for slot in slots)
    assert read(there.table, ana, bo, SHARED) == [*expected(1), *expected(2), *expected(0)]
    assert there.table.valid(ana)
    bank.unpin(slots)
    bank.forget("ana")
    assert not there.table.valid(ana)
    assert there.table.weight[slots[0]].max() == 0  # nothing of it is left
    for handles in ((ana,), (bo, ana)):
        with pytest.raises(HeadMoved):
            read(there.table, *handles)
    assert bank.insert(("cleo", 1), head(3)) == slots[0]
    with pytest.raises(HeadMoved):
        read(there.table, ana)
    assert read(there.table, memory.table.handle(slots[0])) == expected(3)


def test_what_was_used_elsewhere_stays_and_what_was_just_looked_up_too(monkeypatch):
    now = 0.0
    monkeypatch.setattr("service.engine.head_bank.time.monotonic", lambda: now)
    bank = HeadBank(head(0), 3, lease=2.0)
    filled(bank, 3)
    handles = [bank.table.handle(slot) for slot in (bank.pin((f"u{i}", 1)) for i in range(3))]
    bank.unpin([h & 0xFFFF for h in handles])
    bank.unpin([bank.insert(("early", 1), head(8))])
    assert (len(bank), bank.evictions) == (4, 0)  # all are leased: the bank grows
    now = 3.0
    read(bank.table, handles[0], handles[1])
    bank.unpin([bank.insert(("late", 1), head(9))])
    assert [held(bank, user) for user in ("u0", "u1", "u2", "early", "late")] == [True, True, False, False, True]
    assert read(bank.table, handles[0]) == expected(0)


def test_many_that_were_used_elsewhere_cost_a_bounded_search():
    bank = filled(HeadBank(head(0), 1000), 1000)
    bank.table.used[:] = 1
    bank.unpin([bank.insert(("new", 1), head(1))])
    assert (len(bank), bank.evictions) == (1000, 1)
    assert (bank.table.used[1:1001] == 0).sum() in (SECOND_CHANCES, SECOND_CHANCES + 1)
