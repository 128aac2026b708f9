/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sessions between two namespaces as storm.c and faults.c make them: a place, which is a device and
 * a slot in it, has a session id, a connection ID and a client's port of its own. What is sent with
 * their keys numbers.c finds by the ports, and opens with the ledger.
 */
#ifndef SESSIONS_H
#define SESSIONS_H

#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>

#include "ends.h"
#include "genl.h"
#include "ledger.h"

#define DEVICES	   3
#define SLOTS	   12 /* sessions of a device */
#define PLACES	   (DEVICES * SLOTS)
#define PORT	   443
#define FIRST_PORT 20000 /* of the client at the first place */
#define ENDS	   2	 /* the server's namespace, the client's */
#define PAIRS	   2

/* Outer packets; of both versions of IP: those of every other place are of IPv6. */
static enum { OVER_IPV4, OVER_IPV6, OVER_BOTH } outer __attribute__((unused));

static struct side {
	int namespace, control;
	struct genl genl;
} sides[ENDS] __attribute__((unused));

static struct request request __attribute__((unused)); /* one at a time */

struct keys { /* of an epoch, by who sends with them */
	uint8_t key[ENDS][QRE_KEY_SIZE], iv[ENDS][QRE_IV_SIZE];
	uint32_t written[ENDS]; /* where in the ledger */
};

struct session {
	struct keys keys, next;
	uint8_t hp[ENDS][QRE_KEY_SIZE];
	uint64_t epoch[ENDS];
};

static inline void die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(2);
}

/* --- the two ends --- */

static inline void enter(unsigned int side)
{
	if (setns(sides[side].namespace, CLONE_NEWNET))
		die("setns");
}

/* The namespaces a and b of pair 0, c and d of pair 1; @kernel: and what asks qre.ko in them. */
static inline void open_sides(unsigned int pair, bool kernel)
{
	static const char *const paths[PAIRS][ENDS] = {{"/run/netns/a", "/run/netns/b"},
						       {"/run/netns/c", "/run/netns/d"}};

	for (unsigned int side = 0; side < ENDS; side++) {
		sides[side].namespace = open(paths[pair][side], O_RDONLY | O_CLOEXEC);
		enter(side);
		sides[side].control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		errno = kernel ? genl_open(&sides[side].genl) : 0;
		if (errno)
			die("qre.ko");
	}
}

static inline bool over_ipv6(unsigned int place)
{
	return outer == OVER_IPV6 || (outer == OVER_BOTH && place % 2);
}

/* The address of an end in its namespace. */
static inline const char *ip_of(unsigned int side, unsigned int place)
{
	static const char *const ips[2][ENDS] = {{"10.9.0.1", "10.9.0.2"}, {"fd09::1", "fd09::2"}};

	return ips[over_ipv6(place)][side];
}

/* Bound to @ip and @port of the namespace that we are in; -1: it is in use. */
static inline int bound(const char *ip, uint16_t port)
{
	struct end local = end_of(ip, port);
	int fd = socket(local.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	if (fd < 0 || !bind(fd, &local.any, local.size))
		return fd;
	close(fd);
	return -1;
}

/* 10.77.DEVICE.1 at the server's end, .2 at the client's; and it is up. */
static inline void set_address(unsigned int side, unsigned int device)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int control = sides[side].control;
	struct ifreq ifr = {};

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "qre%u", device);
	address.sin_addr.s_addr = htonl((0x0a4d0001 | device << 8) + side);
	memcpy(&ifr.ifr_addr, &address, sizeof(address));
	ioctl(control, SIOCSIFADDR, &ifr);
	address.sin_addr.s_addr = htonl(0xffffff00);
	memcpy(&ifr.ifr_netmask, &address, sizeof(address));
	ioctl(control, SIOCSIFNETMASK, &ifr);
	ifr.ifr_flags = IFF_UP | IFF_RUNNING;
	ioctl(control, SIOCSIFFLAGS, &ifr);
}

/* --- requests --- */

static inline void put(uint16_t type, const void *data, size_t size)
{
	genl_put(&request, type, data, size);
}

static inline void put8(uint16_t type, uint8_t value)
{
	put(type, &value, sizeof(value));
}

static inline void put32(uint16_t type, uint32_t value)
{
	put(type, &value, sizeof(value));
}

static inline void put64(uint16_t type, uint64_t value)
{
	put(type, &value, sizeof(value));
}

/* A command about qre@device; less than 0: about none. */
static inline void begin(struct genl *g, uint8_t command, int device)
{
	char name[] = {'q', 'r', 'e', '0' + device, 0};

	genl_begin(g, &request, g->family, command, 0);
	if (device >= 0)
		put(QRE_A_IFNAME, name, sizeof(name));
}

static inline void put_id(unsigned int place)
{
	uint8_t id[QRE_SESSION_ID_SIZE];

	memset(id, 1 + place, sizeof(id));
	put(QRE_A_SESSION_ID, id, sizeof(id));
}

/* The first connection ID of a session has its bytes, others have more to them. */
static inline void put_cid(unsigned int place, unsigned int more)
{
	uint8_t cid[QRE_CID_MAX];

	memset(cid, 1 + place, sizeof(cid));
	cid[0] ^= more << 6;
	put(QRE_A_CID, cid, sizeof(cid));
}

/* Of the end @side: what it sends with, and what the other one does. */
static inline void put_keys(unsigned int side, const struct keys *keys, bool next)
{
	put(next ? QRE_A_NEXT_TX_KEY : QRE_A_TX_KEY, keys->key[side], QRE_KEY_SIZE);
	put(next ? QRE_A_NEXT_TX_IV : QRE_A_TX_IV, keys->iv[side], QRE_IV_SIZE);
	put(next ? QRE_A_NEXT_RX_KEY : QRE_A_RX_KEY, keys->key[!side], QRE_KEY_SIZE);
	put(next ? QRE_A_NEXT_RX_IV : QRE_A_RX_IV, keys->iv[!side], QRE_IV_SIZE);
}

static inline void put_underlay(unsigned int side, unsigned int place)
{
	uint16_t ports[] = {htons(PORT), htons(FIRST_PORT + place)};
	struct end local = end_of(ip_of(side, place), 0), peer = end_of(ip_of(!side, place), 0);

	if (over_ipv6(place)) {
		put(QRE_A_LOCAL_IPV6, &local.v6.sin6_addr, 16);
		put(QRE_A_PEER_IPV6, &peer.v6.sin6_addr, 16);
	} else {
		put(QRE_A_LOCAL_IP, &local.v4.sin_addr, 4);
		put(QRE_A_PEER_IP, &peer.v4.sin_addr, 4);
	}
	put(QRE_A_LOCAL_PORT, &ports[side], 2);
	put(QRE_A_PEER_PORT, &ports[!side], 2);
}

/* Another local address than put_underlay() has put. */
static inline void change_local(unsigned int place, const char *ip, const char *ip6)
{
	struct end local = end_of(over_ipv6(place) ? ip6 : ip, 0);

	if (over_ipv6(place))
		genl_change(&request, QRE_A_LOCAL_IPV6, &local.v6.sin6_addr, 16);
	else
		genl_change(&request, QRE_A_LOCAL_IP, &local.v4.sin_addr, 4);
}

/* An install at the end @side, less its underlay. */
static inline void begin_install(struct genl *g, unsigned int side, int device, unsigned int place,
				 const struct session *s)
{
	begin(g, QRE_CMD_SESSION_INSTALL, device);
	put_id(place);
	put_cid(place, 0);
	put(QRE_A_CLIENT_CID, NULL, 0);
	put_keys(side, &s->keys, false);
	put(QRE_A_TX_HP_KEY, s->hp[side], QRE_KEY_SIZE);
	put(QRE_A_RX_HP_KEY, s->hp[!side], QRE_KEY_SIZE);
	put64(QRE_A_KEY_EPOCH, 0);
	put64(QRE_A_PACKET_NUMBER, 0);
}

static inline void begin_update(struct genl *g, unsigned int side, int device, unsigned int place,
				uint64_t epoch, const struct keys *keys, const struct keys *next)
{
	begin(g, QRE_CMD_SESSION_UPDATE, device);
	put_id(place);
	put_keys(side, keys, false);
	put_keys(side, next, true);
	put64(QRE_A_KEY_EPOCH, epoch);
}

/* Fresh keys of a session whose header protection keys are there, written down for both ends. */
static inline void new_keys(struct ledger *l, uint8_t pair, unsigned int place,
			    const struct session *s, struct keys *keys,
			    void (*fresh)(uint8_t *out, size_t size))
{
	for (unsigned int side = 0; side < ENDS; side++) {
		struct ledger_key k = {.pair = pair, .side = side, .place = place};

		fresh(keys->key[side], QRE_KEY_SIZE);
		fresh(keys->iv[side], QRE_IV_SIZE);
		memcpy(k.key, keys->key[side], sizeof(k.key));
		memcpy(k.iv, keys->iv[side], sizeof(k.iv));
		memcpy(k.hp, s->hp[side], sizeof(k.hp));
		keys->written[side] = ledger_add(l, &k);
	}
}

#endif
