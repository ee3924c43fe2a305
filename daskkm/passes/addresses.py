"""What a user calls a scheduler: its address and certificates, or why it cannot be reached."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from daskkm.errors import SchedulerError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed.security import Security

CONNECT_SECONDS = 10


def check_name(name: str) -> str:
    """Return the name of a scheduler if it can be one.

    Parameters
    ----------
    name : str
        "local", "threads", an address with its protocol, or the path of a scheduler file.

    Returns
    -------
    str

    Raises
    ------
    SchedulerError
        If it is none of these, or there is no such file.
    """
    if name in ("local", "threads"):
        return name
    if name.startswith(("tcp://", "tls://")):
        _host_and_port(name)
        return name
    if not name.endswith(".json"):
        msg = (
            f"{name!r} is no scheduler; give local, threads, an address like "
            "tcp://host:8786 or the path of a scheduler file (.json)"
        )
        raise SchedulerError(msg)
    if not Path(name).is_file():
        msg = (
            f"{name}: there is no such scheduler file; "
            f"start one with: dask scheduler --scheduler-file {name}"
        )
        raise SchedulerError(msg)
    return name


def dashboard(address: str) -> str:
    """Return where a local scheduler's dashboard listens: on loopback, if no host is named.

    Parameters
    ----------
    address : str
        A host and a port, or a port alone after a colon.

    Returns
    -------
    str

    Raises
    ------
    SchedulerError
        If it is no such address.
    """
    found = re.fullmatch(r"([^:/]*):(\d{1,5})", address)
    if not found or int(found[2]) > 65535:
        msg = f"{address!r} is not an address like 127.0.0.1:8787"
        raise SchedulerError(msg)
    return f"{found[1] or '127.0.0.1'}:{found[2]}"


def find(
    name: str, tls_ca_file: str | None, tls_cert: str | None, tls_key: str | None
) -> tuple[str, Security]:
    """Return the address of a scheduler that others started, and what to show there.

    Parameters
    ----------
    name : str
        An address, or the path of a scheduler file.
    tls_ca_file, tls_cert, tls_key : str or None
        Files, as for `daskkm.passes.scheduler.connect`; None means dask's settings.

    Returns
    -------
    tuple of str and distributed.Security

    Raises
    ------
    SchedulerError
        If it does not answer, or is a worker, or a certificate is missing or refused.
    """
    from distributed.utils import LoopRunner

    address = _address_in(name) if name.endswith(".json") else name
    tls = {"tls_ca_file": tls_ca_file, "tls_client_cert": tls_cert, "tls_client_key": tls_key}
    security = _security(address, {key: file for key, file in tls.items() if file is not None})
    with reaching(address, security):
        # distributed bounds the connection but not what it then waits to hear: ask first, and in
        # a loop of another thread, as a notebook has one in this.
        kind = LoopRunner().run_sync(_identify, address, security)
    if kind in ("Worker", "Nanny"):
        msg = f"{address}: that is a worker; name its scheduler"
        raise SchedulerError(msg)
    return address, security


def causes(error: BaseException) -> list[BaseException]:
    """Return an exception and those behind it, the innermost last.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    list of BaseException
    """
    chain = [error]
    while (behind := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(behind)
    return chain


@contextmanager
def reaching(address: str, security: Security) -> Iterator[None]:
    """Turn the ways in which a scheduler cannot be reached into one that says why.

    Parameters
    ----------
    address : str
    security : distributed.Security

    Raises
    ------
    SchedulerError
    """
    try:
        yield
    except Exception as error:  # whatever it is that answers, distributed takes its word for it
        why, options = _why(error, address, security)
        msg = f"{address}: no scheduler answers there ({why})"
        raise SchedulerError(msg, options=options) from error


def _host_and_port(address: str) -> tuple[str, int]:
    """Return both parts of an address."""
    found = re.fullmatch(r"(?:tcp|tls)://(\[.+\]|[^:/]+):(\d{1,5})", address)
    if not found or not 0 < int(found[2]) < 65536:
        msg = f"{address!r} is no address like tcp://host:8786"
        raise SchedulerError(msg)
    return found[1].strip("[]"), int(found[2])


def _address_in(file: str) -> str:
    """Return the address that a scheduler file holds."""
    try:
        address = str(json.loads(Path(file).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        msg = (
            f"{file}: this is no scheduler file ({error}); "
            f"make one with: dask scheduler --scheduler-file {file}"
        )
        raise SchedulerError(msg) from error
    _host_and_port(address)
    return address


async def _identify(address: str, security: Security) -> str:
    """Return what it is that answers."""
    from distributed import rpc

    await asyncio.get_running_loop().getaddrinfo(*_host_and_port(address))
    arguments = security.get_connection_args("client")
    async with rpc(address, timeout=CONNECT_SECONDS, connection_args=arguments) as scheduler:
        asking = asyncio.wait_for(scheduler.identity(), 1.5 * CONNECT_SECONDS)
        return str((await asking)["type"])


def _why(error: Exception, address: str, security: Security) -> tuple[str, tuple[str, ...]]:
    """Return why a scheduler could not be asked, with a hint, and the parameters that resolve it.

    distributed says it by exceptions behind exceptions.
    """
    chain = causes(error)
    if isinstance(chain[0], MemoryError):  # its first words, read as how long they are
        return "what answers is none; is that where a scheduler listens?", ()
    text = " ".join(map(str, chain))
    for each in chain:
        if isinstance(each, socket.gaierror):
            return f"its host is unknown: {reason(each)}; is it written as it should be?", ()
        if isinstance(each, ssl.SSLCertVerificationError):
            why = (
                f"its certificate is refused, {each.verify_message}; name the authority "
                f"that signed it, now {_file(security.tls_ca_file)}"
            )
            return why, ("tls_ca_file",)
    if "WRONG_VERSION_NUMBER" in text or "cannot convert to SSL" in text:
        return "it does not speak TLS; name it as tcp://", ()
    if any(isinstance(each, TimeoutError | ConnectionRefusedError) for each in chain):
        # The last of distributed's tries may have been cut short.
        with suppress(OSError):
            try:
                socket.create_connection(_host_and_port(address), timeout=1).close()
            except ConnectionRefusedError:
                return "nothing listens; start one with: dask scheduler", ()
        return f"no word in {CONNECT_SECONDS:g} s; is that where a scheduler listens?", ()
    if "_ALERT_" in text or ("closed" in text and address.startswith("tls://")):
        why = (
            f"it hangs up on the certificate {_file(security.tls_client_cert)}; "
            "give one by the authority that it knows"
        )
        return why, ("tls_cert", "tls_key")
    if "closed" in text:
        return "it hangs up; if it speaks TLS, name it as tls://", ()
    return f"{error}; is that where a scheduler listens?", ()


def _file(certificate: str) -> str:
    """Return what a certificate is called: dask's settings may hold itself, not a file."""
    return "in dask's settings" if _is_itself(certificate) else certificate


def _is_itself(certificate: str) -> bool:
    """Tell whether it is what a file would hold, to be shown to nobody: it may be a key."""
    return "\n" in certificate or "-----BEGIN" in certificate


def _security(address: str, given: dict[str, str]) -> Security:
    """Return the certificates with which to go to a scheduler, from files and dask's settings."""
    from distributed.security import Security

    security = Security(**given)
    if address.startswith("tcp://"):
        if given or security.require_encryption:
            msg = f"{address}: this is no address for TLS, which was asked for; use one with tls://"
            raise SchedulerError(msg)
        return security
    ca, cert = security.tls_ca_file, security.tls_client_cert
    key = security.tls_client_key or cert  # it may be in the same file
    files = (
        (ca, "certificate of the authority", "tls_ca_file", "ca-file"),
        (cert, "certificate", "tls_cert", "client.cert"),
        (key, "key", "tls_key", "client.key"),
    )
    for file, what, option, setting in files:
        if not file:
            msg = (
                f"{address}: TLS needs a {what}; give one, "
                f"or set distributed.comm.tls.{setting} in dask's settings"
            )
            raise SchedulerError(msg, options=(option,))
        if _is_itself(file):
            if "\n" not in file:  # distributed would take it for the name of a file
                msg = (
                    f"distributed.comm.tls.{setting} in dask's settings: the {what} has no line "
                    "breaks; write it with them, or in a file"
                )
                raise SchedulerError(msg, options=(option,))
            continue
        try:
            if not stat.S_ISREG(Path(file).stat().st_mode):  # a pipe would be waited for
                msg = "it is no file"
                raise ValueError(msg)  # noqa: TRY301
            Path(file).read_bytes()
        except (OSError, ValueError) as error:
            msg = f"{file}: the {what} cannot be read ({reason(error)}); give another"
            raise SchedulerError(msg, options=(option,)) from error
    _check_certificates(ca, cert, key)
    return security


def _check_certificates(ca: str, cert: str, key: str) -> None:
    """See that certificates are what they should be, each where it should be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(**{"cadata" if _is_itself(ca) else "cafile": ca})
    except (ssl.SSLError, ValueError, TypeError) as error:
        why = getattr(error, "reason", None) or error
        msg = f"{_file(ca)}: this is no certificate in PEM form ({why}); give one"
        raise SchedulerError(msg, options=("tls_ca_file",)) from error

    def refuse() -> str:
        """OpenSSL would ask at the terminal."""
        msg = f"{_file(key)}: the key is encrypted; give one that is not"
        raise SchedulerError(msg, options=("tls_key",))

    try:
        with TemporaryDirectory() as folder:
            context.load_cert_chain(
                _written(cert, Path(folder, "cert")), _written(key, Path(folder, "key")), refuse
            )
    except ssl.SSLError as error:
        msg = (
            f"{_file(cert)} and {_file(key)}: these are no certificate and its key in PEM form "
            f"({error.reason or error}); give these"
        )
        raise SchedulerError(msg, options=("tls_cert", "tls_key")) from error


def _written(certificate: str, file: Path) -> str:
    """Return the file that holds a certificate, written here if dask's settings hold itself."""
    if not _is_itself(certificate):
        return certificate
    file.write_text(certificate)
    return str(file)
