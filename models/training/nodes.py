"""One network on several machines: a Ray task for each starts that machine's processes, which share every batch (DDP).

Own code, because Ray Train would bring pandas and pyarrow, and checkpoints and logs of its own beside the loop's.
"""

import os
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from models.cluster import Tick
from models.training.config import TrainingError
from models.training.devices import Devices, NetworkJob, spawned

__all__ = ["over_nodes"]

R = TypeVar("R")
NODES_SECONDS = 180.0
"""Time that a cluster has to free the nodes, or to start them."""
LOOK_SECONDS = 2.0
"""Between two signs that they are waited for."""
BLAME_SECONDS = 5.0
"""Time in which, after one node has failed, another may tell a better reason."""


def over_nodes(
    devices: Devices, loggers: Any, function: Callable[..., R], job: NetworkJob, tick: Tick | None = None
) -> R:
    """Return `function(fabric, job)` of the first process of all, of the Ray cluster that is connected to.

    Each node must be another machine of the cluster, with this version of Headway, the data and the run's folder under
    the same paths. When one fails all are ended: nobody waits for it.

    Raises:
        TrainingError: as the function; or the cluster has not so many nodes, or one of them failed.
    """
    import ray
    from ray.util.placement_group import remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if not ray.is_initialized():
        raise TrainingError("Several nodes are those of a Ray cluster, and none is connected to: OverNodes() does it.")
    each = {"CPU": devices.count, **({"GPU": devices.count} if devices.accelerator != "cpu" else {})}
    say = tick or (lambda stage, done, total: None)
    group = _reserved(ray, devices.nodes, each, lambda found: say(f"{job.name}: nodes", found, devices.nodes))
    try:
        places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(devices.nodes)]
        found = ray.remote(num_cpus=0, max_retries=0)(_address).options(scheduling_strategy=places[0]).remote()
        address = ray.get(found)
        # A process of its own, whose environment nobody else sees; tried again from the checkpoint, by who asked.
        task = ray.remote(num_cpus=each["CPU"], num_gpus=each.get("GPU", 0), max_retries=0, max_calls=1)(_node)
        work = ray.put((function, job, loggers))
        refs = [
            task.options(scheduling_strategy=place).remote(work, devices, rank, address)
            for rank, place in enumerate(places)
        ]
        first: R = _first_of(ray, refs, job.name)
        return first
    except ray.exceptions.RayError as error:
        raise _lost(job.name, error) from error
    finally:
        remove_placement_group(group)  # with whatever still runs in it


def _reserved(ray: Any, nodes: int, each: dict[str, int], say: Callable[[int], None]) -> Any:
    """Reserve a part of several machines, all at once; while they are waited for, `say` that there is none yet."""
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([each] * nodes, strategy="STRICT_SPREAD")
    deadline = time.monotonic() + NODES_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        say(0)
        if group.wait(min(left, LOOK_SECONDS)):
            say(nodes)
            break
    else:
        remove_placement_group(group)
        wanted = " and ".join(f"{count} {kind}" for kind, count in each.items())
        there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        told = "; ".join(", ".join(f"{of.get(kind, 0):g} {kind}" for kind in each) for of in there)
        raise TrainingError(
            f"The cluster had no {nodes} nodes with {wanted} free each in {NODES_SECONDS:g} s. Its nodes have: {told}."
        )
    return group


def _address() -> tuple[str, int]:
    """Where the processes of all nodes meet: this machine, on a port that is free."""
    import ray

    with socket.socket() as s:
        s.bind(("", 0))
        return ray.util.get_node_ip_address(), s.getsockname()[1]


def _node(
    work: tuple[Callable[..., Any], NetworkJob, Any], devices: Devices, rank: int, address: tuple[str, int]
) -> Any:
    """Start one machine's processes, and wait for them."""
    function, job, loggers = work
    folder = job.checkpoint.parent.parent
    if not folder.is_dir():
        raise TrainingError(
            f"The run's folder {folder} is not on the node {socket.gethostname()}: all nodes must share it."
        )
    os.environ |= {"MASTER_ADDR": address[0], "MASTER_PORT": str(address[1]), "NODE_RANK": str(rank)}
    return spawned(devices, loggers if rank == 0 else [], function, job)


def _first_of(ray: Any, refs: list[Any], name: str) -> Any:
    """Wait for all nodes, and return what the first came to; when one fails, say why, and wait for none."""
    waiting, failures, deadline = list(refs), list[Exception](), 0.0
    while waiting:
        left = max(0.0, deadline - time.monotonic()) if failures else None
        done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
        for ref in done:
            try:
                ray.get(ref)
            except ray.exceptions.RayError as error:
                cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                failures.append(cause)
                deadline = deadline or time.monotonic() + BLAME_SECONDS
        if failures and (not done or isinstance(failures[-1], TrainingError)):
            break
    if not failures:
        return ray.get(refs[0])
    told = next((e for e in failures if isinstance(e, TrainingError)), None)
    if told is not None:
        raise told
    raise _lost(name, next((e for e in failures if isinstance(e, ray.exceptions.RayError)), failures[0]))


def _lost(name: str, error: Exception) -> TrainingError:
    # Ray says it first; what was raised in a process comes as a traceback, with the reason last.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[-1] if lines[0].startswith(("-- Process", "Traceback")) else lines[0]
    return TrainingError(f"A node that trained {name} failed; go on with --resume. It said: {reason[:300]}")
