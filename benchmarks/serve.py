"""`python -m benchmarks.serve`: what a server of fusions bears.

It starts `cf-study serve` with two workers, or asks the server at an ADDRESS that is given. First
it finds how many requests a second get an answer. Then it sends four times as many, 10,000 in all,
of which every tenth has a hostile file. Prints one table and writes `benchmarks/out/serve.json`, as
`benchmarks.core` does. Client and server share the machine.
"""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from fractions import Fraction
from itertools import count
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import NamedTuple

import httpx
import numpy as np

from benchmarks.measuring import Measure, introduce, publish
from cf_core.melody import Note
from cf_core.render import make_midi
from tests import fuzz

OUTPUT = Path(__file__).parent / "out" / "serve.json"
WORKERS, CLIENTS = 2, 8
"""Workers of the server, and clients that ask one request after another to find its rate."""
REQUESTS, OVERLOAD, HOSTILE_EVERY = 10_000, 4, 10

Upload = dict[str, tuple[str, bytes]]


class Outcome(NamedTuple):
    """What came of one request."""

    status: int
    """0 where there was no answer, or one without what its status demands."""
    seconds: float


def main(address: str | None = None, scale: int = 1, output: Path = OUTPUT) -> None:
    """Measure everything, print the table and write it to `output`."""
    introduce(1)
    if address is not None:
        publish(list(asyncio.run(measure(address, REQUESTS // scale, None))), output)
        return
    with _served() as (own, process):
        publish(list(asyncio.run(measure(own, REQUESTS // scale, process))), output)


async def measure(address: str, requests: int, process: int | None) -> list[Measure]:
    """Find the rate, then overload; `process` is the server's, whose memory is looked at."""
    async with _client(address) as client:
        rate = await _find_rate(client, max(4 * CLIENTS, requests // 20))
        print(f"{rate:.1f} requests a second; now {OVERLOAD * rate:.1f}, {requests} in all")
        memory: list[int] = []
        outcomes = await _overload(client, OVERLOAD * rate, requests, process, memory)
    taken = [1e3 * each.seconds for each in outcomes if each.status == 200]
    cuts = quantiles(taken, n=100)
    refused = sum(each.status == 503 for each in outcomes) / requests
    lost = sum(not each.status for each in outcomes)
    found = [
        Measure("serve_requests_per_s", rate, "requests/s", None, "higher"),
        Measure("serve_overload_p50", cuts[49], "ms", None, "lower"),
        Measure("serve_overload_p99", cuts[98], "ms", None, "lower"),
        Measure("serve_overload_refused", refused, "share", None, "lower"),
        Measure("serve_overload_lost", lost, "requests", 0, "lower"),
    ]
    if memory:
        growth = memory[-1] / memory[0]
        found.append(Measure("serve_memory_growth", growth, "×", 1.1, "lower"))
    return found


async def _find_rate(client: httpx.AsyncClient, requests: int) -> float:
    """Requests a second while clients ask one after another, refused ones left out."""
    good = _good()
    for _ in range(CLIENTS):
        await ask(client, next(good))  # starts the processes that read
    start, left = perf_counter(), iter(range(requests))

    async def go_on() -> int:
        return sum([(await ask(client, next(good))).status == 200 for _ in left])

    done = await asyncio.gather(*(go_on() for _ in range(CLIENTS)))
    return sum(done) / (perf_counter() - start)


async def _overload(
    client: httpx.AsyncClient, rate: float, requests: int, process: int | None, memory: list[int]
) -> list[Outcome]:
    """Send requests at a rate, whatever comes back; note the server's memory ten times."""
    good, hostile = _good(), fuzz.files(requests)
    start, tasks = perf_counter(), []
    for number in range(requests):
        await asyncio.sleep(max(0.0, start + number / rate - perf_counter()))
        upload = next(good)
        if number % HOSTILE_EVERY == 0:
            upload = {**upload, "left": next(hostile)}
        tasks.append(asyncio.create_task(ask(client, upload)))
        # From a quarter on: until then buffers and allocators fill.
        if process is not None and number >= requests // 4 and number % (requests // 10) == 0:
            memory.append(_memory(process))
    return await asyncio.gather(*tasks)


async def ask(client: httpx.AsyncClient, upload: Upload) -> Outcome:
    """Send one request; an answer without what its status demands has the status 0."""
    start = perf_counter()
    try:
        answer = await client.post("/fuse", files=upload)
    except httpx.HTTPError as error:
        print(f"no answer: {error!r}")
        return Outcome(0, perf_counter() - start)
    media = answer.headers.get("content-type")
    if answer.status_code == 200:
        whole = media == "audio/midi" and answer.content[:4] == b"MThd"
    else:
        again = answer.status_code == 503 and "retry-after" in answer.headers
        wrong = answer.status_code in range(400, 500)
        whole = media == "application/problem+json" and (again or wrong)
    if not whole:
        print(f"no whole answer: {answer.status_code} {answer.text[:200]}")
    return Outcome(answer.status_code if whole else 0, perf_counter() - start)


def _good() -> Iterator[Upload]:
    """Pairs of tunes of eight bars, no two alike."""
    for seed in count():
        pitches = np.random.default_rng(seed).integers(60, 80, (2, 32)).tolist()
        files = [
            make_midi([Note(Fraction(at), Fraction(1), p) for at, p in enumerate(half)], 120.0)
            for half in pitches
        ]
        yield {"left": ("left.mid", files[0]), "right": ("right.mid", files[1])}


@asynccontextmanager
async def _client(address: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a connection for each request, so that all workers get some."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120.0) as client:
        yield client


@contextmanager
def _served() -> Iterator[tuple[str, int]]:
    """The address and the process of a server with two workers."""
    program = [sys.executable, "-c", "from study.cli import main; main()", "serve", "--port", "0"]
    with subprocess.Popen(  # noqa: S603
        [*program, "--workers", str(WORKERS)], stderr=subprocess.PIPE, text=True
    ) as process:
        told = process.stderr or ()
        found, ready = None, 0
        for line in told:
            found = found or re.search(r"answering at (\S+)", line)
            ready += "startup complete" in line
            if found and ready == WORKERS:
                break
        else:
            raise RuntimeError("the server has ended")
        yield found[1], process.pid
        process.send_signal(signal.SIGINT)
        list(told)  # else it might wait for someone to read


def _memory(process: int) -> int:
    """Bytes that a process and those it started have in memory."""
    folder = Path("/proc", str(process))
    found = re.search(r"VmRSS:\s+(\d+)", (folder / "status").read_text())
    # Whatever a thread starts is listed with that thread.
    lists = [path.read_text().split() for path in folder.glob("task/*/children")]
    own = 1024 * int(found[1] if found else 0)
    return own + sum(_memory(int(child)) for children in lists for child in children)


if __name__ == "__main__":
    main(next(iter(sys.argv[1:]), None))
