"""The messages between a handshake and a data plane, and a data plane's status. Types alone: no socket, no clock, no
decisions.
"""
