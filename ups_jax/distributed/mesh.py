"""Many devices as one mesh: what lies where on them.

The rows of a batch lie on all devices of the mesh, and each large array of a state in pieces along `fsdp`; everything
else is on every device. A gradient is a sum over rows, so each device takes that of its own rows and they are added up;
the optimizer's work is cut by XLA's partitioner as the state lies. There is one train step for a laptop and a cluster.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from ups_jax.config import ParallelConfig
from ups_jax.core.errors import ConfigError
from ups_jax.models.batch import Batch

_DATA, _FSDP = "data", "fsdp"
_ROWS = PartitionSpec((_DATA, _FSDP))
# Smaller arrays are on every device: to collect their pieces would cost more than they do.
_LEAST_SIZE = 1024


def make_mesh(config: ParallelConfig) -> Mesh:
    """The devices as (data, fsdp), those of a process side by side; ConfigError where there are not so many."""
    return _mesh(config.data, config.fsdp)


@functools.cache
def _mesh(data: int, fsdp: int) -> Mesh:
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if data == -1:
        data = len(devices) // fsdp
        if data * fsdp != len(devices):
            raise ConfigError(f"parallel.fsdp={fsdp}: does not divide the {len(devices)} devices; give a divisor")
    if data * fsdp > len(devices):
        raise ConfigError(
            f"parallel.data={data} times parallel.fsdp={fsdp} is not the {len(devices)} devices that there are; "
            "parallel.data=-1 takes all of them"
        )
    chosen = np.array(devices[: data * fsdp]).reshape(data, fsdp)
    return Mesh(chosen, (_DATA, _FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def is_one_cpu(mesh: Mesh) -> bool:
    """Whether the mesh is a single CPU device, where loops and branches of a program are cheap."""
    return mesh.size == 1 and mesh.devices.item().platform == "cpu"


def check_rows(mesh: Mesh | AbstractMesh, rows: int, key: str) -> None:
    """ConfigError where the rows of a step cannot be shared out evenly, or a process has no part in them."""
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise ConfigError(
            f"parallel.data and parallel.fsdp: take {mesh.size} devices of {jax.device_count()}, but every process has "
            "to have its part; parallel.data=-1 takes all of them"
        )
    if rows % mesh.size:
        raise ConfigError(
            f"{key}: {rows} windows a step cannot be shared by {mesh.size} devices; "
            f"make it a multiple of {mesh.size}, or use fewer devices with parallel.data"
        )


def spec_of(mesh: Mesh | AbstractMesh, shape: tuple[int, ...]) -> PartitionSpec:
    """How an array of a state lies: its largest axis that `fsdp` divides is cut, the last of several; small arrays and
    those without such an axis are whole on every device."""
    pieces = mesh.shape[_FSDP]
    axes = [axis for axis, points in enumerate(shape) if points % pieces == 0]
    if pieces == 1 or math.prod(shape) < _LEAST_SIZE or not axes:
        return PartitionSpec()
    cut = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(_FSDP if axis == cut else None for axis in range(cut + 1)))


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Where each array of a state lies. Depends on its shape alone, so that moments and averages lie with what they
    are of."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec_of(mesh, leaf.shape)), tree)


def placed_like(mesh: Mesh, tree: Any) -> Any:
    """The abstract arrays of `tree`, where a state has them on the mesh.

    On one device that is the device itself: a step of arrays on a mesh of one is compiled as another program, and its
    last bits may be others.
    """
    alone = SingleDeviceSharding(mesh.devices.item()) if mesh.size == 1 else None
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=alone or sharding),
        tree,
        shardings(mesh, tree),
    )


def keep_in_place(mesh: Mesh, tree: Any) -> Any:
    """`tree`, inside a compiled program, held where `shardings` has it; on one device there is nothing to hold."""
    return tree if mesh.size == 1 else jax.lax.with_sharding_constraint(tree, shardings(mesh, tree))


def over_rows(mesh: Mesh, summed: Callable[..., Any]) -> Callable[..., Any]:
    """`summed(params, batch, ...)`, a tree of sums over the rows of a batch, with each device at its own rows.

    On several devices a device sees its rows alone, and everything else whole; the sums of all devices are added up,
    and a large array of them ends in pieces as a state's does. Nothing moves but parameters and sums: the partitioner,
    left to itself, cuts and moves activations, which are larger.
    """
    if mesh.size == 1:
        return summed

    def shared(params: Any, batch: Any, *rest: Any) -> Any:
        local = jax.tree.map(
            lambda rows: jax.ShapeDtypeStruct((rows.shape[0] // mesh.size, *rows.shape[1:]), rows.dtype), batch
        )
        specs = jax.tree.map(lambda leaf: spec_of(mesh, leaf.shape), jax.eval_shape(summed, params, local, *rest))

        def of_device(params: Any, batch: Any, *rest: Any) -> Any:
            return jax.tree.map(_added_up, summed(params, batch, *rest), specs)

        everywhere = PartitionSpec()
        given = (everywhere, _ROWS, *(everywhere for _ in rest))
        return jax.shard_map(of_device, mesh=mesh, in_specs=given, out_specs=specs, check_vma=False)(
            params, batch, *rest
        )

    return shared


def _added_up(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
    """The sum over all devices, of which a device keeps its piece."""
    if _FSDP not in spec:
        return jax.lax.psum(leaf, (_DATA, _FSDP))
    return jax.lax.psum(jax.lax.psum_scatter(leaf, _FSDP, scatter_dimension=spec.index(_FSDP), tiled=True), _DATA)


def put(mesh: Mesh, tree: Any) -> Any:
    """`tree` brought to where `shardings` has it; every process hands over the same values."""
    return tree if mesh.size == 1 else jax.tree.map(_put, tree, shardings(mesh, tree))


def put_everywhere(mesh: Mesh, tree: Any) -> Any:
    """A copy of `tree` on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.device_put(tree) if mesh.size == 1 else jax.tree.map(lambda leaf: _put(leaf, everywhere), tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def put_rows(mesh: Mesh, batch: Batch) -> Batch:
    """This process's rows of a batch, as its part of the batch that all devices share."""
    if mesh.size == 1:
        return jax.device_put(batch)
    sharding = NamedSharding(mesh, _ROWS)
    return jax.tree.map(lambda values: jax.make_array_from_process_local_data(sharding, values), batch)


def fed_rows(mesh: Mesh, batch: Batch) -> Batch:
    """The same for a jitted step: one device takes arrays as they are, a fifteenth of the cost of a `device_put`."""
    return batch if mesh.size == 1 else put_rows(mesh, batch)


def local_copy(mesh: Mesh, tree: Any) -> Any:
    """`tree` whole on a device of this process, for work that each process does by itself."""
    if mesh.size == 1:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    whole = jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
