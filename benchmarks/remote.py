"""One pass over a store behind HTTP, beside only fetching its chunks with obstore."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import daskkm
from benchmarks import data, schedulers
from benchmarks.http_server import serve
from benchmarks.passes import one_pass
from benchmarks.timing import Case, Outcome, Skipped, interleaved
from daskkm.block_sizes import sizes

if TYPE_CHECKING:
    from pathlib import Path


def measure(
    folder: Path, *, k: int, tiles: int, latency: float, rounds: int, n_threads: int = 2
) -> list[Case]:
    """Compare a pass with as many fetches at once as its tasks make."""
    try:
        import obstore
        from obstore.store import HTTPStore
    except ImportError as error:
        msg = "obstore is not installed"
        raise Skipped(msg) from error
    local = data.store(tiles, folder, remote=True)
    (start,) = data.starts([k], tiles).values()
    keys = [f"tiles/c/{i}/0/0" for i in range(-(-len(local) // local.chunk_rows))]
    at_once = n_threads * sizes.fetched_chunks
    with serve(local.path, latency) as url, ThreadPoolExecutor(at_once) as pool:
        bare = HTTPStore.from_url(url, client_options={"allow_http": True})

        def fetch() -> Outcome:
            lengths = pool.map(lambda key: len(obstore.get(bare, key).bytes()), keys)
            return Outcome(said={"bytes": sum(lengths)})

        with schedulers.threads(n_threads) as where:
            work = one_pass(daskkm.open_store(url), [start])
            found = interleaved({"fetching alone": fetch, "daskkm": work}, rounds)
    what = f"k = {k}; {tiles:,} tiles; {1000 * latency:.0f} ms a request"
    said = {"tiles": tiles, "chunks": len(keys), "rounds": rounds, "requests at once": at_once}
    return [Case(what, where, "fetching alone", found, said)]
