"""Whose an internet address is: this machine's, a private network's, or one that anybody may be at."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address


def is_loopback(name: str) -> bool:
    """True for this machine under its own name or address."""
    return name == "localhost" or (is_literal(name) and ip_address(name).is_loopback)


def is_private(name: str) -> bool:
    """True for what means another machine to everybody: `localhost`, and addresses that are not public."""
    return name == "localhost" or (is_literal(name) and not is_public(name))


def is_public(address: str) -> bool:
    """True for an address that anybody may be at: not this machine's, not of a private network."""
    read = ip_address(address)
    if isinstance(read, IPv6Address):
        # Addresses of IPv4 in those of IPv6 are as private as they are.
        inner = read.ipv4_mapped or read.sixtofour or (read.teredo[1] if read.teredo else None)
        return read.is_global and (inner is None or inner.is_global) and not read.is_multicast
    return read.is_global and not read.is_multicast


def is_literal(name: str) -> bool:
    """True for an address, False for a name."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
