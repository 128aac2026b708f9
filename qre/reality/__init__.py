"""REALITY inside QUIC: which clients are answered, and how a server proves its identity."""
