// SPDX-License-Identifier: GPL-2.0-only
/*
 * The type of each attribute, and the attributes of each command: netlink's own policies, so that a
 * policy dump shows them and the core refuses other attributes, with their place. Attributes that a
 * command does not list are refused, too. A missing attribute is refused here, by the name that
 * users of qre-tool know.
 */
#include <linux/if.h>
#include <net/genetlink.h>
#include "attributes.h"
#include "frames.h"
#include "qre.h"

/* --- attributes --- */

#define QRE_EXACTLY(id, size)		  [QRE_A_##id] = NLA_POLICY_EXACT_LEN(size)
#define QRE_BYTES(id, least, most)	  [QRE_A_##id] = NLA_POLICY_RANGE(NLA_BINARY, least, most)
#define QRE_BYTES_UP_TO(id, most)	  [QRE_A_##id] = {.type = NLA_BINARY, .len = most}
#define QRE_TEXT(id, most)		  [QRE_A_##id] = {.type = NLA_NUL_STRING, .len = most}
#define QRE_FLAG(id)			  [QRE_A_##id] = {.type = NLA_FLAG}
#define QRE_ANY(id, type_)		  [QRE_A_##id] = {.type = type_}
#define QRE_RANGE(id, type_, least, most) [QRE_A_##id] = NLA_POLICY_RANGE(type_, least, most)
#define QRE_WIDE(id, type_, range)	  [QRE_A_##id] = NLA_POLICY_FULL_RANGE(type_, &range)

static struct netlink_range_validation qre_positive = {.min = 1, .max = S32_MAX};
static struct netlink_range_validation qre_descriptors = {.max = S32_MAX};
static struct netlink_range_validation qre_varints = {.max = QRE_VARINT_MAX};
static struct netlink_range_validation qre_idle_times = {.min = 1000, .max = 3600000};
static struct netlink_range_validation qre_intervals = {.max = 3600000};
static struct netlink_range_validation qre_pauses = {.min = 1, .max = 60000};
static struct netlink_range_validation qre_rekeys = {.min = 1, .max = QRE_HARD_PACKET_LIMIT};
static struct netlink_range_validation qre_frame_ids = {.max = U64_MAX - 1};
static struct netlink_range_validation qre_payloads = {.min = QRE_MTU_MIN + 64, .max = U16_MAX};

#define QRE_IS_IFINDEX	      QRE_WIDE(IFINDEX, NLA_U32, qre_positive)
#define QRE_IS_IFNAME	      QRE_TEXT(IFNAME, IFNAMSIZ - 1)
#define QRE_IS_ROLE	      QRE_RANGE(ROLE, NLA_U8, QRE_ROLE_SERVER, QRE_ROLE_CLIENT)
#define QRE_IS_MTU	      QRE_RANGE(MTU, NLA_U32, QRE_MTU_MIN, QRE_MTU_MAX)
#define QRE_IS_DEST	      QRE_TEXT(DEST, QRE_NAME_MAX)
#define QRE_IS_SERVER_NAME    QRE_TEXT(SERVER_NAME, QRE_NAME_MAX)
#define QRE_IS_LISTEN_IP      QRE_ANY(LISTEN_IP, NLA_BE32)
#define QRE_IS_LISTEN_PORT    QRE_ANY(LISTEN_PORT, NLA_BE16)
#define QRE_IS_ENDPOINT	      QRE_TEXT(ENDPOINT, QRE_NAME_MAX)
#define QRE_IS_KEEPALIVE      QRE_ANY(KEEPALIVE, NLA_U16)
#define QRE_IS_MAX_SESSIONS   QRE_RANGE(MAX_SESSIONS, NLA_U32, 1, QRE_SESSIONS_MAX)
#define QRE_IS_FWMARK	      QRE_ANY(FWMARK, NLA_U32)
#define QRE_IS_SESSION_ID     QRE_EXACTLY(SESSION_ID, QRE_SESSION_ID_SIZE)
#define QRE_IS_CID	      QRE_BYTES(CID, 1, QRE_CID_MAX)
#define QRE_IS_CLIENT_CID     QRE_BYTES_UP_TO(CLIENT_CID, QRE_CID_MAX)
#define QRE_IS_TX_KEY	      QRE_EXACTLY(TX_KEY, QRE_KEY_SIZE)
#define QRE_IS_RX_KEY	      QRE_EXACTLY(RX_KEY, QRE_KEY_SIZE)
#define QRE_IS_TX_HP_KEY      QRE_EXACTLY(TX_HP_KEY, QRE_KEY_SIZE)
#define QRE_IS_RX_HP_KEY      QRE_EXACTLY(RX_HP_KEY, QRE_KEY_SIZE)
#define QRE_IS_TX_IV	      QRE_EXACTLY(TX_IV, QRE_IV_SIZE)
#define QRE_IS_RX_IV	      QRE_EXACTLY(RX_IV, QRE_IV_SIZE)
#define QRE_IS_NEXT_TX_KEY    QRE_EXACTLY(NEXT_TX_KEY, QRE_KEY_SIZE)
#define QRE_IS_NEXT_TX_IV     QRE_EXACTLY(NEXT_TX_IV, QRE_IV_SIZE)
#define QRE_IS_NEXT_RX_KEY    QRE_EXACTLY(NEXT_RX_KEY, QRE_KEY_SIZE)
#define QRE_IS_NEXT_RX_IV     QRE_EXACTLY(NEXT_RX_IV, QRE_IV_SIZE)
#define QRE_IS_NEXT_RX_HP_KEY QRE_EXACTLY(NEXT_RX_HP_KEY, QRE_KEY_SIZE)
#define QRE_IS_KEY_EPOCH      QRE_WIDE(KEY_EPOCH, NLA_U64, qre_varints)
#define QRE_IS_PACKET_NUMBER  QRE_WIDE(PACKET_NUMBER, NLA_U64, qre_varints)
#define QRE_IS_LOCAL_IP	      QRE_ANY(LOCAL_IP, NLA_BE32)
#define QRE_IS_LOCAL_PORT     QRE_ANY(LOCAL_PORT, NLA_BE16)
#define QRE_IS_PEER_IP	      QRE_ANY(PEER_IP, NLA_BE32)
#define QRE_IS_PEER_PORT      QRE_ANY(PEER_PORT, NLA_BE16)
#define QRE_IS_ALLOWED_IPS                                                                         \
	QRE_BYTES_UP_TO(ALLOWED_IPS, QRE_ALLOWED_IPS_MAX * sizeof(struct qre_allowed_ip))
#define QRE_IS_SHORT_ID		  QRE_EXACTLY(SHORT_ID, QRE_SHORT_ID_SIZE)
#define QRE_IS_HOLD		  QRE_FLAG(HOLD)
#define QRE_IS_IDLE_MS		  QRE_WIDE(IDLE_MS, NLA_U64, qre_idle_times)
#define QRE_IS_KEEPALIVE_MS	  QRE_WIDE(KEEPALIVE_MS, NLA_U64, qre_intervals)
#define QRE_IS_ACK_DELAY_EXPONENT QRE_RANGE(ACK_DELAY_EXPONENT, NLA_U8, 0, 20)
#define QRE_IS_MAX_ACK_DELAY_MS	  QRE_RANGE(MAX_ACK_DELAY_MS, NLA_U16, 0, (1 << 14) - 1)
#define QRE_IS_MAX_UDP_PAYLOAD	  QRE_WIDE(MAX_UDP_PAYLOAD, NLA_U16, qre_payloads)
#define QRE_IS_SPLITS		  QRE_FLAG(SPLITS)
#define QRE_IS_USUAL_PAYLOAD	  QRE_WIDE(USUAL_PAYLOAD, NLA_U16, qre_payloads)
#define QRE_IS_RESET_TOKEN	  QRE_EXACTLY(RESET_TOKEN, QRE_RESET_TOKEN_SIZE)
#define QRE_IS_REKEY_AFTER	  QRE_WIDE(REKEY_AFTER, NLA_U64, qre_rekeys)
#define QRE_IS_SEQUENCE		  QRE_WIDE(SEQUENCE, NLA_U64, qre_varints)
#define QRE_IS_CLOSE		  QRE_FLAG(CLOSE)
#define QRE_IS_FD		  QRE_WIDE(FD, NLA_U32, qre_descriptors)
#define QRE_IS_FRAME_ID		  QRE_WIDE(FRAME_ID, NLA_U64, qre_frame_ids)
#define QRE_IS_FRAMES		  QRE_BYTES(FRAMES, 1, QRE_FRAMES_MAX)
#define QRE_IS_LOADER_PROGRAM	  QRE_TEXT(LOADER_PROGRAM, 31)
#define QRE_IS_LOADER_PIN_DIR	  QRE_TEXT(LOADER_PIN_DIR, 255)
#define QRE_IS_LOADER_CID_LENGTH  QRE_RANGE(LOADER_CID_LENGTH, NLA_U8, 0, QRE_CID_MAX)
#define QRE_IS_LOADER_PID	  QRE_WIDE(LOADER_PID, NLA_U32, qre_positive)
#define QRE_IS_DEST_PROFILE	  QRE_BYTES_UP_TO(DEST_PROFILE, QRE_DEST_PROFILE_MAX)
#define QRE_IS_ECN		  QRE_RANGE(ECN, NLA_U8, 0, 3)
#define QRE_IS_LOCAL_IPV6	  QRE_EXACTLY(LOCAL_IPV6, QRE_IPV6_SIZE)
#define QRE_IS_PEER_IPV6	  QRE_EXACTLY(PEER_IPV6, QRE_IPV6_SIZE)
#define QRE_IS_LISTEN_IPV6	  QRE_EXACTLY(LISTEN_IPV6, QRE_IPV6_SIZE)
#define QRE_IS_PROVEN_PAYLOAD	  QRE_ANY(PROVEN_PAYLOAD, NLA_U16)
#define QRE_IS_PROVEN_AGO_MS	  QRE_WIDE(PROVEN_AGO_MS, NLA_U64, qre_intervals)
#define QRE_IS_LAST_REPEAT_MS	  QRE_WIDE(LAST_REPEAT_MS, NLA_U64, qre_intervals)
#define QRE_IS_GIVES_UP_MS	  QRE_WIDE(GIVES_UP_MS, NLA_U64, qre_intervals)
#define QRE_IS_CHALLENGES	  QRE_RANGE(CHALLENGES, NLA_U8, 1, 4)
#define QRE_IS_APART_MS		  QRE_WIDE(APART_MS, NLA_U64, qre_pauses)

/* --- commands: what they take, and what they need of it --- */

#define QRE_TAKES(command, ...)                                                                    \
	const struct nla_policy qre_policy_##command[QRE_A_MAX + 1] = {__VA_ARGS__}

QRE_TAKES(device, QRE_IS_IFINDEX, QRE_IS_IFNAME);
QRE_TAKES(device_set, QRE_IS_IFNAME, QRE_IS_ROLE, QRE_IS_MTU, QRE_IS_DEST, QRE_IS_SERVER_NAME,
	  QRE_IS_LISTEN_IP, QRE_IS_LISTEN_PORT, QRE_IS_ENDPOINT, QRE_IS_KEEPALIVE,
	  QRE_IS_MAX_SESSIONS, QRE_IS_FWMARK, QRE_IS_LISTEN_IPV6);
QRE_TAKES(device_del, QRE_IS_IFNAME);
QRE_TAKES(session, QRE_IS_IFNAME, QRE_IS_SESSION_ID);
QRE_TAKES(session_set, QRE_IS_IFNAME, QRE_IS_SESSION_ID, QRE_IS_TX_KEY, QRE_IS_RX_KEY, QRE_IS_TX_IV,
	  QRE_IS_RX_IV, QRE_IS_KEY_EPOCH, QRE_IS_CID, QRE_IS_CLIENT_CID, QRE_IS_TX_HP_KEY,
	  QRE_IS_RX_HP_KEY, QRE_IS_PACKET_NUMBER, QRE_IS_NEXT_TX_KEY, QRE_IS_NEXT_TX_IV,
	  QRE_IS_NEXT_RX_KEY, QRE_IS_NEXT_RX_IV, QRE_IS_NEXT_RX_HP_KEY, QRE_IS_LOCAL_IP,
	  QRE_IS_LOCAL_PORT, QRE_IS_PEER_IP, QRE_IS_PEER_PORT, QRE_IS_ALLOWED_IPS, QRE_IS_SHORT_ID,
	  QRE_IS_HOLD, QRE_IS_IDLE_MS, QRE_IS_KEEPALIVE_MS, QRE_IS_ACK_DELAY_EXPONENT,
	  QRE_IS_MAX_ACK_DELAY_MS, QRE_IS_MAX_UDP_PAYLOAD, QRE_IS_RESET_TOKEN, QRE_IS_REKEY_AFTER,
	  QRE_IS_SEQUENCE, QRE_IS_FD, QRE_IS_SPLITS, QRE_IS_USUAL_PAYLOAD, QRE_IS_LOCAL_IPV6,
	  QRE_IS_PEER_IPV6);
QRE_TAKES(session_del, QRE_IS_IFNAME, QRE_IS_SESSION_ID, QRE_IS_CLOSE);
QRE_TAKES(cid_adopt, QRE_IS_IFNAME, QRE_IS_CID, QRE_IS_SESSION_ID, QRE_IS_SEQUENCE);
QRE_TAKES(cid_release, QRE_IS_IFNAME, QRE_IS_CID, QRE_IS_SESSION_ID);
QRE_TAKES(descriptor, QRE_IS_FD);
QRE_TAKES(nothing, );
QRE_TAKES(loader, QRE_IS_LOADER_PROGRAM, QRE_IS_LOADER_PIN_DIR, QRE_IS_LOADER_CID_LENGTH,
	  QRE_IS_LOADER_PID);
QRE_TAKES(dest_profile, QRE_IS_IFNAME, QRE_IS_DEST_PROFILE, QRE_IS_ECN);
QRE_TAKES(frame, QRE_IS_IFNAME, QRE_IS_SESSION_ID, QRE_IS_FRAMES, QRE_IS_FRAME_ID);
QRE_TAKES(path_proven, QRE_IS_IFNAME, QRE_IS_SESSION_ID, QRE_IS_PROVEN_PAYLOAD,
	  QRE_IS_PROVEN_AGO_MS);
QRE_TAKES(give_up, QRE_IS_IFNAME, QRE_IS_SESSION_ID, QRE_IS_LAST_REPEAT_MS, QRE_IS_GIVES_UP_MS,
	  QRE_IS_FRAMES);
QRE_TAKES(try_port, QRE_IS_IFNAME, QRE_IS_SESSION_ID, QRE_IS_FD, QRE_IS_CHALLENGES,
	  QRE_IS_APART_MS);
QRE_TAKES(port, QRE_IS_IFNAME, QRE_IS_SESSION_ID);

#define QRE_NEEDS(command, ...)                                                                    \
	[QRE_CMD_##command] = (const u8[])                                                         \
	{                                                                                          \
		__VA_ARGS__, 0                                                                     \
	}

static const u8 *const qre_needed[QRE_CMD_MAX + 1] = {
	QRE_NEEDS(DEVICE_SET, QRE_A_IFNAME),
	QRE_NEEDS(DEVICE_DEL, QRE_A_IFNAME),
	QRE_NEEDS(SESSION_GET, QRE_A_IFNAME),
	QRE_NEEDS(SESSION_INSTALL, QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_TX_KEY, QRE_A_RX_KEY,
		  QRE_A_TX_IV, QRE_A_RX_IV, QRE_A_KEY_EPOCH),
	QRE_NEEDS(SESSION_UPDATE, QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_TX_KEY, QRE_A_RX_KEY,
		  QRE_A_TX_IV, QRE_A_RX_IV, QRE_A_KEY_EPOCH),
	QRE_NEEDS(SESSION_DEL, QRE_A_IFNAME, QRE_A_SESSION_ID),
	QRE_NEEDS(CID_ADOPT, QRE_A_IFNAME, QRE_A_CID),
	QRE_NEEDS(CID_RELEASE, QRE_A_IFNAME, QRE_A_CID),
	QRE_NEEDS(CID_MAP_REGISTER, QRE_A_FD),
	QRE_NEEDS(SHARED_SOCKET_REGISTER, QRE_A_FD),
	QRE_NEEDS(DEST_PROFILE_SET, QRE_A_IFNAME),
	QRE_NEEDS(FRAME_SEND, QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_FRAMES, QRE_A_FRAME_ID),
	QRE_NEEDS(PATH_PROVEN, QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_PROVEN_PAYLOAD,
		  QRE_A_PROVEN_AGO_MS),
	QRE_NEEDS(SESSION_GIVE_UP, QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_LAST_REPEAT_MS,
		  QRE_A_GIVES_UP_MS, QRE_A_FRAMES),
	QRE_NEEDS(SESSION_TRY_PORT, QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_FD, QRE_A_CHALLENGES,
		  QRE_A_APART_MS),
	QRE_NEEDS(SESSION_MOVE, QRE_A_IFNAME, QRE_A_SESSION_ID),
	QRE_NEEDS(SESSION_DROP_PORT, QRE_A_IFNAME, QRE_A_SESSION_ID),
};

/* --- words --- */

#define QRE_WORDS(id, name) [QRE_A_##id] = {name " is missing", name " is out of range"}

/* Of what may be missing, or is judged by more than its policy. */
static const struct qre_words {
	const char *missing, *out_of_range;
} qre_words[QRE_A_MAX + 1] = {
	QRE_WORDS(IFNAME, "Device"),
	QRE_WORDS(SESSION_ID, "SessionId"),
	QRE_WORDS(CID, "ConnectionId"),
	QRE_WORDS(TX_KEY, "TxKey"),
	QRE_WORDS(RX_KEY, "RxKey"),
	QRE_WORDS(TX_HP_KEY, "TxHpKey"),
	QRE_WORDS(RX_HP_KEY, "RxHpKey"),
	QRE_WORDS(TX_IV, "TxIv"),
	QRE_WORDS(RX_IV, "RxIv"),
	QRE_WORDS(NEXT_TX_KEY, "NextTxKey"),
	QRE_WORDS(NEXT_TX_IV, "NextTxIv"),
	QRE_WORDS(NEXT_RX_KEY, "NextRxKey"),
	QRE_WORDS(NEXT_RX_IV, "NextRxIv"),
	QRE_WORDS(KEY_EPOCH, "KeyEpoch"),
	QRE_WORDS(PACKET_NUMBER, "PacketNumber"),
	QRE_WORDS(LOCAL_IP, "UnderlayLocalIPv4"),
	QRE_WORDS(LOCAL_PORT, "UnderlayLocalPort"),
	QRE_WORDS(PEER_IP, "UnderlayPeerIPv4"),
	QRE_WORDS(PEER_PORT, "UnderlayPeerPort"),
	QRE_WORDS(LOCAL_IPV6, "UnderlayLocalIPv6"),
	QRE_WORDS(PEER_IPV6, "UnderlayPeerIPv6"),
	QRE_WORDS(ALLOWED_IPS, "AllowedIPs"),
	QRE_WORDS(FD, "Fd"),
	QRE_WORDS(FRAME_ID, "FrameId"),
	QRE_WORDS(FRAMES, "Frames"),
	QRE_WORDS(LOADER_PROGRAM, "LoaderProgram"),
	QRE_WORDS(LOADER_PIN_DIR, "PinDir"),
	QRE_WORDS(LOADER_CID_LENGTH, "RoutedCidLen"),
	QRE_WORDS(LOADER_PID, "LoaderPid"),
	QRE_WORDS(PROVEN_PAYLOAD, "ProvenPayload"),
	QRE_WORDS(PROVEN_AGO_MS, "ProvenAgoMs"),
	QRE_WORDS(LAST_REPEAT_MS, "LastRepeatMs"),
	QRE_WORDS(GIVES_UP_MS, "GivesUpMs"),
	QRE_WORDS(CHALLENGES, "Challenges"),
	QRE_WORDS(APART_MS, "ApartMs"),
};

static int qre_refuse(struct netlink_ext_ack *extack, const struct nlattr *nla, const char *words)
{
	if (extack) {
		extack->_msg = words;
		extack->bad_attr = nla;
	}
	return -EINVAL;
}

int qre_check_needed(u8 command, struct nlattr **attrs, struct netlink_ext_ack *extack)
{
	const u8 *at = qre_needed[command];

	for (; at && *at; at++)
		if (!attrs[*at])
			return qre_miss(*at, extack);
	return 0;
}

int qre_miss(u8 attribute, struct netlink_ext_ack *extack)
{
	NL_SET_ERR_ATTR_MISS(extack, NULL, attribute);
	return qre_refuse(extack, NULL, qre_words[attribute].missing);
}

int qre_out_of_range(u8 attribute, struct nlattr **attrs, struct netlink_ext_ack *extack)
{
	return qre_refuse(extack, attrs[attribute], qre_words[attribute].out_of_range);
}
