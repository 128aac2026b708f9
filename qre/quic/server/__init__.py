"""The server's end of the handshake, from the inspection of the first datagram to the grant of addresses; sans-IO. No
client code.
"""
