/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that a client has sent in two datagrams (joiner.c). The content of each is
 *
 *   identifier 2 | QRE_PART_SECOND in the second, and the packet's length 2 | its first, or last
 *   bytes
 *
 * as qre/wire/datagram.py and docs/specification.md have it. Bottom halves are off.
 */
#ifndef QRE_JOINER_H
#define QRE_JOINER_H

#include <linux/types.h>

#define QRE_PART_HEAD	4
#define QRE_PART_SECOND 0x8000
#define QRE_SPLIT_MAX	1500 /* the longest packet in two parts */

struct qre_device;
struct qre_joiner;
struct sk_buff;

/* Of one session. NULL: no memory */
struct qre_joiner *qre_joiner_new(void);
void qre_joiner_free(struct qre_joiner *j);
/* A part of @size bytes arrived, with this codepoint. The packet that it completes, of any bytes,
 * and in *@ecn that of both; NULL: none, and what was dropped for it was counted. */
struct sk_buff *qre_join(struct qre_joiner *j, struct qre_device *qdev, const u8 *content,
			 size_t size, u8 *ecn);

#endif
