/* SPDX-License-Identifier: GPL-2.0-only */
/* What arrives (receive.c), and the crypto requests of both directions. */
#ifndef QRE_RECEIVE_H
#define QRE_RECEIVE_H

#include <linux/scatterlist.h>
#include <linux/skbuff.h>

#include "pages.h"
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
	struct qre_address source;
	u32 size;
	struct sk_buff *source_skb;
	struct net_device *stray_from; /* held: it is a stranger's if it does not open. Or NULL */
	struct page *page;	       /* of the piece that is decrypted into */
	enum qre_pool pool;
	u8 *piece;
	u32 piece_size, plain_size;
	u8 iv[QRE_IV_SIZE];
	u8 head[QRE_HEADER_MAX + QRE_SAMPLE_SIZE]; /* header, and what its mask is made of */
	struct scatterlist src[MAX_SKB_FRAGS + 3];
	unsigned int src_end; /* which entry of src is marked as the last */
	struct scatterlist opened[2], sealed[1];
	struct aead_request *request; /* behind this struct */
};
struct qre_work *qre_work_take(struct qre_key *key); /* bottom halves off */
void qre_work_give(struct qre_work *work);

int qre_work_init(void);
void qre_work_exit(void);

#endif
