/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of qre.ko share.
 *
 * Locks, outermost first: RTNL > qre_net.lock (mutex: every change asked for by user space, and
 * every table's writers) > qre_session.lock (bottom halves off: the QUIC state of one session) >
 * qre_session.tx_lock (its packet number and transmit key, nothing else). Readers of tables use
 * RCU. Nothing is transmitted while a lock is held: packets are collected in a list and sent
 * afterwards.
 *
 * Life (docs/kernel.md has the table): an object is made whole, then published, and unpublished
 * before anything of it ends; what was refused was never found. A session is found by RCU through
 * its socket's table, its device's AllowedIPs or its device's list. Unpublishing it ends its life,
 * stops its timer, and drops the reference that the tables held; packets under way hold their own.
 * A session holds its socket; a device holds nothing of a session.
 *
 * No lock is held across what a user controls: a user's socket is never locked while a process can
 * use it. A namespace's works run in a queue of its own.
 */
#ifndef QRE_H
#define QRE_H

#include <linux/in.h>
#include <linux/types.h>

#include "address.h"
#include "uapi/qre.h"

struct workqueue_struct;

/* First byte of a short header, CID, number in four bytes; then the DATAGRAM head and the tag. */
#define QRE_NUMBER_SIZE	    4
#define QRE_HEADER_MAX	    (1 + QRE_CID_MAX + QRE_NUMBER_SIZE)
#define QRE_DATAGRAM_HEAD   3
#define QRE_TAG_SIZE	    16
#define QRE_SAMPLE_SIZE	    16
#define QRE_UDP_PAYLOAD_MAX 1472
#define QRE_NO_NUMBER	    (~0ULL)

/* For what waits for a grace period and then frees: none of it takes a namespace's lock. */
extern struct workqueue_struct *qre_wq;

#endif
