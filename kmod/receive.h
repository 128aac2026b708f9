/* SPDX-License-Identifier: GPL-2.0-only */
/* What arrives (receive.c), and the crypto requests of both directions. */
#ifndef QRE_RECEIVE_H
#define QRE_RECEIVE_H

#include <linux/scatterlist.h>
#include <linux/skbuff.h>

#include "qre.h"

struct aead_request;
struct net_device;
struct qre_key;
struct qre_session;
struct sock;

int qre_encap_rcv(struct sock *sk, struct sk_buff *skb);

/* A crypto request and what belongs to it; one a CPU is kept for the synchronous case. */
struct qre_work {
	void *context;
	struct qre_session *session;
	struct qre_key *key;
	u64 number;
	u8 first, ecn;
	union qre_peer source;
	u32 size;
	struct sk_buff *source_skb;
	struct net_device *stray_from; /* held: it is a stranger's if it does not open. Or NULL */
	struct page *page;	       /* of the piece that is decrypted into */
	u8 *piece;
	u32 piece_size, plain_size;
	u8 iv[QRE_IV_SIZE];
	u8 head[256]; /* header, DATAGRAM head, the inner packet's headers */
	struct scatterlist src[MAX_SKB_FRAGS + 3];
	unsigned int src_end; /* which entry of src is marked as the last */
	struct scatterlist opened[2], sealed[1];
	struct aead_request *request; /* behind this struct */
};
struct qre_work *qre_work_take(struct qre_key *key); /* bottom halves off */
void qre_work_give(struct qre_work *work);
/*
 * w->src: @size bytes of w->head, then what lies in @skb from @at on. How many entries the latter
 * took, or an error.
 */
int qre_work_source(struct qre_work *w, unsigned int size, struct sk_buff *skb, unsigned int at,
		    unsigned int rest);
/* The same for @rest, which does not belong to a packet. */
void qre_work_source_flat(struct qre_work *w, unsigned int size, const u8 *rest,
			  unsigned int rest_size);

int qre_work_init(void);
void qre_work_exit(void);

#endif
