// SPDX-License-Identifier: GPL-2.0-only
/*
 * numbers LEDGER NAMESPACE:DEVICE...: opens every packet of a session that leaves by one of these
 * devices, of which every two are the server's end and the client's, with the keys of the ledger,
 * until it is terminated. Then prints
 *
 *	packets=N opened=N keys=N used=N repeated=N unopened=N refused=N lost=N
 *
 * repeated: a packet number that came a second time under its key; unopened: no key of the ledger
 * opens it, or it is empty; refused: sent with a key that the kernel did not take; lost: captured
 * by nobody, for want of room. Each but the last with a line of its own, as far as they are few.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/udp.h>
#include <openssl/evp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>

#include "near.h"
#include "sessions.h"

#define TAG	    16
#define SAMPLE	    16
#define NUMBER_SIZE 4
#define TAPS	    (PAIRS * ENDS)
#define BLOCK	    (1U << 18)
#define BLOCKS	    64
#define NO_KEY	    UINT32_MAX
#define FAR_TRIES   8	  /* times 256 or 65536 numbers away from what is expected */
#define TOLD	    20	  /* of each kind of fault */
#define PATIENCE    60000 /* milliseconds */

static struct tap {
	int fd;
	uint8_t *ring;
	unsigned int block; /* the next one */
	unsigned int pair, side;
} taps[TAPS];
static unsigned int tap_count;

static struct ledger *ledger;
static uint32_t known; /* keys of the ledger that are in the chains */
static uint32_t newest[PAIRS][2][PLACES], before[LEDGER_KEYS], packets_of[LEDGER_KEYS];
static uint64_t expected[LEDGER_KEYS]; /* the number behind the highest of each */
static unsigned long packets, opened, repeated, unopened, refused, lost;
static EVP_CIPHER_CTX *masking, *opening;
static volatile sig_atomic_t over;

/* --- what was seen: a key and a number in a word --- */

static uint64_t *seen;
static size_t seen_room = 1 << 20, seen_count;

static bool seen_add(uint64_t word)
{
	size_t at = (word * 0x9e3779b97f4a7c15 >> 20) & (seen_room - 1);

	while (seen[at] && seen[at] != word)
		at = (at + 1) & (seen_room - 1);
	if (seen[at])
		return false;
	seen[at] = word;
	return true;
}

static void seen_grow(void)
{
	size_t room = seen_room;
	uint64_t *old = seen;

	if (seen && seen_count * 2 < seen_room)
		return;
	if (old)
		seen_room *= 2;
	seen = calloc(seen_room, sizeof(*seen));
	if (!seen)
		die("memory");
	for (size_t i = 0; old && i < room; i++)
		if (old[i])
			seen_add(old[i]);
	free(old);
}

/* --- opening --- */

static void learn(void)
{
	for (; known < ledger_count(ledger); known++) {
		const struct ledger_key *k = &ledger->keys[known];
		uint32_t *first;

		if (!__atomic_load_n(&k->ready, __ATOMIC_SEQ_CST))
			return;
		first = &newest[k->pair % PAIRS][k->side & 1][k->place % PLACES];
		expected[known] = QRE_PACKET_NUMBER_BASE;
		before[known] = *first;
		*first = known;
	}
}

/* What was counted by now, although whoever counted it may still be writing it down. */
static bool learn_all(void)
{
	uint32_t counted = ledger_count(ledger);
	bool more = known < counted;

	for (unsigned int tries = 0; known < counted && tries < PATIENCE; tries++) {
		usleep(1000);
		learn();
	}
	return more;
}

static void mask_of(const uint8_t *hp, const uint8_t *sample, uint8_t *mask)
{
	int size;

	EVP_EncryptInit_ex(masking, NULL, NULL, hp, NULL);
	EVP_EncryptUpdate(masking, mask, &size, sample, SAMPLE);
}

static bool opens(const struct ledger_key *k, uint64_t number, const uint8_t *header, size_t size,
		  const uint8_t *sealed, size_t sealed_size)
{
	static uint8_t plain[65536];
	uint8_t nonce[QRE_IV_SIZE];
	int got;

	memcpy(nonce, k->iv, sizeof(nonce));
	for (unsigned int i = 0; i < 8; i++)
		nonce[sizeof(nonce) - 1 - i] ^= number >> 8 * i;
	EVP_DecryptInit_ex(opening, NULL, NULL, k->key, nonce);
	EVP_CIPHER_CTX_ctrl(opening, EVP_CTRL_GCM_SET_TAG, TAG,
			    (void *)(sealed + sealed_size - TAG));
	EVP_DecryptUpdate(opening, NULL, &got, header, size);
	EVP_DecryptUpdate(opening, plain, &got, sealed, sealed_size - TAG);
	return EVP_DecryptFinal_ex(opening, plain, &got) == 1;
}

/* What is to be tried: an unlikely packet costs more. */
enum effort {
	ITS_OWN, /* masked and sealed with the keys of one session */
	/* Masked as one session's and sealed as another's: whoever updates a session that is not
	 * his gives it his keys, but not his header protection. */
	MIXED,
	/* The same two, with a short number that is far from what is expected: overtaken by many,
	 * or the first under keys that came in the middle of a session. */
	ITS_OWN_FAR,
	MIXED_FAR,
};

/* Whether this key opens a packet whose header is unprotected, and with which number that ends like
 * this: the nearest, or one that is @far. */
static bool key_opens(uint32_t key, bool far, uint32_t low, const uint8_t *head, size_t size,
		      const uint8_t *sealed, size_t sealed_size, uint64_t *number)
{
	unsigned int bytes = (head[0] & 3) + 1;
	uint64_t near = number_near(expected[key], low, bytes), step = 1ULL << 8 * bytes;
	int tries = far && bytes < NUMBER_SIZE ? FAR_TRIES : 0;

	for (int away = -tries; away <= tries; away++) {
		*number = near + away * (int64_t)step;
		if (*number >= QRE_PACKET_NUMBER_BASE && *number <= near + tries * step &&
		    opens(&ledger->keys[key], *number, head, size, sealed, sealed_size))
			return true;
	}
	return false;
}

/* Which of these keys does; NO_KEY: none. */
static uint32_t key_of(uint32_t first, bool far, uint32_t low, const uint8_t *head, size_t size,
		       const uint8_t *sealed, size_t sealed_size, uint64_t *number)
{
	for (uint32_t each = first; each != NO_KEY; each = before[each])
		if (key_opens(each, far, low, head, size, sealed, sealed_size, number))
			return each;
	return NO_KEY;
}

/* Whose key opens this QUIC packet, and with which number; NO_KEY: none of these. */
static uint32_t owner_of(uint32_t first, enum effort effort, const uint8_t *packet, size_t size,
			 size_t cid, uint64_t *number)
{
	bool mixed = effort == MIXED || effort == MIXED_FAR, far = effort >= ITS_OWN_FAR;
	size_t at = 1 + cid, header;
	const uint8_t *hp = NULL;
	uint8_t mask[SAMPLE], head[64];
	uint32_t low;

	if (size < at + NUMBER_SIZE + SAMPLE)
		return NO_KEY;
	for (uint32_t each = first, found; each != NO_KEY; each = before[each]) {
		const struct ledger_key *k = &ledger->keys[each];

		if (hp && !memcmp(hp, k->hp, QRE_KEY_SIZE) && mixed)
			continue;
		if (!hp || memcmp(hp, k->hp, QRE_KEY_SIZE)) {
			mask_of(k->hp, packet + at + NUMBER_SIZE, mask);
			hp = k->hp;
		}
		memcpy(head, packet, at + NUMBER_SIZE);
		head[0] ^= mask[0] & 0x1f;
		/* No reserved bits, and a number of four bytes; a client's may have one or two. */
		if (head[0] & 0x18 || (head[0] & 3) == 2 || (!cid && (head[0] & 3) != 3))
			continue;
		header = at + (head[0] & 3) + 1;
		low = 0;
		for (size_t i = 0; at + i < header; i++) {
			head[at + i] ^= mask[1 + i];
			low = low << 8 | head[at + i];
		}
		if (mixed)
			found = key_of(first, far, low, head, header, packet + header,
				       size - header, number);
		else
			found = key_opens(each, far, low, head, header, packet + header,
					  size - header, number)
					? each
					: NO_KEY;
		if (found != NO_KEY)
			return found;
	}
	return NO_KEY;
}

static void tell(const char *what, unsigned long *count, const struct tap *t, unsigned int place,
		 uint32_t key, uint64_t number)
{
	if (++*count > TOLD)
		return;
	printf("%s: pair %u, from the %s, device %u slot %u, key %d, number %llu\n", what, t->pair,
	       t->side ? "client" : "server", place / SLOTS, place % SLOTS, (int)key,
	       (unsigned long long)number);
	fflush(stdout);
}

/* Of all keys of this place; NO_KEY: none. */
static uint32_t find(const struct tap *t, unsigned int place, const uint8_t *packet, size_t size,
		     uint64_t *number)
{
	size_t cid = t->side ? QRE_CID_MAX : 0; /* as sessions.h makes them */
	uint32_t first = newest[t->pair][t->side][place];
	uint32_t key = NO_KEY;

	for (unsigned int effort = ITS_OWN; key == NO_KEY && effort <= MIXED_FAR; effort++)
		key = owner_of(first, effort, packet, size, cid, number);
	return key;
}

/* A datagram between the ports of a session. */
static void took(const struct tap *t, unsigned int place, const uint8_t *packet, size_t size)
{
	uint64_t number = 0;
	uint32_t key;

	packets++;
	learn();
	key = find(t, place, packet, size, &number);
	if (key == NO_KEY && learn_all()) /* its key was counted before it was sent */
		key = find(t, place, packet, size, &number);
	if (key == NO_KEY) {
		tell("unopened", &unopened, t, place, key, size);
		return;
	}
	opened++;
	packets_of[key]++;
	if (number >= expected[key])
		expected[key] = number + 1;
	seen_grow();
	if (seen_add((uint64_t)(key + 1) << 40 | number))
		seen_count++;
	else
		tell("repeated", &repeated, t, place, key, number);
}

/* The datagram behind the header of IP at @at, which is of either version; NULL: it is none. */
static const struct udphdr *datagram_of(const uint8_t *at, size_t size)
{
	const struct ip6_hdr *ip6 = (const void *)at;
	const struct iphdr *ip = (const void *)at;
	size_t head = sizeof(*ip6), total;
	uint8_t protocol;

	if (size < sizeof(*ip))
		return NULL;
	if (ip->version == 4) {
		head = ip->ihl * 4;
		total = ntohs(ip->tot_len);
		protocol = ip->protocol;
	} else {
		if (size < sizeof(*ip6))
			return NULL;
		total = sizeof(*ip6) + ntohs(ip6->ip6_plen);
		protocol = ip6->ip6_nxt;
	}
	if (protocol != IPPROTO_UDP || total < head + sizeof(struct udphdr) || size < total)
		return NULL;
	return (const void *)(at + head);
}

static void look(const struct tap *t, const uint8_t *at, size_t size)
{
	const struct udphdr *udp = datagram_of(at, size);
	unsigned int from, to, place;

	if (!udp)
		return;
	from = ntohs(udp->source);
	to = ntohs(udp->dest);
	place = (t->side ? from : to) - FIRST_PORT;
	if (place >= PLACES || (t->side ? to : from) != PORT)
		return;
	took(t, place, (const uint8_t *)(udp + 1), ntohs(udp->len) - sizeof(*udp));
}

/* --- capturing --- */

static void open_tap(struct tap *t, char *place)
{
	struct sock_filter outgoing[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_PKTTYPE),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_OUTGOING, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog filter = {sizeof(outgoing) / sizeof(outgoing[0]), outgoing};
	struct tpacket_req3 ring = {.tp_block_size = BLOCK,
				    .tp_block_nr = BLOCKS,
				    .tp_frame_size = 2048,
				    .tp_frame_nr = BLOCK / 2048 * BLOCKS,
				    .tp_retire_blk_tov = 100};
	struct sockaddr_ll local = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
	int home = open("/proc/self/ns/net", O_RDONLY), away, version = TPACKET_V3;
	char path[64], *device = strchr(place, ':');

	if (!device)
		die(place);
	*device++ = 0;
	snprintf(path, sizeof(path), "/run/netns/%s", place);
	away = open(path, O_RDONLY);
	if (away < 0 || setns(away, CLONE_NEWNET))
		die(path);
	t->fd = socket(AF_PACKET, SOCK_DGRAM, 0);
	local.sll_ifindex = if_nametoindex(device);
	if (t->fd < 0 || !local.sll_ifindex ||
	    setsockopt(t->fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) ||
	    setsockopt(t->fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) ||
	    setsockopt(t->fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)))
		die(device);
	t->ring = mmap(NULL, (size_t)BLOCK * BLOCKS, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);
	if (t->ring == MAP_FAILED || bind(t->fd, (void *)&local, sizeof(local)))
		die(device);
	setns(home, CLONE_NEWNET);
	close(home);
	close(away);
}

static bool drain(struct tap *t)
{
	struct tpacket_block_desc *block = (void *)(t->ring + (size_t)t->block * BLOCK);
	struct tpacket3_hdr *each;

	if (!(__atomic_load_n(&block->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
		return false;
	each = (void *)((uint8_t *)block + block->hdr.bh1.offset_to_first_pkt);
	for (unsigned int i = 0; i < block->hdr.bh1.num_pkts; i++) {
		look(t, (uint8_t *)each + each->tp_net, each->tp_snaplen);
		each = (void *)((uint8_t *)each + each->tp_next_offset);
	}
	__atomic_store_n(&block->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
	t->block = (t->block + 1) % BLOCKS;
	return true;
}

static void end(int signal)
{
	(void)signal;
	over = 1;
}

static void watch(void)
{
	struct pollfd waiting[TAPS];
	bool any = true;

	while (!over || any) {
		any = false;
		for (unsigned int i = 0; i < tap_count; i++) {
			waiting[i] = (struct pollfd){.fd = taps[i].fd, .events = POLLIN};
			while (drain(&taps[i]))
				any = true;
		}
		if (!any && !over) {
			poll(waiting, tap_count, 200);
			any = true;
		}
		if (over == 1) { /* what is under way is looked at, too */
			over = 2;
			usleep(400000);
			any = true;
		}
	}
}

static void sum_up(void)
{
	unsigned int used = 0;

	for (uint32_t key = 0; key < known; key++) {
		const struct ledger_key *k = &ledger->keys[key];
		struct tap from = {.pair = k->pair, .side = k->side};

		used += packets_of[key] > 0;
		if (packets_of[key] && k->use == LEDGER_MADE)
			tell("refused", &refused, &from, k->place, key, packets_of[key]);
	}
	for (unsigned int i = 0; i < tap_count; i++) {
		struct tpacket_stats_v3 stats = {};
		socklen_t size = sizeof(stats);

		getsockopt(taps[i].fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size);
		lost += stats.tp_drops;
	}
	printf("packets=%lu opened=%lu keys=%u used=%u repeated=%lu unopened=%lu refused=%lu "
	       "lost=%lu\n",
	       packets, opened, known, used, repeated, unopened, refused, lost);
}

int main(int argc, char **argv)
{
	if (argc < 4 || argc - 2 > TAPS || argc % 2)
		return 2;
	ledger = ledger_open(argv[1]);
	if (!ledger)
		die(argv[1]);
	masking = EVP_CIPHER_CTX_new();
	opening = EVP_CIPHER_CTX_new();
	if (!EVP_EncryptInit_ex(masking, EVP_aes_128_ecb(), NULL, NULL, NULL) ||
	    !EVP_DecryptInit_ex(opening, EVP_aes_128_gcm(), NULL, NULL, NULL))
		die("ciphers");
	memset(newest, 0xff, sizeof(newest));
	for (int i = 2; i < argc; i++) {
		taps[tap_count].pair = tap_count / 2;
		taps[tap_count].side = tap_count % 2;
		open_tap(&taps[tap_count++], argv[i]);
	}
	signal(SIGTERM, end);
	printf("watching\n");
	fflush(stdout);
	watch();
	sum_up();
	return 0;
}
