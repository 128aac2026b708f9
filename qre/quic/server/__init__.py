"""The server's end of the handshake, from the first datagram that is looked at to the grant of addresses; sans-IO.
Nothing here is of a client.
"""
