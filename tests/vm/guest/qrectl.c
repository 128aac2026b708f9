// SPDX-License-Identifier: GPL-2.0-only
/*
 * Asks qre.ko by hand: qrectl COMMAND Key=Value... Prints what it answers, a line an attribute; a
 * refusal as "errno <name>: <the kernel's words>", status 1. Commands are named after those of the
 * family; besides,
 *
 *	events SECONDS [GROUP]	 prints events until then
 *	lend IP PORT COMMAND Key=Value...	brings a UDP socket as Fd, which it then closes
 *	hold IP PORT [register [DEVICE]]	binds a UDP socket, perhaps to a device, perhaps
 *registers it as the shared one, stays; takes "mark N" and "priority N" for it, a line each, and
 *prints each datagram that comes to it from their end on: "got IP:PORT TOS PAYLOAD"
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <time.h>

#include "ends.h"
#include "genl.h"

enum kind { HEX, TEXT, U8, U16, U32, U64, IP4, IP6, PORT, FLAG, IPS, NEST };

static const struct name {
	const char *name;
	uint16_t type;
	enum kind kind;
} names[] = {
	{"Index", QRE_A_IFINDEX, U32},
	{"Device", QRE_A_IFNAME, TEXT},
	{"Role", QRE_A_ROLE, U8},
	{"MTU", QRE_A_MTU, U32},
	{"Dest", QRE_A_DEST, TEXT},
	{"ServerName", QRE_A_SERVER_NAME, TEXT},
	{"ListenIP", QRE_A_LISTEN_IP, IP4},
	{"ListenPort", QRE_A_LISTEN_PORT, PORT},
	{"Endpoint", QRE_A_ENDPOINT, TEXT},
	{"Keepalive", QRE_A_KEEPALIVE, U16},
	{"MaxSessions", QRE_A_MAX_SESSIONS, U32},
	{"FwMark", QRE_A_FWMARK, U32},
	{"SessionId", QRE_A_SESSION_ID, HEX},
	{"ConnectionId", QRE_A_CID, HEX},
	{"ClientConnectionId", QRE_A_CLIENT_CID, HEX},
	{"TxKey", QRE_A_TX_KEY, HEX},
	{"RxKey", QRE_A_RX_KEY, HEX},
	{"TxHpKey", QRE_A_TX_HP_KEY, HEX},
	{"RxHpKey", QRE_A_RX_HP_KEY, HEX},
	{"TxIv", QRE_A_TX_IV, HEX},
	{"RxIv", QRE_A_RX_IV, HEX},
	{"NextTxKey", QRE_A_NEXT_TX_KEY, HEX},
	{"NextTxIv", QRE_A_NEXT_TX_IV, HEX},
	{"NextRxKey", QRE_A_NEXT_RX_KEY, HEX},
	{"NextRxIv", QRE_A_NEXT_RX_IV, HEX},
	{"NextRxHpKey", QRE_A_NEXT_RX_HP_KEY, HEX},
	{"KeyEpoch", QRE_A_KEY_EPOCH, U64},
	{"PacketNumber", QRE_A_PACKET_NUMBER, U64},
	{"UnderlayLocalIPv4", QRE_A_LOCAL_IP, IP4},
	{"UnderlayLocalPort", QRE_A_LOCAL_PORT, PORT},
	{"UnderlayPeerIPv4", QRE_A_PEER_IP, IP4},
	{"UnderlayPeerPort", QRE_A_PEER_PORT, PORT},
	{"AllowedIPs", QRE_A_ALLOWED_IPS, IPS},
	{"ShortId", QRE_A_SHORT_ID, HEX},
	{"Hold", QRE_A_HOLD, FLAG},
	{"IdleMs", QRE_A_IDLE_MS, U64},
	{"KeepaliveMs", QRE_A_KEEPALIVE_MS, U64},
	{"MaxUdpPayload", QRE_A_MAX_UDP_PAYLOAD, U16},
	{"ResetToken", QRE_A_RESET_TOKEN, HEX},
	{"RekeyAfter", QRE_A_REKEY_AFTER, U64},
	{"Sequence", QRE_A_SEQUENCE, U64},
	{"Close", QRE_A_CLOSE, FLAG},
	{"Fd", QRE_A_FD, U32},
	{"FrameId", QRE_A_FRAME_ID, U64},
	{"FrameAcked", QRE_A_FRAME_ACKED, U8},
	{"Frames", QRE_A_FRAMES, HEX},
	{"Event", QRE_A_EVENT, U8},
	{"Loss", QRE_A_LOSS, U8},
	{"ErrorCode", QRE_A_ERROR_CODE, U64},
	{"Errno", QRE_A_ERRNO, U32},
	{"State", QRE_A_STATE, U8},
	{"Confirmed", QRE_A_CONFIRMED, U8},
	{"RxNumber", QRE_A_RX_NUMBER, U64},
	{"AgeMs", QRE_A_AGE_MS, U64},
	{"LastReceiveMs", QRE_A_LAST_RECEIVE_MS, U64},
	{"RxPackets", QRE_A_RX_PACKETS, U64},
	{"RxBytes", QRE_A_RX_BYTES, U64},
	{"TxPackets", QRE_A_TX_PACKETS, U64},
	{"TxBytes", QRE_A_TX_BYTES, U64},
	{"Drop", QRE_A_DROPS, NEST},
	{"Cids", QRE_A_CIDS, HEX},
	{"Sessions", QRE_A_SESSIONS, U32},
	{"Adopted", QRE_A_ADOPTED, U32},
	{"MapId", QRE_A_MAP_ID, U32},
	{"MapEntries", QRE_A_MAP_ENTRIES, U32},
	{"MapMissing", QRE_A_MAP_MISSING, U32},
	{"MapFailures", QRE_A_MAP_SYNC_FAILURES, U64},
	{"SharedIP", QRE_A_SHARED_IP, IP4},
	{"SharedPort", QRE_A_SHARED_PORT, PORT},
	{"SharedRx", QRE_A_SHARED_RX, U64},
	{"SharedPassed", QRE_A_SHARED_PASSED, U64},
	{"LoaderProgram", QRE_A_LOADER_PROGRAM, TEXT},
	{"PinDir", QRE_A_LOADER_PIN_DIR, TEXT},
	{"RoutedCidLen", QRE_A_LOADER_CID_LENGTH, U8},
	{"LoaderPid", QRE_A_LOADER_PID, U32},
	{"DestProfile", QRE_A_DEST_PROFILE, TEXT},
	{"Ecn", QRE_A_ECN, U8},
	{"AeadDriver", QRE_A_AEAD_DRIVER, TEXT},
	{"PathMtu", QRE_A_PATH_MTU, U16},
	{"InnerMtu", QRE_A_INNER_MTU, U16},
	{"UnansweredMs", QRE_A_UNANSWERED_MS, U64},
	{"Silent", QRE_A_SILENT, U8},
	{"ProvenPayload", QRE_A_PROVEN_PAYLOAD, U16},
	{"ProvenAgoMs", QRE_A_PROVEN_AGO_MS, U64},
	{"Splits", QRE_A_SPLITS, FLAG},
	{"UsualPayload", QRE_A_USUAL_PAYLOAD, U16},
	{"InnerMtuIPv6", QRE_A_INNER_MTU_IPV6, U16},
	{"InnerMtuInTwo", QRE_A_INNER_MTU_IN_TWO, U16},
	{"UnderlayLocalIPv6", QRE_A_LOCAL_IPV6, IP6},
	{"UnderlayPeerIPv6", QRE_A_PEER_IPV6, IP6},
	{"ListenIPv6", QRE_A_LISTEN_IPV6, IP6},
	{"SharedIPv6", QRE_A_SHARED_IPV6, IP6},
	{"SmoothedRttUs", QRE_A_SMOOTHED_RTT_US, U32},
	{"RttVariationUs", QRE_A_RTT_VARIATION_US, U32},
	{"PtoUs", QRE_A_PTO_US, U32},
	{"Several", QRE_A_SEVERAL, U8},
	{"LastRepeatMs", QRE_A_LAST_REPEAT_MS, U64},
	{"GivesUpMs", QRE_A_GIVES_UP_MS, U64},
	{"Challenges", QRE_A_CHALLENGES, U8},
	{"ApartMs", QRE_A_APART_MS, U64},
	{"Spare", QRE_A_SPARE, U8},
	{"Tries", QRE_A_TRIES, U8},
	{"Begun", QRE_A_BEGUN, U8},
};

static const struct {
	const char *name;
	uint8_t command;
	uint16_t flags;
} commands[] = {
	{"device-get", QRE_CMD_DEVICE_GET, 0},
	{"devices", QRE_CMD_DEVICE_GET, NLM_F_DUMP},
	{"device-set", QRE_CMD_DEVICE_SET, 0},
	{"device-del", QRE_CMD_DEVICE_DEL, 0},
	{"session-get", QRE_CMD_SESSION_GET, 0},
	{"sessions", QRE_CMD_SESSION_GET, NLM_F_DUMP},
	{"session-install", QRE_CMD_SESSION_INSTALL, 0},
	{"session-update", QRE_CMD_SESSION_UPDATE, 0},
	{"session-del", QRE_CMD_SESSION_DEL, 0},
	{"cid-adopt", QRE_CMD_CID_ADOPT, 0},
	{"cid-release", QRE_CMD_CID_RELEASE, 0},
	{"map-register", QRE_CMD_CID_MAP_REGISTER, 0},
	{"map-unregister", QRE_CMD_CID_MAP_UNREGISTER, 0},
	{"shared-register", QRE_CMD_SHARED_SOCKET_REGISTER, 0},
	{"shared-unregister", QRE_CMD_SHARED_SOCKET_UNREGISTER, 0},
	{"loader-set", QRE_CMD_SHARED_LOADER_SET, 0},
	{"profile-set", QRE_CMD_DEST_PROFILE_SET, 0},
	{"frame-send", QRE_CMD_FRAME_SEND, 0},
	{"path-proven", QRE_CMD_PATH_PROVEN, 0},
	{"session-give-up", QRE_CMD_SESSION_GIVE_UP, 0},
	{"session-try-port", QRE_CMD_SESSION_TRY_PORT, 0},
	{"session-move", QRE_CMD_SESSION_MOVE, 0},
	{"session-drop-port", QRE_CMD_SESSION_DROP_PORT, 0},
};

static void die(const char *what)
{
	fprintf(stderr, "qrectl: %s: %s\n", what, strerror(errno));
	exit(2);
}

static size_t from_hex(const char *text, uint8_t *out, size_t room)
{
	size_t size = 0;

	for (; text[0] && text[1] && size < room; text += 2) {
		unsigned int byte;

		if (sscanf(text, "%2x", &byte) != 1)
			break;
		out[size++] = byte;
	}
	return size;
}

static void put_ips(struct request *r, char *text)
{
	struct qre_allowed_ip ips[QRE_ALLOWED_IPS_MAX];
	unsigned int count = 0;

	for (char *one = strtok(text, ","); one; one = strtok(NULL, ",")) {
		struct qre_allowed_ip *ip = &ips[count++];
		char *slash = strchr(one, '/');

		memset(ip, 0, sizeof(*ip));
		if (slash)
			*slash = 0;
		ip->family = strchr(one, ':') ? 6 : 4;
		ip->prefix = slash ? atoi(slash + 1) : ip->family == 4 ? 32 : 128;
		inet_pton(ip->family == 4 ? AF_INET : AF_INET6, one, ip->address);
	}
	genl_put(r, QRE_A_ALLOWED_IPS, ips, count * sizeof(ips[0]));
}

static void put_field(struct request *r, const struct name *name, char *value)
{
	static uint8_t bytes[16384];
	uint64_t number = strtoull(value, NULL, 0);
	uint16_t port = htons(number);
	struct in6_addr ip6;
	uint32_t ip;

	switch (name->kind) {
	case HEX:
		genl_put(r, name->type, bytes, from_hex(value, bytes, sizeof(bytes)));
		break;
	case TEXT:
		genl_put(r, name->type, value, strlen(value) + 1);
		break;
	case U8:
	case U16:
	case U32:
	case U64: /* little-endian machines alone */
		genl_put(r, name->type, &number,
			 name->kind == U8    ? 1
			 : name->kind == U16 ? 2
			 : name->kind == U32 ? 4
					     : 8);
		break;
	case IP4:
		inet_pton(AF_INET, value, &ip);
		genl_put(r, name->type, &ip, 4);
		break;
	case IP6:
		inet_pton(AF_INET6, value, &ip6);
		genl_put(r, name->type, &ip6, 16);
		break;
	case PORT:
		genl_put(r, name->type, &port, 2);
		break;
	case FLAG:
		genl_put(r, name->type, NULL, 0);
		break;
	case IPS:
		put_ips(r, value);
		break;
	case NEST:
		break;
	}
}

static void print_value(enum kind kind, const uint8_t *data, int size)
{
	char ip6[INET6_ADDRSTRLEN];
	uint64_t number = 0;

	if (size <= 8)
		memcpy(&number, data, size);
	if (kind == TEXT)
		printf("%.*s\n", size, (const char *)data);
	else if (kind == IP4 && size == 4)
		printf("%u.%u.%u.%u\n", data[0], data[1], data[2], data[3]);
	else if (kind == IP6 && size == 16)
		printf("%s\n", inet_ntop(AF_INET6, data, ip6, sizeof(ip6)));
	else if (kind == PORT)
		printf("%u\n", ntohs(number));
	else if (kind == U8 || kind == U16 || kind == U32 || kind == U64)
		printf("%llu\n", (unsigned long long)number);
	else {
		for (int i = 0; i < size; i++)
			printf("%02x", data[i]);
		printf("\n");
	}
}

static void print_all(const uint8_t *at, int left)
{
	const struct nlattr *a;

	while ((a = genl_next(&at, &left))) {
		const uint8_t *data = (const uint8_t *)a + NLA_HDRLEN;
		int size = a->nla_len - NLA_HDRLEN;

		for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
			if (names[i].type != (a->nla_type & NLA_TYPE_MASK))
				continue;
			if (names[i].kind == NEST) {
				const struct nlattr *one;
				const uint8_t *inner = data;
				int inner_left = size;

				while ((one = genl_next(&inner, &inner_left))) {
					if (!(one->nla_type & NLA_TYPE_MASK))
						continue;
					printf("%s%u=", names[i].name,
					       one->nla_type & NLA_TYPE_MASK);
					print_value(U64, (const uint8_t *)one + NLA_HDRLEN,
						    one->nla_len - NLA_HDRLEN);
				}
			} else {
				printf("%s=", names[i].name);
				print_value(names[i].kind, data, size);
			}
		}
	}
	printf("\n");
}

/* Of a socket that the request brings; -1: it brings none. */
static int lent = -1;

static int ask(struct genl *g, int argc, char **argv)
{
	static struct request r;
	int error;

	for (size_t c = 0; c < sizeof(commands) / sizeof(commands[0]); c++) {
		if (strcmp(commands[c].name, argv[0]))
			continue;
		genl_begin(g, &r, g->family, commands[c].command, commands[c].flags);
		for (int i = 1; i < argc; i++) {
			char *value = strchr(argv[i], '=');
			size_t n;

			if (!value)
				die(argv[i]);
			*value++ = 0;
			for (n = 0; n < sizeof(names) / sizeof(names[0]); n++)
				if (!strcmp(names[n].name, argv[i]))
					break;
			if (n == sizeof(names) / sizeof(names[0]))
				die(argv[i]);
			put_field(&r, &names[n], value);
		}
		if (lent >= 0)
			genl_put(&r, QRE_A_FD, &lent, 4);
		error = genl_ask(g, &r, print_all);
		if (error)
			printf("errno %s: %s\n", strerrorname_np(error), g->words);
		return !!error;
	}
	errno = ENOSYS;
	die(argv[0]);
	return 2;
}

static void join(struct genl *g, uint32_t group)
{
	if (setsockopt(g->fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)))
		die("joining a group of events");
}

static int events(struct genl *g, int seconds, const char *alone)
{
	struct timeval wait = {.tv_sec = 1};
	time_t end = time(NULL) + seconds;
	static uint8_t buffer[65536];

	if (!alone || !strcmp(alone, QRE_GENL_EVENTS))
		join(g, g->events);
	if (!alone || !strcmp(alone, QRE_GENL_FRAMES))
		join(g, g->frames);
	setsockopt(g->fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
	printf("listening\n");
	fflush(stdout);
	while (time(NULL) < end) {
		int size = recv(g->fd, buffer, sizeof(buffer), 0);
		struct nlmsghdr *n = (void *)buffer;

		for (; size > 0 && NLMSG_OK(n, size); n = NLMSG_NEXT(n, size))
			print_all((uint8_t *)NLMSG_DATA(n) + GENL_HDRLEN,
				  n->nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN));
		fflush(stdout);
	}
	return 0;
}

/* Options of the socket, a line of standard input each. */
static void obey(int fd)
{
	char line[64], name[32], value[32];
	int number;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%31s %31s", name, value) != 2)
			continue;
		number = atoi(value);
		if (setsockopt(fd, SOL_SOCKET, strcmp(name, "mark") ? SO_PRIORITY : SO_MARK,
			       &number, sizeof(number)))
			die(line);
		printf("%s %s\n", name, value);
		fflush(stdout);
	}
}

static void print_arriving(int fd)
{
	static uint8_t data[65536];
	struct iovec vector = {data, sizeof(data)};
	char space[2 * CMSG_SPACE(4)];
	struct end from;

	for (;;) {
		struct msghdr m = {.msg_name = &from.any,
				   .msg_namelen = sizeof(from.v6),
				   .msg_iov = &vector,
				   .msg_iovlen = 1,
				   .msg_control = space,
				   .msg_controllen = sizeof(space)};
		ssize_t size = recvmsg(fd, &m, 0);
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);

		if (size < 0)
			continue;
		printf("got %s %u ", end_text(&from), c ? *(uint8_t *)CMSG_DATA(c) : 0);
		print_value(HEX, data, size);
		fflush(stdout);
	}
}

static int hold(struct genl *g, const char *ip, int port, bool shared, const char *device)
{
	struct end local = end_of(ip, port);
	int fd = end_socket(&local), one = 1;
	static struct request r;
	uint32_t number = fd;
	int error = 0;

	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	if (device && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device)))
		die(device);
	if (bind(fd, &local.any, local.size))
		die("bind");
	if (shared) {
		genl_begin(g, &r, g->family, QRE_CMD_SHARED_SOCKET_REGISTER, 0);
		genl_put(&r, QRE_A_FD, &number, 4);
		error = genl_ask(g, &r, NULL);
		if (error) {
			printf("errno %s: %s\n", strerrorname_np(error), g->words);
			return 1;
		}
	}
	printf("held\n");
	fflush(stdout);
	obey(fd);
	print_arriving(fd);
	return 0;
}

/* A request with a UDP socket that is bound, and that nobody else has when this ends. */
static int lend(struct genl *g, const char *ip, int port, int argc, char **argv)
{
	struct end local = end_of(ip, port);

	lent = end_socket(&local);
	if (bind(lent, &local.any, local.size))
		die("bind");
	return ask(g, argc, argv);
}

int main(int argc, char **argv)
{
	static struct genl g;
	int error;

	if (argc < 2)
		return 2;
	error = genl_open(&g);
	if (error) {
		errno = error;
		die("qre.ko");
	}
	if (!strcmp(argv[1], "events") && argc >= 3)
		return events(&g, atoi(argv[2]), argv[3]);
	if (!strcmp(argv[1], "hold") && argc >= 4)
		return hold(&g, argv[2], atoi(argv[3]), argc > 4, argc > 5 ? argv[5] : NULL);
	if (!strcmp(argv[1], "lend") && argc >= 5)
		return lend(&g, argv[2], atoi(argv[3]), argc - 4, argv + 4);
	return ask(&g, argc - 1, argv + 1);
}
