// SPDX-License-Identifier: GPL-2.0-only
/*
 * What each attribute looks like, and which a command takes: one table, one checker. Every refusal
 * names the attribute as qre-tool's user knows it.
 */
#include <net/genetlink.h>
#include "attributes.h"
#include "qre.h"

#define QRE_ATTRIBUTE(id, name, kind_, least_, most_)                                              \
	[QRE_A_##id] = {kind_,                                                                     \
			least_,                                                                    \
			most_,                                                                     \
			name " is missing",                                                        \
			name " has a wrong size",                                                  \
			name " is out of range",                                                   \
			name " is not taken by this command"}

/* Sizes in bytes for BYTES and TEXT, values for numbers. */
static const struct qre_attribute {
	enum {
		QRE_NOT_TAKEN,
		QRE_BYTES,
		QRE_TEXT,
		QRE_FLAG,
		QRE_U8,
		QRE_U16,
		QRE_U32,
		QRE_U64
	} kind;
	u64 least, most;
	const char *missing, *wrong_size, *out_of_range, *not_taken;
} qre_attributes[QRE_A_MAX + 1] = {
	QRE_ATTRIBUTE(IFINDEX, "Device index", QRE_U32, 1, S32_MAX),
	QRE_ATTRIBUTE(IFNAME, "Device", QRE_TEXT, 1, IFNAMSIZ - 1),
	QRE_ATTRIBUTE(ROLE, "Role", QRE_U8, QRE_ROLE_SERVER, QRE_ROLE_CLIENT),
	QRE_ATTRIBUTE(MTU, "MTU", QRE_U32, QRE_MTU_MIN, QRE_MTU_MAX),
	QRE_ATTRIBUTE(DEST, "Dest", QRE_TEXT, 0, QRE_NAME_MAX),
	QRE_ATTRIBUTE(SERVER_NAME, "ServerName", QRE_TEXT, 0, QRE_NAME_MAX),
	QRE_ATTRIBUTE(LISTEN_IP, "Listen address", QRE_BYTES, 4, 4),
	QRE_ATTRIBUTE(LISTEN_PORT, "Listen port", QRE_BYTES, 2, 2),
	QRE_ATTRIBUTE(ENDPOINT, "Endpoint", QRE_TEXT, 0, QRE_NAME_MAX),
	QRE_ATTRIBUTE(KEEPALIVE, "PersistentKeepalive", QRE_U16, 0, U16_MAX),
	QRE_ATTRIBUTE(MAX_SESSIONS, "MaxSessions", QRE_U32, 1, QRE_SESSIONS_MAX),
	QRE_ATTRIBUTE(FWMARK, "FwMark", QRE_U32, 0, U32_MAX),
	QRE_ATTRIBUTE(SESSION_ID, "SessionId", QRE_BYTES, QRE_SESSION_ID_SIZE, QRE_SESSION_ID_SIZE),
	QRE_ATTRIBUTE(CID, "ConnectionId", QRE_BYTES, 1, QRE_CID_MAX),
	QRE_ATTRIBUTE(CLIENT_CID, "ClientConnectionId", QRE_BYTES, 0, QRE_CID_MAX),
	QRE_ATTRIBUTE(TX_KEY, "TxKey", QRE_BYTES, QRE_KEY_SIZE, QRE_KEY_SIZE),
	QRE_ATTRIBUTE(RX_KEY, "RxKey", QRE_BYTES, QRE_KEY_SIZE, QRE_KEY_SIZE),
	QRE_ATTRIBUTE(TX_HP_KEY, "TxHpKey", QRE_BYTES, QRE_KEY_SIZE, QRE_KEY_SIZE),
	QRE_ATTRIBUTE(RX_HP_KEY, "RxHpKey", QRE_BYTES, QRE_KEY_SIZE, QRE_KEY_SIZE),
	QRE_ATTRIBUTE(TX_IV, "TxIv", QRE_BYTES, QRE_IV_SIZE, QRE_IV_SIZE),
	QRE_ATTRIBUTE(RX_IV, "RxIv", QRE_BYTES, QRE_IV_SIZE, QRE_IV_SIZE),
	QRE_ATTRIBUTE(NEXT_TX_KEY, "NextTxKey", QRE_BYTES, QRE_KEY_SIZE, QRE_KEY_SIZE),
	QRE_ATTRIBUTE(NEXT_TX_IV, "NextTxIv", QRE_BYTES, QRE_IV_SIZE, QRE_IV_SIZE),
	QRE_ATTRIBUTE(NEXT_RX_KEY, "NextRxKey", QRE_BYTES, QRE_KEY_SIZE, QRE_KEY_SIZE),
	QRE_ATTRIBUTE(NEXT_RX_IV, "NextRxIv", QRE_BYTES, QRE_IV_SIZE, QRE_IV_SIZE),
	QRE_ATTRIBUTE(NEXT_RX_HP_KEY, "NextRxHpKey", QRE_BYTES, QRE_KEY_SIZE, QRE_KEY_SIZE),
	QRE_ATTRIBUTE(KEY_EPOCH, "KeyEpoch", QRE_U64, 0, QRE_VARINT_MAX),
	QRE_ATTRIBUTE(PACKET_NUMBER, "PacketNumber", QRE_U64, 0, QRE_VARINT_MAX),
	QRE_ATTRIBUTE(LOCAL_IP, "UnderlayLocalIPv4", QRE_BYTES, 4, 4),
	QRE_ATTRIBUTE(LOCAL_PORT, "UnderlayLocalPort", QRE_BYTES, 2, 2),
	QRE_ATTRIBUTE(PEER_IP, "UnderlayPeerIPv4", QRE_BYTES, 4, 4),
	QRE_ATTRIBUTE(PEER_PORT, "UnderlayPeerPort", QRE_BYTES, 2, 2),
	QRE_ATTRIBUTE(ALLOWED_IPS, "AllowedIPs", QRE_BYTES, 0,
		      QRE_ALLOWED_IPS_MAX * sizeof(struct qre_allowed_ip)),
	QRE_ATTRIBUTE(SHORT_ID, "ShortId", QRE_BYTES, QRE_SHORT_ID_SIZE, QRE_SHORT_ID_SIZE),
	QRE_ATTRIBUTE(HOLD, "Hold", QRE_FLAG, 0, 0),
	QRE_ATTRIBUTE(IDLE_MS, "IdleTimeout", QRE_U64, 1000, 3600000),
	QRE_ATTRIBUTE(KEEPALIVE_MS, "Keepalive", QRE_U64, 0, 3600000),
	QRE_ATTRIBUTE(ACK_DELAY_EXPONENT, "AckDelayExponent", QRE_U8, 0, 20),
	QRE_ATTRIBUTE(MAX_ACK_DELAY_MS, "MaxAckDelay", QRE_U16, 0, (1 << 14) - 1),
	QRE_ATTRIBUTE(MAX_UDP_PAYLOAD, "MaxUdpPayload", QRE_U16, QRE_MTU_MIN + 64, U16_MAX),
	QRE_ATTRIBUTE(RESET_TOKEN, "ResetToken", QRE_BYTES, QRE_RESET_TOKEN_SIZE,
		      QRE_RESET_TOKEN_SIZE),
	QRE_ATTRIBUTE(REKEY_AFTER, "RekeyAfter", QRE_U64, 1, QRE_HARD_PACKET_LIMIT),
	QRE_ATTRIBUTE(SEQUENCE, "Sequence", QRE_U64, 0, QRE_VARINT_MAX),
	QRE_ATTRIBUTE(CLOSE, "Close", QRE_FLAG, 0, 0),
	QRE_ATTRIBUTE(FD, "Fd", QRE_U32, 0, S32_MAX),
	QRE_ATTRIBUTE(FRAME_ID, "FrameId", QRE_U64, 0, U64_MAX - 1),
	QRE_ATTRIBUTE(FRAMES, "Frames", QRE_BYTES, 1, QRE_FRAMES_MAX),
	QRE_ATTRIBUTE(LOADER_PROGRAM, "LoaderProgram", QRE_TEXT, 1, 31),
	QRE_ATTRIBUTE(LOADER_PIN_DIR, "PinDir", QRE_TEXT, 1, 255),
	QRE_ATTRIBUTE(LOADER_CID_LENGTH, "RoutedCidLen", QRE_U8, 17, QRE_CID_MAX),
	QRE_ATTRIBUTE(LOADER_PID, "LoaderPid", QRE_U32, 1, S32_MAX),
	QRE_ATTRIBUTE(DEST_PROFILE, "Dest profile", QRE_BYTES, 0, QRE_DEST_PROFILE_MAX),
	QRE_ATTRIBUTE(ECN, "ECN", QRE_U8, 0, 3),
};

static const char qre_unknown[] = "an attribute that no command takes";

/* Which: required ones, 0, optional ones, 0. */
static const u8 qre_device[] = {0, QRE_A_IFNAME, QRE_A_IFINDEX, 0};
static const u8 qre_device_set[] = {QRE_A_IFNAME,
				    0,
				    QRE_A_ROLE,
				    QRE_A_MTU,
				    QRE_A_DEST,
				    QRE_A_SERVER_NAME,
				    QRE_A_LISTEN_IP,
				    QRE_A_LISTEN_PORT,
				    QRE_A_ENDPOINT,
				    QRE_A_KEEPALIVE,
				    QRE_A_MAX_SESSIONS,
				    QRE_A_FWMARK,
				    0};
static const u8 qre_device_del[] = {QRE_A_IFNAME, 0, 0};
static const u8 qre_session_get[] = {QRE_A_IFNAME, 0, QRE_A_SESSION_ID, 0};
static const u8 qre_session_set[] = {QRE_A_IFNAME,
				     QRE_A_SESSION_ID,
				     QRE_A_TX_KEY,
				     QRE_A_RX_KEY,
				     QRE_A_TX_IV,
				     QRE_A_RX_IV,
				     QRE_A_KEY_EPOCH,
				     0,
				     QRE_A_CID,
				     QRE_A_CLIENT_CID,
				     QRE_A_TX_HP_KEY,
				     QRE_A_RX_HP_KEY,
				     QRE_A_PACKET_NUMBER,
				     QRE_A_NEXT_TX_KEY,
				     QRE_A_NEXT_TX_IV,
				     QRE_A_NEXT_RX_KEY,
				     QRE_A_NEXT_RX_IV,
				     QRE_A_NEXT_RX_HP_KEY,
				     QRE_A_LOCAL_IP,
				     QRE_A_LOCAL_PORT,
				     QRE_A_PEER_IP,
				     QRE_A_PEER_PORT,
				     QRE_A_ALLOWED_IPS,
				     QRE_A_SHORT_ID,
				     QRE_A_HOLD,
				     QRE_A_IDLE_MS,
				     QRE_A_KEEPALIVE_MS,
				     QRE_A_ACK_DELAY_EXPONENT,
				     QRE_A_MAX_ACK_DELAY_MS,
				     QRE_A_MAX_UDP_PAYLOAD,
				     QRE_A_RESET_TOKEN,
				     QRE_A_REKEY_AFTER,
				     QRE_A_FD,
				     0};
static const u8 qre_session_del[] = {QRE_A_IFNAME, QRE_A_SESSION_ID, 0, QRE_A_CLOSE, 0};
static const u8 qre_cid[] = {QRE_A_IFNAME, QRE_A_CID, 0, QRE_A_SESSION_ID, QRE_A_SEQUENCE, 0};
static const u8 qre_cid_less[] = {QRE_A_IFNAME, QRE_A_CID, 0, QRE_A_SESSION_ID, 0};
static const u8 qre_descriptor[] = {QRE_A_FD, 0, 0};
static const u8 qre_nothing[] = {0, 0};
static const u8 qre_loader[] = {
	0, QRE_A_LOADER_PROGRAM, QRE_A_LOADER_PIN_DIR, QRE_A_LOADER_CID_LENGTH, QRE_A_LOADER_PID,
	0};
static const u8 qre_profile[] = {QRE_A_IFNAME, 0, QRE_A_DEST_PROFILE, QRE_A_ECN, 0};
static const u8 qre_frame[] = {QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_FRAMES, QRE_A_FRAME_ID, 0, 0};

static const u8 *const qre_commands[QRE_CMD_MAX + 1] = {
	[QRE_CMD_DEVICE_GET] = qre_device,
	[QRE_CMD_DEVICE_SET] = qre_device_set,
	[QRE_CMD_DEVICE_DEL] = qre_device_del,
	[QRE_CMD_SESSION_GET] = qre_session_get,
	[QRE_CMD_SESSION_INSTALL] = qre_session_set,
	[QRE_CMD_SESSION_UPDATE] = qre_session_set,
	[QRE_CMD_SESSION_DEL] = qre_session_del,
	[QRE_CMD_CID_ADOPT] = qre_cid,
	[QRE_CMD_CID_RELEASE] = qre_cid_less,
	[QRE_CMD_CID_MAP_REGISTER] = qre_descriptor,
	[QRE_CMD_CID_MAP_UNREGISTER] = qre_nothing,
	[QRE_CMD_SHARED_SOCKET_REGISTER] = qre_descriptor,
	[QRE_CMD_SHARED_SOCKET_UNREGISTER] = qre_nothing,
	[QRE_CMD_SHARED_LOADER_SET] = qre_loader,
	[QRE_CMD_DEST_PROFILE_SET] = qre_profile,
	[QRE_CMD_FRAME_SEND] = qre_frame,
};

static bool qre_listed(const u8 *list, u8 wanted)
{
	const u8 *at = list;
	int lists;

	for (lists = 0; lists < 2; lists++, at++)
		for (; *at; at++)
			if (*at == wanted)
				return true;
	return false;
}

static const char *qre_check(const struct qre_attribute *a, const struct nlattr *nla)
{
	static const u8 sizes[] = {[QRE_U8] = 1, [QRE_U16] = 2, [QRE_U32] = 4, [QRE_U64] = 8};
	unsigned int size = nla_len(nla);
	u64 value = 0;

	switch (a->kind) {
	case QRE_TEXT:
		/* One NUL at the end, none before it. */
		if (!size || strnlen(nla_data(nla), size) != size - 1)
			return a->wrong_size;
		size--;
		fallthrough;
	case QRE_BYTES:
	case QRE_FLAG:
		return size < a->least || size > a->most ? a->wrong_size : NULL;
	case QRE_U8:
	case QRE_U16:
	case QRE_U32:
	case QRE_U64:
		if (size != sizes[a->kind])
			return a->wrong_size;
		if (a->kind == QRE_U8)
			value = nla_get_u8(nla);
		else if (a->kind == QRE_U16)
			value = nla_get_u16(nla);
		else if (a->kind == QRE_U32)
			value = nla_get_u32(nla);
		else
			value = nla_get_u64(nla);
		return value < a->least || value > a->most ? a->out_of_range : NULL;
	default:
		return a->not_taken;
	}
}

static int qre_refuse(struct netlink_ext_ack *extack, const struct nlattr *nla, const char *words)
{
	if (extack) {
		extack->_msg = words;
		extack->bad_attr = nla;
	}
	return -EINVAL;
}

int qre_check_attributes(u8 command, struct nlattr **attrs, struct netlink_ext_ack *extack)
{
	const u8 *list = qre_commands[command];
	unsigned int i;
	const u8 *at;

	for (i = 1; i <= QRE_A_MAX; i++) {
		const struct qre_attribute *a = &qre_attributes[i];
		const char *wrong;

		if (!attrs[i])
			continue;
		if (a->kind == QRE_NOT_TAKEN)
			return qre_refuse(extack, attrs[i], qre_unknown);
		if (!qre_listed(list, i))
			return qre_refuse(extack, attrs[i], a->not_taken);
		wrong = qre_check(a, attrs[i]);
		if (wrong)
			return qre_refuse(extack, attrs[i], wrong);
	}
	for (at = list; *at; at++)
		if (!attrs[*at])
			return qre_miss(*at, extack);
	return 0;
}

int qre_miss(u8 attribute, struct netlink_ext_ack *extack)
{
	NL_SET_ERR_ATTR_MISS(extack, NULL, attribute);
	return qre_refuse(extack, NULL, qre_attributes[attribute].missing);
}

int qre_out_of_range(u8 attribute, struct nlattr **attrs, struct netlink_ext_ack *extack)
{
	return qre_refuse(extack, attrs[attribute], qre_attributes[attribute].out_of_range);
}
