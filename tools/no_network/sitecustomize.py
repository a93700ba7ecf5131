"""A Python that has this folder on PYTHONPATH, and all it starts, reaches nothing but its own machine.

Jupyter needs the loopback addresses for its kernels. Used by `python -m tools.test --all`.
"""

import ipaddress
import socket

REAL_CONNECT, REAL_CONNECT_EX = socket.socket.connect, socket.socket.connect_ex
REAL_GETADDRINFO, REAL_SENDTO = socket.getaddrinfo, socket.socket.sendto
MESSAGE = "the network is blocked in this test run"


def is_local(host):
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def check(sock, address):
    if sock.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
        raise ConnectionRefusedError(f"{MESSAGE}: {address}")


def connect(self, address):
    check(self, address)
    return REAL_CONNECT(self, address)


def connect_ex(self, address):
    check(self, address)
    return REAL_CONNECT_EX(self, address)


def sendto(self, data, *arguments):
    check(self, arguments[-1])
    return REAL_SENDTO(self, data, *arguments)


def getaddrinfo(host, *arguments, **options):
    if not is_local(host):
        raise socket.gaierror(socket.EAI_NONAME, f"{MESSAGE}: {host}")
    return REAL_GETADDRINFO(host, *arguments, **options)


socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto = connect, connect_ex, sendto
socket.getaddrinfo = getaddrinfo
