"""Programs whose work is known by hand, and XLA's own counts where they are right."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tony.plan.hlo import Module, read_groups


def compiled(function, *shapes, **kwargs):
    return jax.jit(function, **kwargs).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()


def total(operations, what):
    return sum(o.times * getattr(o, what) for o in operations)


def test_products_are_counted_as_xla_counts_them():
    def network(x, a, b):
        return jnp.einsum("ij,jk->ik", x @ a, b)

    program = compiled(network, (32, 64), (64, 128), (128, 16))
    flops = total(Module(program.as_text()).operations(), "flops")
    assert flops == 2 * 32 * 64 * 128 + 2 * 32 * 128 * 16 == program.cost_analysis()["flops"]


def test_memory_traffic_is_counted_as_xla_counts_it():
    program = compiled(lambda x, y: (x @ y) + 1.0, (64, 64), (64, 64))
    traffic = total(Module(program.as_text()).operations(), "bytes")
    assert traffic == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.01)


@pytest.mark.parametrize("trips", [1, 3, 17])
def test_a_loop_counts_by_its_trips(trips):
    def network(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    module = Module(compiled(network, (8, 32), (trips, 32, 32)).as_text())
    assert total(module.operations(), "flops") == trips * 2 * 8 * 32 * 32
    assert not module.unread_loops()


def test_loops_in_loops_multiply():
    def inner(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ w), x)

    def network(x, weights):
        return jax.lax.scan(lambda x, w: (inner(x, w), None), x, weights)[0]

    module = Module(compiled(network, (8, 32), (3, 32, 32)).as_text())
    assert total(module.operations(), "flops") == 15 * 2 * 8 * 32 * 32


def test_trips_are_read_from_the_condition_where_nothing_says_them():
    text = compiled(
        lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0], (8, 32), (7, 32, 32)
    ).as_text()
    assert "known_trip_count" in text
    module = Module(re.sub(r'"known_trip_count":\{[^}]*\},?', "", text))
    assert total(module.operations(), "flops") == 7 * 2 * 8 * 32 * 32


def test_a_slice_of_stacked_weights_is_read_not_all_of_them():
    def network(x, weights):
        return jax.lax.scan(lambda x, w: (x + w, None), x, weights)[0]

    trips, size = 50, 64 * 64 * 4
    traffic = total(Module(compiled(network, (64, 64), (trips, 64, 64)).as_text()).operations(), "bytes")
    # A turn reads x and its own weights and writes x; copies at the ends and counters are small beside it.
    assert 3 * trips * size <= traffic < 4 * trips * size


def test_of_branches_the_heavier_one_counts():
    def network(x, w):
        return jax.lax.cond(x.sum() > 0, lambda x: jnp.tanh(x @ w) @ w, lambda x: x @ w, x)

    module = Module(compiled(network, (8, 32), (32, 32)).as_text())
    assert total(module.operations(), "flops") == 2 * 2 * 8 * 32 * 32


def test_nothing_of_a_loop_that_cannot_be_read_is_hidden():
    def network(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    module = Module(compiled(network, (8, 8)).as_text())
    assert len(module.unread_loops()) == 1
    assert total(module.operations(), "flops") == 2 * 8**3  # once


# As TPU programs write a batch of products: for each of the batch one kernel position meets one input, all else zeros.
BATCH = """HloModule batch_of_products

ENTRY %main (a: f32[2,512,16], b: f32[2,16,128]) -> f32[2,512,128] {
  %a = f32[2,512,16]{2,1,0} parameter(0)
  %b = f32[2,16,128]{2,1,0} parameter(1)
  ROOT %c = f32[2,512,128]{2,1,0} convolution(%a, %b), window={size=2 pad=0_1 lhs_dilate=2}, dim_labels=0bf_0io->0bf
}
"""


def test_a_batch_of_products_written_as_a_dilated_convolution():
    assert total(Module(BATCH).operations(), "flops") == 2 * 2 * 512 * 16 * 128


def test_a_convolution_counts_only_what_meets():
    def network(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    program = compiled(network, (2, 10, 4), (3, 4, 8))
    flops = total(Module(program.as_text()).operations(), "flops")
    assert flops == 2 * 2 * (3 * 10 - 2) * 4 * 8  # at both ends one of three positions falls on padding


TPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

%all-reduce-scatter.1 (input.1: f32[1024]) -> f32[256] {
  %input.1 = f32[1024]{0:T(1024)} parameter(0)
  %all-reduce.1 = f32[1024]{0:T(1024)} all-reduce(%input.1), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %zero.1 = s32[] constant(0)
  ROOT %dynamic-slice.1 = f32[256]{0:T(256)} dynamic-slice(%all-reduce.1, %zero.1), dynamic_slice_sizes={256}
}

ENTRY %main (p: f32[1024], q: bf16[8,1024]) -> f32[256] {
  %p = f32[1024]{0:T(1024)} parameter(0)
  %q = bf16[8,1024]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %copy-start.1 = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%p)
  %copy-done.1 = f32[1024]{0:T(1024)S(1)} copy-done(%copy-start.1)
  %negate.1 = f32[1024]{0:T(1024)S(1)} negate(%copy-done.1), backend_config={"estimated_cycles":"609"}
  %all-gather-start.1 = (bf16[8,1024]{1,0}, bf16[16,1024]{1,0}) all-gather-start(%q), replica_groups=[4,2]<=[4,2]T(1,0), dimensions={0}
  %all-gather-done.1 = bf16[16,1024]{1,0} all-gather-done(%all-gather-start.1)
  %collective-permute-start.1 = (f32[1024]{0}, f32[1024]{0}, u32[], u32[]) collective-permute-start(%p), channel_id=3, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %collective-permute-done.1 = f32[1024]{0} collective-permute-done(%collective-permute-start.1)
  %after-all.1 = token[] after-all()
  %send.1 = (f32[1024]{0}, u32[], token[]) send(%p, %after-all.1), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=4, is_host_transfer=true
  ROOT %fusion.1 = f32[256]{0:T(256)} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1, backend_config={"estimated_cycles":"9223372036854775807"}
}
"""  # noqa: E501


OFFLOADED = """HloModule offloaded, num_partitions=8

%called.1 (a: f32[1024]) -> f32[128] {
  %a = f32[1024]{0} parameter(0)
  ROOT %reduce-scatter.7 = f32[128]{0} reduce-scatter(%a), channel_id=2, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}, to_apply=%add
}, execution_thread="sparsecore"

%async_computation.1 (b: f32[1024]) -> f32[128] {
  %b = f32[1024]{0} parameter(0)
  ROOT %custom-call.1 = f32[128]{0} custom-call(%b), custom_call_target="SomeCall", called_computations={%called.1}
}, execution_thread="sparsecore"

ENTRY %main (p: f32[1024]) -> f32[128] {
  %p = f32[1024]{0} parameter(0)
  %async-start.1 = ((f32[1024]{0}), f32[128]{0}, u32[]{:S(8)}) async-start(%p), async_execution_thread="sparsecore", calls=%async_computation.1
  ROOT %async-done.1 = f32[128]{0} async-done(%async-start.1)
}
"""  # noqa: E501


def test_a_transfer_that_is_left_to_the_sparsecores_is_one():
    (made,) = (o for o in Module(OFFLOADED).operations() if o.sent)
    assert (made.kind, made.sent, made.alone) == ("reduce-scatter", 4 * (1024 - 128), False)
    assert made.groups == (tuple(range(8)),)


def test_what_a_tpu_program_writes():
    made = {o.name: o for o in Module(TPU).operations()}
    assert made["copy-start.1"].bytes == 4096  # read of HBM, written on the chip
    assert made["negate.1"].bytes == 0 and made["negate.1"].cycles == 609
    assert all(o.cycles == 0 for o in made.values() if o.name != "negate.1")  # the greatest number means none
    assert made["all-gather-start.1"].sent == 8 * 1024 * 2 and not made["all-gather-start.1"].alone
    assert made["all-gather-start.1"].groups[0] == (0, 2)
    assert made["collective-permute-start.1"].sent == 4096 and len(made["collective-permute-start.1"].groups) == 4
    assert made["send.1"].host and made["send.1"].kind == "all-reduce" and made["send.1"].sent == 4096
    scatter = made["fusion.1"]
    assert scatter.kind == "reduce-scatter" and scatter.sent == 4096 * 3 / 4 and scatter.alone
    assert scatter.groups == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert not [name for name in made if "done" in name]


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups={{0,2},{1,3}}, x=1", ((0, 2), (1, 3))),
        ("replica_groups={}", ((0, 1, 2, 3),)),
        ("channel_id=1", ((0, 1, 2, 3),)),
        ("replica_groups=[2,2]<=[4], x=1", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x=1", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x=1", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
    ],
)
def test_every_way_of_writing_groups(text, groups):
    assert read_groups(f"all-reduce(%x), {text}", 4) == groups


def test_groups_cover_every_device_once():
    for text in ("replica_groups=[16,4]<=[4,4,4]T(2,1,0)", "replica_groups=mesh['a'=4,'b'=4,'c'=4] {'c','a'}"):
        groups = np.array(read_groups(text, 64))
        assert sorted(groups.ravel()) == list(range(64))
