"""Whether a Ray cluster answers at an address, found out soon."""

from __future__ import annotations

import socket

from autocompress.errors import ConfigurationError

CONNECT_SECONDS = 10.0  # that a cluster has to answer
# How an HTTP/2 connection, as Ray's server speaks it, is opened: RFC 9113, sections 3.4 and 6.5.
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HTTP2_FRAME_HEADER_BYTES, HTTP2_SETTINGS_FRAME = 9, 4


def check_answers(address: str) -> None:
    """See that a cluster is there: Ray itself would try for minutes.

    Raises:
        ConfigurationError: it is not.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigurationError(
            "--address is none",
            got=repr(address),
            wanted="host:port of a Ray cluster that this machine is a node of, or auto",
        )
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS) as connection:
            connection.sendall(HTTP2_GREETING)
            header = connection.recv(HTTP2_FRAME_HEADER_BYTES, socket.MSG_WAITALL)
        known = len(header) == HTTP2_FRAME_HEADER_BYTES and header[3] == HTTP2_SETTINGS_FRAME
        reason = "" if known else "something answers there that is no Ray"
    except OSError as error:
        reason = str(error)
    if reason:
        raise ConfigurationError(
            f"no Ray answers at --address {address}: {reason}",
            hint="`ray status` on a node of the cluster says its address.",
        )
