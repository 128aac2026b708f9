// SPDX-License-Identifier: GPL-2.0-only
/*
 * faults LEDGER CALL: asks qre.ko in the namespaces a (server) and b (client) for CALL again and
 * again, and each time one allocation later fails (/proc/thread-self/fail-nth), until none is left.
 * What was refused must have changed nothing and succeed at once when it is asked for again. Prints
 *
 *	CALL allocations=N failed=N survived=N
 *
 * failed: the call was refused; survived: it did without. "faults LEDGER" names the calls.
 *
 * faults LEDGER cold FIRST: the first packets that processors send since the module was loaded,
 * with the allocations FIRST, FIRST + 1 ... failing, one processor each. Status 9: none was left.
 */
#define _GNU_SOURCE
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>

#include "sessions.h"

#define STANDING 0 /* the place of the session that is there all the while */
#define TRIED	 1 /* of the one that is tried */
#define WAITING	 2 /* of one that waits for a shared socket */
#define MOST	 5000
#define PATIENCE 60 /* seconds */
#define IDLE_MS	 3600000

static struct session sessions[PLACES];
static struct ledger *ledger;
static int fail_nth;
static unsigned int tried; /* which allocation is to fail */
static const char *name;

static void wrong(const char *what, int error)
{
	printf("wrong: %s: %s: %s\n", name, what, strerror(error));
	fflush(stdout);
	exit(1);
}

static void fresh(uint8_t *out, size_t size)
{
	if (getrandom(out, size, 0) != (ssize_t)size)
		die("getrandom");
}

static void make_session(unsigned int place)
{
	struct session *s = &sessions[place];

	fresh(s->hp[0], sizeof(s->hp));
	new_keys(ledger, 0, place, s, &s->keys, fresh);
	new_keys(ledger, 0, place, s, &s->next, fresh);
	s->epoch[0] = s->epoch[1] = 0;
}

/* --- failing --- */

static void set_nth(unsigned int n)
{
	char text[16];
	int size = snprintf(text, sizeof(text), "%u", n);

	if (pwrite(fail_nth, text, size, 0) != size)
		die("fail-nth");
}

/* Whether what was set has come about; nothing is set from now on. */
static bool came_about(void)
{
	char text[16] = {};

	if (pread(fail_nth, text, sizeof(text) - 1, 0) <= 0)
		die("fail-nth");
	set_nth(0);
	return !atoi(text);
}

/* --- asking --- */

static int ask(unsigned int side)
{
	return genl_ask(&sides[side].genl, &request, NULL);
}

static int session_there(unsigned int side, unsigned int place)
{
	begin(&sides[side].genl, QRE_CMD_SESSION_GET, 0);
	put_id(place);
	return ask(side);
}

static int session_delete(unsigned int side, unsigned int place)
{
	begin(&sides[side].genl, QRE_CMD_SESSION_DEL, 0);
	put_id(place);
	return ask(side);
}

static int device_set(unsigned int side, int device)
{
	begin(&sides[side].genl, QRE_CMD_DEVICE_SET, device);
	put8(QRE_A_ROLE, side ? QRE_ROLE_CLIENT : QRE_ROLE_SERVER);
	return ask(side);
}

static int device_there(unsigned int side, int device)
{
	begin(&sides[side].genl, QRE_CMD_DEVICE_GET, device);
	return ask(side);
}

static int told(unsigned int side, uint16_t type)
{
	return device_there(side, 0)
		       ?: genl_find(sides[side].genl.reply, sides[side].genl.reply_size, type)
			  ? 0
			  : ENOENT;
}

static void put_allowed(unsigned int place)
{
	struct qre_allowed_ip ips[] = {{.family = 4, .prefix = 24, .address = {10, 78, place}},
				       {.family = 6, .prefix = 64, .address = {0xfd, 78, place}}};

	put(QRE_A_ALLOWED_IPS, ips, sizeof(ips));
}

/* A client's largest packets go in two. */
static void put_sizes(unsigned int side)
{
	uint16_t payload = side ? 1250 : 1472;

	put(QRE_A_MAX_UDP_PAYLOAD, &payload, sizeof(payload));
	put(QRE_A_SPLITS, NULL, 0);
}

/* Less what differs from call to call. */
static void begin_tried(unsigned int side, unsigned int place)
{
	begin_install(&sides[side].genl, side, 0, place, &sessions[place]);
	put_keys(side, &sessions[place].next, true);
	put_sizes(side);
	put64(QRE_A_IDLE_MS, IDLE_MS);
	put_allowed(place);
}

static int installed(unsigned int side, unsigned int place, int error)
{
	if (!error) {
		ledger_use(ledger, sessions[place].keys.written[side], LEDGER_USED);
		ledger_use(ledger, sessions[place].next.written[side], LEDGER_TAKEN);
	}
	return error;
}

/* --- what is to be as it was --- */

static struct state {
	uint8_t bytes[1 << 16];
	size_t size;
	uint64_t numbers; /* of all sessions, added up */
} states[2], *state;

static bool varies(uint16_t type)
{
	switch (type) {
	case QRE_A_PACKET_NUMBER:
	case QRE_A_RX_NUMBER:
	case QRE_A_AGE_MS:
	case QRE_A_LAST_RECEIVE_MS:
	case QRE_A_UNANSWERED_MS:
	case QRE_A_SILENT:
	case QRE_A_RX_PACKETS:
	case QRE_A_RX_BYTES:
	case QRE_A_TX_PACKETS:
	case QRE_A_TX_BYTES:
	case QRE_A_DROPS:
	case QRE_A_SHARED_RX:
	case QRE_A_SHARED_PASSED:
	case QRE_A_MAP_SYNC_FAILURES:
	case QRE_A_PATH_MTU:
	case QRE_A_INNER_MTU:
	case QRE_A_INNER_MTU_IPV6:
	case QRE_A_INNER_MTU_IN_TWO:
	case QRE_A_CONFIRMED:
		return true;
	}
	return false;
}

static void take(const uint8_t *at, int left)
{
	const struct nlattr *a;

	while ((a = genl_next(&at, &left))) {
		uint64_t number;

		if ((a->nla_type & NLA_TYPE_MASK) == QRE_A_PACKET_NUMBER) {
			memcpy(&number, (const uint8_t *)a + NLA_HDRLEN, 8);
			state->numbers += number;
		}
		if (varies(a->nla_type & NLA_TYPE_MASK) ||
		    state->size + a->nla_len > sizeof(state->bytes))
			continue;
		memcpy(state->bytes + state->size, a, a->nla_len);
		state->size += a->nla_len;
	}
}

static void look(struct state *into)
{
	state = into;
	state->size = 0;
	state->numbers = 0;
	for (unsigned int side = 0; side < ENDS; side++) {
		begin(&sides[side].genl, QRE_CMD_DEVICE_GET, -1);
		request.header.nlmsg_flags |= NLM_F_DUMP;
		errno = genl_ask(&sides[side].genl, &request, take);
		if (errno)
			wrong("devices", errno);
		begin(&sides[side].genl, QRE_CMD_SESSION_GET, 0);
		request.header.nlmsg_flags |= NLM_F_DUMP;
		errno = genl_ask(&sides[side].genl, &request, take);
		if (errno)
			wrong("sessions", errno);
	}
}

/* --- the calls --- */

static int descriptor = -1;

static void forget_descriptor(void)
{
	close(descriptor);
	descriptor = -1;
}

static void prepare_session(void)
{
	make_session(TRIED);
}

static int install_client(void)
{
	begin_tried(1, TRIED);
	put_underlay(1, TRIED);
	return installed(1, TRIED, ask(1));
}

static void prepare_client_fd(void)
{
	make_session(TRIED);
	enter(1);
	descriptor = bound(ip_of(1, TRIED), FIRST_PORT + TRIED);
}

static int install_client_fd(void)
{
	begin_tried(1, TRIED);
	put_underlay(1, TRIED);
	put32(QRE_A_FD, descriptor);
	return installed(1, TRIED, ask(1));
}

static int client_there(void)
{
	return session_there(1, TRIED);
}

/* It was there, though the answer to the install may have been lost. */
static void was_installed(unsigned int side)
{
	installed(side, TRIED, 0);
}

static void delete_client(void)
{
	was_installed(1);
	errno = session_delete(1, TRIED);
	if (errno)
		wrong("delete", errno);
	forget_descriptor();
}

/* A socket of its own. */
static int install_server(void)
{
	begin_tried(0, TRIED);
	put_underlay(0, TRIED);
	change_local(TRIED, "127.0.0.1", "::1");
	return installed(0, TRIED, ask(0));
}

static int install_beside(void)
{
	begin_tried(0, TRIED);
	put_underlay(0, TRIED);
	return installed(0, TRIED, ask(0));
}

/* On the shared socket, or on none yet. */
static int install_bare(void)
{
	begin_tried(0, TRIED);
	return installed(0, TRIED, ask(0));
}

static int server_there(void)
{
	return session_there(0, TRIED);
}

static void delete_server(void)
{
	was_installed(0);
	errno = session_delete(0, TRIED);
	if (errno)
		wrong("delete", errno);
}

static void prepare_shared(void)
{
	enter(0);
	descriptor = bound(ip_of(0, TRIED), PORT + 1);
}

static int shared_register(void)
{
	begin(&sides[0].genl, QRE_CMD_SHARED_SOCKET_REGISTER, -1);
	put32(QRE_A_FD, descriptor);
	return ask(0);
}

static int shared_there(void)
{
	return told(0, QRE_A_SHARED_PORT);
}

static void shared_unregister(void)
{
	begin(&sides[0].genl, QRE_CMD_SHARED_SOCKET_UNREGISTER, -1);
	errno = ask(0);
	if (errno)
		wrong("unregister", errno);
	forget_descriptor();
}

static void prepare_on_shared(void)
{
	prepare_shared();
	errno = shared_register();
	if (errno)
		wrong("register", errno);
	make_session(TRIED);
}

static void delete_on_shared(void)
{
	delete_server();
	shared_unregister();
}

/* One that a new shared socket takes over. */
static void prepare_waiting(void)
{
	prepare_shared();
	if (!session_there(0, WAITING))
		session_delete(0, WAITING);
	make_session(WAITING);
	begin_tried(0, WAITING);
	errno = installed(0, WAITING, ask(0));
	if (errno)
		wrong("install", errno);
}

static void prepare_map(void)
{
	union bpf_attr map = {.map_type = BPF_MAP_TYPE_HASH,
			      .key_size = sizeof(struct qre_cid),
			      .value_size = 4,
			      .max_entries = 64};

	descriptor = syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof(map));
}

static int map_register(void)
{
	begin(&sides[0].genl, QRE_CMD_CID_MAP_REGISTER, -1);
	put32(QRE_A_FD, descriptor);
	return ask(0);
}

static int map_there(void)
{
	return told(0, QRE_A_MAP_ID);
}

static void map_unregister(void)
{
	begin(&sides[0].genl, QRE_CMD_CID_MAP_UNREGISTER, -1);
	errno = ask(0);
	if (errno)
		wrong("unregister", errno);
	forget_descriptor();
}

static int adopt(unsigned int place, bool for_session)
{
	begin(&sides[0].genl, QRE_CMD_CID_ADOPT, 0);
	put_cid(place, 1);
	if (for_session)
		put_id(place);
	return ask(0);
}

static int adopt_device(void)
{
	return adopt(TRIED, false);
}

static int adopt_session(void)
{
	return adopt(STANDING, true);
}

static int release(unsigned int place)
{
	begin(&sides[0].genl, QRE_CMD_CID_RELEASE, 0);
	put_cid(place, 1);
	return ask(0);
}

static void release_device(void)
{
	errno = release(TRIED);
	if (errno)
		wrong("release", errno);
}

static void release_session(void)
{
	errno = release(STANDING);
	if (errno)
		wrong("release", errno);
}

/* Where an answer was lost: a repeat is harmless. */
static int repeat(void)
{
	return ENOENT;
}

static void nothing(void)
{
}

/* One without next keys, that learns them. */
static void prepare_to_learn(void)
{
	make_session(TRIED);
	begin_install(&sides[0].genl, 0, 0, TRIED, &sessions[TRIED]);
	put64(QRE_A_IDLE_MS, IDLE_MS);
	errno = installed(0, TRIED, ask(0));
	if (errno)
		wrong("install", errno);
}

static int learn_next(void)
{
	begin_update(&sides[0].genl, 0, 0, TRIED, 0, &sessions[TRIED].keys, &sessions[TRIED].next);
	return ask(0);
}

/* The next phase, of the standing session: the client has followed the last one by now. */
static struct keys following;

static int client_learns(void)
{
	struct session *s = &sessions[STANDING];

	begin_update(&sides[1].genl, 1, 0, STANDING, s->epoch[0], &s->keys, &s->next);
	return ask(1);
}

static void prepare_phase(void)
{
	struct session *s = &sessions[STANDING];

	new_keys(ledger, 0, STANDING, s, &following, fresh);
	for (unsigned int again = 0; client_learns() && again < PATIENCE * 10; again++)
		usleep(100000);
}

static int begin_phase(void)
{
	struct session *s = &sessions[STANDING];
	int error = EAGAIN;

	for (unsigned int again = 0; error == EAGAIN && again < PATIENCE * 10; again++) {
		begin_update(&sides[0].genl, 0, 0, STANDING, s->epoch[0] + 1, &s->next, &following);
		error = ask(0);
		if (error != EAGAIN)
			break;
		set_nth(0); /* the client has not confirmed the last one yet */
		usleep(100000);
		set_nth(tried);
	}
	return error;
}

static int phase_there(void)
{
	struct genl *g = &sides[0].genl;
	int error = session_there(0, STANDING);
	const struct nlattr *a = error ? NULL : genl_find(g->reply, g->reply_size, QRE_A_KEY_EPOCH);
	uint64_t epoch = 0;

	if (a)
		memcpy(&epoch, (const uint8_t *)a + NLA_HDRLEN, 8);
	return a && epoch == sessions[STANDING].epoch[0] + 1 ? 0 : ENOENT;
}

static void phase_began(void)
{
	struct session *s = &sessions[STANDING];

	s->keys = s->next;
	s->next = following;
	s->epoch[0]++;
	s->epoch[1]++;
	for (unsigned int side = 0; side < ENDS; side++) {
		ledger_use(ledger, s->keys.written[side], LEDGER_USED);
		ledger_use(ledger, s->next.written[side], LEDGER_TAKEN);
	}
}

static int send_frame(void)
{
	static const uint8_t ping[] = {0x01};
	int error = ENOBUFS;

	for (unsigned int again = 0; error == ENOBUFS && again < 50; again++) {
		begin(&sides[0].genl, QRE_CMD_FRAME_SEND, 0);
		put_id(STANDING);
		put(QRE_A_FRAMES, ping, sizeof(ping));
		put64(QRE_A_FRAME_ID, 1);
		error = ask(0);
		if (error == ENOBUFS) /* as many as may be are in flight */
			usleep(50000);
	}
	return error;
}

static void prepare_server(void)
{
	make_session(TRIED);
	errno = install_beside();
	if (errno)
		wrong("install", errno);
}

static int close_server(void)
{
	begin(&sides[0].genl, QRE_CMD_SESSION_DEL, 0);
	put_id(TRIED);
	put(QRE_A_CLOSE, NULL, 0);
	return ask(0);
}

static int closes(void)
{
	struct genl *g = &sides[0].genl;
	const struct nlattr *a;

	if (session_there(0, TRIED))
		return 0;
	a = genl_find(g->reply, g->reply_size, QRE_A_STATE);
	return a && *((const uint8_t *)a + NLA_HDRLEN) == QRE_SESSION_CLOSING ? 0 : ENOENT;
}

/* Until it is gone: 3 times its probe timeout. */
static void wait_gone(void)
{
	for (unsigned int again = 0; !session_there(0, TRIED); again++) {
		if (again == PATIENCE * 10)
			wrong("it closes and closes", ETIMEDOUT);
		usleep(100000);
	}
}

static int device_create(void)
{
	return device_set(0, 1);
}

static int created(void)
{
	return device_there(0, 1);
}

static void device_delete(void)
{
	begin(&sides[0].genl, QRE_CMD_DEVICE_DEL, 1);
	errno = ask(0);
	if (errno)
		wrong("device-del", errno);
}

static int rtnetlink = -1;

static void prepare_link(void)
{
	if (rtnetlink >= 0)
		return;
	enter(0);
	rtnetlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
}

static int ask_link(uint16_t type, uint16_t flags)
{
	struct nlattr *information;
	struct ifinfomsg *link;
	struct genl g = {};

	g.fd = rtnetlink;
	request.header = (struct nlmsghdr){.nlmsg_len = NLMSG_LENGTH(sizeof(*link)),
					   .nlmsg_type = type,
					   .nlmsg_flags = NLM_F_REQUEST | flags};
	link = NLMSG_DATA(&request.header);
	*link = (struct ifinfomsg){};
	genl_put(&request, IFLA_IFNAME, "qre1", 5);
	information = (void *)(request.bytes + request.header.nlmsg_len);
	genl_put(&request, IFLA_LINKINFO, NULL, 0);
	genl_put(&request, IFLA_INFO_KIND, QRE_LINK_KIND, sizeof(QRE_LINK_KIND));
	information->nla_len = request.bytes + request.header.nlmsg_len - (uint8_t *)information;
	return genl_ask(&g, &request, NULL);
}

static int new_link(void)
{
	return ask_link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
}

static void delete_link(void)
{
	errno = ask_link(RTM_DELLINK, 0);
	if (errno)
		wrong("dellink", errno);
}

static int set_profile(void)
{
	static uint8_t profile[3000] = {'{'};

	begin(&sides[0].genl, QRE_CMD_DEST_PROFILE_SET, 0);
	put(QRE_A_DEST_PROFILE, profile, sizeof(profile));
	return ask(0);
}

static int dump_sessions(void)
{
	int error;

	begin(&sides[0].genl, QRE_CMD_SESSION_GET, 0);
	request.header.nlmsg_flags |= NLM_F_DUMP;
	error = ask(0);
	if (!error)
		return 0;
	close(sides[0].genl.fd); /* the dump may still be under way there */
	enter(0);
	if (genl_open(&sides[0].genl))
		die("qre.ko");
	return error;
}

/* --- packets, from the client's end --- */

static int sender = -1, receiver = -1, segment;
static size_t datagram;

static void open_traffic(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
	struct timeval wait = {.tv_sec = 2};

	if (sender >= 0)
		return;
	to.sin_addr.s_addr = inet_addr("10.77.0.1");
	enter(0);
	receiver = bound("10.77.0.1", 9);
	setsockopt(receiver, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
	enter(1);
	sender = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (connect(sender, (void *)&to, sizeof(to)))
		die("connect");
}

static void empty_receiver(void)
{
	static uint8_t data[65536];

	while (recv(receiver, data, sizeof(data), MSG_DONTWAIT) >= 0)
		;
}

static void prepare_traffic(size_t size, int of)
{
	open_traffic();
	datagram = size;
	segment = of;
	if (setsockopt(sender, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment)))
		die("UDP_SEGMENT");
}

static void prepare_small(void)
{
	prepare_traffic(100, 0);
}

static void prepare_large(void)
{
	prepare_traffic(1100, 0);
}

static void prepare_fragments(void)
{
	int any = IP_PMTUDISC_DONT;

	prepare_traffic(5000, 0);
	setsockopt(sender, IPPROTO_IP, IP_MTU_DISCOVER, &any, sizeof(any));
}

static void prepare_segments(void)
{
	prepare_traffic(20 * 900, 900);
}

/* 0: it left the process. Whether it arrives is another question. */
static int transmit(void)
{
	static uint8_t data[65536];

	return send(sender, data, datagram, 0) == (ssize_t)datagram ? 0 : errno;
}

/* Something arrives of what is sent now, although what was sent before did not. */
static void arrives(void)
{
	static uint8_t data[65536];

	empty_receiver();
	for (unsigned int again = 0; again < 10; again++) {
		errno = transmit();
		if (errno)
			wrong("send", errno);
		if (recv(receiver, data, sizeof(data), 0) > 0)
			return;
	}
	wrong("nothing arrives any more", ETIMEDOUT);
}

static const struct call {
	const char *name;
	void (*prepare)(void); /* before each */
	int (*ask)(void);
	int (*there)(void); /* 0: what was asked for is there, though the answer may be lost */
	void (*undo)(void);
} calls[] = {
	{"install-client", prepare_session, install_client, client_there, delete_client},
	{"install-client-fd", prepare_client_fd, install_client_fd, client_there, delete_client},
	{"install-server", prepare_session, install_server, server_there, delete_server},
	{"install-server-beside", prepare_session, install_beside, server_there, delete_server},
	{"install-server-bare", prepare_session, install_bare, server_there, delete_server},
	{"install-on-shared", prepare_on_shared, install_bare, server_there, delete_on_shared},
	{"update-learn", prepare_to_learn, learn_next, repeat, delete_server},
	{"update-phase", prepare_phase, begin_phase, phase_there, phase_began},
	{"shared-register", prepare_waiting, shared_register, shared_there, shared_unregister},
	{"map-register", prepare_map, map_register, map_there, map_unregister},
	{"adopt-device", nothing, adopt_device, repeat, release_device},
	{"adopt-session", nothing, adopt_session, repeat, release_session},
	{"frame-send", nothing, send_frame, repeat, nothing},
	{"close", prepare_server, close_server, closes, wait_gone},
	{"profile-set", nothing, set_profile, repeat, nothing},
	{"dump", nothing, dump_sessions, repeat, nothing},
	{"device-set", nothing, device_create, created, device_delete},
	{"newlink", prepare_link, new_link, created, delete_link},
	{"transmit-small", prepare_small, transmit, repeat, arrives},
	{"transmit-large", prepare_large, transmit, repeat, arrives},
	{"transmit-fragments", prepare_fragments, transmit, repeat, arrives},
	{"transmit-segments", prepare_segments, transmit, repeat, arrives},
};

/* --- all of it --- */

static void begin_standing(void)
{
	make_session(STANDING);
	for (unsigned int side = 0; side < ENDS; side++) {
		errno = device_set(side, 0);
		if (errno)
			wrong("device-set", errno);
		session_delete(side, STANDING);
		session_delete(side, TRIED);
		set_address(side, 0);
		begin_install(&sides[side].genl, side, 0, STANDING, &sessions[STANDING]);
		put_sizes(side);
		put_keys(side, &sessions[STANDING].next, true);
		put64(QRE_A_IDLE_MS, IDLE_MS);
		put_underlay(side, STANDING);
		errno = installed(side, STANDING, ask(side));
		if (errno)
			wrong("install", errno);
	}
}

/* Refused with nothing changed, or done; then asked for again until it is. */
static void after_failure(const struct call *call, int error)
{
	if (error == ENOBUFS && !call->there()) /* the answer alone was lost */
		return;
	look(&states[1]);
	if (states[1].size != states[0].size ||
	    memcmp(states[1].bytes, states[0].bytes, states[0].size)) {
		if (error != ENOBUFS)
			wrong("something changed although it was refused", error);
	}
	if (states[1].numbers < states[0].numbers)
		wrong("packet numbers went back", error);
	error = call->ask();
	if (error)
		wrong("it fails although nothing else does", error);
}

static void try_all(const struct call *call)
{
	unsigned int n, failed = 0, survived = 0;
	bool any = true;
	int error;

	for (n = 1; any && n <= MOST; n++) {
		call->prepare();
		look(&states[0]);
		tried = n;
		set_nth(n);
		error = call->ask();
		any = came_about();
		tried = 0;
		if (error && !any)
			wrong("it fails although nothing else does", error);
		if (error) {
			failed++;
			after_failure(call, error);
		} else if (any) {
			survived++;
		}
		call->undo();
	}
	printf("%s allocations=%u failed=%u survived=%u\n", call->name, n - 2, failed, survived);
}

static void pin(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("affinity");
}

/* Processor 0 makes the session. */
static int cold(unsigned int n)
{
	bool any = true;

	name = "cold";
	pin(0);
	begin_standing();
	prepare_large();
	sleep(1);
	for (unsigned int cpu = 1; any && cpu < sysconf(_SC_NPROCESSORS_ONLN); cpu++, n++) {
		pin(cpu);
		set_nth(n);
		transmit();
		any = came_about();
	}
	pin(0);
	arrives();
	return any ? 0 : 9;
}

int main(int argc, char **argv)
{
	if (argc == 2) {
		for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
			printf("%s\n", calls[i].name);
		return 0;
	}
	if (argc < 3)
		return 2;
	outer = getenv("OVER") && atoi(getenv("OVER")) == 6 ? OVER_IPV6 : OVER_IPV4;
	mlockall(MCL_CURRENT); /* pages are not to be had while allocations fail */
	ledger = ledger_open(argv[1]);
	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (!ledger || fail_nth < 0)
		die("fail-nth, or the ledger");
	open_sides(0, true);
	if (argc == 4)
		return cold(atoi(argv[3]));
	name = argv[2];
	begin_standing();
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		if (!strcmp(calls[i].name, name))
			try_all(&calls[i]);
	session_delete(0, STANDING);
	session_delete(1, STANDING);
	return 0;
}
