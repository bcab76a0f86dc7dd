"""Run by test_sparse_processes.py under torchrun: two processes train sparse networks."""

import gc
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

import mpt_fast as mpt
from mpt_fast import sparse


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))


def batches(rank: int, world: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    whole = [torch.randn(8, 12, generator=draw) for _ in range(12)]
    size = 8 // world
    return [batch[rank * size : (rank + 1) * size] for batch in whole]


def train(name: str, model: nn.Module, net: nn.Module, rank: int, world: int) -> dict:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    options = {} if name in ("snip", "static") else {"delta_t": 3, "t_end": 12, "alpha": 0.5}
    method = sparse.METHODS[name](model, optimizer, 0.6, **options)
    for images in batches(rank, world):
        loss = net(images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        method.optimizer_step()
    masks = {f"mask.{n}": mask.to(torch.uint8) for n, mask in method.masks.items()}
    return masks | {f"weight.{n}": x.weight.detach() for n, x in method.layers.items()}


def ticket() -> nn.Sequential:
    torch.manual_seed(0)
    config = mpt.TicketConfig(sparsity=0.6, scope="layer")
    return nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)),
        mpt.MPTConv2d(3, 8, 3, padding=1, bias=True, config=config),
        nn.ReLU(),
        nn.Flatten(),
        mpt.MPTLinear(32, 4, config=config),
    )


def train_ticket(
    model: nn.Module, net: nn.Module, rank: int, world: int, amp: bool
) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 2.0, 0.5)
    tickets = sparse.RigLTickets(model, 3)
    seen = []
    for images in batches(rank, world):
        tickets.begin_step()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            loss = (net(images).float() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(torch.cat([layer.code.flatten() for layer in tickets.layers]))
    return {
        "mask": torch.stack(seen),  # of every step
        **{f"scores.{i}": x.scores.detach() for i, x in enumerate(tickets.layers)},
    }


def tickets(out: Path, rank: int, world: int) -> None:
    for amp in (False, True):
        name = "ticket-bf16" if amp else "ticket"
        model = ticket()
        net = nn.parallel.DistributedDataParallel(model)
        save_file(
            train_ticket(model, net, rank, world, amp), out / f"rank{rank}-{name}.safetensors"
        )
        if rank == 0:
            alone = ticket()
            save_file(train_ticket(alone, alone, 0, 1, amp), out / f"alone-{name}.safetensors")


def methods(out: Path, rank: int, world: int) -> None:
    for name in ("rigl", "set", "snfs", "snip"):
        model = network()
        net = nn.parallel.DistributedDataParallel(model)
        save_file(train(name, model, net, rank, world), out / f"rank{rank}-{name}.safetensors")
        if rank == 0:
            alone = network()
            dist.barrier()
            # One process on the whole batch, without the group's comparison of masks.
            compare, sparse.SparseTraining._compare_processes = (
                sparse.SparseTraining._compare_processes,
                lambda self: None,
            )
            save_file(train(name, alone, alone, 0, 1), out / f"alone-{name}.safetensors")
            sparse.SparseTraining._compare_processes = compare
        else:
            dist.barrier()


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    methods(out, rank, world)
    tickets(out, rank, world)
    model = network()  # not wrapped: every rank follows its own gradient
    try:
        train("rigl", model, model, rank, world)
        said = "nothing"
    except RuntimeError as error:
        said = str(error)
    (out / f"rank{rank}.json").write_text(json.dumps({"said": said}))
    # Once a rank aborted on its way out ("terminate called without an active exception"), for a
    # reason not found: nothing that holds the group is left by then, and both ranks are done.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
