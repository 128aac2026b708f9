"""The client's end of the handshake, which looks like a browser's; sans-IO. Nothing here is of a server."""
