"""What a handshake and a data plane say to each other, and what a data plane tells of itself. Types alone: no socket,
no clock, nothing that decides.
"""
