// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the order of life must withstand, in the namespace that it is called in. life COMMAND:
 *
 *   refused SECONDS TX RX  asks for a client's session with this used transmit key again and again
 *   ports ROUNDS           installs and deletes a client's session on one local port
 *   forgotten ROUNDS TX RX uses as many keys for one packet or none each, then TX again
 *   held IP PORT           registers a shared socket whose lock it never gives back; says "held"
 *   swapped SECONDS        registers descriptors that change their map meanwhile
 *   policy COMMAND TYPE    what the kernel says an attribute of a command must look like
 *   keep SESSIONS [held]   installs and keeps so many; held ones end by themselves after 10 s
 *
 * Each prints what was counted, a line NAME=VALUE each.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/udp.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "genl.h"

static struct genl genl;
static struct request request;

static void die(const char *what)
{
	printf("life: %s: %s: %s\n", what, strerror(errno), genl.words);
	exit(2);
}

static void put_filled(uint16_t type, uint8_t byte, size_t size)
{
	uint8_t bytes[64];

	memset(bytes, byte, sizeof(bytes));
	genl_put(&request, type, bytes, size);
}

static void put_hex(uint16_t type, const char *text)
{
	uint8_t bytes[64];
	unsigned int byte;
	size_t size = 0;

	for (; text[0] && text[1] && size < sizeof(bytes); text += 2) {
		sscanf(text, "%2x", &byte);
		bytes[size++] = byte;
	}
	genl_put(&request, type, bytes, size);
}

/* A key of its own for every number and process. */
static void put_key(uint16_t type, uint32_t number)
{
	uint8_t bytes[QRE_KEY_SIZE] = {0x4b};
	uint32_t process = getpid();

	memcpy(bytes + 4, &number, sizeof(number));
	memcpy(bytes + 8, &process, sizeof(process));
	genl_put(&request, type, bytes, sizeof(bytes));
}

static void put_underlay(const char *local, uint16_t local_port, const char *peer,
			 uint16_t peer_port)
{
	uint32_t from = inet_addr(local), to = inet_addr(peer);

	local_port = htons(local_port);
	peer_port = htons(peer_port);
	genl_put(&request, QRE_A_LOCAL_IP, &from, 4);
	genl_put(&request, QRE_A_LOCAL_PORT, &local_port, 2);
	genl_put(&request, QRE_A_PEER_IP, &to, 4);
	genl_put(&request, QRE_A_PEER_PORT, &peer_port, 2);
}

/* An install on qre0, less the keys. */
static void begin_install(uint8_t id)
{
	uint64_t epoch = 0, number = QRE_PACKET_NUMBER_BASE, idle = 3600000;

	genl_begin(&genl, &request, genl.family, QRE_CMD_SESSION_INSTALL, 0);
	genl_put(&request, QRE_A_IFNAME, "qre0", 5);
	put_filled(QRE_A_SESSION_ID, id, QRE_SESSION_ID_SIZE);
	put_filled(QRE_A_CID, id, QRE_CID_MAX);
	put_filled(QRE_A_TX_HP_KEY, 0x31, QRE_KEY_SIZE);
	put_filled(QRE_A_RX_HP_KEY, 0x32, QRE_KEY_SIZE);
	put_filled(QRE_A_TX_IV, 0x33, QRE_IV_SIZE);
	put_filled(QRE_A_RX_IV, 0x34, QRE_IV_SIZE);
	genl_put(&request, QRE_A_KEY_EPOCH, &epoch, 8);
	genl_put(&request, QRE_A_PACKET_NUMBER, &number, 8);
	genl_put(&request, QRE_A_IDLE_MS, &idle, 8);
}

static int delete_session(uint8_t id, bool tell)
{
	genl_begin(&genl, &request, genl.family, QRE_CMD_SESSION_DEL, 0);
	genl_put(&request, QRE_A_IFNAME, "qre0", 5);
	put_filled(QRE_A_SESSION_ID, id, QRE_SESSION_ID_SIZE);
	if (tell)
		genl_put(&request, QRE_A_CLOSE, NULL, 0);
	return genl_ask(&genl, &request, NULL);
}

static int ask_fd(uint8_t command, uint32_t fd)
{
	genl_begin(&genl, &request, genl.family, command, 0);
	genl_put(&request, QRE_A_FD, &fd, sizeof(fd));
	return genl_ask(&genl, &request, NULL);
}

static int ask_nothing(uint8_t command)
{
	genl_begin(&genl, &request, genl.family, command, 0);
	return genl_ask(&genl, &request, NULL);
}

/* --- used keys --- */

static void refused(int seconds, const char *tx, const char *rx)
{
	unsigned long asked = 0, exist = 0;
	time_t end = time(NULL) + seconds;

	while (time(NULL) < end) {
		begin_install(8);
		genl_put(&request, QRE_A_CLIENT_CID, NULL, 0);
		put_hex(QRE_A_TX_KEY, tx);
		put_hex(QRE_A_RX_KEY, rx);
		put_underlay("10.9.0.2", 5555, "10.9.0.1", 443);
		asked++;
		exist += genl_ask(&genl, &request, NULL) == EEXIST;
	}
	printf("asked=%lu\nexist=%lu\n", asked, exist);
}

static void forgotten(uint32_t rounds, const char *tx, const char *rx)
{
	for (uint32_t i = 0; i < rounds; i++) {
		begin_install(9);
		put_key(QRE_A_TX_KEY, i);
		put_filled(QRE_A_RX_KEY, 0x35, QRE_KEY_SIZE);
		errno = genl_ask(&genl, &request, NULL) ?: delete_session(9, false);
		if (errno)
			die("install");
	}
	begin_install(9);
	put_hex(QRE_A_TX_KEY, tx);
	put_hex(QRE_A_RX_KEY, rx);
	printf("again=%d\n", genl_ask(&genl, &request, NULL));
}

/* --- ports --- */

static void ports(uint32_t rounds)
{
	unsigned long in_use = 0, other = 0;

	for (uint32_t i = 0; i < rounds; i++) {
		int error;

		begin_install(8);
		genl_put(&request, QRE_A_CLIENT_CID, NULL, 0);
		put_key(QRE_A_TX_KEY, 0x70000000 + i);
		put_filled(QRE_A_RX_KEY, 0x35, QRE_KEY_SIZE);
		put_underlay("127.0.0.1", 5557, "127.0.0.1", 443);
		error = genl_ask(&genl, &request, NULL);
		in_use += error == EADDRINUSE;
		other += error && error != EADDRINUSE;
		/* Every other one says good-bye, which takes three probe timeouts. */
		if (!error && delete_session(8, i % 2))
			other++;
		if (i % 2) { /* the next one has the same id, and this one still closes */
			begin_install(7);
			genl_put(&request, QRE_A_CLIENT_CID, NULL, 0);
			put_key(QRE_A_TX_KEY, 0x71000000 + i);
			put_filled(QRE_A_RX_KEY, 0x35, QRE_KEY_SIZE);
			put_underlay("127.0.0.1", 5557, "127.0.0.1", 443);
			error = genl_ask(&genl, &request, NULL);
			in_use += error == EADDRINUSE;
			other += error && error != EADDRINUSE;
			if (!error && delete_session(7, false))
				other++;
		}
	}
	printf("in_use=%lu\nother=%lu\n", in_use, other);
}

/* --- a socket whose lock is never given back --- */

static int corked;
static uint8_t *faulting;

static void *send_slowly(void *nothing)
{
	struct sockaddr_in to = {
		.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};

	sendto(corked, faulting, 64, 0, (void *)&to, sizeof(to));
	return nothing;
}

static void hold_lock(const char *ip, uint16_t port)
{
	struct sockaddr_in local = {
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {inet_addr(ip)}};
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register all = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	int faults = syscall(SYS_userfaultfd, O_CLOEXEC), one = 1;
	pthread_t thread;

	faulting = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	all.range.start = (uintptr_t)faulting;
	all.range.len = 4096;
	corked = socket(AF_INET, SOCK_DGRAM, 0);
	if (faults < 0 || ioctl(faults, UFFDIO_API, &api) || ioctl(faults, UFFDIO_REGISTER, &all))
		die("userfaultfd");
	if (corked < 0 || bind(corked, (void *)&local, sizeof(local)))
		die("socket");
	errno = ask_fd(QRE_CMD_SHARED_SOCKET_REGISTER, corked);
	if (errno)
		die("register");
	if (setsockopt(corked, IPPROTO_UDP, UDP_CORK, &one, sizeof(one)))
		die("cork");
	pthread_create(&thread, NULL, send_slowly, NULL);
	usleep(500000);
	printf("held\n");
	fflush(stdout);
	for (;;)
		pause();
}

/* --- a descriptor that changes its map --- */

static int map_fds[2], changing;
static volatile bool enough;

static int new_map(uint32_t flags, uint32_t *id)
{
	union bpf_attr attr = {.map_type = BPF_MAP_TYPE_HASH,
			       .key_size = sizeof(struct qre_cid),
			       .value_size = 4,
			       .max_entries = 64,
			       .map_flags = flags};
	int fd = syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr));
	struct bpf_map_info info = {};
	union bpf_attr about = {
		.info = {.bpf_fd = fd, .info_len = sizeof(info), .info = (uintptr_t)&info}};

	if (fd < 0 || syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &about, sizeof(about)))
		die("map");
	*id = info.id;
	return fd;
}

static void *change(void *nothing)
{
	for (unsigned int i = 0; !enough; i++)
		dup2(map_fds[i % 2], changing);
	return nothing;
}

static void swapped(int seconds)
{
	unsigned long registered = 0, wrong = 0;
	time_t end = time(NULL) + seconds;
	uint32_t read_only, writable, told;
	const struct nlattr *a;
	pthread_t thread;

	map_fds[0] = new_map(BPF_F_RDONLY, &read_only);
	map_fds[1] = new_map(0, &writable);
	changing = dup(map_fds[0]);
	pthread_create(&thread, NULL, change, NULL);
	while (time(NULL) < end) {
		if (ask_fd(QRE_CMD_CID_MAP_REGISTER, changing))
			continue;
		registered++;
		genl_begin(&genl, &request, genl.family, QRE_CMD_DEVICE_GET, 0);
		genl_put(&request, QRE_A_IFNAME, "qre0", 5);
		if (genl_ask(&genl, &request, NULL))
			die("device");
		a = genl_find(genl.reply, genl.reply_size, QRE_A_MAP_ID);
		if (!a)
			die("no map");
		memcpy(&told, (const uint8_t *)a + NLA_HDRLEN, sizeof(told));
		wrong += told != writable;
		if (ask_nothing(QRE_CMD_CID_MAP_UNREGISTER))
			die("unregister");
	}
	enough = true;
	pthread_join(thread, NULL);
	printf("registered=%lu\nwrong=%lu\n", registered, wrong);
}

/* --- policies --- */

static const struct nlattr *inside(const struct nlattr *outer, uint16_t type)
{
	return outer ? genl_find((const uint8_t *)outer + NLA_HDRLEN, outer->nla_len - NLA_HDRLEN,
				 type)
		     : NULL;
}

static uint16_t wanted_command, wanted_type;
static uint32_t policy_index = UINT32_MAX;

static void read_policy(const uint8_t *at, int left)
{
	const struct nlattr *ops = genl_find(at, left, CTRL_ATTR_OP_POLICY);
	const struct nlattr *policies = genl_find(at, left, CTRL_ATTR_POLICY), *one, *way;
	static const uint16_t limits[] = {NL_POLICY_TYPE_ATTR_TYPE, NL_POLICY_TYPE_ATTR_MIN_LENGTH,
					  NL_POLICY_TYPE_ATTR_MAX_LENGTH,
					  NL_POLICY_TYPE_ATTR_MIN_VALUE_U,
					  NL_POLICY_TYPE_ATTR_MAX_VALUE_U};
	static const char *const names[] = {"type", "min-len", "max-len", "min", "max"};

	way = inside(inside(ops, wanted_command), CTRL_ATTR_POLICY_DO);
	if (way)
		memcpy(&policy_index, (const uint8_t *)way + NLA_HDRLEN, 4);
	one = inside(inside(policies, policy_index), wanted_type);
	for (unsigned int i = 0; one && i < sizeof(limits) / sizeof(limits[0]); i++) {
		const struct nlattr *limit = inside(one, limits[i]);
		uint64_t value = 0;

		if (!limit)
			continue;
		memcpy(&value, (const uint8_t *)limit + NLA_HDRLEN, limit->nla_len - NLA_HDRLEN);
		printf("%s=%llu\n", names[i], (unsigned long long)value);
	}
}

static void policy(uint16_t command, uint16_t type)
{
	wanted_command = command;
	wanted_type = type;
	genl_begin(&genl, &request, GENL_ID_CTRL, CTRL_CMD_GETPOLICY, NLM_F_DUMP);
	genl_put(&request, CTRL_ATTR_FAMILY_ID, &genl.family, sizeof(genl.family));
	errno = genl_ask(&genl, &request, read_policy);
	if (errno)
		die("policies");
}

/* --- many --- */

static void keep(uint32_t sessions, bool held)
{
	for (uint32_t i = 0; i < sessions; i++) {
		begin_install(1 + i);
		put_key(QRE_A_TX_KEY, i);
		put_filled(QRE_A_RX_KEY, 0x35, QRE_KEY_SIZE);
		if (held)
			genl_put(&request, QRE_A_HOLD, NULL, 0);
		errno = genl_ask(&genl, &request, NULL);
		if (errno)
			die("install");
	}
	printf("sessions=%u\n", sessions);
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";

	errno = genl_open(&genl);
	if (errno)
		die("qre.ko");
	if (!strcmp(command, "refused") && argc == 5)
		refused(atoi(argv[2]), argv[3], argv[4]);
	else if (!strcmp(command, "forgotten") && argc == 5)
		forgotten(atoi(argv[2]), argv[3], argv[4]);
	else if (!strcmp(command, "ports") && argc == 3)
		ports(atoi(argv[2]));
	else if (!strcmp(command, "held") && argc == 4)
		hold_lock(argv[2], atoi(argv[3]));
	else if (!strcmp(command, "swapped") && argc == 3)
		swapped(atoi(argv[2]));
	else if (!strcmp(command, "policy") && argc == 4)
		policy(atoi(argv[2]), atoi(argv[3]));
	else if (!strcmp(command, "keep") && argc >= 3)
		keep(atoi(argv[2]), argc > 3);
	else
		return 2;
	return 0;
}
