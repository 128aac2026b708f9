"""TLS for a connection that follows a living Dest: ServerHello waits until Dest's is known.

What does not depend on Dest is done with the client's hello, off the path of the answer: key exchanges and the
certificate. What ServerHello does not need comes after it: Dest's first datagram often holds nothing else.
"""

from __future__ import annotations

from aioquic import tls
from aioquic.buffer import Buffer

from qre.quic.server.certificate import make_certificate
from qre.quic.server.server_tls import ServerTlsContext
from qre.quic.shadow.server_hello import SHARE_LENGTHS, CannotFollowError, Obstacle, ServerHelloPattern

#: Finished with SHA-256: header and verify_data (RFC 8446 §4.4.4).
FINISHED_LENGTH = 4 + 32


class ShadowTlsContext(ServerTlsContext):
    """Hook: ``_server_handle_hello``, which only prepares; ``answer`` then does the rest."""

    #: Our key share and the shared secret, for every group that the client has a share of; None before its hello.
    exchanged: dict[int, tuple[tls.KeyShareEntry, bytes]] | None = None
    #: The shared secret, from ServerHello until the rest is made.
    _shared = b""

    def _server_handle_hello(self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer) -> None:
        shares = self._read_hello(input_buf)
        self.exchanged = {group: self._exchange(group, shares[group]) for group in SHARE_LENGTHS if group in shares}
        self._certificate = make_certificate(self._proof_key, self._random_bytes)

    def server_hello(self, pattern: ServerHelloPattern) -> bytes:
        """ServerHello after ``pattern``. Raises CannotFollowError for a group that the client has no share of."""
        if self.exchanged is None or pattern.group not in self.exchanged:
            raise CannotFollowError(Obstacle.GROUP)
        (_, share), self._shared = self.exchanged[pattern.group]
        self.exchanged = {}
        hello = pattern.with_ours(self.server_random, share)
        assert self.key_schedule is not None
        self.key_schedule.update_hash(hello)
        return hello

    @property
    def rest_is_due(self) -> bool:
        """Whether ``rest`` may be called."""
        return bool(self._shared)

    def rest(self, handshake_buf: Buffer) -> bytes:
        """All that follows ServerHello, made in ``handshake_buf``, which is empty before and after."""
        secret, self._shared = self._shared, b""
        self._push_rest(secret, handshake_buf)
        flight = handshake_buf.data
        handshake_buf.seek(0)
        return flight
