"""Whose an address is."""

from __future__ import annotations

import pytest

from tallystick.addresses import is_loopback, is_private, is_public


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_public_addresses_are_public(address: str) -> None:
    """Anybody's."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    (
        "127.0.0.1 10.1.2.3 192.168.1.1 100.64.0.1 169.254.169.254 0.0.0.0 224.0.0.1 "
        "::1 fe80::1 fd00::1 ::ffff:127.0.0.1 2002:7f00:1:: ff02::1 ::"
    ).split(),
)
def test_other_addresses_are_not(address: str) -> None:
    """This machine's, private networks', link-local, several at once, and IPv4 in IPv6's clothes."""
    assert not is_public(address)


@pytest.mark.parametrize(
    ("name", "loopback", "private"),
    [
        ("localhost", True, True),
        ("127.0.0.1", True, True),
        ("::1", True, True),
        ("0.0.0.0", False, True),
        ("192.168.1.1", False, True),
        ("8.8.8.8", False, False),
        ("host.example", False, False),
        ("", False, False),
    ],
)
def test_names_that_mean_another_machine_to_everybody(name: str, loopback: bool, private: bool) -> None:
    """Of a name that is no address nothing is told, except of this machine's own."""
    assert (is_loopback(name), is_private(name)) == (loopback, private)
