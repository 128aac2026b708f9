/* SPDX-License-Identifier: GPL-2.0-only */
/* Raw generic netlink for what pokes qre.ko: one request at a time, the errno and the kernel's
 * words back. */
#ifndef GENL_H
#define GENL_H

#include <errno.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "uapi/qre.h"

struct genl {
	int fd;
	uint16_t family;
	uint32_t events, frames; /* groups */
	uint32_t sequence;
	char words[256]; /* of the last refusal */
	uint32_t offset; /* of the attribute that it is about, in the request; 0: none */
	uint32_t miss;	 /* the attribute that it misses; 0: none */
	uint8_t reply[65536];
	int reply_size; /* attributes of the last answer that was no error */
};

struct request {
	union {
		struct nlmsghdr header;
		uint8_t bytes[65536];
	};
};

static inline void *genl_begin(struct genl *g, struct request *r, uint16_t type, uint8_t command,
			       uint16_t flags)
{
	struct genlmsghdr *generic = NLMSG_DATA(&r->header);

	r->header = (struct nlmsghdr){
		.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN),
		.nlmsg_type = type,
		.nlmsg_flags = NLM_F_REQUEST | flags,
		.nlmsg_seq = ++g->sequence,
	};
	*generic = (struct genlmsghdr){.cmd = command, .version = 1};
	return r;
}

static inline void genl_put(struct request *r, uint16_t type, const void *data, size_t size)
{
	struct nlattr *a = (void *)(r->bytes + r->header.nlmsg_len);

	a->nla_type = type;
	a->nla_len = NLA_HDRLEN + size;
	if (size)
		memcpy((uint8_t *)a + NLA_HDRLEN, data, size);
	memset((uint8_t *)a + a->nla_len, 0, NLA_ALIGN(a->nla_len) - a->nla_len);
	r->header.nlmsg_len += NLA_ALIGN(a->nla_len);
}

static inline const struct nlattr *genl_next(const uint8_t **at, int *left)
{
	const struct nlattr *a = (const void *)*at;

	if (*left < NLA_HDRLEN || a->nla_len < NLA_HDRLEN || a->nla_len > *left)
		return NULL;
	*at += NLA_ALIGN(a->nla_len);
	*left -= NLA_ALIGN(a->nla_len);
	return a;
}

static inline void genl_words(struct genl *g, const struct nlmsghdr *n)
{
	const struct nlmsgerr *e = NLMSG_DATA(n);
	bool done = n->nlmsg_type == NLMSG_DONE; /* of a dump: an errno, then the same */
	const uint8_t *at = (const uint8_t *)e + (done ? sizeof(int) : sizeof(*e));
	int left = n->nlmsg_len - NLMSG_LENGTH(done ? sizeof(int) : sizeof(*e));
	const struct nlattr *a;

	if (!(n->nlmsg_flags & NLM_F_ACK_TLVS))
		return;
	if (!done && !(n->nlmsg_flags & NLM_F_CAPPED)) {
		at += NLMSG_ALIGN(e->msg.nlmsg_len) - sizeof(e->msg);
		left -= NLMSG_ALIGN(e->msg.nlmsg_len) - sizeof(e->msg);
	}
	while ((a = genl_next(&at, &left))) {
		const uint8_t *data = (const uint8_t *)a + NLA_HDRLEN;

		if (a->nla_type == NLMSGERR_ATTR_MSG)
			snprintf(g->words, sizeof(g->words), "%.*s", a->nla_len - NLA_HDRLEN, data);
		else if (a->nla_type == NLMSGERR_ATTR_OFFS)
			memcpy(&g->offset, data, 4);
		else if (a->nla_type == NLMSGERR_ATTR_MISS_TYPE)
			memcpy(&g->miss, data, 4);
	}
}

/* 0 or a positive errno. Every answer's attributes go to @each, the last one's stay in g->reply. */
static inline int genl_ask(struct genl *g, struct request *r,
			   void (*each)(const uint8_t *attributes, int size))
{
	static uint8_t buffer[65536];
	bool dump = (r->header.nlmsg_flags & NLM_F_DUMP) == NLM_F_DUMP;

	g->words[0] = 0;
	g->offset = 0;
	g->miss = 0;
	g->reply_size = 0;
	if (!dump)
		r->header.nlmsg_flags |= NLM_F_ACK;
	if (send(g->fd, r, r->header.nlmsg_len, 0) < 0)
		return errno;
	for (;;) {
		int size = recv(g->fd, buffer, sizeof(buffer), 0);
		struct nlmsghdr *n = (void *)buffer;

		if (size < 0)
			return errno;
		for (; NLMSG_OK(n, size); n = NLMSG_NEXT(n, size)) {
			if (n->nlmsg_seq != g->sequence)
				continue;
			if (n->nlmsg_type == NLMSG_ERROR || n->nlmsg_type == NLMSG_DONE) {
				int error = n->nlmsg_type == NLMSG_ERROR
						    ? ((struct nlmsgerr *)NLMSG_DATA(n))->error
						    : *(int *)NLMSG_DATA(n);

				genl_words(g, n);
				return -error;
			}
			g->reply_size = n->nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN);
			memcpy(g->reply, (uint8_t *)NLMSG_DATA(n) + GENL_HDRLEN, g->reply_size);
			if (each)
				each(g->reply, g->reply_size);
		}
	}
}

static inline const struct nlattr *genl_find(const uint8_t *at, int left, uint16_t type)
{
	const struct nlattr *a;

	while ((a = genl_next(&at, &left)))
		if ((a->nla_type & NLA_TYPE_MASK) == type)
			return a;
	return NULL;
}

/* Another value for an attribute of a request, of the same size. */
static inline void genl_change(struct request *r, uint16_t type, const void *data, size_t size)
{
	const uint8_t *at = (uint8_t *)NLMSG_DATA(&r->header) + GENL_HDRLEN;
	const struct nlattr *a =
		genl_find(at, r->header.nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN), type);

	if (a)
		memcpy((uint8_t *)a + NLA_HDRLEN, data, size);
}

static inline void genl_read_groups(struct genl *g, const struct nlattr *groups)
{
	const uint8_t *at = (const uint8_t *)groups + NLA_HDRLEN;
	int left = groups->nla_len - NLA_HDRLEN;
	const struct nlattr *one, *id, *name;

	while ((one = genl_next(&at, &left))) {
		const uint8_t *inside = (const uint8_t *)one + NLA_HDRLEN;
		int size = one->nla_len - NLA_HDRLEN;

		id = genl_find(inside, size, CTRL_ATTR_MCAST_GRP_ID);
		name = genl_find(inside, size, CTRL_ATTR_MCAST_GRP_NAME);
		if (!id || !name)
			continue;
		memcpy(strcmp((const char *)name + NLA_HDRLEN, QRE_GENL_FRAMES) ? &g->events
										: &g->frames,
		       (const uint8_t *)id + NLA_HDRLEN, 4);
	}
}

/* 0 or an errno: ENOENT without the module. */
static inline int genl_open(struct genl *g)
{
	struct sockaddr_nl local = {.nl_family = AF_NETLINK};
	static struct request r;
	const struct nlattr *a;
	int one = 1, error;

	memset(g, 0, sizeof(*g));
	g->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	if (g->fd < 0 || bind(g->fd, (void *)&local, sizeof(local)))
		return errno;
	setsockopt(g->fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(one));
	setsockopt(g->fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &one, sizeof(one));
	genl_begin(g, &r, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 0);
	genl_put(&r, CTRL_ATTR_FAMILY_NAME, QRE_GENL_NAME, sizeof(QRE_GENL_NAME));
	error = genl_ask(g, &r, NULL);
	if (error)
		return error;
	a = genl_find(g->reply, g->reply_size, CTRL_ATTR_FAMILY_ID);
	memcpy(&g->family, (const uint8_t *)a + NLA_HDRLEN, 2);
	a = genl_find(g->reply, g->reply_size, CTRL_ATTR_MCAST_GROUPS);
	if (a)
		genl_read_groups(g, a);
	return 0;
}

#endif
