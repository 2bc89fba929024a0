"""Two processes with shared memory stand for two GPUs, in Triton's interpreter."""

import multiprocessing

import torch

RANKS = 2


def sums_of_both(add_up, *shared):
    """Run `add_up(rank, *shared)` as two ranks; return the sums that both have found alike, as lists of numbers."""
    forked = multiprocessing.get_context("fork")  # the address of shared memory is then the same in both
    results = forked.Queue()

    def work(rank):
        torch.set_num_threads(1)
        results.put((rank, [total.float().tolist() for total in add_up(rank, *shared)]))

    processes = [forked.Process(target=work, args=(rank,)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found[0] == found[1]
    return found[0]


def assert_sums(sums, part, sizes, dtype):
    """Hold each sum against that of `part(rank, size, dtype)` over the ranks."""
    for size, total in zip(sizes, sums, strict=True):
        exact = sum(part(rank, size, dtype).float() for rank in range(RANKS))
        # the interpreter cuts bfloat16 off where a GPU rounds
        torch.testing.assert_close(torch.tensor(total), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
