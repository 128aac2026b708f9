// SPDX-License-Identifier: GPL-2.0-only
/*
 * storm run SEED ROUNDS SECONDS: two processes ask qre.ko for everything, in random order, in the
 * namespaces a (10.9.0.1, servers) and b (10.9.0.2, clients). Prints how much of each was done and
 * how much was refused; leaves behind what there is at the end.
 * storm traffic SECONDS: packets into the devices, and at their ports, from both sides.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "genl.h"

#define DEVICES	   3
#define SLOTS	   12 /* sessions of a device */
#define KEPT	   16 /* sockets that a process holds */
#define SERVER_IP  "10.9.0.1"
#define CLIENT_IP  "10.9.0.2"
#define PORT	   443
#define IDLE_MS	   20000
#define PROCESSES  2
#define NAMESPACES 2

enum operation {
	INSTALL,
	UPDATE,
	DELETE,
	ADOPT,
	RELEASE,
	MAP_REGISTER,
	MAP_UNREGISTER,
	SHARED_REGISTER,
	SHARED_UNREGISTER,
	SOCKET_CLOSE,
	DEVICE_ADD,
	DEVICE_DELETE,
	NAMESPACE_DELETE,
	FRAME_SEND,
	PROFILE_SET,
	LOADER_SET,
	DUMP,
	OPERATIONS,
};

static const struct {
	const char *name;
	unsigned int weight;
} operations[OPERATIONS] = {
	[INSTALL] = {"install", 30},
	[UPDATE] = {"update", 18},
	[DELETE] = {"delete", 12},
	[ADOPT] = {"adopt", 10},
	[RELEASE] = {"release", 6},
	[MAP_REGISTER] = {"map-register", 4},
	[MAP_UNREGISTER] = {"map-unregister", 3},
	[SHARED_REGISTER] = {"shared-register", 4},
	[SHARED_UNREGISTER] = {"shared-unregister", 3},
	[SOCKET_CLOSE] = {"socket-close", 4},
	[DEVICE_ADD] = {"device-add", 6},
	[DEVICE_DELETE] = {"device-delete", 2},
	[NAMESPACE_DELETE] = {"namespace-delete", 1},
	[FRAME_SEND] = {"frame-send", 6},
	[PROFILE_SET] = {"profile-set", 2},
	[LOADER_SET] = {"loader-set", 1},
	[DUMP] = {"dump", 4},
};

static struct tally { /* of a process, in memory that all of them see */
	unsigned int done[OPERATIONS], refused[OPERATIONS];
	uint64_t received; /* inner packets of one device: the most that was seen */
} * tallies, *tally;

static struct side {
	int namespace, control;
	struct genl genl;
} sides[NAMESPACES];

static uint64_t state;	 /* of the generator of choices */
static uint64_t key_now; /* keys are used once, whatever the seed */

static void die(const char *what)
{
	fprintf(stderr, "storm: %s: %s\n", what, strerror(errno));
	exit(2);
}

static uint64_t mixed(uint64_t *word)
{
	uint64_t z = (*word += 0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static unsigned int below(unsigned int limit)
{
	return mixed(&state) % limit;
}

static void fresh(uint8_t *out, size_t size)
{
	for (size_t i = 0; i < size; i++)
		out[i] = mixed(&key_now);
}

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

/* --- sockets --- */

static void enter(unsigned int side)
{
	if (setns(sides[side].namespace, CLONE_NEWNET))
		die("setns");
}

/* Bound to @ip and @port of the namespace that we are in; -1: it is in use. */
static int bound(const char *ip, uint16_t port)
{
	struct sockaddr_in local = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), one = 1;

	local.sin_addr.s_addr = inet_addr(ip);
	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	if (fd < 0 || !bind(fd, (void *)&local, sizeof(local)))
		return fd;
	close(fd);
	return -1;
}

static int kept[KEPT];

static void keep(int fd)
{
	unsigned int at = below(KEPT);

	if (kept[at] > 0)
		close(kept[at]);
	kept[at] = fd;
}

static int new_map(void)
{
	union bpf_attr attr = {.map_type = BPF_MAP_TYPE_HASH,
			       .key_size = sizeof(struct qre_cid),
			       .value_size = 4,
			       .max_entries = below(4) ? 4096 : 4};

	return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr));
}

/* --- requests --- */

static struct request request;

static void begin(struct genl *g, uint8_t command, int device)
{
	char name[] = {'q', 'r', 'e', '0' + device, 0};

	genl_begin(g, &request, g->family, command, 0);
	if (device >= 0)
		genl_put(&request, QRE_A_IFNAME, name, sizeof(name));
}

static void put(uint16_t type, const void *data, size_t size)
{
	genl_put(&request, type, data, size);
}

static void put8(uint16_t type, uint8_t value)
{
	put(type, &value, sizeof(value));
}

static void put32(uint16_t type, uint32_t value)
{
	put(type, &value, sizeof(value));
}

static void put64(uint16_t type, uint64_t value)
{
	put(type, &value, sizeof(value));
}

static int finish(struct genl *g, enum operation operation)
{
	int error = genl_ask(g, &request, NULL);

	if (error)
		tally->refused[operation]++;
	else
		tally->done[operation]++;
	return error;
}

static void put_slot(unsigned int device, unsigned int slot)
{
	uint8_t id[QRE_SESSION_ID_SIZE];

	memset(id, 1 + device * SLOTS + slot, sizeof(id));
	put(QRE_A_SESSION_ID, id, sizeof(id));
}

/* The first connection id of a session has its bytes, others have more to them. */
static void put_cid(unsigned int device, unsigned int slot, unsigned int more)
{
	uint8_t cid[QRE_CID_MAX];

	memset(cid, 1 + device * SLOTS + slot, sizeof(cid));
	cid[0] ^= more << 6;
	put(QRE_A_CID, cid, sizeof(cid));
}

/* --- sessions --- */

struct keys {
	uint8_t key[2][QRE_KEY_SIZE], iv[2][QRE_IV_SIZE]; /* to the client, to the server */
};

static struct {
	struct keys keys, next;
	uint8_t hp[2][QRE_KEY_SIZE];
	uint64_t epoch[NAMESPACES];
} sessions[DEVICES][SLOTS];

static void new_keys(struct keys *keys)
{
	fresh(keys->key[0], sizeof(keys->key));
	fresh(keys->iv[0], sizeof(keys->iv));
}

static void put_keys(unsigned int side, const struct keys *keys, bool next)
{
	unsigned int tx = side, rx = !side;

	put(next ? QRE_A_NEXT_TX_KEY : QRE_A_TX_KEY, keys->key[tx], QRE_KEY_SIZE);
	put(next ? QRE_A_NEXT_TX_IV : QRE_A_TX_IV, keys->iv[tx], QRE_IV_SIZE);
	put(next ? QRE_A_NEXT_RX_KEY : QRE_A_RX_KEY, keys->key[rx], QRE_KEY_SIZE);
	put(next ? QRE_A_NEXT_RX_IV : QRE_A_RX_IV, keys->iv[rx], QRE_IV_SIZE);
}

static void put_underlay(unsigned int side, uint16_t client_port)
{
	uint32_t ips[] = {inet_addr(SERVER_IP), inet_addr(CLIENT_IP)};
	uint16_t ports[] = {htons(PORT), htons(client_port)};

	put(QRE_A_LOCAL_IP, &ips[side], 4);
	put(QRE_A_LOCAL_PORT, &ports[side], 2);
	put(QRE_A_PEER_IP, &ips[!side], 4);
	put(QRE_A_PEER_PORT, &ports[!side], 2);
}

static void put_allowed(unsigned int device)
{
	struct qre_allowed_ip ips[8] = {};
	unsigned int count = below(2) ? below(8) : 0; /* none: all */

	for (unsigned int i = 0; i < count; i++) {
		ips[i].family = below(3) ? 4 : 6;
		ips[i].prefix = below(ips[i].family == 4 ? 33 : 129);
		memcpy(ips[i].address, (uint8_t[]){10, 77, device, below(4)}, 4);
	}
	if (count)
		put(QRE_A_ALLOWED_IPS, ips, count * sizeof(ips[0]));
}

static void install_end(unsigned int side, unsigned int device, unsigned int slot)
{
	struct genl *g = &sides[side].genl;
	uint16_t port = 20000 + device * SLOTS + slot;
	unsigned int k;
	int fd = -1;

	begin(g, QRE_CMD_SESSION_INSTALL, device);
	put_slot(device, slot);
	put_cid(device, slot, 0);
	put(QRE_A_CLIENT_CID, NULL, 0);
	put_keys(side, &sessions[device][slot].keys, false);
	for (k = 0; k < 2; k++)
		put(k == side ? QRE_A_TX_HP_KEY : QRE_A_RX_HP_KEY, sessions[device][slot].hp[k],
		    QRE_KEY_SIZE);
	if (below(2))
		put_keys(side, &sessions[device][slot].next, true);
	put64(QRE_A_KEY_EPOCH, 0);
	put64(QRE_A_PACKET_NUMBER, 0);
	put64(QRE_A_IDLE_MS, IDLE_MS);
	put_allowed(device);
	if (side || below(3))
		put_underlay(side, port);
	if (side && !below(3)) {
		enter(side);
		fd = bound(CLIENT_IP, port);
	} else if (!side && !below(12)) {
		enter(side);
		fd = bound(SERVER_IP, PORT);
	}
	if (fd >= 0) {
		put32(QRE_A_FD, fd);
		keep(fd);
	}
	if (!below(8))
		put(QRE_A_HOLD, NULL, 0);
	if (!finish(g, INSTALL))
		sessions[device][slot].epoch[side] = 0;
}

/* Both ends anew: what there was of them ends first, so that their keys go together. */
static void install(unsigned int device, unsigned int slot)
{
	for (unsigned int side = 0; side < NAMESPACES; side++) {
		begin(&sides[side].genl, QRE_CMD_SESSION_DEL, device);
		put_slot(device, slot);
		genl_ask(&sides[side].genl, &request, NULL);
	}
	new_keys(&sessions[device][slot].keys);
	new_keys(&sessions[device][slot].next);
	fresh(sessions[device][slot].hp[0], sizeof(sessions[device][slot].hp));
	install_end(0, device, slot);
	install_end(1, device, slot);
}

/* Both ends learn their next keys, or begin the next phase. */
static void update(unsigned int device, unsigned int slot)
{
	bool next = below(2), moves = below(4) == 0;
	struct keys following;
	unsigned int done = 0;

	new_keys(&following);
	for (unsigned int side = 0; side < NAMESPACES; side++) {
		struct genl *g = &sides[side].genl;
		const struct keys *keys =
			next ? &sessions[device][slot].next : &sessions[device][slot].keys;

		begin(g, QRE_CMD_SESSION_UPDATE, device);
		put_slot(device, slot);
		put_keys(side, keys, false);
		put_keys(side, next ? &following : &sessions[device][slot].next, true);
		put64(QRE_A_KEY_EPOCH, sessions[device][slot].epoch[side] + next);
		if (moves)
			put_underlay(side, 20000 + device * SLOTS + slot);
		done += !finish(g, UPDATE);
	}
	if (!next || !done)
		return;
	sessions[device][slot].keys = sessions[device][slot].next;
	sessions[device][slot].next = following;
	sessions[device][slot].epoch[0]++;
	sessions[device][slot].epoch[1]++;
}

static void delete (struct genl *g, unsigned int device, unsigned int slot)
{
	begin(g, QRE_CMD_SESSION_DEL, device);
	put_slot(device, slot);
	if (below(2))
		put(QRE_A_CLOSE, NULL, 0);
	finish(g, DELETE);
}

static void route(struct genl *g, enum operation operation, unsigned int device, unsigned int slot)
{
	begin(g, operation == ADOPT ? QRE_CMD_CID_ADOPT : QRE_CMD_CID_RELEASE, device);
	put_cid(device, slot, below(4));
	if (below(2))
		put_slot(device, slot);
	finish(g, operation);
}

static void send_frame(struct genl *g, unsigned int device, unsigned int slot)
{
	uint8_t frames[200] = {0x01};

	begin(g, QRE_CMD_FRAME_SEND, device);
	put_slot(device, slot);
	put(QRE_A_FRAMES, frames, 1 + below(sizeof(frames)));
	put64(QRE_A_FRAME_ID, below(1000));
	finish(g, FRAME_SEND);
}

/* --- devices --- */

static void set_address(int control, unsigned int device, unsigned int host)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	struct ifreq ifr = {};

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "qre%u", device);
	address.sin_addr.s_addr = htonl(0x0a4d0000 | device << 8 | host);
	memcpy(&ifr.ifr_addr, &address, sizeof(address));
	ioctl(control, SIOCSIFADDR, &ifr);
	address.sin_addr.s_addr = htonl(0xffffff00);
	memcpy(&ifr.ifr_netmask, &address, sizeof(address));
	ioctl(control, SIOCSIFNETMASK, &ifr);
	ifr.ifr_flags = IFF_UP | IFF_RUNNING;
	ioctl(control, SIOCSIFFLAGS, &ifr);
}

static void add_device(unsigned int side, unsigned int device)
{
	struct genl *g = &sides[side].genl;

	begin(g, QRE_CMD_DEVICE_SET, device);
	put8(QRE_A_ROLE, side ? QRE_ROLE_CLIENT : QRE_ROLE_SERVER);
	put32(QRE_A_MTU, 1000 + below(400));
	if (!finish(g, DEVICE_ADD))
		set_address(sides[side].control, device, 1 + side);
}

static void set_profile(struct genl *g, unsigned int device)
{
	static uint8_t profile[QRE_DEST_PROFILE_MAX];

	begin(g, QRE_CMD_DEST_PROFILE_SET, device);
	put(QRE_A_DEST_PROFILE, profile, below(sizeof(profile) + 1));
	put8(QRE_A_ECN, below(4));
	finish(g, PROFILE_SET);
}

static void see(const uint8_t *at, int left)
{
	const struct nlattr *a = genl_find(at, left, QRE_A_RX_PACKETS);
	uint64_t received;

	if (!a)
		return;
	memcpy(&received, (const uint8_t *)a + NLA_HDRLEN, 8);
	if (received > tally->received)
		tally->received = received;
}

static void dump(struct genl *g, unsigned int device)
{
	begin(g, QRE_CMD_SESSION_GET, device);
	request.header.nlmsg_flags |= NLM_F_DUMP;
	finish(g, DUMP);
	begin(g, QRE_CMD_DEVICE_GET, -1);
	request.header.nlmsg_flags |= NLM_F_DUMP;
	genl_ask(g, &request, see);
}

/* --- what a namespace has once --- */

static void register_map(struct genl *g)
{
	int fd = new_map();

	begin(g, QRE_CMD_CID_MAP_REGISTER, -1);
	put32(QRE_A_FD, fd);
	finish(g, MAP_REGISTER);
	close(fd);
}

static void register_shared(unsigned int side)
{
	int fd;

	enter(side);
	fd = bound(side ? CLIENT_IP : SERVER_IP, PORT);
	if (fd < 0) {
		tally->refused[SHARED_REGISTER]++;
		return;
	}
	begin(&sides[side].genl, QRE_CMD_SHARED_SOCKET_REGISTER, -1);
	put32(QRE_A_FD, fd);
	finish(&sides[side].genl, SHARED_REGISTER);
	keep(fd);
}

static void unregister(struct genl *g, enum operation operation)
{
	begin(g,
	      operation == MAP_UNREGISTER ? QRE_CMD_CID_MAP_UNREGISTER
					  : QRE_CMD_SHARED_SOCKET_UNREGISTER,
	      -1);
	finish(g, operation);
}

static void close_socket(void)
{
	unsigned int at = below(KEPT);

	if (kept[at] > 0 && !close(kept[at]))
		tally->done[SOCKET_CLOSE]++;
	else
		tally->refused[SOCKET_CLOSE]++;
	kept[at] = 0;
}

static void set_loader(struct genl *g)
{
	begin(g, QRE_CMD_SHARED_LOADER_SET, -1);
	if (below(2)) {
		put(QRE_A_LOADER_PROGRAM, "storm", 6);
		put(QRE_A_LOADER_PIN_DIR, "/none", 6);
		put8(QRE_A_LOADER_CID_LENGTH, 20);
		put32(QRE_A_LOADER_PID, 1);
	}
	finish(g, LOADER_SET);
}

/* --- a namespace that ends with everything in it --- */

static void live_and_end(void)
{
	struct ifreq ifr = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	struct genl *g = &sides[0].genl;
	int fd;

	if (unshare(CLONE_NEWNET))
		_exit(1);
	ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &ifr);
	close(g->fd);
	if (genl_open(g))
		_exit(2);
	sides[0].control = socket(AF_INET, SOCK_DGRAM, 0);
	for (unsigned int device = 0; device < DEVICES; device++)
		add_device(0, device);
	register_map(g);
	fd = bound("127.0.0.1", PORT);
	begin(g, QRE_CMD_SHARED_SOCKET_REGISTER, -1);
	put32(QRE_A_FD, fd);
	if (finish(g, SHARED_REGISTER))
		_exit(3);
	for (unsigned int slot = 0; slot < 4; slot++) {
		new_keys(&sessions[0][slot].keys);
		install_end(0, slot % DEVICES, slot);
		route(g, ADOPT, slot % DEVICES, slot);
	}
	_exit(0);
}

static void end_namespace(void)
{
	pid_t child = fork();
	int status;

	if (!child)
		live_and_end();
	if (child < 0 || waitpid(child, &status, 0) < 0 || status) {
		fprintf(stderr, "storm: a namespace of its own: status %x\n", status);
		tally->refused[NAMESPACE_DELETE]++;
	} else {
		tally->done[NAMESPACE_DELETE]++;
	}
	fresh((uint8_t *)&key_now, sizeof(key_now)); /* the child used keys that we did not see */
}

/* --- the storm --- */

static enum operation chosen(void)
{
	unsigned int total = 0, at;

	for (at = 0; at < OPERATIONS; at++)
		total += operations[at].weight;
	total = below(total);
	for (at = 0; total >= operations[at].weight; at++)
		total -= operations[at].weight;
	return at;
}

/* Mostly a process has its own slots, so that much succeeds; one in eight is another's. */
static void blow(unsigned int process)
{
	unsigned int device = below(DEVICES), slot = below(SLOTS / PROCESSES) * PROCESSES;
	unsigned int side = below(NAMESPACES);
	struct genl *g = &sides[side].genl;
	enum operation operation = chosen();

	slot += below(8) ? process : !process;
	switch (operation) {
	case INSTALL:
		return install(device, slot);
	case UPDATE:
		return update(device, slot);
	case DELETE:
		return delete (g, device, slot);
	case ADOPT:
	case RELEASE:
		return route(&sides[!below(6)].genl, operation, device, slot);
	case MAP_REGISTER:
		return register_map(g);
	case SHARED_REGISTER:
		return register_shared(side);
	case MAP_UNREGISTER:
	case SHARED_UNREGISTER:
		return unregister(g, operation);
	case SOCKET_CLOSE:
		return close_socket();
	case DEVICE_ADD:
		return add_device(side, device);
	case DEVICE_DELETE:
		begin(g, QRE_CMD_DEVICE_DEL, device);
		finish(g, operation);
		return;
	case NAMESPACE_DELETE:
		return end_namespace();
	case FRAME_SEND:
		return send_frame(g, device, slot);
	case PROFILE_SET:
		return set_profile(g, device);
	case LOADER_SET:
		return set_loader(g);
	default:
		return dump(g, device);
	}
}

static void open_sides(bool kernel)
{
	static const char *const paths[] = {"/run/netns/a", "/run/netns/b"};

	for (unsigned int side = 0; side < NAMESPACES; side++) {
		sides[side].namespace = open(paths[side], O_RDONLY | O_CLOEXEC);
		if (sides[side].namespace < 0)
			die(paths[side]);
		enter(side);
		sides[side].control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		errno = kernel ? genl_open(&sides[side].genl) : 0;
		if (errno)
			die("qre.ko");
	}
}

static void storm(unsigned int process, uint64_t seed, unsigned int rounds, double end)
{
	struct timespec at;

	state = seed * PROCESSES + process;
	clock_gettime(CLOCK_REALTIME, &at);
	key_now = at.tv_sec * 1000000000ULL + at.tv_nsec + process;
	tally = &tallies[process];
	open_sides(true);
	for (unsigned int device = 0; device < DEVICES; device++) {
		add_device(0, device);
		add_device(1, device);
	}
	while (rounds-- && now() < end)
		blow(process);
	for (unsigned int side = 0; side < NAMESPACES; side++)
		dump(&sides[side].genl, 0);
}

static int run(uint64_t seed, unsigned int rounds, double seconds)
{
	double start = now();
	unsigned int total = 0;
	int status, bad = 0;

	tallies = mmap(NULL, PROCESSES * sizeof(*tallies), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tallies == MAP_FAILED)
		die("mmap");
	for (unsigned int process = 0; process < PROCESSES; process++) {
		if (fork())
			continue;
		storm(process, seed, rounds / PROCESSES, start + seconds);
		exit(0);
	}
	while (wait(&status) > 0)
		bad |= status;
	for (unsigned int at = 0; at < OPERATIONS; at++) {
		unsigned int done = 0, refused = 0;

		for (unsigned int process = 0; process < PROCESSES; process++) {
			done += tallies[process].done[at];
			refused += tallies[process].refused[at];
		}
		total += done + refused;
		printf("%s done=%u refused=%u\n", operations[at].name, done, refused);
	}
	printf("received=%llu\n", (unsigned long long)(tallies[0].received + tallies[1].received));
	printf("seed=%llu requests=%u seconds=%.1f\n", (unsigned long long)seed, total,
	       now() - start);
	return !!bad;
}

/* --- traffic --- */

static void blast(unsigned int side, bool inner, double end)
{
	uint32_t theirs = inet_addr(side ? SERVER_IP : CLIENT_IP);
	struct sockaddr_in to = {.sin_family = AF_INET};
	uint8_t packet[3000] = {};

	state = side * 2 + inner;
	enter(side);
	while (now() < end) {
		for (unsigned int i = 0; i < 16; i++) {
			unsigned int device = below(DEVICES), slot = below(SLOTS);
			size_t size = inner ? below(sizeof(packet)) : below(200);

			to.sin_port = htons(inner  ? 9
					    : side ? PORT
						   : 20000 + device * SLOTS + slot);
			to.sin_addr.s_addr =
				inner ? htonl(0x0a4d0000 | device << 8 | (side ? 1 : 2)) : theirs;
			packet[0] = below(8) ? 0x40 | below(64) : below(256);
			memset(packet + 1, 1 + device * SLOTS + slot, QRE_CID_MAX);
			packet[1] ^= below(4) << 6;
			for (unsigned int k = 0; k < 16; k++)
				packet[1 + QRE_CID_MAX + k] = mixed(&state);
			sendto(sides[side].control, packet, size, MSG_DONTWAIT, (void *)&to,
			       sizeof(to));
		}
		usleep(20000);
	}
}

static int traffic(double seconds)
{
	double end = now() + seconds;

	open_sides(false);
	for (unsigned int kind = 0; kind < 4; kind++) {
		if (fork())
			continue;
		blast(kind & 1, kind & 2, end);
		exit(0);
	}
	while (wait(NULL) > 0)
		;
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "run"))
		return run(strtoull(argv[2], NULL, 0), atoi(argv[3]), atof(argv[4]));
	if (argc == 3 && !strcmp(argv[1], "traffic"))
		return traffic(atof(argv[2]));
	return 2;
}
