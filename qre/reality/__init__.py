"""REALITY inside QUIC: who may be answered, and how a server proves itself."""
