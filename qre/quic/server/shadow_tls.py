"""TLS for a connection that follows a living Dest: ServerHello waits until Dest's is known.

What does not depend on Dest is done with the client's hello, off the path of the answer: key exchanges and the
certificate, and ServerHello and the keys behind it as earlier visits let expect them. What needs Dest's connection ID
comes after its first datagram, which often holds an acknowledgement, or a part of ServerHello, and nothing else.
"""

from __future__ import annotations

from aioquic import tls
from aioquic.buffer import Buffer

from qre.quic.server.server_tls import ServerTlsContext
from qre.quic.shadow.server_hello import (
    SHARE_LENGTHS,
    X25519,
    X25519MLKEM768,
    CannotFollowError,
    Obstacle,
    ServerHelloPattern,
    expected_pattern,
)
from qre.quic.tls.certificate import make_certificate

#: Finished with SHA-256: header and verify_data (RFC 8446 §4.4.4).
FINISHED_LENGTH = 4 + 32


class ShadowTlsContext(ServerTlsContext):
    """Hook: ``_server_handle_hello``, which only prepares; ``server_hello`` and ``rest`` then do what is left, in
    either order."""

    #: Our key share and the shared secret, for every group that the client has a share of; None before its hello.
    exchanged: dict[int, tuple[tls.KeyShareEntry, bytes]] | None = None
    #: The ServerHello that the keys are made for, and what follows it, once that is made.
    _hello = _rest = b""

    def _server_handle_hello(self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer) -> None:
        shares = self._read_hello(input_buf)
        self.exchanged = {group: self._exchange(group, shares[group]) for group in SHARE_LENGTHS if group in shares}
        self._certificate = make_certificate(self._proof_key, self._random_bytes)
        group = X25519MLKEM768 if self._flight.hybrid else X25519
        if group in self.exchanged:
            self._answer(expected_pattern(group, self._flight.server_hello_extensions))

    def server_hello(self, pattern: ServerHelloPattern) -> bytes:
        """ServerHello after ``pattern``. Raises CannotFollowError for a group that the client has no share of."""
        if self.exchanged is None or pattern.group not in self.exchanged:
            raise CannotFollowError(Obstacle.GROUP)
        self._answer(pattern)
        self.exchanged = {}
        return self._hello

    def _answer(self, pattern: ServerHelloPattern) -> None:
        """Make ServerHello and the keys that follow from it, unless they are those that were made before."""
        assert self.exchanged is not None
        (_, share), secret = self.exchanged[pattern.group]
        hello = pattern.with_ours(self.server_random, share)
        if hello != self._hello:
            self._hello, self._rest = hello, b""
            self._begin_schedule().update_hash(hello)
            self._protect_handshake(secret)

    @property
    def rest_is_made(self) -> bool:
        """Whether ``rest`` only has to be asked for."""
        return bool(self._rest)

    def rest(self, handshake_buf: Buffer) -> bytes:
        """All that follows ServerHello, as it is or is expected, made in ``handshake_buf``, which is empty before and
        after; empty as long as nothing is expected."""
        if self._hello and not self._rest:
            self._push_rest(handshake_buf)
            self._rest = handshake_buf.data
            handshake_buf.seek(0)
        return self._rest
