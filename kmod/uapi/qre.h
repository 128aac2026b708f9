/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * qre.ko's interface to user space: generic netlink family "qre", version 1, and rtnl link kind
 * "qre". qre.yaml describes the same, qre/kernel/abi.py mirrors it; a test holds the three
 * together.
 *
 * Integers are in host order unless said otherwise. An attribute that a command does not take is
 * refused. No reply and no event ever carries a key. Everything wants CAP_NET_ADMIN in the initial
 * user namespace, or, when the module is loaded with userns=1, in the one that owns the network
 * namespace; but DEVICE_GET tells everybody in the network namespace each device's index, name,
 * MTU, role, counters and number of sessions.
 */
#ifndef _UAPI_QRE_H
#define _UAPI_QRE_H

#include <linux/types.h>

#define QRE_GENL_NAME	 "qre"
#define QRE_GENL_VERSION 1
#define QRE_GENL_EVENTS	 "events"
#define QRE_GENL_FRAMES	 "frames" /* FRAME_RECEIVED alone: whatever peers send */
#define QRE_LINK_KIND	 "qre"

#define QRE_SESSION_ID_SIZE	32
#define QRE_CID_MAX		20
#define QRE_KEY_SIZE		16
#define QRE_IV_SIZE		12
#define QRE_IPV6_SIZE		16
#define QRE_RESET_TOKEN_SIZE	16
#define QRE_SHORT_ID_SIZE	8
#define QRE_NAME_MAX		255  /* Dest, ServerName, Endpoint */
#define QRE_DEST_PROFILE_MAX	8192 /* bytes of JSON, opaque to the kernel */
#define QRE_FRAMES_MAX		1200 /* of FRAME_SEND */
#define QRE_FRAMES_RECEIVED_MAX 1472 /* of an event: all of one packet's */
#define QRE_ALLOWED_IPS_MAX	256  /* of a session */
#define QRE_DEVICES_MAX		64   /* of a namespace */
#define QRE_SESSIONS_MAX	2000 /* of a device */
#define QRE_SESSION_CIDS_MAX	8
#define QRE_CIDS_MAX		4096 /* of a namespace: the BPF map's entries */
#define QRE_PACKET_NUMBER_BASE	65536
#define QRE_REKEY_AFTER_PACKETS (1ULL << 22)
#define QRE_HARD_PACKET_LIMIT	(1ULL << 28)
#define QRE_MTU_MIN		576
#define QRE_MTU_MAX		1428
#define QRE_MTU_DEFAULT		1380

enum qre_role {
	QRE_ROLE_UNSET = 0,
	QRE_ROLE_SERVER = 1,
	QRE_ROLE_CLIENT = 2,
};

enum qre_session_state {
	QRE_SESSION_HELD = 0,
	QRE_SESSION_ESTABLISHED = 1,
	QRE_SESSION_CLOSING = 2,
};

/* Why a session ended. */
enum qre_loss {
	QRE_LOSS_IDLE = 1,
	QRE_LOSS_CLOSED = 2,	  /* the peer's CONNECTION_CLOSE */
	QRE_LOSS_RESET = 3,	  /* a stateless reset */
	QRE_LOSS_UNCONFIRMED = 4, /* a session that was not confirmed in time */
	QRE_LOSS_LIMIT = 5,	  /* the hard packet or integrity limit */
	QRE_LOSS_PROTOCOL = 6,	  /* the peer broke QUIC inside an authenticated packet */
	QRE_LOSS_REPLACED = 7,	  /* a newer session of the same short id was confirmed */
	QRE_LOSS_DELETED = 8,	  /* asked for */
	QRE_LOSS_UNANSWERED = 9,  /* of a client, as SESSION_GIVE_UP said: nothing came back */
};

enum qre_event {
	QRE_EVENT_SESSION_CONFIRMED = 1, /* SESSION_ID: its peer was heard */
	QRE_EVENT_SESSION_LOST = 2,	 /* SESSION_ID, LOSS, ERROR_CODE */
	QRE_EVENT_REKEY_DUE = 3,	 /* SESSION_ID, KEY_EPOCH */
	QRE_EVENT_KEY_PHASE_CHANGED = 4, /* SESSION_ID, KEY_EPOCH: the peer flipped, we followed */
	QRE_EVENT_KEY_PHASE_CONFIRMED = 5, /* SESSION_ID, KEY_EPOCH: another update is allowed */
	QRE_EVENT_PEER_MOVED = 6,	   /* SESSION_ID, the underlay's four */
	QRE_EVENT_FRAME_RECEIVED = 7,	   /* SESSION_ID, FRAMES; of the group "frames" */
	QRE_EVENT_FRAME_FATE = 8,	   /* SESSION_ID, FRAME_ID, FRAME_ACKED */
	QRE_EVENT_MAP_SYNC_FAILED = 9,	   /* CID, ERRNO: the BPF map refused it */
	QRE_EVENT_SESSION_INSTALLED = 10,  /* SESSION_ID */
	QRE_EVENT_FRAMES_LIMITED = 11,	   /* SESSION_ID, once: some of its packets are not taken */
	QRE_EVENT_SESSION_SILENT = 12,	   /* SESSION_ID, of a client: its server answers nothing */
	QRE_EVENT_SESSION_ANSWERS = 13,	   /* SESSION_ID: again, after all */
	QRE_EVENT_PATH_DEGRADED = 14,	   /* SESSION_ID, SMOOTHED_RTT_US, RTT_VARIATION_US, PTO_US,
					      SEVERAL, SPARE, of a client: for four probe timeouts
					      nothing new was acknowledged. SESSION_GIVE_UP may
					      answer, and SESSION_TRY_PORT */
	QRE_EVENT_PORT_ANSWERED = 15, /* SESSION_ID, CID, SEQUENCE: the port that is tried with this
					 ID of the peer's. SESSION_MOVE or SESSION_DROP_PORT is to
					 answer within a second */
	QRE_EVENT_PORT_DROPPED = 16,  /* SESSION_ID: it was tried in vain */
	QRE_EVENT_SESSION_BEGUN = 17, /* SESSION_ID, of a client: its first packet has left, and
					 its server may send from then on */
};

/* Why a packet was dropped: QRE_A_DROPS holds one u64 attribute of this type for each that is not
 * 0. */
enum qre_drop {
	QRE_DROP_UNSPEC = 0,
	QRE_DROP_NO_SESSION = 1, /* transmit: no AllowedIPs holds the destination */
	QRE_DROP_HELD = 2,	 /* transmit: the session is not confirmed yet */
	QRE_DROP_CLOSING = 3,
	QRE_DROP_TOO_BIG = 4,	/* transmit: more than the path, or the device below, takes */
	QRE_DROP_MALFORMED = 5, /* too short, not a short header, or frames that do not parse */
	QRE_DROP_NO_KEYS = 6,	/* a key phase that we have no keys for */
	QRE_DROP_DECRYPT_FAILED = 7,
	QRE_DROP_REPLAYED = 8,
	QRE_DROP_BELOW_BASE = 9,
	QRE_DROP_WRONG_ADDRESS = 10, /* to a client, not from its server */
	QRE_DROP_SOURCE_NOT_ALLOWED = 11,
	QRE_DROP_BAD_PACKET = 12, /* the inner packet is no IP packet, or its lengths are wrong */
	QRE_DROP_CONGESTION = 13, /* RFC 6040: outer CE, inner not ECN-capable */
	QRE_DROP_UNKNOWN_CONTEXT = 14, /* a DATAGRAM of another stream or context */
	QRE_DROP_NO_MEMORY = 15,
	QRE_DROP_NO_ROUTE = 16,	    /* the underlay has no way to the peer */
	QRE_DROP_TTL_EXPIRED = 17,  /* RFC 9484 section 7.1 */
	QRE_DROP_FRAMES_LIMIT = 18, /* more frames for user space than the rate limit allows */
	QRE_DROP_IPV6_REFUSED = 19, /* transmit: the path takes less than IPv6 needs */
	QRE_DROP_STRAY = 20,	  /* a stranger's with our CID, above the rate that is passed on */
	QRE_DROP_PART_ALONE = 21, /* half of a packet: the other one did not come */
	QRE_DROP_MOVED = 22,	  /* transmit: meant for the port that a client has left */
	__QRE_DROP_MAX,
};
#define QRE_DROP_MAX (__QRE_DROP_MAX - 1)

enum qre_cmd {
	QRE_CMD_UNSPEC = 0,
	QRE_CMD_DEVICE_GET = 1, /* do: IFNAME or IFINDEX; dump: all */
	QRE_CMD_DEVICE_SET = 2, /* create or change: IFNAME, ROLE, MTU, DEST, SERVER_NAME, LISTEN_*,
				   ENDPOINT, KEEPALIVE, MAX_SESSIONS, FWMARK */
	QRE_CMD_DEVICE_DEL = 3, /* IFNAME */
	QRE_CMD_SESSION_GET = 4, /* do: IFNAME, SESSION_ID; dump: IFNAME */
	QRE_CMD_SESSION_INSTALL = 5,
	QRE_CMD_SESSION_UPDATE = 6, /* IFNAME, SESSION_ID, keys, KEY_EPOCH; PACKET_NUMBER, NEXT_*
				       and hp keys optional */
	QRE_CMD_SESSION_DEL = 7,    /* IFNAME, SESSION_ID; CLOSE: tell the peer */
	QRE_CMD_CID_ADOPT =
		8, /* IFNAME, CID; SESSION_ID, SEQUENCE: otherwise a CID of the device alone */
	QRE_CMD_CID_RELEASE = 9,       /* IFNAME, CID; SESSION_ID */
	QRE_CMD_CID_MAP_REGISTER = 10, /* FD */
	QRE_CMD_CID_MAP_UNREGISTER = 11,
	QRE_CMD_SHARED_SOCKET_REGISTER = 12, /* FD */
	QRE_CMD_SHARED_SOCKET_UNREGISTER = 13,
	QRE_CMD_SHARED_LOADER_SET =
		14, /* the LOADER_* attributes; none: there is no loader any more */
	QRE_CMD_DEST_PROFILE_SET = 15, /* IFNAME, DEST_PROFILE, ECN */
	QRE_CMD_FRAME_SEND = 16,       /* IFNAME, SESSION_ID, FRAMES, FRAME_ID */
	QRE_CMD_EVENT = 17,	       /* multicast only */
	QRE_CMD_PATH_PROVEN = 18, /* IFNAME, SESSION_ID, PROVEN_PAYLOAD, PROVEN_AGO_MS: the search
				     for the path's MTU goes on behind that */
	QRE_CMD_SESSION_GIVE_UP = 19,	/* IFNAME, SESSION_ID, LAST_REPEAT_MS, GIVES_UP_MS, FRAMES:
					   of a client, unless something is acknowledged before */
	QRE_CMD_SESSION_TRY_PORT = 20,	/* IFNAME, SESSION_ID, FD, CHALLENGES, APART_MS: while it
					   hears nothing, PATH_CHALLENGEs leave by that socket */
	QRE_CMD_SESSION_MOVE = 21,	/* IFNAME, SESSION_ID: to the port that has answered */
	QRE_CMD_SESSION_DROP_PORT = 22, /* IFNAME, SESSION_ID: the one that is tried goes */
	__QRE_CMD_MAX,
};
#define QRE_CMD_MAX (__QRE_CMD_MAX - 1)

enum qre_attr {
	QRE_A_UNSPEC = 0,
	QRE_A_PAD = 1,
	QRE_A_IFINDEX = 2,	 /* u32 */
	QRE_A_IFNAME = 3,	 /* string, at most 15 */
	QRE_A_ROLE = 4,		 /* u8, enum qre_role; of DEVICE_SET. A session has its device's. */
	QRE_A_MTU = 5,		 /* u32, QRE_MTU_MIN to QRE_MTU_MAX */
	QRE_A_DEST = 6,		 /* string host:port */
	QRE_A_SERVER_NAME = 7,	 /* string */
	QRE_A_LISTEN_IP = 8,	 /* be32 */
	QRE_A_LISTEN_PORT = 9,	 /* be16 */
	QRE_A_ENDPOINT = 10,	 /* string host:port */
	QRE_A_KEEPALIVE = 11,	 /* u16, seconds; 0: none */
	QRE_A_MAX_SESSIONS = 12, /* u32, 1 to QRE_SESSIONS_MAX */
	QRE_A_FWMARK = 13,	 /* u32, of packets that leave by sockets that the module opened;
				    those of user space's sockets have SO_MARK's */

	QRE_A_SESSION_ID = 14, /* 32 bytes */
	QRE_A_CID = 15,	       /* 1 to 20 bytes: the routed CID, on packets to the server */
	QRE_A_CLIENT_CID = 16, /* 0 to 20 bytes: on packets to the client; absent: as CID */
	QRE_A_TX_KEY = 17,     /* 16 bytes */
	QRE_A_RX_KEY = 18,
	QRE_A_TX_HP_KEY = 19,
	QRE_A_RX_HP_KEY = 20,
	QRE_A_TX_IV = 21, /* 12 bytes */
	QRE_A_RX_IV = 22,
	QRE_A_NEXT_TX_KEY = 23,
	QRE_A_NEXT_TX_IV = 24,
	QRE_A_NEXT_RX_KEY = 25,
	QRE_A_NEXT_RX_IV = 26,
	QRE_A_NEXT_RX_HP_KEY = 27, /* must equal RX_HP_KEY: RFC 9001 section 6 */
	QRE_A_KEY_EPOCH = 28,	   /* u64 */
	QRE_A_PACKET_NUMBER = 29,  /* u64: the next one to be sent is at least this */
	QRE_A_LOCAL_IP = 30,	/* be32; these four together or none, addresses of either version */
	QRE_A_LOCAL_PORT = 31,	/* be16 */
	QRE_A_PEER_IP = 32,	/* be32 */
	QRE_A_PEER_PORT = 33,	/* be16 */
	QRE_A_ALLOWED_IPS = 34, /* array of struct qre_allowed_ip; absent or empty: all */
	QRE_A_SHORT_ID = 35,	/* 8 bytes */
	QRE_A_HOLD = 36,	/* flag: transmit nothing until the peer's first packet */
	QRE_A_IDLE_MS = 37,	/* u64, 1000 to 3600000 */
	QRE_A_KEEPALIVE_MS =
		38, /* u64, 0: only the client's own PING after half of the idle time */
	QRE_A_ACK_DELAY_EXPONENT = 39, /* u8, the peer's, at most 20 */
	QRE_A_MAX_ACK_DELAY_MS = 40,   /* u16, the peer's, below 2^14 */
	QRE_A_MAX_UDP_PAYLOAD = 41,    /* u16, the peer's max_udp_payload_size */
	QRE_A_RESET_TOKEN = 42,	       /* 16 bytes: the stateless reset token of CID, client */
	QRE_A_REKEY_AFTER = 43,	       /* u64, packets; 1 to QRE_HARD_PACKET_LIMIT */
	QRE_A_SEQUENCE = 44,	       /* u64, of the CID; absent: 0 */
	QRE_A_CLOSE = 45,	       /* flag */
	QRE_A_FD = 46, /* u32: a BPF map, the shared socket, or a session's own socket or next */

	QRE_A_FRAME_ID = 47,	/* u64 */
	QRE_A_FRAME_ACKED = 48, /* u8 */
	QRE_A_FRAMES = 49,	/* whole frames: 1 to QRE_FRAMES_MAX bytes, received ones up to
				   QRE_FRAMES_RECEIVED_MAX */
	QRE_A_EVENT = 50,	/* u8, enum qre_event */
	QRE_A_LOSS = 51,	/* u8, enum qre_loss */
	QRE_A_ERROR_CODE = 52,	/* u64 */
	QRE_A_ERRNO = 53,	/* u32, positive */

	QRE_A_STATE = 54,	    /* u8, enum qre_session_state */
	QRE_A_CONFIRMED = 55,	    /* u8: the peer was heard */
	QRE_A_RX_NUMBER = 56,	    /* u64: the highest received */
	QRE_A_AGE_MS = 57,	    /* u64 */
	QRE_A_LAST_RECEIVE_MS = 58, /* u64: age of the last authenticated packet; absent: none */
	QRE_A_RX_PACKETS = 59,	    /* u64, inner packets */
	QRE_A_RX_BYTES = 60,	    /* u64, inner bytes */
	QRE_A_TX_PACKETS = 61,
	QRE_A_TX_BYTES = 62,
	QRE_A_DROPS = 63, /* nest of enum qre_drop -> u64 */
	QRE_A_CIDS =
		64, /* array of struct qre_cid: of a session; of a device those of no session */
	QRE_A_SESSIONS = 65, /* u32: how many */
	QRE_A_ADOPTED = 66,  /* u32: adopted CIDs of the device, sessions' included */

	QRE_A_MAP_ID = 67,	      /* u32, of the registered BPF map; absent: none */
	QRE_A_MAP_ENTRIES = 68,	      /* u32: CIDs mirrored into it */
	QRE_A_MAP_MISSING = 69,	      /* u32: CIDs that should be and are not */
	QRE_A_MAP_SYNC_FAILURES = 70, /* u64, since it was registered */
	QRE_A_SHARED_IP = 71,	/* be32: the shared socket's address; absent: none is registered */
	QRE_A_SHARED_PORT = 72, /* be16 */
	QRE_A_SHARED_RX = 73,	/* u64: packets of live CIDs that it brought */
	QRE_A_SHARED_PASSED = 74,     /* u64: packets left to the socket's queue */
	QRE_A_LOADER_PROGRAM = 75,    /* string, at most 31 */
	QRE_A_LOADER_PIN_DIR = 76,    /* string, at most 255 */
	QRE_A_LOADER_CID_LENGTH = 77, /* u8, up to 20; 0: as Dest chooses */
	QRE_A_LOADER_PID = 78,	      /* u32 */
	QRE_A_DEST_PROFILE = 79,      /* bytes, at most QRE_DEST_PROFILE_MAX */
	QRE_A_ECN = 80,		      /* u8, 0 to 3: of outer packets, on paths that bear it */
	QRE_A_AEAD_DRIVER = 81,	      /* string: the crypto driver that was picked */
	QRE_A_PATH_MTU = 82,	  /* u16: the largest outer packet that the path is known to take */
	QRE_A_INNER_MTU = 83,	  /* u16: the largest inner packet that fits it */
	QRE_A_UNANSWERED_MS = 84, /* u64, of a client: since when nothing new was acknowledged,
				     though something was sent; 0: all is well */
	QRE_A_SILENT = 85, /* u8, of a client: as SESSION_SILENT and SESSION_ANSWERS told last */
	QRE_A_PROVEN_PAYLOAD = 86, /* u16: a UDP payload that the handshake sent and that arrived */
	QRE_A_PROVEN_AGO_MS = 87,  /* u64: how long ago it was sent; at most 3600000 */
	QRE_A_SPLITS = 88, /* flag: the client sends a packet that is too large for one datagram in
			      two, and the server joins them */
	QRE_A_USUAL_PAYLOAD = 89,    /* u16: what inner packets travel in, where more is allowed for
					IPv6 that needs it; absent: as MAX_UDP_PAYLOAD */
	QRE_A_INNER_MTU_IPV6 = 90,   /* u16: INNER_MTU of IPv6 inside; 0: the path is too narrow */
	QRE_A_INNER_MTU_IN_TWO = 91, /* u16: the largest inner packet that is sent in two datagrams;
					0: none is */
	QRE_A_LOCAL_IPV6 = 92,	/* 16 bytes, instead of LOCAL_IP; ::, with a peer of either version:
				   every address of both */
	QRE_A_PEER_IPV6 = 93,	/* 16 bytes, instead of PEER_IP */
	QRE_A_LISTEN_IPV6 = 94, /* 16 bytes, instead of LISTEN_IP */
	QRE_A_SHARED_IPV6 = 95, /* 16 bytes, instead of SHARED_IP */

	QRE_A_SMOOTHED_RTT_US = 96,  /* u32: RFC 9002 section 5.3 */
	QRE_A_RTT_VARIATION_US = 97, /* u32 */
	QRE_A_PTO_US = 98,	     /* u32: the probe timeout, section 6.2.1 */
	QRE_A_SEVERAL = 99,	     /* u8: more than one packet was under way when it began */
	QRE_A_LAST_REPEAT_MS = 100,  /* u64, at most 3600000, after the first packet without an
					answer: what had none longest goes out once more */
	QRE_A_GIVES_UP_MS = 101, /* u64, likewise: the session ends, with FRAMES behind an ACK */
	QRE_A_CHALLENGES = 102,	 /* u8, 1 to 4 */
	QRE_A_APART_MS = 103,	 /* u64, 1 to 60000: between two of them, and behind the last */
	QRE_A_SPARE = 104, /* u8: the peer has given a connection ID for another port, and none is
			      tried */
	QRE_A_TRIES = 105, /* u8, of a client: it tries another port */
	QRE_A_BEGUN = 106, /* u8, of a client: as SESSION_BEGUN has told */
	__QRE_A_MAX,
};
#define QRE_A_MAX (__QRE_A_MAX - 1)

struct qre_allowed_ip {
	__u8 family;	  /* 4 or 6 */
	__u8 prefix;	  /* length in bits */
	__u8 reserved[2]; /* 0 */
	__u8 address[16]; /* IPv4: the first four */
};

/* The key of QRE_CID_ROUTES, too. */
struct qre_cid {
	__u8 length;
	__u8 bytes[QRE_CID_MAX]; /* zero behind length */
};

#endif
