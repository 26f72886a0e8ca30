"""Device mesh and shardings of batches and train states.

The rows of a batch are split over all devices of the mesh. Each large array of a train state is split along the mesh
axis `fsdp`; small arrays are replicated. Each device computes the gradient of its own rows, and the gradients are
summed over devices. XLA partitions the optimizer step according to the sharding of the state. The same train step runs
on one device and on many.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import PyTree

from ups_jax.config import ParallelConfig
from ups_jax.core.errors import ConfigError
from ups_jax.models.batch import Batch

_DATA, _FSDP = "data", "fsdp"
_BATCH_SPEC = PartitionSpec((_DATA, _FSDP))
# Smaller arrays are replicated: gathering their shards would take longer than computing them on every device.
_MIN_SHARDED_SIZE = 1024


def make_mesh(config: ParallelConfig) -> Mesh:
    """Return the device mesh with axes (data, fsdp), where the devices of a process are adjacent.

    Raises:
        ConfigError: `data * fsdp` exceeds the number of devices, or `fsdp` is not a divisor of this number.
    """
    return _cached_mesh(config.data, config.fsdp)


@functools.cache
def _cached_mesh(data: int, fsdp: int) -> Mesh:
    """Return the mesh of shape (data, fsdp), the same object for the same shape; -1 for `data` uses all devices."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if data == -1:
        data = len(devices) // fsdp
        if data * fsdp != len(devices):
            raise ConfigError(
                f"parallel.fsdp={fsdp}: does not divide the {len(devices)} devices; set a divisor of {len(devices)}"
            )
    if data * fsdp > len(devices):
        raise ConfigError(
            f"parallel.data={data}: times parallel.fsdp={fsdp} exceeds the {len(devices)} devices of the run; "
            "set parallel.data=-1 to use all devices"
        )
    grid = np.array(devices[: data * fsdp]).reshape(data, fsdp)
    return Mesh(grid, (_DATA, _FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def is_one_cpu(mesh: Mesh) -> bool:
    """Return whether the mesh is a single CPU device, on which loops and branches of a compiled program are cheap."""
    return mesh.size == 1 and mesh.devices.item().platform == "cpu"


def check_rows(mesh: Mesh | AbstractMesh, rows: int, key: str) -> None:
    """Raise ConfigError if the batch of a train step cannot be split evenly over the devices of the mesh.

    The error is also raised if the mesh of a multi-process run leaves out devices.

    Args:
        rows: Number of windows in the batch, all micro-batches together.
        key: Configuration key of the batch size, for the message.
    """
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise ConfigError(
            f"parallel.data: the mesh has {mesh.size} of {jax.device_count()} devices, but a multi-process run must "
            "use the devices of every process; set parallel.data=-1 to use all devices"
        )
    if rows % mesh.size:
        raise ConfigError(
            f"{key}: {rows} windows per step do not divide evenly over {mesh.size} devices; "
            f"set a multiple of {mesh.size}, or set parallel.data to use fewer devices"
        )


def partition_spec(mesh: Mesh | AbstractMesh, shape: tuple[int, ...]) -> PartitionSpec:
    """Return the partition spec of a state array of this shape.

    The largest axis whose length is a multiple of the mesh's size along `fsdp` is split; of equally large axes, the
    last one. Small arrays and arrays without such an axis are replicated.
    """
    shards = mesh.shape[_FSDP]
    divisible = [axis for axis, size in enumerate(shape) if size % shards == 0]
    if shards == 1 or math.prod(shape) < _MIN_SHARDED_SIZE or not divisible:
        return PartitionSpec()
    split_axis = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(_FSDP if axis == split_axis else None for axis in range(split_axis + 1)))


def state_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Return the sharding of each array of a train state, as a tree of the same structure.

    A sharding depends on the shape alone, so optimizer moments and averaged weights are sharded like their parameters.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, partition_spec(mesh, leaf.shape)), tree)


def abstract_with_sharding(mesh: Mesh, tree: PyTree) -> PyTree:
    """Return the arrays of `tree` as `ShapeDtypeStruct`s with the shardings of `state_shardings`.

    On one device the sharding is a `SingleDeviceSharding`: for a mesh of one device XLA compiles another program, whose
    results can differ in the last bits.
    """
    single = SingleDeviceSharding(mesh.devices.item()) if mesh.size == 1 else None
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=single or sharding),
        tree,
        state_shardings(mesh, tree),
    )


def with_sharding(mesh: Mesh, tree: PyTree) -> PyTree:
    """Return `tree` constrained to `state_shardings`, for use in compiled programs; unchanged on one device."""
    return tree if mesh.size == 1 else jax.lax.with_sharding_constraint(tree, state_shardings(mesh, tree))


def sum_over_devices(mesh: Mesh, sum_rows: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return a function that applies `sum_rows` to each device's rows of the batch and sums the results over devices.

    The large arrays of the result are sharded as in `state_shardings`. Only parameters and sums are communicated;
    without `shard_map`, XLA would partition and communicate activations, which are larger.

    Args:
        sum_rows: Function `(params, batch, *rest) -> tree` of sums over the rows of the batch. `params` and `rest` are
            replicated.

    Returns:
        A function with the arguments of `sum_rows`; on one device `sum_rows` itself.
    """
    if mesh.size == 1:
        return sum_rows

    def sharded_sums(params: PyTree, batch: Batch, *rest: PyTree) -> PyTree:
        local = jax.tree.map(
            lambda rows: jax.ShapeDtypeStruct((rows.shape[0] // mesh.size, *rows.shape[1:]), rows.dtype), batch
        )
        sums = jax.eval_shape(sum_rows, params, local, *rest)
        out_specs = jax.tree.map(lambda leaf: partition_spec(mesh, leaf.shape), sums)

        def local_sums(params: PyTree, batch: Batch, *rest: PyTree) -> PyTree:
            return jax.tree.map(_sum_or_shard, sum_rows(params, batch, *rest), out_specs)

        replicated = PartitionSpec()
        in_specs = (replicated, _BATCH_SPEC, *(replicated for _ in rest))
        return jax.shard_map(local_sums, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(
            params, batch, *rest
        )

    return sharded_sums


def _sum_or_shard(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Return the sum of `leaf` over all devices, or only this device's shard of the sum if `spec` splits it."""
    if _FSDP not in spec:
        return jax.lax.psum(leaf, (_DATA, _FSDP))
    return jax.lax.psum(jax.lax.psum_scatter(leaf, _FSDP, scatter_dimension=spec.index(_FSDP), tiled=True), _DATA)


def device_put(mesh: Mesh, tree: PyTree) -> PyTree:
    """Return `tree` on the devices, sharded by `state_shardings`; every process must pass the same values."""
    return tree if mesh.size == 1 else jax.tree.map(_put_leaf, tree, state_shardings(mesh, tree))


def device_put_replicated(mesh: Mesh, tree: PyTree) -> PyTree:
    """Return `tree` with a copy of every array on each device."""
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.device_put(tree) if mesh.size == 1 else jax.tree.map(lambda leaf: _put_leaf(leaf, replicated), tree)


def _put_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Return an array with the given sharding, even if some of its devices belong to other processes."""
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def device_put_batch(mesh: Mesh, batch: Batch) -> Batch:
    """Return the global batch, split over all devices; `batch` holds the rows of this process."""
    if mesh.size == 1:
        return jax.device_put(batch)
    sharding = NamedSharding(mesh, _BATCH_SPEC)
    return jax.tree.map(lambda values: jax.make_array_from_process_local_data(sharding, values), batch)


def batch_for_step(mesh: Mesh, batch: Batch) -> Batch:
    """Return the batch as a jitted step takes it: host arrays for one device, otherwise split over the devices.

    A jitted function transfers host arrays itself, at a fifteenth of the cost of `device_put`.
    """
    return batch if mesh.size == 1 else device_put_batch(mesh, batch)


def gather_to_local(mesh: Mesh, tree: PyTree) -> PyTree:
    """Return a sharded `tree` with complete arrays on one device of this process, for work outside the mesh."""
    if mesh.size == 1:
        return tree
    replicated = NamedSharding(mesh, PartitionSpec())
    gathered = jax.jit(lambda tree: tree, out_shardings=replicated)(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), gathered)
