"""qre.ko's interface to user space, by name and number: kmod/uapi/qre.h for Python.

A member here has the header's name without its prefix (``Attribute.SESSION_ID`` is ``QRE_A_SESSION_ID``). A test
compares the two; the header is authoritative. Imports nothing but enum and struct, so that it loads fast.
"""

from __future__ import annotations

import enum
import struct

GENL_NAME = "qre"
GENL_VERSION = 1
GENL_EVENTS = "events"
GENL_FRAMES = "frames"  # FRAME_RECEIVED alone
LINK_KIND = "qre"

SESSION_ID_SIZE = 32
CID_MAX = 20
KEY_SIZE = 16
IV_SIZE = 12
IPV6_SIZE = 16
RESET_TOKEN_SIZE = 16
SHORT_ID_SIZE = 8
NAME_MAX = 255  # Dest, ServerName, Endpoint
DEST_PROFILE_MAX = 8192
FRAMES_MAX = 1200  # of FRAME_SEND
FRAMES_RECEIVED_MAX = 1472  # of an event
ALLOWED_IPS_MAX = 256  # of a session
DEVICES_MAX = 64  # of a namespace
SESSIONS_MAX = 2000  # of a device
SESSION_CIDS_MAX = 8
CIDS_MAX = 4096  # of a namespace
PACKET_NUMBER_BASE = 65_536
REKEY_AFTER_PACKETS = 1 << 22
HARD_PACKET_LIMIT = 1 << 28
MTU_MIN = 576
MTU_MAX = 1428
MTU_DEFAULT = 1380


class KernelRole(enum.IntEnum):
    UNSET = 0
    SERVER = 1
    CLIENT = 2


class SessionState(enum.IntEnum):
    HELD = 0
    ESTABLISHED = 1
    CLOSING = 2


class Loss(enum.IntEnum):
    """Why a session ended."""

    IDLE = 1
    CLOSED = 2
    RESET = 3
    UNCONFIRMED = 4
    LIMIT = 5
    PROTOCOL = 6
    REPLACED = 7
    DELETED = 8
    UNANSWERED = 9


class Event(enum.IntEnum):
    SESSION_CONFIRMED = 1
    SESSION_LOST = 2
    REKEY_DUE = 3
    KEY_PHASE_CHANGED = 4
    KEY_PHASE_CONFIRMED = 5
    PEER_MOVED = 6
    FRAME_RECEIVED = 7
    FRAME_FATE = 8
    MAP_SYNC_FAILED = 9
    SESSION_INSTALLED = 10
    FRAMES_LIMITED = 11
    SESSION_SILENT = 12
    SESSION_ANSWERS = 13
    PATH_DEGRADED = 14
    PORT_ANSWERED = 15
    PORT_DROPPED = 16
    SESSION_BEGUN = 17


class Drop(enum.IntEnum):
    """Why a packet was dropped."""

    UNSPEC = 0
    NO_SESSION = 1
    HELD = 2
    CLOSING = 3
    TOO_BIG = 4
    MALFORMED = 5
    NO_KEYS = 6
    DECRYPT_FAILED = 7
    REPLAYED = 8
    BELOW_BASE = 9
    WRONG_ADDRESS = 10
    SOURCE_NOT_ALLOWED = 11
    BAD_PACKET = 12
    CONGESTION = 13
    UNKNOWN_CONTEXT = 14
    NO_MEMORY = 15
    NO_ROUTE = 16
    TTL_EXPIRED = 17
    FRAMES_LIMIT = 18
    IPV6_REFUSED = 19
    STRAY = 20
    PART_ALONE = 21
    MOVED = 22


class QreCommand(enum.IntEnum):
    UNSPEC = 0
    DEVICE_GET = 1
    DEVICE_SET = 2
    DEVICE_DEL = 3
    SESSION_GET = 4
    SESSION_INSTALL = 5
    SESSION_UPDATE = 6
    SESSION_DEL = 7
    CID_ADOPT = 8
    CID_RELEASE = 9
    CID_MAP_REGISTER = 10
    CID_MAP_UNREGISTER = 11
    SHARED_SOCKET_REGISTER = 12
    SHARED_SOCKET_UNREGISTER = 13
    SHARED_LOADER_SET = 14
    DEST_PROFILE_SET = 15
    FRAME_SEND = 16
    EVENT = 17
    PATH_PROVEN = 18
    SESSION_GIVE_UP = 19
    SESSION_TRY_PORT = 20
    SESSION_MOVE = 21
    SESSION_DROP_PORT = 22


class Attribute(enum.IntEnum):
    UNSPEC = 0
    PAD = 1
    IFINDEX = 2
    IFNAME = 3
    ROLE = 4
    MTU = 5
    DEST = 6
    SERVER_NAME = 7
    LISTEN_IP = 8
    LISTEN_PORT = 9
    ENDPOINT = 10
    KEEPALIVE = 11
    MAX_SESSIONS = 12
    FWMARK = 13
    SESSION_ID = 14
    CID = 15
    CLIENT_CID = 16
    TX_KEY = 17
    RX_KEY = 18
    TX_HP_KEY = 19
    RX_HP_KEY = 20
    TX_IV = 21
    RX_IV = 22
    NEXT_TX_KEY = 23
    NEXT_TX_IV = 24
    NEXT_RX_KEY = 25
    NEXT_RX_IV = 26
    NEXT_RX_HP_KEY = 27
    KEY_EPOCH = 28
    PACKET_NUMBER = 29
    LOCAL_IP = 30
    LOCAL_PORT = 31
    PEER_IP = 32
    PEER_PORT = 33
    ALLOWED_IPS = 34
    SHORT_ID = 35
    HOLD = 36
    IDLE_MS = 37
    KEEPALIVE_MS = 38
    ACK_DELAY_EXPONENT = 39
    MAX_ACK_DELAY_MS = 40
    MAX_UDP_PAYLOAD = 41
    RESET_TOKEN = 42
    REKEY_AFTER = 43
    SEQUENCE = 44
    CLOSE = 45
    FD = 46
    FRAME_ID = 47
    FRAME_ACKED = 48
    FRAMES = 49
    EVENT = 50
    LOSS = 51
    ERROR_CODE = 52
    ERRNO = 53
    STATE = 54
    CONFIRMED = 55
    RX_NUMBER = 56
    AGE_MS = 57
    LAST_RECEIVE_MS = 58
    RX_PACKETS = 59
    RX_BYTES = 60
    TX_PACKETS = 61
    TX_BYTES = 62
    DROPS = 63
    CIDS = 64
    SESSIONS = 65
    ADOPTED = 66
    MAP_ID = 67
    MAP_ENTRIES = 68
    MAP_MISSING = 69
    MAP_SYNC_FAILURES = 70
    SHARED_IP = 71
    SHARED_PORT = 72
    SHARED_RX = 73
    SHARED_PASSED = 74
    LOADER_PROGRAM = 75
    LOADER_PIN_DIR = 76
    LOADER_CID_LENGTH = 77
    LOADER_PID = 78
    DEST_PROFILE = 79
    ECN = 80
    AEAD_DRIVER = 81
    PATH_MTU = 82
    INNER_MTU = 83
    UNANSWERED_MS = 84
    SILENT = 85
    PROVEN_PAYLOAD = 86
    PROVEN_AGO_MS = 87
    SPLITS = 88
    USUAL_PAYLOAD = 89
    INNER_MTU_IPV6 = 90
    INNER_MTU_IN_TWO = 91
    LOCAL_IPV6 = 92
    PEER_IPV6 = 93
    LISTEN_IPV6 = 94
    SHARED_IPV6 = 95
    SMOOTHED_RTT_US = 96
    RTT_VARIATION_US = 97
    PTO_US = 98
    SEVERAL = 99
    LAST_REPEAT_MS = 100
    GIVES_UP_MS = 101
    CHALLENGES = 102
    APART_MS = 103
    SPARE = 104
    TRIES = 105
    BEGUN = 106


#: struct qre_allowed_ip: family (4 or 6), prefix length, two reserved bytes, address (IPv4: the first four).
ALLOWED_IP = struct.Struct("=BB2x16s")
#: struct qre_cid, the key of QRE_CID_ROUTES, too: length, bytes (zero behind length).
CID = struct.Struct("=B20s")
