"""Which layers keep what: everything where it fits, the cheapest loss of speed where it does not."""

import pytest

from hasten.policies import POLICIES, Widths, choose_policies, kept_bytes, working_bytes

EIGHT_B = Widths(hidden=4096, query=4096, key_value=1024, mlp=14336)
TOKENS = 4096


def kept(policies, widths=EIGHT_B, tokens=TOKENS):
    return sum(tokens * kept_bytes(policy, widths) for policy in policies)


def test_each_policy_keeps_less_than_the_one_before():
    sizes = [kept_bytes(policy, EIGHT_B) for policy in POLICIES]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert sizes[-1] == 0


def test_bytes_by_hand():
    # x, h, q, k, v, o: 2 D + 2 Q + 2 KV; x, h, gate, up, product: 2 D + 3 I
    assert kept_bytes("keep", EIGHT_B) == 2 * (2 * 4096 + 2 * 4096 + 2 * 1024 + 2 * 4096 + 3 * 14336)
    assert kept_bytes("recompute", EIGHT_B) == 2 * 2 * 4096


@pytest.mark.parametrize("gib", [2, 4, 8, 12, 14, 16, 20, 40])
def test_what_is_chosen_fits_and_the_next_dearer_choice_does_not(gib):
    free = gib * 2**30
    chosen = choose_policies(32, TOKENS, EIGHT_B, free, offload=True)
    room = free - TOKENS * working_bytes(EIGHT_B)
    assert kept(chosen) <= room
    order = [POLICIES.index(policy) for policy in chosen]
    assert max(order) - min(order) <= 1
    assert order == sorted(order, reverse=True)
    if max(order):
        raised = list(chosen)
        raised[order.index(max(order))] = POLICIES[max(order) - 1]
        last = order.count(max(order)) - 1
        raised[0], raised[last] = raised[last], raised[0]
        assert kept(raised) > room


def test_without_offload_the_last_resort_is_recomputing():
    assert set(choose_policies(32, TOKENS, EIGHT_B, 0, offload=False)) == {"recompute"}
    assert set(choose_policies(32, TOKENS, EIGHT_B, 0, offload=True)) == {"offload"}


def test_long_micro_batches_keep_one_input_and_take_the_mlp_in_parts():
    long = 262144
    assert kept_bytes("recompute", EIGHT_B, long) == 2 * 4096 == kept_bytes("recompute", EIGHT_B, 65536) / 2
    assert kept_bytes("keep", EIGHT_B, long) == kept_bytes("keep", EIGHT_B)
    # One step of this length was measured: 42.2 GB beside 7.5 GB of weights and adapters.
    assert 0.9 < working_bytes(EIGHT_B, long) / (42.2e9 - 7.5e9) < 1.1
    some = choose_policies(32, long, EIGHT_B, working_bytes(EIGHT_B, long) + 32 * long * 2 * 4096, offload=True)
    assert set(some) == {"recompute"}
