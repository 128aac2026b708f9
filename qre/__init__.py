"""QRE: IP packets inside a genuine HTTP/3 connection. The library that every process of QRE shares."""

__version__ = "0.1.0"
