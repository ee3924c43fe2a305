"""A fast HTTP server of the files in a folder, in a process of its own.

``python -m benchmarks.http_server FOLDER SECONDS`` prints its port. Each request waits for SECONDS
first. It answers GET and HEAD, with a range, on connections that are kept.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

DATE = b"Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"


@contextmanager
def serve(folder: Path, latency: float = 0.0) -> Iterator[str]:
    """Start the server, and yield its URL."""
    command = [sys.executable, "-m", __name__, str(folder), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        output = cast("IO[str]", process.stdout)
        try:
            yield f"http://127.0.0.1:{output.readline().strip()}"
        finally:
            process.terminate()


async def _answer(
    folder: Path, latency: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    loop = asyncio.get_running_loop()
    while head := await _read_request(reader):
        method, path, *_ = head.split(" ", 2)
        if latency:
            await asyncio.sleep(latency)
        try:
            file = (folder / path.lstrip("/")).open("rb")
        except OSError:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            continue
        with file:
            size = os.fstat(file.fileno()).st_size
            first, last, status = 0, size, b"200 OK"
            if found := re.search(r"\r\nrange: bytes=(\d+)-(\d*)", head, re.IGNORECASE):
                first = int(found[1])
                last = min(size, int(found[2]) + 1) if found[2] else size
                status = b"206 Partial Content\r\nContent-Range: bytes %d-%d/%d" % (
                    *(first, last - 1, size),
                )
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n" % (status, last - first))
            writer.write(DATE + b"\r\n")
            await writer.drain()
            if method == "GET":
                await loop.sendfile(writer.transport, file, first, last - first, fallback=False)
    writer.close()


async def _read_request(reader: asyncio.StreamReader) -> str:
    """Return the head of the next request, or "" at the end of the connection."""
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return ""


async def _main(folder: Path, latency: float) -> None:
    server = await asyncio.start_server(
        lambda reader, writer: _answer(folder, latency, reader, writer), "127.0.0.1", 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), float(sys.argv[2])))
