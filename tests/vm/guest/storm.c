// SPDX-License-Identifier: GPL-2.0-only
/*
 * storm SEED ROUNDS SECONDS LEDGER [PROGRESS]: two processes for each of two pairs of
 * namespaces ask qre.ko for everything, in random order: a (servers) and b (clients), c and d.
 * Prints how much of each was done and how much was refused, and to PROGRESS now and then how far
 * it is; leaves behind what there is at the end. What must be refused and is not ends it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "choice.h"
#include "sessions.h"

#define KEPT	  16 /* sockets that a process holds */
#define IDLE_MS	  20000
#define OF_A_PAIR 2 /* processes */
#define PROCESSES (PAIRS * OF_A_PAIR)
#define RECENT	  4096 /* keys of the ledger that are tried again: the kernel remembers more */
#define TELL	  20.0 /* seconds between two words about progress */

enum operation {
	INSTALL,
	INSTALL_USED,
	INSTALL_WRONG,
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
	[INSTALL_USED] = {"install-used-key", 6},
	[INSTALL_WRONG] = {"install-wrong", 6},
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
	unsigned int rounds, done[OPERATIONS], refused[OPERATIONS];
	uint64_t received[ENDS]; /* inner packets of one device: the most that was seen */
} * tallies, *tally;

static unsigned int pair; /* of namespaces, which this process is for */
static uint64_t key_now;  /* keys are used once, whatever the seed */
static struct ledger *ledger;
static uint32_t ledger_from; /* keys before were made for a module that was unloaded */

static void fresh(uint8_t *out, size_t size)
{
	for (size_t i = 0; i < size; i++)
		out[i] = mixed(&key_now);
}

/* --- sockets --- */

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

static int finish(struct genl *g, enum operation operation)
{
	int error = genl_ask(g, &request, NULL);

	if (error)
		tally->refused[operation]++;
	else
		tally->done[operation]++;
	return error;
}

/* --- sessions --- */

static struct session sessions[PLACES];

static void make_keys(unsigned int place, struct keys *keys)
{
	new_keys(ledger, pair, place, &sessions[place], keys, fresh);
}

static void make_session(unsigned int place)
{
	fresh(sessions[place].hp[0], sizeof(sessions[place].hp));
	make_keys(place, &sessions[place].keys);
	make_keys(place, &sessions[place].next);
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

/* So many places belong to each device. */
static unsigned int device_of(unsigned int place)
{
	return place / SLOTS;
}

static void install_end(unsigned int side, unsigned int place)
{
	struct session *s = &sessions[place];
	int fd = -1;

	begin_install(&sides[side].genl, side, device_of(place), place, s);
	if (below(2))
		put_keys(side, &s->next, true);
	put64(QRE_A_IDLE_MS, IDLE_MS);
	put_allowed(device_of(place));
	if (side || below(3))
		put_underlay(side, place);
	if (side && !below(3)) {
		enter(side);
		fd = bound(ip_of(1, place), FIRST_PORT + place);
	} else if (!side && !below(12)) {
		enter(side);
		fd = bound(ip_of(0, place), PORT);
	}
	if (fd >= 0) {
		put32(QRE_A_FD, fd);
		keep(fd);
	}
	if (!below(8))
		put(QRE_A_HOLD, NULL, 0);
	if (below(2))
		put(QRE_A_SPLITS, NULL, 0);
	if (finish(&sides[side].genl, INSTALL))
		return;
	s->epoch[side] = 0;
	ledger_use(ledger, s->keys.written[side], LEDGER_USED);
	ledger_use(ledger, s->next.written[side], LEDGER_TAKEN);
}

/* Both ends anew: what there was of them ends first, so that their keys go together. */
static void install(unsigned int place)
{
	for (unsigned int side = 0; side < ENDS; side++) {
		begin(&sides[side].genl, QRE_CMD_SESSION_DEL, device_of(place));
		put_id(place);
		genl_ask(&sides[side].genl, &request, NULL);
	}
	make_session(place);
	install_end(0, place);
	install_end(1, place);
}

/* --- what must be refused, whatever else goes on --- */

static void refused(struct genl *g, enum operation operation, int wanted)
{
	int error = genl_ask(g, &request, NULL);

	if (!error) {
		fprintf(stderr, "storm: %s was not refused\n", operations[operation].name);
		exit(3);
	}
	if (error == wanted || wanted < 0)
		tally->done[operation]++;
	else
		tally->refused[operation]++; /* for another reason: its device is gone */
}

/* A session that there never is. */
static unsigned int stranger(void)
{
	return PLACES + (tally - tallies);
}

static void begin_stranger(unsigned int side, struct session *s)
{
	unsigned int place = below(PLACES);

	fresh(s->hp[0], sizeof(s->hp));
	new_keys(ledger, pair, place, s, &s->keys, fresh);
	begin_install(&sides[side].genl, side, device_of(place), stranger(), s);
}

/* A transmit key that some session of any namespace has or had. */
static void install_used(unsigned int side)
{
	uint32_t count = ledger_count(ledger), from = ledger_from, at;
	struct session s;

	if (count > from + RECENT)
		from = count - RECENT;
	if (count == from)
		return;
	at = from + below(count - from);
	while (at < count && ledger->keys[at].use != LEDGER_USED)
		at++;
	if (at == count)
		return;
	fresh(s.hp[0], sizeof(s.hp));
	fresh(s.keys.key[0], sizeof(s.keys.key));
	fresh(s.keys.iv[0], sizeof(s.keys.iv));
	memcpy(s.keys.key[side], ledger->keys[at].key, QRE_KEY_SIZE);
	begin_install(&sides[side].genl, side, below(DEVICES), stranger(), &s);
	if (side)
		put_underlay(side, stranger());
	refused(&sides[side].genl, INSTALL_USED, EEXIST);
}

/* Descriptors that no session can speak through. */
static int wrong_socket(unsigned int side)
{
	int fd;

	switch (below(4)) {
	case 0:
		return dup(sides[side].namespace);
	case 1:
		enter(side);
		return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	case 2:
		enter(side);
		return socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	default:
		enter(!side);
		fd = bound("127.0.0.1", 0);
		enter(side);
		return fd;
	}
}

static void install_wrong(unsigned int side)
{
	uint32_t elsewhere = inet_addr("203.0.113.1");
	uint16_t discard = htons(9);
	struct session s;
	int fd = -1;

	begin_stranger(side, &s);
	switch (below(side ? 5 : 4)) {
	case 0: /* no such descriptor */
		put32(QRE_A_FD, 100000);
		put_underlay(side, stranger());
		break;
	case 1:
		fd = wrong_socket(side);
		put32(QRE_A_FD, fd);
		put_underlay(side, stranger());
		break;
	case 2: /* an address of nobody here, at no port of a shared socket of every address */
		put_underlay(side, stranger());
		change_local(stranger(), "203.0.113.1", "2001:db8::1");
		genl_change(&request, QRE_A_LOCAL_PORT, &discard, sizeof(discard));
		break;
	case 3: /* half of an underlay */
		put(QRE_A_LOCAL_IP, &elsewhere, 4);
		break;
	default: /* a client of no server */
		break;
	}
	refused(&sides[side].genl, INSTALL_WRONG, -1);
	if (fd >= 0)
		close(fd);
}

/* --- and on --- */

/* Both ends learn their next keys, or begin the next phase. */
static void update(unsigned int place)
{
	bool next = below(2), moves = below(4) == 0;
	struct session *s = &sessions[place];
	struct keys following;
	unsigned int done = 0;

	make_keys(place, &following);
	for (unsigned int side = 0; side < ENDS; side++) {
		struct genl *g = &sides[side].genl;
		const struct keys *now = next ? &s->next : &s->keys;
		const struct keys *then = next ? &following : &s->next;

		begin_update(g, side, device_of(place), place, s->epoch[side] + next, now, then);
		if (moves)
			put_underlay(side, place);
		if (finish(g, UPDATE))
			continue;
		done++;
		ledger_use(ledger, now->written[side], LEDGER_USED);
		ledger_use(ledger, then->written[side], LEDGER_TAKEN);
	}
	if (!next || !done)
		return;
	s->keys = s->next;
	s->next = following;
	s->epoch[0]++;
	s->epoch[1]++;
}

static void delete (struct genl *g, unsigned int place)
{
	begin(g, QRE_CMD_SESSION_DEL, device_of(place));
	put_id(place);
	if (below(2))
		put(QRE_A_CLOSE, NULL, 0);
	finish(g, DELETE);
}

static void route(struct genl *g, enum operation operation, unsigned int place)
{
	begin(g, operation == ADOPT ? QRE_CMD_CID_ADOPT : QRE_CMD_CID_RELEASE, device_of(place));
	put_cid(place, below(4));
	if (below(2))
		put_id(place);
	finish(g, operation);
}

static void send_frame(struct genl *g, unsigned int place)
{
	uint8_t frames[200] = {0x01};

	begin(g, QRE_CMD_FRAME_SEND, device_of(place));
	put_id(place);
	put(QRE_A_FRAMES, frames, 1 + below(sizeof(frames)));
	put64(QRE_A_FRAME_ID, below(1000));
	finish(g, FRAME_SEND);
}

/* --- devices --- */

static void add_device(unsigned int side, unsigned int device)
{
	struct genl *g = &sides[side].genl;

	begin(g, QRE_CMD_DEVICE_SET, device);
	put8(QRE_A_ROLE, side ? QRE_ROLE_CLIENT : QRE_ROLE_SERVER);
	put32(QRE_A_MTU, 1000 + below(400));
	if (!finish(g, DEVICE_ADD))
		set_address(side, device);
}

static void set_profile(struct genl *g, unsigned int device)
{
	static uint8_t profile[QRE_DEST_PROFILE_MAX];

	begin(g, QRE_CMD_DEST_PROFILE_SET, device);
	put(QRE_A_DEST_PROFILE, profile, below(sizeof(profile) + 1));
	put8(QRE_A_ECN, below(4));
	finish(g, PROFILE_SET);
}

static unsigned int seen_side;

static void see(const uint8_t *at, int left)
{
	const struct nlattr *a = genl_find(at, left, QRE_A_RX_PACKETS);
	uint64_t received;

	if (!a)
		return;
	memcpy(&received, (const uint8_t *)a + NLA_HDRLEN, 8);
	if (received > tally->received[seen_side])
		tally->received[seen_side] = received;
}

static void dump(struct genl *g, unsigned int device)
{
	begin(g, QRE_CMD_SESSION_GET, device);
	request.header.nlmsg_flags |= NLM_F_DUMP;
	finish(g, DUMP);
	begin(g, QRE_CMD_DEVICE_GET, -1);
	request.header.nlmsg_flags |= NLM_F_DUMP;
	seen_side = g == &sides[1].genl;
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
	fd = bound(below(4) ? ip_of(side, below(PLACES)) : "::", PORT);
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
	for (unsigned int i = 0; i < 4; i++) {
		make_session(i * 9);
		install_end(0, i * 9);
		route(g, ADOPT, i * 9);
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
	unsigned int device = below(DEVICES), side = below(ENDS), place;
	struct genl *g = &sides[side].genl;
	enum operation operation = chosen();

	place = device * SLOTS + below(SLOTS / OF_A_PAIR) * OF_A_PAIR;
	place += (process + !below(8)) % OF_A_PAIR;
	switch (operation) {
	case INSTALL:
		return install(place);
	case INSTALL_USED:
		return install_used(side);
	case INSTALL_WRONG:
		return install_wrong(side);
	case UPDATE:
		return update(place);
	case DELETE:
		return delete (g, place);
	case ADOPT:
	case RELEASE:
		return route(&sides[!below(6)].genl, operation, place);
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
		return send_frame(g, place);
	case PROFILE_SET:
		return set_profile(g, device);
	case LOADER_SET:
		return set_loader(g);
	default:
		return dump(g, device);
	}
}

static void storm(unsigned int process, uint64_t seed, unsigned int rounds, double end)
{
	struct timespec at;

	state = seed * PROCESSES + process;
	clock_gettime(CLOCK_REALTIME, &at);
	key_now = at.tv_sec * 1000000000ULL + at.tv_nsec + process;
	tally = &tallies[process];
	pair = process / OF_A_PAIR;
	open_sides(pair, true);
	for (unsigned int device = 0; device < DEVICES; device++) {
		add_device(0, device);
		add_device(1, device);
	}
	for (unsigned int place = 0; place < PLACES; place++)
		make_session(place); /* another's is updated with these */
	while (tally->rounds < rounds && now() < end) {
		blow(process);
		tally->rounds++;
	}
	for (unsigned int side = 0; side < ENDS; side++)
		dump(&sides[side].genl, 0);
}

/* How far it is, for whoever finds no end of it. */
static void tell_progress(const char *path, uint64_t seed, double seconds)
{
	unsigned int rounds = 0, done = 0;
	FILE *to = path ? fopen(path, "a") : NULL;

	if (!to)
		return;
	for (unsigned int process = 0; process < PROCESSES; process++) {
		rounds += tallies[process].rounds;
		for (unsigned int at = 0; at < OPERATIONS; at++)
			done += tallies[process].done[at];
	}
	fprintf(to, "seed=%llu rounds=%u done=%u seconds=%.0f\n", (unsigned long long)seed, rounds,
		done, seconds);
	fclose(to);
}

static void report(uint64_t seed, double seconds)
{
	unsigned int total = 0, rounds = 0;
	uint64_t received[ENDS] = {};

	for (unsigned int at = 0; at < OPERATIONS; at++) {
		unsigned int done = 0, not_done = 0;

		for (unsigned int process = 0; process < PROCESSES; process++) {
			done += tallies[process].done[at];
			not_done += tallies[process].refused[at];
		}
		total += done + not_done;
		printf("%s done=%u refused=%u\n", operations[at].name, done, not_done);
	}
	for (unsigned int process = 0; process < PROCESSES; process++) {
		rounds += tallies[process].rounds;
		for (unsigned int side = 0; side < ENDS; side++)
			received[side] += tallies[process].received[side];
	}
	printf("servers-received=%llu\nclients-received=%llu\n", (unsigned long long)received[0],
	       (unsigned long long)received[1]);
	printf("seed=%llu rounds=%u requests=%u seconds=%.1f\n", (unsigned long long)seed, rounds,
	       total, seconds);
}

static int run(uint64_t seed, unsigned int rounds, double seconds, const char *progress)
{
	double start = now(), told = start;
	unsigned int left = 0;
	int status, bad = 0;
	pid_t child;

	tallies = mmap(NULL, PROCESSES * sizeof(*tallies), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tallies == MAP_FAILED)
		die("mmap");
	ledger_from = ledger_count(ledger);
	for (unsigned int process = 0; process < PROCESSES; process++, left++) {
		if (fork())
			continue;
		storm(process, seed, rounds / PROCESSES, start + seconds);
		exit(0);
	}
	while (left) {
		child = waitpid(-1, &status, WNOHANG);
		if (child > 0) {
			bad |= status;
			left--;
			continue;
		}
		usleep(100000);
		if (now() - told < TELL)
			continue;
		told = now();
		tell_progress(progress, seed, told - start);
	}
	tell_progress(progress, seed, now() - start);
	report(seed, now() - start);
	return !!bad;
}

int main(int argc, char **argv)
{
	if (argc < 5)
		return 2;
	outer = OVER_BOTH;
	ledger = ledger_open(argv[4]);
	if (!ledger)
		die(argv[4]);
	return run(strtoull(argv[1], NULL, 0), atoi(argv[2]), atof(argv[3]), argv[5]);
}
