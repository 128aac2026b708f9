// SPDX-License-Identifier: GPL-2.0-only
/*
 * refusals NAMESPACE DEVICE INDEX: asks qre.ko for everything that it must refuse, in a namespace
 * of its own where it sets up devices, sessions, a map and a shared socket first. DEVICE is one of
 * NAMESPACE. Prints what was not refused as it should be; how many were asked; whether anything
 * changed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "ends.h"
#include "genl.h"

#define COUNT(array)			   (sizeof(array) / sizeof((array)[0]))
#define NAMED(id, name, kind, least, most) [QRE_A_##id] = {name, kind, least, most}

/* Sizes in bytes for BYTES and TEXT (less its NUL), values for numbers. */
enum kind { UNKNOWN, BYTES, TEXT, FLAG, U8, U16, U32, U64 };

static const struct field {
	const char *name;
	enum kind kind;
	uint64_t least, most;
} fields[QRE_A_MAX + 1] = {
	NAMED(IFINDEX, "Device index", U32, 1, INT32_MAX),
	NAMED(IFNAME, "Device", TEXT, 1, 15),
	NAMED(ROLE, "Role", U8, 1, 2),
	NAMED(MTU, "MTU", U32, 576, 1428),
	NAMED(DEST, "Dest", TEXT, 0, 255),
	NAMED(SERVER_NAME, "ServerName", TEXT, 0, 255),
	NAMED(LISTEN_IP, "Listen address", BYTES, 4, 4),
	NAMED(LISTEN_PORT, "Listen port", BYTES, 2, 2),
	NAMED(ENDPOINT, "Endpoint", TEXT, 0, 255),
	NAMED(KEEPALIVE, "PersistentKeepalive", U16, 0, UINT16_MAX),
	NAMED(MAX_SESSIONS, "MaxSessions", U32, 1, 2000),
	NAMED(FWMARK, "FwMark", U32, 0, UINT32_MAX),
	NAMED(SESSION_ID, "SessionId", BYTES, 32, 32),
	NAMED(CID, "ConnectionId", BYTES, 1, 20),
	NAMED(CLIENT_CID, "ClientConnectionId", BYTES, 0, 20),
	NAMED(TX_KEY, "TxKey", BYTES, 16, 16),
	NAMED(RX_KEY, "RxKey", BYTES, 16, 16),
	NAMED(TX_HP_KEY, "TxHpKey", BYTES, 16, 16),
	NAMED(RX_HP_KEY, "RxHpKey", BYTES, 16, 16),
	NAMED(TX_IV, "TxIv", BYTES, 12, 12),
	NAMED(RX_IV, "RxIv", BYTES, 12, 12),
	NAMED(NEXT_TX_KEY, "NextTxKey", BYTES, 16, 16),
	NAMED(NEXT_TX_IV, "NextTxIv", BYTES, 12, 12),
	NAMED(NEXT_RX_KEY, "NextRxKey", BYTES, 16, 16),
	NAMED(NEXT_RX_IV, "NextRxIv", BYTES, 12, 12),
	NAMED(NEXT_RX_HP_KEY, "NextRxHpKey", BYTES, 16, 16),
	NAMED(KEY_EPOCH, "KeyEpoch", U64, 0, (1ULL << 62) - 1),
	NAMED(PACKET_NUMBER, "PacketNumber", U64, 0, (1ULL << 62) - 1),
	NAMED(LOCAL_IP, "UnderlayLocalIPv4", BYTES, 4, 4),
	NAMED(LOCAL_PORT, "UnderlayLocalPort", BYTES, 2, 2),
	NAMED(PEER_IP, "UnderlayPeerIPv4", BYTES, 4, 4),
	NAMED(PEER_PORT, "UnderlayPeerPort", BYTES, 2, 2),
	NAMED(ALLOWED_IPS, "AllowedIPs", BYTES, 0, 256 * 20),
	NAMED(SHORT_ID, "ShortId", BYTES, 8, 8),
	NAMED(HOLD, "Hold", FLAG, 0, 0),
	NAMED(IDLE_MS, "IdleTimeout", U64, 1000, 3600000),
	NAMED(KEEPALIVE_MS, "Keepalive", U64, 0, 3600000),
	NAMED(ACK_DELAY_EXPONENT, "AckDelayExponent", U8, 0, 20),
	NAMED(MAX_ACK_DELAY_MS, "MaxAckDelay", U16, 0, 16383),
	NAMED(MAX_UDP_PAYLOAD, "MaxUdpPayload", U16, 640, UINT16_MAX),
	NAMED(RESET_TOKEN, "ResetToken", BYTES, 16, 16),
	NAMED(REKEY_AFTER, "RekeyAfter", U64, 1, 1 << 28),
	NAMED(SEQUENCE, "Sequence", U64, 0, (1ULL << 62) - 1),
	NAMED(CLOSE, "Close", FLAG, 0, 0),
	NAMED(FD, "Fd", U32, 0, INT32_MAX),
	NAMED(FRAME_ID, "FrameId", U64, 0, UINT64_MAX - 1),
	NAMED(FRAMES, "Frames", BYTES, 1, 1200),
	NAMED(LOADER_PROGRAM, "LoaderProgram", TEXT, 1, 31),
	NAMED(LOADER_PIN_DIR, "PinDir", TEXT, 1, 255),
	NAMED(LOADER_CID_LENGTH, "RoutedCidLen", U8, 0, 20),
	NAMED(LOADER_PID, "LoaderPid", U32, 1, INT32_MAX),
	NAMED(DEST_PROFILE, "Dest profile", BYTES, 0, 8192),
	NAMED(ECN, "ECN", U8, 0, 3),
	NAMED(PROVEN_PAYLOAD, "ProvenPayload", U16, 0, UINT16_MAX),
	NAMED(PROVEN_AGO_MS, "ProvenAgoMs", U64, 0, 3600000),
	NAMED(SPLITS, "Splits", FLAG, 0, 0),
	NAMED(USUAL_PAYLOAD, "UsualPayload", U16, 640, UINT16_MAX),
	NAMED(LOCAL_IPV6, "UnderlayLocalIPv6", BYTES, 16, 16),
	NAMED(PEER_IPV6, "UnderlayPeerIPv6", BYTES, 16, 16),
	NAMED(LISTEN_IPV6, "Listen address", BYTES, 16, 16),
	NAMED(LAST_REPEAT_MS, "LastRepeatMs", U64, 0, 3600000),
	NAMED(GIVES_UP_MS, "GivesUpMs", U64, 0, 3600000),
	NAMED(CHALLENGES, "Challenges", U8, 1, 4),
	NAMED(APART_MS, "ApartMs", U64, 1, 60000),
};

#define SESSION_OPTIONAL                                                                           \
	QRE_A_CLIENT_CID, QRE_A_NEXT_TX_KEY, QRE_A_NEXT_TX_IV, QRE_A_NEXT_RX_KEY,                  \
		QRE_A_NEXT_RX_IV, QRE_A_NEXT_RX_HP_KEY, QRE_A_LOCAL_IP, QRE_A_LOCAL_PORT,          \
		QRE_A_PEER_IP, QRE_A_PEER_PORT, QRE_A_ALLOWED_IPS, QRE_A_SHORT_ID, QRE_A_HOLD,     \
		QRE_A_IDLE_MS, QRE_A_KEEPALIVE_MS, QRE_A_ACK_DELAY_EXPONENT,                       \
		QRE_A_MAX_ACK_DELAY_MS, QRE_A_MAX_UDP_PAYLOAD, QRE_A_RESET_TOKEN,                  \
		QRE_A_REKEY_AFTER, QRE_A_SEQUENCE, QRE_A_FD, QRE_A_SPLITS, QRE_A_USUAL_PAYLOAD,    \
		QRE_A_LOCAL_IPV6, QRE_A_PEER_IPV6

static const struct command {
	const char *name;
	uint8_t number;
	uint8_t needed[16], optional[40]; /* up to 0 */
} commands[] = {
	{"device-get", QRE_CMD_DEVICE_GET, {QRE_A_IFNAME}, {QRE_A_IFINDEX}},
	{"device-set",
	 QRE_CMD_DEVICE_SET,
	 {QRE_A_IFNAME},
	 {QRE_A_ROLE, QRE_A_MTU, QRE_A_DEST, QRE_A_SERVER_NAME, QRE_A_LISTEN_IP, QRE_A_LISTEN_PORT,
	  QRE_A_ENDPOINT, QRE_A_KEEPALIVE, QRE_A_MAX_SESSIONS, QRE_A_FWMARK, QRE_A_LISTEN_IPV6}},
	{"device-del", QRE_CMD_DEVICE_DEL, {QRE_A_IFNAME}, {}},
	{"session-get", QRE_CMD_SESSION_GET, {QRE_A_IFNAME, QRE_A_SESSION_ID}, {}},
	{"session-install",
	 QRE_CMD_SESSION_INSTALL,
	 {QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_CID, QRE_A_TX_KEY, QRE_A_RX_KEY, QRE_A_TX_HP_KEY,
	  QRE_A_RX_HP_KEY, QRE_A_TX_IV, QRE_A_RX_IV, QRE_A_KEY_EPOCH, QRE_A_PACKET_NUMBER},
	 {SESSION_OPTIONAL}},
	{"session-update",
	 QRE_CMD_SESSION_UPDATE,
	 {QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_TX_KEY, QRE_A_RX_KEY, QRE_A_TX_IV, QRE_A_RX_IV,
	  QRE_A_KEY_EPOCH},
	 {QRE_A_CID, QRE_A_TX_HP_KEY, QRE_A_RX_HP_KEY, QRE_A_PACKET_NUMBER, SESSION_OPTIONAL}},
	{"session-del", QRE_CMD_SESSION_DEL, {QRE_A_IFNAME, QRE_A_SESSION_ID}, {QRE_A_CLOSE}},
	{"cid-adopt",
	 QRE_CMD_CID_ADOPT,
	 {QRE_A_IFNAME, QRE_A_CID},
	 {QRE_A_SESSION_ID, QRE_A_SEQUENCE}},
	{"cid-release", QRE_CMD_CID_RELEASE, {QRE_A_IFNAME, QRE_A_CID}, {QRE_A_SESSION_ID}},
	{"map-register", QRE_CMD_CID_MAP_REGISTER, {QRE_A_FD}, {}},
	{"map-unregister", QRE_CMD_CID_MAP_UNREGISTER, {}, {}},
	{"shared-register", QRE_CMD_SHARED_SOCKET_REGISTER, {QRE_A_FD}, {}},
	{"shared-unregister", QRE_CMD_SHARED_SOCKET_UNREGISTER, {}, {}},
	/* These four together or none. */
	{"loader-set",
	 QRE_CMD_SHARED_LOADER_SET,
	 {QRE_A_LOADER_PROGRAM, QRE_A_LOADER_PIN_DIR, QRE_A_LOADER_CID_LENGTH, QRE_A_LOADER_PID},
	 {}},
	{"profile-set", QRE_CMD_DEST_PROFILE_SET, {QRE_A_IFNAME}, {QRE_A_DEST_PROFILE, QRE_A_ECN}},
	{"frame-send",
	 QRE_CMD_FRAME_SEND,
	 {QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_FRAMES, QRE_A_FRAME_ID},
	 {}},
	{"path-proven",
	 QRE_CMD_PATH_PROVEN,
	 {QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_PROVEN_PAYLOAD, QRE_A_PROVEN_AGO_MS},
	 {}},
	{"session-give-up",
	 QRE_CMD_SESSION_GIVE_UP,
	 {QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_LAST_REPEAT_MS, QRE_A_GIVES_UP_MS, QRE_A_FRAMES},
	 {}},
	{"session-try-port",
	 QRE_CMD_SESSION_TRY_PORT,
	 {QRE_A_IFNAME, QRE_A_SESSION_ID, QRE_A_FD, QRE_A_CHALLENGES, QRE_A_APART_MS},
	 {}},
	{"session-move", QRE_CMD_SESSION_MOVE, {QRE_A_IFNAME, QRE_A_SESSION_ID}, {}},
	{"session-drop-port", QRE_CMD_SESSION_DROP_PORT, {QRE_A_IFNAME, QRE_A_SESSION_ID}, {}},
};

static struct genl genl;
static unsigned int asked, wrong;

static void die(const char *what)
{
	printf("refusals: %s: %s: %s\n", what, strerror(errno), genl.words);
	exit(2);
}

/* --- the request --- */

static struct wish {
	uint16_t type;
	size_t size;
	uint8_t data[8448];
} wishes[64];
static unsigned int wished;

static void drop(uint16_t type)
{
	for (unsigned int i = 0; i < wished; i++) {
		if (wishes[i].type != type)
			continue;
		wishes[i] = wishes[--wished];
		return;
	}
}

static void want(uint16_t type, const void *data, size_t size)
{
	struct wish *w;

	drop(type);
	w = &wishes[wished++];
	w->type = type;
	w->size = size;
	if (data)
		memcpy(w->data, data, size);
	else
		memset(w->data, 'x', size);
}

static void want_number(uint16_t type, uint64_t value)
{
	want(type, &value, 1U << (fields[type].kind - U8));
}

static void want_text(uint16_t type, const char *text)
{
	want(type, text, strlen(text) + 1);
}

static void want_filled(uint16_t type, uint8_t byte)
{
	uint8_t bytes[64];

	memset(bytes, byte, sizeof(bytes));
	want(type, bytes, fields[type].most);
}

/* Something that the attribute may be. */
static void want_valid(uint16_t type)
{
	const struct field *f = &fields[type];

	switch (f->kind) {
	case TEXT:
		want_text(type, type == QRE_A_IFNAME ? "qre0" : "some");
		break;
	case BYTES:
		want(type, NULL, f->least);
		break;
	case FLAG:
		want(type, NULL, 0);
		break;
	case UNKNOWN:
		want(type, "\0\0\0", 4);
		break;
	default:
		want_number(type, f->least);
	}
}

static void want_needed(const struct command *c)
{
	wished = 0;
	for (const uint8_t *at = c->needed; *at; at++)
		want_valid(*at);
}

/* --- asking --- */

static int ask(uint8_t command, uint16_t flags)
{
	static struct request r;

	genl_begin(&genl, &r, genl.family, command, flags);
	for (unsigned int i = 0; i < wished; i++)
		genl_put(&r, wishes[i].type, wishes[i].data, wishes[i].size);
	asked++;
	return genl_ask(&genl, &r, NULL);
}

/* Where @type lies in the request, as the kernel tells it. */
static uint32_t offset_of(uint16_t type)
{
	uint32_t at = NLMSG_LENGTH(GENL_HDRLEN);

	for (unsigned int i = 0; i < wished && wishes[i].type != type; i++)
		at += NLA_ALIGN(NLA_HDRLEN + wishes[i].size);
	return at;
}

static void complain(const char *command, const char *what, int error, const char *expected)
{
	wrong++;
	printf("WRONG %s, %s: %s \"%s\", not %s\n", command, what,
	       error ? strerrorname_np(error) : "done", genl.words, expected);
}

/* The request as it stands must fail with @error and words that begin with @words. */
static void refused(uint8_t command, uint16_t flags, int error, const char *words, const char *what)
{
	int got = ask(command, flags);
	char name[16];

	snprintf(name, sizeof(name), "%u%s", command, flags ? " (dump)" : "");
	if (got != error || strncmp(genl.words, words, strlen(words)))
		complain(name, what, got, words);
}

static void refused_for(const struct command *c, uint16_t type, const char *why, const char *what)
{
	int got = ask(c->number, 0);
	char words[128], label[128];

	snprintf(words, sizeof(words), "%s%s", fields[type].kind ? fields[type].name : "", why);
	snprintf(label, sizeof(label), "attribute %u %s", type, what);
	if (got != EINVAL || strcmp(genl.words, words))
		complain(c->name, label, got, words);
	else if (strstr(why, "missing") ? genl.miss != type : genl.offset != offset_of(type))
		complain(c->name, label, got, "the place of the attribute");
}

/* Refused by netlink's own policies: they say where, and something. */
static void refused_by_policy(const struct command *c, uint16_t type, const char *what)
{
	int got = ask(c->number, 0);
	char label[128];

	snprintf(label, sizeof(label), "attribute %u %s", type, what);
	if ((got != EINVAL && got != ERANGE) || !genl.words[0])
		complain(c->name, label, got, "a policy's refusal");
	else if (genl.offset != offset_of(type))
		complain(c->name, label, got, "the place of the attribute");
}

/* --- every command, every attribute --- */

static void try_sizes(const struct command *c, uint16_t type)
{
	const struct field *f = &fields[type];
	size_t width = f->kind >= U8 ? 1U << (f->kind - U8) : 0;
	switch (f->kind) {
	case BYTES:
		if (f->least) {
			want(type, NULL, f->least - 1);
			refused_by_policy(c, type, "one byte too short");
			want(type, NULL, 0);
			refused_by_policy(c, type, "empty");
		}
		want(type, NULL, f->most + 1);
		refused_by_policy(c, type, "one byte too long");
		break;
	case TEXT:
		want(type, NULL, 0);
		refused_by_policy(c, type, "empty");
		want(type, NULL, 4);
		refused_by_policy(c, type, "without its end");
		want(type, NULL, f->most + 2);
		wishes[wished - 1].data[f->most + 1] = 0;
		refused_by_policy(c, type, "one byte too long");
		break;
	case FLAG:
		want(type, NULL, 1);
		refused_by_policy(c, type, "one byte too long");
		break;
	default:
		want(type, NULL, 0);
		refused_by_policy(c, type, "empty");
		want(type, NULL, width - 1);
		refused_by_policy(c, type, "one byte too short");
		want(type, NULL, width + 1);
		refused_by_policy(c, type, "one byte too long");
	}
}

static void try_ranges(const struct command *c, uint16_t type)
{
	const struct field *f = &fields[type];
	uint64_t highest;

	if (f->kind < U8)
		return;
	highest = UINT64_MAX >> (64 - (8U << (f->kind - U8)));
	if (f->least) {
		want_number(type, f->least - 1);
		refused_by_policy(c, type, "too little");
	}
	if (f->most < highest) {
		want_number(type, f->most + 1);
		refused_by_policy(c, type, "too much");
		want_number(type, highest);
		refused_by_policy(c, type, "as much as possible");
	}
}

static bool takes(const struct command *c, uint16_t type)
{
	return strchr((const char *)c->needed, type) || strchr((const char *)c->optional, type);
}

static void try_strangers(const struct command *c)
{
	static const uint16_t beyond[] = {QRE_A_MAX + 1, 1000, 0x3fff};

	for (uint16_t type = 1; type <= QRE_A_MAX; type++) {
		if (takes(c, type))
			continue;
		want_needed(c);
		want_valid(type);
		refused_by_policy(c, type, fields[type].kind ? "of others" : "of nobody");
	}
	for (unsigned int i = 0; i < COUNT(beyond); i++) {
		want_needed(c);
		want(beyond[i], NULL, 4);
		refused(c->number, 0, EINVAL, "Unknown attribute type", "of the future");
		if (genl.offset != offset_of(beyond[i]))
			complain(c->name, "of the future", EINVAL, "the place of the attribute");
	}
}

static void try_command(const struct command *c)
{
	for (const uint8_t *at = c->needed; *at; at++) {
		want_needed(c);
		drop(*at);
		refused_for(c, *at, " is missing", "not there");
	}
	for (unsigned int list = 0; list < 2; list++) {
		for (const uint8_t *at = list ? c->optional : c->needed; *at; at++) {
			want_needed(c);
			try_sizes(c, *at);
			want_needed(c);
			try_ranges(c, *at);
		}
	}
	try_strangers(c);
}

/* Where a device is told by name, one of another namespace is none. */
static void try_foreign(const struct command *c, const char *device, unsigned int index)
{
	static const char words[] = "Device: there is no such";

	if (!strchr((const char *)c->needed, QRE_A_IFNAME) || c->number == QRE_CMD_DEVICE_SET)
		return;
	want_needed(c);
	want_text(QRE_A_IFNAME, device);
	refused(c->number, 0, ENODEV, words, "device of another namespace");
	want_text(QRE_A_IFNAME, "lo");
	refused(c->number, 0, ENODEV, words, "device of another kind");
	if (c->number == QRE_CMD_DEVICE_GET) {
		wished = 0;
		want_number(QRE_A_IFINDEX, index);
		refused(c->number, 0, ENODEV, words, "index of another namespace");
	}
}

/* --- what must be there --- */

static void must(uint8_t command, const char *what)
{
	errno = ask(command, 0);
	asked--;
	if (errno)
		die(what);
}

/* A session that says nothing by itself: a server's, without keepalive. All of it made of @byte. */
static void want_session(const char *device, uint8_t byte)
{
	want_needed(&commands[4]);
	want_text(QRE_A_IFNAME, device);
	for (const uint8_t *at = commands[4].needed; *at; at++)
		if (fields[*at].kind == BYTES)
			want_filled(*at, byte);
	want_number(QRE_A_IDLE_MS, 3600000);
}

static void want_update(uint8_t byte)
{
	want_session("qre0", byte);
	drop(QRE_A_IDLE_MS);
	drop(QRE_A_CID);
}

/* Of either version, as the attribute that is for it, and not as the other one. */
static void want_ip(uint16_t ipv4, uint16_t ipv6, const char *text)
{
	uint8_t bytes[16];
	bool of_ipv6 = strchr(text, ':');

	inet_pton(of_ipv6 ? AF_INET6 : AF_INET, text, bytes);
	want(of_ipv6 ? ipv6 : ipv4, bytes, of_ipv6 ? 16 : 4);
	drop(of_ipv6 ? ipv4 : ipv6);
}

static void want_underlay(const char *local, uint16_t local_port, const char *peer,
			  uint16_t peer_port)
{
	local_port = htons(local_port);
	peer_port = htons(peer_port);
	want_ip(QRE_A_LOCAL_IP, QRE_A_LOCAL_IPV6, local);
	want(QRE_A_LOCAL_PORT, &local_port, 2);
	want_ip(QRE_A_PEER_IP, QRE_A_PEER_IPV6, peer);
	want(QRE_A_PEER_PORT, &peer_port, 2);
}

static int bound(int family, int type, uint16_t port)
{
	struct end local = end_of(family == AF_INET6 ? "::" : "0.0.0.0", port);
	int fd = socket(family, type, 0);

	if (fd < 0 || (port && bind(fd, &local.any, local.size)))
		die("socket");
	return fd;
}

static int map(uint32_t type, uint32_t key, uint32_t value, uint32_t flags)
{
	union bpf_attr attr = {.map_type = type,
			       .key_size = key,
			       .value_size = value,
			       .max_entries = 4096,
			       .map_flags = flags};
	int fd = syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr));

	if (fd < 0)
		die("map");
	return fd;
}

static void device(const char *name, unsigned int role)
{
	wished = 0;
	want_text(QRE_A_IFNAME, name);
	if (role)
		want_number(QRE_A_ROLE, role);
	want_number(QRE_A_MAX_SESSIONS, 3);
	must(QRE_CMD_DEVICE_SET, name);
}

/* A held session is lost soon: it comes and goes first. */
static void try_held(void)
{
	want_session("qre0", 0x44);
	want(QRE_A_HOLD, NULL, 0);
	must(QRE_CMD_SESSION_INSTALL, "install held");
	wished = 0;
	want_text(QRE_A_IFNAME, "qre0");
	want_filled(QRE_A_SESSION_ID, 0x44);
	want_number(QRE_A_FRAME_ID, 1);
	want(QRE_A_FRAMES, "\1", 1);
	refused(QRE_CMD_FRAME_SEND, 0, ENOENT, "SessionId: there is no", "a held session");
	drop(QRE_A_FRAME_ID);
	drop(QRE_A_FRAMES);
	must(QRE_CMD_SESSION_DEL, "delete");
}

static void want_client(void)
{
	wished = 0;
	want_text(QRE_A_IFNAME, "qre2");
	want_filled(QRE_A_SESSION_ID, 0x55);
}

/* As often as one likes: a refused socket is as it was. */
static void try_port(int fd, int error, const char *words, const char *what)
{
	want_client();
	want_number(QRE_A_FD, fd);
	want_number(QRE_A_CHALLENGES, 3);
	want_number(QRE_A_APART_MS, 300);
	refused(QRE_CMD_SESSION_TRY_PORT, 0, error, words, what);
	refused(QRE_CMD_SESSION_TRY_PORT, 0, error, words, what);
	close(fd);
}

/* A client's session speaks by itself: it comes and goes first. Its path is not a bad one yet. */
static void try_client(void)
{
	static const char answers[] = "SessionId: the server answers";

	want_session("qre2", 0x55);
	want_underlay("127.0.0.1", 4002, "127.0.0.1", 4001);
	must(QRE_CMD_SESSION_INSTALL, "install a client's");
	want_client();
	want_number(QRE_A_LAST_REPEAT_MS, 1);
	want_number(QRE_A_GIVES_UP_MS, 2);
	want(QRE_A_FRAMES, NULL, 65);
	refused(QRE_CMD_SESSION_GIVE_UP, 0, EMSGSIZE, "Frames: these are too long", "65 bytes");
	want(QRE_A_FRAMES, NULL, 64);
	refused(QRE_CMD_SESSION_GIVE_UP, 0, EALREADY, answers, "of no silence");
	try_port(999, EBADF, "SocketFd is not an open", "no descriptor");
	try_port(open("/dev/null", O_RDWR), ENOTSOCK, "SocketFd is not a socket", "a file");
	try_port(bound(AF_INET, SOCK_STREAM, 0), EINVAL, "SocketFd is not a UDP socket", "TCP");
	try_port(bound(AF_INET, SOCK_DGRAM, 0), EINVAL, "SocketFd is a socket that is not",
		 "not bound");
	try_port(bound(AF_INET, SOCK_DGRAM, 4003), EALREADY, answers, "of no silence");
	want_client();
	refused(QRE_CMD_SESSION_MOVE, 0, EALREADY, answers, "of no silence");
	refused(QRE_CMD_SESSION_DROP_PORT, 0, ENOENT, "SessionId: no port is tried", "none");
	must(QRE_CMD_SESSION_DEL, "delete a client's");
	refused(QRE_CMD_SESSION_MOVE, 0, ENOENT, "SessionId: there is no", "no session");
	refused(QRE_CMD_SESSION_DROP_PORT, 0, ENOENT, "SessionId: there is no", "no session");
}

static void set_up(void)
{
	device("qre0", QRE_ROLE_SERVER);
	device("qre1", 0);
	device("qre2", QRE_ROLE_CLIENT);
	try_held();
	try_client();
	for (uint8_t byte = 1; byte <= 3; byte++) {
		want_session("qre0", byte);
		if (byte == 2) {
			want_filled(QRE_A_NEXT_RX_KEY, 0x21);
			want_filled(QRE_A_NEXT_RX_IV, 0x21);
			want_underlay("127.0.0.1", 4000, "127.0.0.1", 4001);
		}
		must(QRE_CMD_SESSION_INSTALL, "install");
	}
	wished = 0;
	want_text(QRE_A_IFNAME, "qre0");
	want_filled(QRE_A_CID, 0x77);
	must(QRE_CMD_CID_ADOPT, "adopt");
	wished = 0;
	refused(QRE_CMD_CID_MAP_UNREGISTER, 0, ENOENT, "no CID map", "none is there");
	refused(QRE_CMD_SHARED_SOCKET_UNREGISTER, 0, ENOENT, "no shared socket", "none is there");
	want_number(QRE_A_FD, map(BPF_MAP_TYPE_HASH, 21, 4, 0));
	must(QRE_CMD_CID_MAP_REGISTER, "map");
	want_number(QRE_A_FD, bound(AF_INET, SOCK_DGRAM, 443));
	must(QRE_CMD_SHARED_SOCKET_REGISTER, "shared");
	want_needed(&commands[13]);
	must(QRE_CMD_SHARED_LOADER_SET, "loader");
	wished = 0;
	want_text(QRE_A_IFNAME, "qre0");
	want(QRE_A_DEST_PROFILE, NULL, 8192);
	must(QRE_CMD_DEST_PROFILE_SET, "profile");
}

/* --- what depends on what is there --- */

static void try_devices(void)
{
	wished = 0;
	want_text(QRE_A_IFNAME, "a/b");
	refused(QRE_CMD_DEVICE_SET, 0, EINVAL, "Device is out of range", "no name");
	want_text(QRE_A_IFNAME, "qre%d");
	refused(QRE_CMD_DEVICE_SET, 0, EINVAL, "Device is out of range", "a pattern");
	want_text(QRE_A_IFNAME, "lo");
	refused(QRE_CMD_DEVICE_SET, 0, EEXIST, "Device: another interface", "a name in use");
	want_text(QRE_A_IFNAME, "qre0");
	want_number(QRE_A_ROLE, QRE_ROLE_CLIENT);
	refused(QRE_CMD_DEVICE_SET, 0, EBUSY, "Role cannot change", "another role");
	drop(QRE_A_ROLE);
	want_number(QRE_A_MAX_SESSIONS, 2);
	refused(QRE_CMD_DEVICE_SET, 0, EBUSY, "MaxSessions is less", "fewer sessions");
	wished = 0;
	refused(QRE_CMD_SESSION_GET, NLM_F_DUMP, EINVAL, "Device is missing", "no device");
	want_text(QRE_A_IFNAME, "lo");
	refused(QRE_CMD_SESSION_GET, NLM_F_DUMP, ENODEV, "Device: there is no", "another kind");
	want_text(QRE_A_IFNAME, "qre0");
	want_number(QRE_A_ROLE, 1);
	refused(QRE_CMD_SESSION_GET, NLM_F_DUMP, EINVAL, "Unsupported attribute", "of others");
	drop(QRE_A_IFNAME);
	refused(QRE_CMD_DEVICE_GET, NLM_F_DUMP, EINVAL, "Unsupported attribute", "of others");
	want_needed(&commands[13]);
	want_text(QRE_A_LOADER_PROGRAM, "");
	refused_for(&commands[13], QRE_A_LOADER_PROGRAM, " is out of range", "empty");
	refused(0, 0, EOPNOTSUPP, "", "no command");
	refused(QRE_CMD_EVENT, 0, EOPNOTSUPP, "", "an event");
	refused(QRE_CMD_MAX + 1, 0, EOPNOTSUPP, "", "a command of the future");
}

/* Each of a group is missed when the others are there. */
static void try_group(const uint8_t *group, unsigned int count)
{
	static const struct command *const c = &commands[4];

	for (unsigned int i = 0; i < count; i++) {
		want_session("qre0", 9);
		for (unsigned int k = 0; k < count; k++)
			if (k != i)
				want_valid(group[k]);
		refused_for(c, group[i], " is missing", "alone not there");
	}
}

static void try_allowed_ips(void)
{
	static const struct command *const c = &commands[4];
	static const struct qre_allowed_ip bad[] = {
		{.family = 5, .prefix = 0},
		{.family = 4, .prefix = 33},
		{.family = 6, .prefix = 129},
		{.family = 4, .prefix = 1, .reserved = {1}},
		{.family = 6, .prefix = 1, .reserved = {0, 1}},
	};
	struct qre_allowed_ip two[2] = {{.family = 4, .prefix = 32}};

	want_session("qre0", 9);
	for (unsigned int i = 0; i < COUNT(bad); i++) {
		two[1] = bad[i];
		want(QRE_A_ALLOWED_IPS, two, sizeof(two));
		refused_for(c, QRE_A_ALLOWED_IPS, " is out of range", "not a network");
	}
	want(QRE_A_ALLOWED_IPS, two, sizeof(two) - 1);
	refused_for(c, QRE_A_ALLOWED_IPS, " has a wrong size", "one byte too short");
	want(QRE_A_ALLOWED_IPS, two, 1);
	refused_for(c, QRE_A_ALLOWED_IPS, " has a wrong size", "one byte");
}

static void try_underlays(void)
{
	static const struct command *const c = &commands[4];
	static const struct {
		const char *local;
		uint16_t local_port;
		const char *peer;
		uint16_t peer_port;
		uint16_t type;
	} bad[] = {
		{"127.0.0.1", 0, "127.0.0.1", 1, QRE_A_LOCAL_PORT},
		{"127.0.0.1", 1, "127.0.0.1", 0, QRE_A_PEER_PORT},
		{"224.0.0.1", 1, "127.0.0.1", 1, QRE_A_LOCAL_IP},
		{"255.255.255.255", 1, "127.0.0.1", 1, QRE_A_LOCAL_IP},
		{"127.0.0.1", 1, "224.0.0.1", 1, QRE_A_PEER_IP},
		{"127.0.0.1", 1, "255.255.255.255", 1, QRE_A_PEER_IP},
		{"127.0.0.1", 1, "0.0.0.0", 1, QRE_A_PEER_IP},
		{"::1", 0, "::1", 1, QRE_A_LOCAL_PORT},
		{"::1", 1, "::1", 0, QRE_A_PEER_PORT},
		{"ff02::1", 1, "::1", 1, QRE_A_LOCAL_IPV6},
		{"fe80::1", 1, "::1", 1, QRE_A_LOCAL_IPV6},
		{"::ffff:127.0.0.1", 1, "::1", 1, QRE_A_LOCAL_IPV6},
		{"::1", 1, "ff0e::1", 1, QRE_A_PEER_IPV6},
		{"::1", 1, "fe80::1", 1, QRE_A_PEER_IPV6},
		{"::1", 1, "::ffff:127.0.0.1", 1, QRE_A_PEER_IPV6},
		{"::1", 1, "::", 1, QRE_A_PEER_IPV6},
		{"::", 1, "0.0.0.0", 1, QRE_A_PEER_IP},
	};
	static const char other[] = "UnderlayPeerIPv4, UnderlayPeerIPv6: the session's socket";
	struct in6_addr loopback = IN6ADDR_LOOPBACK_INIT;
	uint32_t ipv4_loopback = htonl(INADDR_LOOPBACK);

	want_session("qre0", 9);
	for (unsigned int i = 0; i < COUNT(bad); i++) {
		want_underlay(bad[i].local, bad[i].local_port, bad[i].peer, bad[i].peer_port);
		refused_for(c, bad[i].type, " is out of range", "not an address");
	}
	want_underlay("::1", 1, "127.0.0.1", 1);
	refused(QRE_CMD_SESSION_INSTALL, 0, EAFNOSUPPORT, other, "a peer of IPv4");
	want_underlay("127.0.0.1", 1, "::1", 1);
	refused(QRE_CMD_SESSION_INSTALL, 0, EAFNOSUPPORT, other, "a peer of IPv6");
	want(QRE_A_LOCAL_IPV6, &loopback, 16);
	refused_for(c, QRE_A_LOCAL_IP, " is out of range", "two local addresses");
	drop(QRE_A_LOCAL_IP);
	want(QRE_A_PEER_IP, &ipv4_loopback, 4);
	refused_for(c, QRE_A_PEER_IP, " is out of range", "two peers");
	want_text(QRE_A_IFNAME, "qre2");
	drop(QRE_A_PEER_IP);
	want_underlay("192.0.2.1", 4444, "127.0.0.1", 1);
	refused(QRE_CMD_SESSION_INSTALL, 0, EADDRNOTAVAIL, "UnderlayLocalPort: no socket",
		"an address that is not ours");
	want_underlay("2001:db8::1", 4444, "::1", 1);
	refused(QRE_CMD_SESSION_INSTALL, 0, EADDRNOTAVAIL, "UnderlayLocalPort: no socket",
		"an address of IPv6 that is not ours");
}

static void try_installs(void)
{
	static const uint8_t underlay[] = {QRE_A_LOCAL_IP, QRE_A_LOCAL_PORT, QRE_A_PEER_IP,
					   QRE_A_PEER_PORT};
	static const uint8_t underlay6[] = {QRE_A_LOCAL_IPV6, QRE_A_LOCAL_PORT, QRE_A_PEER_IPV6,
					    QRE_A_PEER_PORT};
	static const uint8_t next_tx[] = {QRE_A_NEXT_TX_KEY, QRE_A_NEXT_TX_IV};
	static const uint8_t next_rx[] = {QRE_A_NEXT_RX_KEY, QRE_A_NEXT_RX_IV};
	static const uint8_t install = QRE_CMD_SESSION_INSTALL;

	try_group(underlay, 4);
	try_group(underlay6, 4);
	try_group(next_tx, 2);
	try_group(next_rx, 2);
	try_allowed_ips();
	try_underlays();
	want_session("qre0", 9);
	want_filled(QRE_A_NEXT_RX_HP_KEY, 9);
	refused_for(&commands[4], QRE_A_NEXT_RX_KEY, " is missing", "not there, but its mask");
	want_filled(QRE_A_NEXT_RX_KEY, 9);
	want_filled(QRE_A_NEXT_RX_IV, 9);
	want_filled(QRE_A_NEXT_RX_HP_KEY, 8);
	refused(install, 0, EINVAL, "NextRxHpKey must equal RxHpKey", "another mask");

	want_session("qre0", 9);
	refused(install, 0, ENOSPC, "SessionId: no room", "one session more");
	want_session("qre1", 9);
	refused(install, 0, EINVAL, "Device has no Role", "no role");
	want_session("qre2", 9);
	refused(install, 0, EINVAL, "UnderlayPeerIPv4 is missing", "a client without a server");
	want_underlay("127.0.0.1", 4000, "127.0.0.1", 1);
	want_filled(QRE_A_TX_KEY, 1);
	refused(install, 0, EEXIST, "TxKey was used before", "a key twice");
	want_number(QRE_A_FD, 999);
	refused(install, 0, EBADF, "SocketFd is not an open", "no descriptor");
	want_session("qre0", 1);
	want_filled(QRE_A_TX_KEY, 9);
	refused(install, 0, EKEYREJECTED, "SessionId: it is installed", "other keys");
	want_session("qre0", 1);
	want_number(QRE_A_KEY_EPOCH, 1);
	refused(install, 0, EEXIST, "SessionId: it is installed", "another epoch");
}

static void try_updates(void)
{
	static const uint8_t update = QRE_CMD_SESSION_UPDATE;

	want_update(9);
	refused(update, 0, ENOENT, "SessionId: there is no such", "no session");
	want_update(1);
	drop(QRE_A_RX_HP_KEY);
	refused(update, 0, EINVAL, "RxHpKey is missing", "half of the masks");
	want_filled(QRE_A_RX_HP_KEY, 9);
	refused(update, 0, EINVAL, "TxHpKey: header protection keys", "other masks");
	want_update(1);
	want_filled(QRE_A_RX_KEY, 9);
	refused(update, 0, EKEYREJECTED, "TxKey: other keys", "other keys");
	want_update(1);
	want_number(QRE_A_KEY_EPOCH, 2);
	refused(update, 0, EINVAL, "KeyEpoch must be", "an epoch too far");
	want_number(QRE_A_KEY_EPOCH, (1ULL << 62) - 1);
	refused(update, 0, EINVAL, "KeyEpoch must be", "the last epoch");
	want_update(1);
	want_underlay("127.0.0.2", 4000, "127.0.0.1", 4001);
	refused(update, 0, EINVAL, "UnderlayLocalIPv4: a session's own", "another address");
	want_underlay("::1", 4000, "::1", 4001);
	refused(update, 0, EINVAL, "UnderlayLocalIPv6: a session's own", "an address of IPv6");
	want_update(2);
	want_filled(QRE_A_NEXT_RX_KEY, 9);
	want_filled(QRE_A_NEXT_RX_IV, 9);
	refused(update, 0, EKEYREJECTED, "NextRxKey: other next keys", "other next keys");
	want_update(2);
	want_number(QRE_A_KEY_EPOCH, 1);
	refused(update, 0, EKEYREJECTED, "TxKey: other keys than the next", "not the next keys");
}

static void try_ids(void)
{
	wished = 0;
	want_text(QRE_A_IFNAME, "qre0");
	want_filled(QRE_A_SESSION_ID, 9);
	refused(QRE_CMD_SESSION_GET, 0, ENOENT, "SessionId: there is no", "no session");
	refused(QRE_CMD_SESSION_DEL, 0, ENOENT, "SessionId: there is no", "no session");
	want_filled(QRE_A_CID, 9);
	refused(QRE_CMD_CID_ADOPT, 0, ENOENT, "SessionId: there is no", "no session");
	want_filled(QRE_A_SESSION_ID, 1);
	refused(QRE_CMD_CID_RELEASE, 0, ENOENT, "ConnectionId is not adopted", "no such id");
	want(QRE_A_CID, NULL, 8);
	refused(QRE_CMD_CID_ADOPT, 0, EINVAL, "ConnectionId has another length", "another length");
	want_filled(QRE_A_CID, 2);
	refused(QRE_CMD_CID_ADOPT, 0, EEXIST, "ConnectionId is in use", "another session's");
	refused(QRE_CMD_CID_RELEASE, 0, ENOENT, "ConnectionId is not adopted", "another's");
	want_filled(QRE_A_CID, 1);
	refused(QRE_CMD_CID_RELEASE, 0, EBUSY, "ConnectionId is the session's last", "the last");
	want_text(QRE_A_IFNAME, "qre1");
	drop(QRE_A_SESSION_ID);
	refused(QRE_CMD_CID_ADOPT, 0, EEXIST, "ConnectionId is in use", "another device's");
	refused(QRE_CMD_CID_RELEASE, 0, ENOENT, "ConnectionId is not adopted", "another's");
	wished = 0;
	want_text(QRE_A_IFNAME, "qre0");
	want(QRE_A_FRAMES, "\1", 1);
	want_number(QRE_A_FRAME_ID, 1);
	want_filled(QRE_A_SESSION_ID, 9);
	refused(QRE_CMD_FRAME_SEND, 0, ENOENT, "SessionId: there is no", "no session");
	drop(QRE_A_FRAMES);
	drop(QRE_A_FRAME_ID);
	want_number(QRE_A_PROVEN_PAYLOAD, 1389);
	want_number(QRE_A_PROVEN_AGO_MS, 1);
	refused(QRE_CMD_PATH_PROVEN, 0, ENOENT, "SessionId: there is no", "no session");
	drop(QRE_A_PROVEN_PAYLOAD);
	drop(QRE_A_PROVEN_AGO_MS);
	want(QRE_A_FRAMES, "\34\0\0\0", 4);
	want_number(QRE_A_LAST_REPEAT_MS, 1);
	want_number(QRE_A_GIVES_UP_MS, 2);
	refused(QRE_CMD_SESSION_GIVE_UP, 0, ENOENT, "SessionId: there is no", "no session");
	want_filled(QRE_A_SESSION_ID, 1);
	refused(QRE_CMD_SESSION_GIVE_UP, 0, ENOENT, "SessionId: there is no", "a server's");
	drop(QRE_A_FRAMES);
	drop(QRE_A_LAST_REPEAT_MS);
	drop(QRE_A_GIVES_UP_MS);
	refused(QRE_CMD_SESSION_MOVE, 0, ENOENT, "SessionId: there is no", "a server's");
	refused(QRE_CMD_SESSION_DROP_PORT, 0, ENOENT, "SessionId: there is no", "a server's");
	want_number(QRE_A_FD, 0);
	want_number(QRE_A_CHALLENGES, 3);
	want_number(QRE_A_APART_MS, 300);
	refused(QRE_CMD_SESSION_TRY_PORT, 0, ENOENT, "SessionId: there is no", "a server's");
}

static void refused_fd(uint8_t command, int fd, int error, const char *words, const char *what)
{
	wished = 0;
	want_number(QRE_A_FD, fd);
	refused(command, 0, error, words, what);
	close(fd);
}

static void try_maps(void)
{
	static const uint8_t again = QRE_CMD_CID_MAP_REGISTER;

	refused_fd(again, map(BPF_MAP_TYPE_HASH, 21, 4, 0), EBUSY, "BpfMapFd: a CID map", "twice");
}

/* Run where none is registered. */
static void try_other_maps(void)
{
	static const uint8_t set = QRE_CMD_CID_MAP_REGISTER;
	union bpf_attr frozen = {.map_fd = map(BPF_MAP_TYPE_HASH, 21, 4, 0)};
	static const char not_ours[] = "BpfMapFd is not a hash map";

	syscall(SYS_bpf, BPF_MAP_FREEZE, &frozen, sizeof(frozen));
	refused_fd(set, frozen.map_fd, EINVAL, "BpfMapFd: the map is read-only", "frozen");
	refused_fd(set, map(BPF_MAP_TYPE_HASH, 21, 4, BPF_F_RDONLY), EINVAL,
		   "BpfMapFd: the map is read-only", "read-only");
	refused_fd(set, map(BPF_MAP_TYPE_ARRAY, 4, 4, 0), EINVAL, not_ours, "array");
	refused_fd(set, map(BPF_MAP_TYPE_LRU_HASH, 21, 4, 0), EINVAL, not_ours, "LRU");
	refused_fd(set, map(BPF_MAP_TYPE_HASH, 20, 4, 0), EINVAL, not_ours, "keys of 20");
	refused_fd(set, map(BPF_MAP_TYPE_HASH, 21, 8, 0), EINVAL, not_ours, "values of 8");
	refused_fd(set, 999, EBADF, "BpfMapFd is not an open", "no descriptor");
	refused_fd(set, open("/dev/null", O_RDWR), EINVAL, "BpfMapFd is not a BPF map", "no map");
	refused_fd(set, bound(AF_INET, SOCK_DGRAM, 0), EINVAL, "BpfMapFd is not a BPF map",
		   "socket");
}

static void try_sockets(const char *namespace)
{
	static const uint8_t set = QRE_CMD_SHARED_SOCKET_REGISTER;
	int here = open("/proc/self/ns/net", O_RDONLY), there = open(namespace, O_RDONLY), fd;

	refused_fd(set, 999, EBADF, "SocketFd is not an open", "no descriptor");
	refused_fd(set, open("/dev/null", O_RDWR), ENOTSOCK, "SocketFd is not a socket", "file");
	refused_fd(set, bound(AF_INET, SOCK_STREAM, 4443), EINVAL, "SocketFd is not a UDP socket",
		   "TCP");
	refused_fd(set, socket(AF_INET, SOCK_RAW, IPPROTO_UDP), EINVAL,
		   "SocketFd is not a UDP socket", "raw UDP");
	refused_fd(set, socket(AF_INET6, SOCK_RAW, IPPROTO_UDP), EINVAL,
		   "SocketFd is not a UDP socket", "raw UDP of IPv6");
	refused_fd(set, bound(AF_INET6, SOCK_STREAM, 0), EINVAL, "SocketFd is not a UDP socket",
		   "TCP of IPv6");
	refused_fd(set, bound(AF_INET6, SOCK_DGRAM, 0), EINVAL, "SocketFd is a socket that is not",
		   "IPv6, not bound");
	refused_fd(set, bound(AF_INET6, SOCK_DGRAM, 4445), EBUSY, "SocketFd: a shared socket of",
		   "another address, of IPv6");
	refused_fd(set, bound(AF_UNIX, SOCK_DGRAM, 0), EINVAL, "SocketFd is ", "UNIX");
	refused_fd(set, bound(AF_INET, SOCK_DGRAM, 0), EINVAL, "SocketFd is a socket that is not",
		   "not bound");
	refused_fd(set, bound(AF_INET, SOCK_DGRAM, 4443), EBUSY, "SocketFd: a shared socket of",
		   "another address");
	if (here < 0 || there < 0 || setns(there, CLONE_NEWNET))
		die(namespace);
	fd = bound(AF_INET, SOCK_DGRAM, 443);
	if (setns(here, CLONE_NEWNET))
		die("setns");
	refused_fd(set, fd, EINVAL, "SocketFd is a socket of another", "another namespace's");
	close(here);
	close(there);
}

/* --- without permission --- */

/* Counts what the answer tells besides counters. */
static unsigned int told;

static void tell(const uint8_t *at, int left)
{
	static const uint16_t open[] = {QRE_A_IFINDEX,	QRE_A_IFNAME,	  QRE_A_MTU,
					QRE_A_ROLE,	QRE_A_SESSIONS,	  QRE_A_RX_PACKETS,
					QRE_A_RX_BYTES, QRE_A_TX_PACKETS, QRE_A_TX_BYTES,
					QRE_A_DROPS,	QRE_A_PAD};
	const struct nlattr *a;

	while ((a = genl_next(&at, &left))) {
		bool is_open = false;

		for (unsigned int i = 0; i < COUNT(open); i++)
			is_open |= (a->nla_type & NLA_TYPE_MASK) == open[i];
		told += !is_open;
	}
}

static void try_powerless(const char *who)
{
	static struct request r;

	for (unsigned int i = 0; i < COUNT(commands); i++) {
		const struct command *c = &commands[i];
		bool open = c->number == QRE_CMD_DEVICE_GET;

		want_needed(c);
		refused(c->number, 0, open ? 0 : EPERM, open ? "" : "CAP_NET_ADMIN is needed", who);
	}
	told = 0;
	genl_begin(&genl, &r, genl.family, QRE_CMD_DEVICE_GET, NLM_F_DUMP);
	asked++;
	if (genl_ask(&genl, &r, tell) || told)
		complain("device-get (dump)", who, 0, "counters and nothing else");
	wished = 0;
	want_text(QRE_A_IFNAME, "qre0");
	refused(QRE_CMD_SESSION_GET, NLM_F_DUMP, EPERM, "CAP_NET_ADMIN is needed", who);
	asked += 2;
	if (!setsockopt(genl.fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &genl.events, 4) ||
	    errno != EPERM)
		complain("events", who, 0, "EPERM");
	if (!setsockopt(genl.fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &genl.frames, 4) ||
	    errno != EPERM)
		complain("frames", who, 0, "EPERM");
}

static void drop_capability(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		die("capget");
	data[0].effective &= ~(1U << CAP_NET_ADMIN);
	data[0].permitted &= ~(1U << CAP_NET_ADMIN);
	if (syscall(SYS_capset, &header, data))
		die("capset");
}

/* In a process of its own, with what it counted in its status; @anew: with a socket of its own,
 * too. */
static void apart(void (*how)(void), bool anew, const char *who)
{
	int status, before = asked;
	pid_t child;

	fflush(stdout);
	child = fork();
	if (!child) {
		wrong = 0;
		how();
		if (anew && genl_open(&genl))
			die(who);
		try_powerless(who);
		fflush(stdout);
		_exit(wrong > 100 ? 100 : wrong);
	}
	waitpid(child, &status, 0);
	wrong += WIFEXITED(status) ? WEXITSTATUS(status) : 1;
	asked = before + COUNT(commands) + 3;
}

static void become_nobodys_root(void)
{
	if (unshare(CLONE_NEWUSER))
		die("unshare");
}

/* --- before and after --- */

static uint8_t *state_at;

static void keep(const uint8_t *at, int left)
{
	const struct nlattr *a;

	while ((a = genl_next(&at, &left))) {
		if (a->nla_type == QRE_A_AGE_MS || a->nla_type == QRE_A_PAD)
			continue;
		memcpy(state_at, a, a->nla_len);
		state_at += a->nla_len;
	}
}

static void dumped(uint8_t command, const char *device)
{
	static struct request r;

	genl_begin(&genl, &r, genl.family, command, NLM_F_DUMP);
	if (device)
		genl_put(&r, QRE_A_IFNAME, device, strlen(device) + 1);
	errno = genl_ask(&genl, &r, keep);
	if (errno)
		die("dump");
}

static size_t state(uint8_t *out)
{
	state_at = out;
	dumped(QRE_CMD_DEVICE_GET, NULL);
	dumped(QRE_CMD_SESSION_GET, "qre0");
	dumped(QRE_CMD_SESSION_GET, "qre1");
	dumped(QRE_CMD_SESSION_GET, "qre2");
	return state_at - out;
}

int main(int argc, char **argv)
{
	static uint8_t before[1 << 18], after[1 << 18];
	size_t size, then;

	if (argc != 4)
		return 2;
	errno = genl_open(&genl);
	if (errno)
		die("qre.ko");
	try_other_maps();
	set_up();
	size = state(before);
	for (unsigned int i = 0; i < COUNT(commands); i++) {
		try_command(&commands[i]);
		try_foreign(&commands[i], argv[2], atoi(argv[3]));
	}
	try_devices();
	try_installs();
	try_updates();
	try_ids();
	try_maps();
	try_sockets(argv[1]);
	apart(drop_capability, true, "without CAP_NET_ADMIN");
	apart(drop_capability, false, "after CAP_NET_ADMIN was dropped");
	apart(become_nobodys_root, true, "root of another user namespace");
	then = state(after);
	if (then != size || memcmp(before, after, size)) {
		wrong++;
		printf("CHANGED %zu %zu\n", size, then);
	}
	printf("asked=%u wrong=%u state=%zu\n", asked, wrong, size);
	return !!wrong;
}
