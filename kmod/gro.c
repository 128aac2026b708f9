// SPDX-License-Identifier: GPL-2.0-only
/*
 * The way of inner packets to the stack: a queue a CPU, emptied by NAPI, so that GRO joins what
 * arrived together. As the kernel's gro_cells, but for a packet that arrived alone: there is
 * nothing to join it with, and looking for it costs a small one as much as its decryption.
 */
#include <linux/netdevice.h>
#include <linux/percpu.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include "gro.h"

#define QRE_GRO_WAITING 1000 /* packets of one CPU */

struct qre_gro_cell {
	struct sk_buff_head waiting; /* of this CPU alone, with bottom halves off */
	struct napi_struct napi;
	bool goes_on; /* the last poll left some: GRO may hold what came before them */
};

struct qre_gro {
	struct qre_gro_cell __percpu *cells;
	struct rcu_head rcu;
};

void qre_gro_receive(struct qre_gro *gro, struct sk_buff *skb)
{
	struct qre_gro_cell *cell = this_cpu_ptr(gro->cells);

	if (unlikely(!(skb->dev->flags & IFF_UP) ||
		     skb_queue_len(&cell->waiting) >= QRE_GRO_WAITING)) {
		dev_core_stats_rx_dropped_inc(skb->dev);
		kfree_skb(skb);
		return;
	}
	__skb_queue_tail(&cell->waiting, skb);
	if (skb_queue_len(&cell->waiting) == 1)
		napi_schedule(&cell->napi);
}

static int qre_gro_poll(struct napi_struct *napi, int budget)
{
	struct qre_gro_cell *cell = container_of(napi, struct qre_gro_cell, napi);
	struct sk_buff *skb;
	int done = 0;

	if (!budget) /* netpoll's: nothing may be received, and it is scheduled all the same */
		return 0;
	if (skb_queue_len(&cell->waiting) == 1 && !cell->goes_on) {
		netif_receive_skb(__skb_dequeue(&cell->waiting));
		napi_complete(napi);
		return 0;
	}
	while (done < budget && (skb = __skb_dequeue(&cell->waiting))) {
		napi_gro_receive(napi, skb);
		done++;
	}
	cell->goes_on = done == budget;
	if (!cell->goes_on)
		napi_complete(napi); /* GRO holds nothing from now on */
	return done;
}

struct qre_gro *qre_gro_new(struct net_device *dev)
{
	struct qre_gro *gro = kzalloc(sizeof(*gro), GFP_KERNEL_ACCOUNT);
	int cpu;

	if (!gro)
		return NULL;
	gro->cells = alloc_percpu_gfp(struct qre_gro_cell, GFP_KERNEL_ACCOUNT);
	if (!gro->cells) {
		kfree(gro);
		return NULL;
	}
	for_each_possible_cpu(cpu) {
		struct qre_gro_cell *cell = per_cpu_ptr(gro->cells, cpu);

		__skb_queue_head_init(&cell->waiting);
		set_bit(NAPI_STATE_NO_BUSY_POLL, &cell->napi.state);
		netif_napi_add(dev, &cell->napi, qre_gro_poll);
		napi_enable(&cell->napi);
	}
	return gro;
}

static void qre_gro_forget(struct rcu_head *rcu)
{
	struct qre_gro *gro = container_of(rcu, struct qre_gro, rcu);

	free_percpu(gro->cells);
	kfree(gro);
}

void qre_gro_free(struct qre_gro *gro)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		struct qre_gro_cell *cell = per_cpu_ptr(gro->cells, cpu);

		napi_disable(&cell->napi);
		__netif_napi_del(&cell->napi);
		__skb_queue_purge(&cell->waiting);
	}
	call_rcu(&gro->rcu, qre_gro_forget); /* whoever walks over the device's NAPIs */
}
