// SPDX-License-Identifier: GPL-2.0-only
/*
 * The other end of a session, with its keys and nothing of its own mind:
 *
 *	peer KEYS CID-LENGTH REMOTE PORT LOCAL PORT[,REMOTE,LOCAL]...
 *
 * KEYS is TXKEY:TXIV:TXHP:RXKEY:RXIV:RXHP in hexadecimal, CID-LENGTH that of what comes here.
 *Prints "open", then of each packet that comes to one of its ports
 *
 *	got SOCKET NUMBER SIZE TOS CID PAYLOAD
 *
 * SOCKET counts the local ports from 0; the payload is without its padding; "bad SOCKET SIZE" is
 *one that does not open. A socket may have addresses of its own, of another version of IP.
 *Reads commands from standard input, a line each:
 *
 *	cid HEX			what goes there bears this connection ID
 *	send SOCKET PAYLOAD [PAD [NUMBER]]	one packet, of PAD bytes at least
 *	burst SOCKET COUNT PAYLOAD	so many of them
 *	raw SOCKET HEX		a datagram as it is
 *	answer on|off		PATH_CHALLENGEs are answered where they come from
 *	ecn on|off		acknowledgements that are sent have counts; off at the beginning
 *	ack on|off		every packet is acknowledged at once
 *	ack challenges		a PATH_CHALLENGE: alone, and then with all before it
 *	tos SOCKET VALUE	of what leaves
 *	wait MILLISECONDS	nothing but taking what comes
 *	until FILE		the same, for as long as there is no such file
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_alg.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "ends.h"
#include "near.h"

#define TAG	    16
#define IV	    12
#define NUMBER_SIZE 4
#define BASE	    65536
#define LARGEST	    1500
#define SOCKETS	    8
#define GUESSES	    256

struct side {
	int aead, hp;
	uint8_t iv[IV];
};

static struct side tx, rx;
static uint8_t cid[20];
static size_t cid_size, rx_cid_size;
static uint64_t next_number = BASE;
static struct end remotes[SOCKETS];
static int sockets[SOCKETS];
static unsigned int socket_count;
static bool answering, acking, acking_challenges, counting;
static uint64_t highest, counts[3];

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static size_t from_hex(const char *text, uint8_t *out, size_t room)
{
	size_t size = 0;
	unsigned int byte;

	for (; text[0] && text[1] && size < room && sscanf(text, "%2x", &byte) == 1; text += 2)
		out[size++] = byte;
	return size;
}

static void say_hex(const uint8_t *data, size_t size)
{
	printf(" ");
	if (!size)
		printf("-");
	while (size--)
		printf("%02x", *data++);
}

/* --- the kernel's ciphers --- */

static int cipher(const char *type, const char *name, const uint8_t *key, bool tagged)
{
	struct sockaddr_alg address = {.salg_family = AF_ALG};
	int fd = socket(AF_ALG, SOCK_SEQPACKET, 0), made;

	strcpy((char *)address.salg_type, type);
	strcpy((char *)address.salg_name, name);
	if (fd < 0 || bind(fd, (void *)&address, sizeof(address)) ||
	    setsockopt(fd, SOL_ALG, ALG_SET_KEY, key, 16) ||
	    (tagged && setsockopt(fd, SOL_ALG, ALG_SET_AEAD_AUTHSIZE, NULL, TAG)))
		die(name);
	made = accept(fd, NULL, NULL);
	if (made < 0)
		die(name);
	return made;
}

/* @in is the associated data, of @ad bytes, and the rest; the same of @out, which is as long as
 * what comes out: the kernel would wait for more. Its size, or -1. */
static ssize_t transform(int fd, bool encrypt, const uint8_t *iv, size_t ad, const uint8_t *in,
			 size_t size, uint8_t *out, size_t room)
{
	union {
		char bytes[CMSG_SPACE(4) + CMSG_SPACE(4) +
			   CMSG_SPACE(sizeof(struct af_alg_iv) + IV)];
		struct cmsghdr align;
	} control = {};
	struct iovec vector = {.iov_base = (void *)in, .iov_len = size};
	struct msghdr m = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes};
	struct cmsghdr *c;
	uint32_t word;

	m.msg_controllen = iv ? sizeof(control.bytes) : CMSG_SPACE(4);
	c = CMSG_FIRSTHDR(&m);
	*c = (struct cmsghdr){CMSG_LEN(4), SOL_ALG, ALG_SET_OP};
	word = encrypt ? ALG_OP_ENCRYPT : ALG_OP_DECRYPT;
	memcpy(CMSG_DATA(c), &word, 4);
	if (iv) {
		c = CMSG_NXTHDR(&m, c);
		*c = (struct cmsghdr){CMSG_LEN(4), SOL_ALG, ALG_SET_AEAD_ASSOCLEN};
		word = ad;
		memcpy(CMSG_DATA(c), &word, 4);
		c = CMSG_NXTHDR(&m, c);
		*c = (struct cmsghdr){CMSG_LEN(sizeof(struct af_alg_iv) + IV), SOL_ALG, ALG_SET_IV};
		word = IV;
		memcpy(CMSG_DATA(c), &word, 4);
		memcpy(CMSG_DATA(c) + 4, iv, IV);
	}
	if (sendmsg(fd, &m, 0) != (ssize_t)size)
		die("sendmsg to a cipher");
	return read(fd, out, room);
}

static void mask_of(const struct side *s, const uint8_t *sample, uint8_t mask[16])
{
	if (transform(s->hp, true, NULL, 0, sample, 16, mask, 16) != 16)
		die("header protection");
}

static void nonce_of(const struct side *s, uint64_t number, uint8_t nonce[IV])
{
	memcpy(nonce, s->iv, IV);
	for (int i = 0; i < 8; i++)
		nonce[IV - 1 - i] ^= (uint8_t)(number >> 8 * i);
}

/* --- packets --- */

static void transmit(unsigned int from, const uint8_t *data, size_t size)
{
	if (from >= socket_count)
		exit(3);
	if (sendto(sockets[from], data, size, 0, &remotes[from].any, remotes[from].size) < 0)
		perror("sendto");
}

static void send_numbered(unsigned int from, const uint8_t *payload, size_t size, size_t padded,
			  uint64_t number)
{
	uint8_t plain[LARGEST] = {}, packet[LARGEST + TAG], nonce[IV], mask[16];
	size_t header = 1 + cid_size + NUMBER_SIZE;
	uint32_t low = htonl((uint32_t)number);

	plain[0] = 0x43;
	memcpy(plain + 1, cid, cid_size);
	memcpy(plain + 1 + cid_size, &low, NUMBER_SIZE);
	memcpy(plain + header, payload, size);
	if (padded > header + size + TAG)
		size = padded - header - TAG;
	nonce_of(&tx, number, nonce);
	if (transform(tx.aead, true, nonce, header, plain, header + size, packet,
		      header + size + TAG) != (ssize_t)(header + size + TAG))
		die("encryption");
	mask_of(&tx, packet + header, mask);
	packet[0] ^= mask[0] & 0x1f;
	for (int i = 0; i < NUMBER_SIZE; i++)
		packet[1 + cid_size + i] ^= mask[1 + i];
	transmit(from, packet, header + size + TAG);
}

static void send_frames(unsigned int from, const uint8_t *payload, size_t size, size_t padded)
{
	send_numbered(from, payload, size, padded, next_number++);
}

static size_t put_varint(uint8_t *out, uint64_t value)
{
	uint64_t big = __builtin_bswap64(value | 3ULL << 62);

	memcpy(out, &big, 8);
	return 8;
}

/* @before: how many of those before it are acknowledged, too. */
static void acknowledge(unsigned int from, uint64_t before)
{
	uint8_t frame[80] = {counting ? 3 : 2};
	size_t size = 1;

	size += put_varint(frame + size, highest);
	frame[size++] = 0; /* delay */
	frame[size++] = 0; /* further ranges */
	size += put_varint(frame + size, before);
	for (int i = 0; counting && i < 3; i++)
		size += put_varint(frame + size, counts[i]);
	send_frames(from, frame, size, 0);
}

static void opened(unsigned int to, uint64_t number, size_t size, unsigned int tos,
		   const uint8_t *packet, const uint8_t *payload, size_t length)
{
	static const uint8_t place[] = {0, 1, 0, 2}; /* of a count, by the codepoint */
	bool eliciting = length && payload[0] != 2 && payload[0] != 3;

	for (size_t at = 0; answering && at + 9 <= length && (payload[at] & 0xfe) == 0x1a;
	     at += 9) {
		uint8_t response[9] = {0x1b};

		memcpy(response + 1, payload + at + 1, 8);
		if (payload[at] == 0x1a)
			send_frames(to, response, sizeof(response), 1200);
	}
	while (length && !payload[length - 1])
		length--;
	printf("got %u %llu %zu %u", to, (unsigned long long)number, size, tos);
	say_hex(packet + 1, rx_cid_size);
	say_hex(payload, length);
	printf("\n");
	fflush(stdout);
	if (number > highest)
		highest = number;
	if (tos & 3)
		counts[place[tos & 3]]++;
	if (acking && eliciting)
		acknowledge(to, 0);
	if (acking_challenges && length && payload[0] == 0x1a) {
		acknowledge(0, 0);
		acknowledge(0, highest - BASE);
	}
}

static void arrived(unsigned int to, uint8_t *packet, size_t size, unsigned int tos)
{
	size_t at = 1 + rx_cid_size, header;
	uint8_t mask[16], nonce[IV], out[LARGEST + TAG];
	static uint64_t expected = BASE;
	uint32_t low = 0;
	uint64_t number;
	ssize_t done;

	if (size < at + NUMBER_SIZE + 16)
		goto bad;
	mask_of(&rx, packet + at + NUMBER_SIZE, mask);
	packet[0] ^= mask[0] & 0x1f;
	header = at + (packet[0] & 3) + 1;
	for (int i = 0; at < header; i++, at++) {
		packet[at] ^= mask[1 + i];
		low = low << 8 | packet[at];
	}
	number = number_near(expected, low, (packet[0] & 3) + 1);
	/* Who begins in the middle of a session does not know what is expected. */
	for (unsigned int tries = 0;; tries++, number += 1ULL << 8 * ((packet[0] & 3) + 1)) {
		nonce_of(&rx, number, nonce);
		done = transform(rx.aead, false, nonce, header, packet, size, out, size - TAG);
		if (done >= (ssize_t)header)
			break;
		if (tries == GUESSES || (packet[0] & 3) == 3)
			goto bad;
	}
	if (number >= expected)
		expected = number + 1;
	opened(to, number, size, tos, packet, out + header, done - header);
	return;
bad:
	printf("bad %u %zu\n", to, size);
	fflush(stdout);
}

static void receive(unsigned int at)
{
	uint8_t packet[2048], space[2 * CMSG_SPACE(4)];
	struct iovec vector = {packet, sizeof(packet)};
	struct msghdr m = {.msg_iov = &vector,
			   .msg_iovlen = 1,
			   .msg_control = space,
			   .msg_controllen = sizeof(space)};
	ssize_t size = recvmsg(sockets[at], &m, MSG_DONTWAIT);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	if (size > 0)
		arrived(at, packet, size, c ? *(uint8_t *)CMSG_DATA(c) : 0);
}

/* Takes what comes, for so long, or until there is a command to be read; whether there is. */
static bool take(int milliseconds, bool commands)
{
	struct pollfd wait[SOCKETS + 1];
	struct timespec now;
	int64_t end = 0, left = -1;

	for (;;) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (milliseconds >= 0) {
			int64_t at = now.tv_sec * 1000LL + now.tv_nsec / 1000000;

			end = end ?: at + milliseconds;
			left = end - at;
			if (left <= 0)
				return false;
		}
		for (unsigned int i = 0; i < socket_count; i++)
			wait[i] = (struct pollfd){.fd = sockets[i], .events = POLLIN};
		wait[socket_count] = (struct pollfd){.fd = commands ? 0 : -1, .events = POLLIN};
		if (poll(wait, socket_count + 1, (int)left) < 0)
			die("poll");
		for (unsigned int i = 0; i < socket_count; i++)
			if (wait[i].revents)
				receive(i);
		if (wait[socket_count].revents)
			return true;
	}
}

/* --- commands --- */

static void command(char *line)
{
	char *words[6] = {};
	uint8_t bytes[LARGEST];
	unsigned int from = 0;
	size_t size;

	for (int i = 0; i < 6 && (words[i] = strtok(i ? NULL : line, " \n")); i++)
		;
	if (!words[0] || !words[1])
		return;
	if (words[2])
		from = atoi(words[1]);
	if (!strcmp(words[0], "cid")) {
		cid_size = from_hex(words[1], cid, sizeof(cid));
	} else if (!strcmp(words[0], "send") && words[2]) {
		size = from_hex(words[2], bytes, sizeof(bytes));
		send_numbered(from, bytes, size, words[3] ? atoi(words[3]) : 0,
			      words[3] && words[4] ? strtoull(words[4], NULL, 10) : next_number++);
	} else if (!strcmp(words[0], "burst") && words[3]) {
		size = from_hex(words[3], bytes, sizeof(bytes));
		for (int left = atoi(words[2]); left > 0; left--)
			send_frames(from, bytes, size, 0);
	} else if (!strcmp(words[0], "raw") && words[2]) {
		size = from_hex(words[2], bytes, sizeof(bytes));
		transmit(from, bytes, size);
	} else if (!strcmp(words[0], "tos") && words[2]) {
		end_traffic_class(&remotes[from], sockets[from], atoi(words[2]));
	} else if (!strcmp(words[0], "answer")) {
		answering = !strcmp(words[1], "on");
	} else if (!strcmp(words[0], "ack")) {
		acking = !strcmp(words[1], "on");
		acking_challenges = !strcmp(words[1], "challenges");
	} else if (!strcmp(words[0], "ecn")) {
		counting = !strcmp(words[1], "on");
	} else if (!strcmp(words[0], "wait")) {
		take(atoi(words[1]), false);
	} else if (!strcmp(words[0], "until")) {
		while (access(words[1], F_OK))
			take(50, false);
	} else {
		fprintf(stderr, "not a command: %s\n", words[0]);
		exit(2);
	}
}

static void read_side(struct side *s)
{
	uint8_t key[16], hp[16];

	if (from_hex(strtok(NULL, ":"), key, 16) != 16 ||
	    from_hex(strtok(NULL, ":"), s->iv, IV) != IV ||
	    from_hex(strtok(NULL, ":"), hp, 16) != 16)
		exit(2);
	s->aead = cipher("aead", "gcm(aes)", key, true);
	s->hp = cipher("skcipher", "ecb(aes)", hp, false);
}

/* "PORT", or "PORT,REMOTE,LOCAL" */
static void open_socket(char *words, const char *remote, uint16_t remote_port, const char *local)
{
	char *port = strtok(words, ","), *other = strtok(NULL, ",");
	struct end bound;

	if (other) {
		remote = other;
		local = strtok(NULL, ",");
	}
	remotes[socket_count] = end_of(remote, remote_port);
	bound = end_of(local, atoi(port));
	sockets[socket_count] = end_socket(&bound);
	if (sockets[socket_count] < 0 || bind(sockets[socket_count], &bound.any, bound.size))
		die("socket");
	socket_count++;
}

int main(int argc, char **argv)
{
	static char line[8192], keys[512];

	if (argc < 7)
		return 2;
	snprintf(keys, sizeof(keys), "x:%s", argv[1]);
	strtok(keys, ":");
	read_side(&tx);
	read_side(&rx);
	rx_cid_size = atoi(argv[2]);
	for (int i = 6; i < argc && socket_count < SOCKETS; i++)
		open_socket(argv[i], argv[3], atoi(argv[4]), argv[5]);
	setvbuf(stdin, NULL, _IONBF, 0);
	printf("open\n");
	fflush(stdout);
	while (take(-1, true) && fgets(line, sizeof(line), stdin))
		command(line);
	return 0;
}
