"""When keys may be replaced, and by which: RFC 9001 §6.1 and §6.5, and what the handshake worker asks for.

The mark is advanced before a new phase begins, so that no key is used twice; a refusal changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from qre.dataplane.protocol import Refusal, SessionRefusedError, SessionUpdate
from qre.workers.dataplane.session.marks import Mark
from qre.workers.dataplane.session.packets import Packets
from qre.workers.dataplane.session.recovery import Recovery

_NEVER = float("inf")


class KeyUpdates:
    """Those of one session; ``recovery`` says how long a round trip takes and what is in flight."""

    __slots__ = ("_announced", "_mark", "_packets", "_phases", "_recovery")

    def __init__(self, packets: Packets, mark: Mark, recovery: Recovery) -> None:
        self._packets = packets
        self._phases = packets.phases
        self._mark = mark
        self._recovery = recovery
        self._announced = -1  # the epoch that KeyPhaseConfirmed told of

    def update(self, update: SessionUpdate, now: float, ping: Callable[[float], None], *, may_ping: bool) -> None:
        """Take these keys. ``ping`` sends something that the peer must acknowledge. Raises SessionRefusedError."""
        epoch = self._phases.epoch
        if update.key_epoch == epoch:
            self._learn_next(update)
        elif update.key_epoch == epoch + 1:
            self._begin_next(update, now, ping, may_ping)
        else:
            refusal = Refusal.EPOCH_BEHIND if update.key_epoch < epoch else Refusal.OTHER
            raise SessionRefusedError(refusal, f"key epoch {update.key_epoch} does not follow {epoch}", epoch)

    def _learn_next(self, update: SessionUpdate) -> None:
        """The keys of this epoch once more, and those after it."""
        phases = self._phases
        if update.keys != phases.keys:
            raise SessionRefusedError(Refusal.OTHER_KEYS, "other keys than those of this key epoch", phases.epoch)
        if phases.next_keys is not None and update.next_keys not in {None, phases.next_keys}:
            raise SessionRefusedError(Refusal.OTHER_KEYS, "other next keys than those installed", phases.epoch)
        phases.learn_next(update.next_keys)
        self._packets.next_number = self._first_after(update)

    def _begin_next(self, update: SessionUpdate, now: float, ping: Callable[[float], None], may_ping: bool) -> None:
        phases = self._phases
        if phases.next_keys is not None and update.keys != phases.next_keys:
            raise SessionRefusedError(Refusal.OTHER_KEYS, "other keys than the next ones installed", phases.epoch)
        if not self.may_update(now):
            if phases.confirmed_at is None and not self._recovery.controls and may_ping:
                ping(now)
            raise SessionRefusedError(Refusal.NOT_CONFIRMED, "not confirmed", phases.epoch)
        self._mark.advance(update.key_epoch, update.keys.tx_key, self._first_after(update))
        self._packets.next_number = self._first_after(update)
        phases.initiate(update.keys, update.next_keys, self._packets.next_number)
        ping(now)  # so that the new phase is seen and confirmed without traffic

    def follow(self) -> None:
        """The peer began the next phase; ours begins before anything is acknowledged (§6.2). Raises
        SessionRefusedError."""
        phases = self._phases
        assert phases.next_keys is not None
        self._mark.advance(phases.epoch + 1, phases.next_keys.tx_key, self._packets.next_number)
        phases.follow(self._packets.next_number)

    def _first_after(self, update: SessionUpdate) -> int:
        return max(self._packets.next_number, update.packet_number)

    def may_update(self, now: float) -> bool:
        """RFC 9001 §6.1 and §6.5: the current phase was acknowledged, three PTO ago."""
        confirmed_at = self._phases.confirmed_at
        return confirmed_at is not None and now >= confirmed_at + 3 * self._recovery.pto

    def deadline(self) -> float:
        """When ``handle_timer`` has something to do."""
        phases, soonest = self._phases, _NEVER
        if phases.rx_previous is not None:
            soonest = phases.previous_until
        if phases.confirmed_at is not None and self._announced != phases.epoch:
            soonest = min(soonest, phases.confirmed_at + 3 * self._recovery.pto)
        return soonest

    def handle_timer(self, now: float) -> bool:
        """Forget old keys; True once for each epoch: another update is allowed now."""
        phases = self._phases
        if phases.rx_previous is not None and now >= phases.previous_until:
            phases.rx_previous = None
        if self._announced == phases.epoch or not self.may_update(now):
            return False
        self._announced = phases.epoch
        return True
