"""The client of qre.ko against a kernel that is played: what it sends, what it makes of refusals and nonsense."""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable
from ipaddress import ip_network

import msgspec
import pytest

import qre.kernel.qre_family
from qre.dataplane.protocol import SessionInstall, SessionKeys, SessionUpdate, underlay_of
from qre.device.session_end import end_session
from qre.ends import Role
from qre.errors import MachineError
from qre.kernel import abi
from qre.kernel.abi import Attribute, QreCommand
from qre.kernel.attributes import Request, encode_attribute, install_request, read_attributes_untrusted
from qre.kernel.qre_family import DeviceSettings, LoaderDescription, ModuleMissingError, Qre
from qre.kernel.socket import NLM_F_DUMP, ExtendedAck, NetlinkRefusedError
from qre.wire.close_reason import CloseReason, reason_of
from qre.wire.frames import ConnectionClose, frames_untrusted

FAMILY = 0x21
SESSION = bytes(range(32))
KEYS = SessionKeys(tx_key=b"t" * 16, rx_key=b"r" * 16, tx_iv=b"T" * 12, rx_iv=b"R" * 12)
UNDERLAY = underlay_of(("192.0.2.1", 443), ("198.51.100.2", 50443))
INSTALL = SessionInstall(
    id=1,
    session_id=SESSION,
    role=Role.SERVER,
    connection_id=b"c" * 20,
    keys=KEYS,
    next_keys=KEYS,
    tx_hp_key=b"h" * 16,
    rx_hp_key=b"H" * 16,
    underlay=UNDERLAY,
    allowed_ips=(ip_network("10.77.0.2/32"),),
    held=True,
)


class FakeKernel:
    """Stands where the netlink socket is: remembers requests, and answers as the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[QreCommand, dict[Attribute, bytes], int]] = []
        self.answers: list[Request] = []
        self.refusal: tuple[int, ExtendedAck] | None = None
        self.version = abi.GENL_VERSION
        self.attributes = int(max(Attribute))
        self.loaded = True
        self.closed = False

    def exchange(self, what: str, kind: int, body: bytes, flags: int = 0) -> list[tuple[int, bytes]]:
        if kind == 16:
            return [(16, self._family(what))]
        assert kind == FAMILY
        command, version, reserved = struct.unpack_from("=BBH", body)
        assert (version, reserved) == (abi.GENL_VERSION, 0)
        fields = read_attributes_untrusted(body[4:])
        given = {attribute: fields.octets(attribute, 0, 1 << 16) for attribute in Attribute}
        values = {attribute: value for attribute, value in given.items() if value is not None}
        self.asked.append((QreCommand(command), values, flags))
        if self.refusal is not None:
            raise NetlinkRefusedError(what, *self.refusal)
        return [(FAMILY, bytes(20) + answer.encode()) for answer in self.answers]

    def _family(self, what: str) -> bytes:
        if not self.loaded:
            raise NetlinkRefusedError(what, errno.ENOENT)
        group = encode_attribute(1, b"events\0") + encode_attribute(2, struct.pack("=I", 5))
        return (
            bytes(20)
            + encode_attribute(2, b"qre\0")
            + encode_attribute(1, struct.pack("=H", FAMILY))
            + encode_attribute(3, struct.pack("=I", self.version))
            + encode_attribute(5, struct.pack("=I", self.attributes))
            + encode_attribute(7, encode_attribute(1, group))
        )

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    kernel = FakeKernel()
    monkeypatch.setattr(qre.kernel.qre_family, "NetlinkSocket", lambda protocol: kernel)
    return kernel


def test_the_family_is_found_with_its_group(fake: FakeKernel) -> None:
    with Qre() as client:
        assert client.family.number == FAMILY
        assert client.family.groups == {"events": 5}
    assert fake.closed


def test_a_module_that_is_not_loaded_is_said_to_be_so(fake: FakeKernel) -> None:
    fake.loaded = False
    with pytest.raises(ModuleMissingError, match="not loaded"):
        Qre()
    assert fake.closed


def test_a_module_of_another_version_is_refused(fake: FakeKernel) -> None:
    fake.version = 2
    with pytest.raises(MachineError, match="version 2, not 1"):
        Qre()


def test_a_module_of_before_packets_in_two_datagrams_is_known_by_its_attributes(fake: FakeKernel) -> None:
    with Qre() as client:
        assert client.splits
    fake.attributes = Attribute.PROVEN_AGO_MS
    with Qre() as client:
        assert not client.splits


def test_an_install_says_what_a_client_sends_packets_in(fake: FakeKernel) -> None:
    made = msgspec.structs.replace(INSTALL, usual_payload=1250, splits=True)
    Qre().session_install("qre0", made)
    Qre().session_install("qre0", msgspec.structs.replace(made, max_datagram_payload=1250))
    (_, larger, _), (_, same, _) = fake.asked
    assert larger[Attribute.USUAL_PAYLOAD] == same[Attribute.MAX_UDP_PAYLOAD] == (1250).to_bytes(2, sys.byteorder)
    assert larger[Attribute.SPLITS] == same[Attribute.SPLITS] == b""
    assert Attribute.USUAL_PAYLOAD not in same


def test_an_install_says_everything_that_a_session_is(fake: FakeKernel) -> None:
    Qre().session_install("qre0", INSTALL, 9)
    ((command, given, _),) = fake.asked
    assert command is QreCommand.SESSION_INSTALL
    assert given[Attribute.IFNAME] == b"qre0\0"
    assert given[Attribute.SESSION_ID] == SESSION
    assert given[Attribute.CID] == b"c" * 20
    assert given[Attribute.CLIENT_CID] == b""
    assert given[Attribute.TX_KEY] == b"t" * 16
    assert given[Attribute.NEXT_RX_IV] == b"R" * 12
    assert given[Attribute.HOLD] == b""
    assert given[Attribute.LOCAL_IP] == bytes([192, 0, 2, 1])
    assert given[Attribute.PEER_PORT] == (50443).to_bytes(2, "big")
    assert given[Attribute.ALLOWED_IPS] == bytes([4, 32, 0, 0, 10, 77, 0, 2]) + bytes(12)
    assert given[Attribute.FD] == (9).to_bytes(4, sys.byteorder)
    assert given[Attribute.PACKET_NUMBER] == (65_536).to_bytes(8, sys.byteorder)
    assert Attribute.ROLE not in given
    assert Attribute.RESET_TOKEN not in given
    assert not {Attribute.SPLITS, Attribute.USUAL_PAYLOAD} & given.keys()


def test_an_update_says_keys_and_epoch_and_no_packet_number_that_it_does_not_know(fake: FakeKernel) -> None:
    update = SessionUpdate(id=2, session_id=SESSION, keys=KEYS, next_keys=None, key_epoch=1)
    Qre().session_update("qre0", update)
    ((command, given, _),) = fake.asked
    assert command is QreCommand.SESSION_UPDATE
    assert set(given) == {
        Attribute.IFNAME, Attribute.SESSION_ID, Attribute.TX_KEY, Attribute.RX_KEY, Attribute.TX_IV,
        Attribute.RX_IV, Attribute.KEY_EPOCH,
    }  # fmt: skip


@pytest.mark.parametrize(("role", "closes"), [(Role.SERVER, True), (Role.CLIENT, False)])
def test_a_session_ends_with_a_reason_for_its_peer(fake: FakeKernel, role: Role, closes: bool) -> None:
    end_session(Qre(), "qre0", SESSION, role, CloseReason.REMOVED, 7)
    (sends, frames, _), (deletes, deleted, _) = fake.asked
    assert (sends, deletes) == (QreCommand.FRAME_SEND, QreCommand.SESSION_DEL)
    (close, *padding) = frames_untrusted(frames[Attribute.FRAMES])
    assert isinstance(close, ConnectionClose) and reason_of(close.error) is CloseReason.REMOVED
    assert bool(padding) is (role is Role.CLIENT), "as long as a browser's"
    assert (Attribute.CLOSE in deleted) is closes, "a client closes once"


def test_a_session_that_takes_no_frames_is_closed_without_a_reason(fake: FakeKernel) -> None:
    fake.refusal = (errno.ENOENT, ExtendedAck("there is no such established session", 0))
    with pytest.raises(NetlinkRefusedError):
        end_session(Qre(), "qre0", SESSION, Role.CLIENT, CloseReason.STOPPED)
    assert [command for command, _, _ in fake.asked] == [QreCommand.FRAME_SEND, QreCommand.SESSION_DEL]
    assert Attribute.CLOSE in fake.asked[1][1]


@pytest.mark.parametrize(
    ("ask", "command", "expected"),
    [
        (lambda qre: qre.device_delete("qre0"), QreCommand.DEVICE_DEL, {"IFNAME"}),
        (
            lambda qre: qre.device_set("qre0", DeviceSettings(role=Role.CLIENT, endpoint="a.example:443")),
            QreCommand.DEVICE_SET,
            {"IFNAME", "ROLE", "ENDPOINT"},
        ),
        (
            lambda qre: qre.session_delete("qre0", SESSION, close=True),
            QreCommand.SESSION_DEL,
            {"IFNAME", "SESSION_ID", "CLOSE"},
        ),
        (
            lambda qre: qre.session_delete("qre0", SESSION, close=False),
            QreCommand.SESSION_DEL,
            {"IFNAME", "SESSION_ID"},
        ),
        (lambda qre: qre.cid_adopt("qre0", b"c"), QreCommand.CID_ADOPT, {"IFNAME", "CID"}),
        (
            lambda qre: qre.cid_adopt("qre0", b"c", SESSION, 2),
            QreCommand.CID_ADOPT,
            {"IFNAME", "CID", "SESSION_ID", "SEQUENCE"},
        ),
        (lambda qre: qre.cid_release("qre0", b"c"), QreCommand.CID_RELEASE, {"IFNAME", "CID"}),
        (lambda qre: qre.cid_map_register(3), QreCommand.CID_MAP_REGISTER, {"FD"}),
        (lambda qre: qre.cid_map_unregister(), QreCommand.CID_MAP_UNREGISTER, set()),
        (lambda qre: qre.shared_socket_register(3), QreCommand.SHARED_SOCKET_REGISTER, {"FD"}),
        (lambda qre: qre.shared_socket_unregister(), QreCommand.SHARED_SOCKET_UNREGISTER, set()),
        (lambda qre: qre.loader_set(None), QreCommand.SHARED_LOADER_SET, set()),
        (
            lambda qre: qre.loader_set(LoaderDescription(program="p", pin_dir="/d", cid_length=20, pid=1)),
            QreCommand.SHARED_LOADER_SET,
            {"LOADER_PROGRAM", "LOADER_PIN_DIR", "LOADER_CID_LENGTH", "LOADER_PID"},
        ),
        (
            lambda qre: qre.dest_profile_set("qre0", b"{}", 1),
            QreCommand.DEST_PROFILE_SET,
            {"IFNAME", "DEST_PROFILE", "ECN"},
        ),
        (
            lambda qre: qre.frame_send("qre0", SESSION, 7, b"\x1e"),
            QreCommand.FRAME_SEND,
            {"IFNAME", "SESSION_ID", "FRAMES", "FRAME_ID"},
        ),
        (
            lambda qre: qre.path_proven("qre0", SESSION, 1389, 1 << 40),
            QreCommand.PATH_PROVEN,
            {"IFNAME", "SESSION_ID", "PROVEN_PAYLOAD", "PROVEN_AGO_MS"},
        ),
        (
            lambda qre: qre.session_give_up("qre0", SESSION, (1 << 40, 1 << 40), b"\x1c"),
            QreCommand.SESSION_GIVE_UP,
            {"IFNAME", "SESSION_ID", "LAST_REPEAT_MS", "GIVES_UP_MS", "FRAMES"},
        ),
        (
            lambda qre: qre.session_try_port("qre0", SESSION, 7),
            QreCommand.SESSION_TRY_PORT,
            {"IFNAME", "SESSION_ID", "FD", "CHALLENGES", "APART_MS"},
        ),
        (lambda qre: qre.session_move("qre0", SESSION), QreCommand.SESSION_MOVE, {"IFNAME", "SESSION_ID"}),
        (lambda qre: qre.session_drop_port("qre0", SESSION), QreCommand.SESSION_DROP_PORT, {"IFNAME", "SESSION_ID"}),
    ],
)
def test_each_command_sends_its_attributes_and_no_other(
    fake: FakeKernel, ask: Callable[[Qre], None], command: QreCommand, expected: set[str]
) -> None:
    ask(Qre())
    ((sent, given, flags),) = fake.asked
    assert (sent, {attribute.name for attribute in given}, flags) == (command, expected, 0)


def test_listings_are_dumps(fake: FakeKernel) -> None:
    answer = Request()
    answer.text(Attribute.IFNAME, "qre0")
    fake.answers = [answer]
    assert [device.name for device in Qre().devices()] == ["qre0"]
    fake.answers = []
    assert Qre().sessions("qre0") == []
    assert [flags for _, _, flags in fake.asked] == [NLM_F_DUMP, NLM_F_DUMP]


def test_a_refusal_has_the_kernels_words_the_attribute_and_no_key(fake: FakeKernel) -> None:
    request = install_request(INSTALL)
    request.text(Attribute.IFNAME, "qre0")
    offset = next(offset for offset in range(400) if request.at(offset) is Attribute.TX_KEY)
    fake.refusal = (errno.EEXIST, ExtendedAck("TxKey was used before", 20 + offset, None))
    with pytest.raises(NetlinkRefusedError) as caught:
        Qre().session_install("qre0", INSTALL)
    expected = "installing a session on qre0: File exists (TxKey was used before, at TX_KEY)"
    assert str(caught.value) == expected
    fake.refusal = (errno.EINVAL, ExtendedAck("", None, Attribute.KEY_EPOCH.value))
    with pytest.raises(NetlinkRefusedError, match="KEY_EPOCH is missing") as caught:
        Qre().session_install("qre0", INSTALL)
    for secret in (KEYS.tx_key, KEYS.rx_key, INSTALL.tx_hp_key):
        assert secret.decode() not in repr(caught.value) + str(caught.value)
        assert secret.hex() not in repr(caught.value) + str(caught.value)


def test_a_missing_capability_has_its_remedy(fake: FakeKernel) -> None:
    fake.refusal = (errno.EPERM, ExtendedAck())
    with pytest.raises(NetlinkRefusedError, match="run as root"):
        Qre().device_delete("qre0")


def test_a_device_or_session_that_is_not_there_is_none(fake: FakeKernel) -> None:
    fake.refusal = (errno.ENODEV, ExtendedAck())
    assert Qre().device("qre0") is None
    fake.refusal = (errno.ENOENT, ExtendedAck())
    assert Qre().session("qre0", SESSION) is None


def test_an_answer_that_cannot_be_is_an_error_of_the_machine(fake: FakeKernel) -> None:
    answer = Request()
    answer.put(Attribute.IFNAME, bytes(40))
    fake.answers = [answer]
    with pytest.raises(MachineError, match="invalid answer"):
        Qre().devices()
