/* SPDX-License-Identifier: GPL-2.0-only */
/* The way of inner packets to the stack (gro.c). */
#ifndef QRE_GRO_H
#define QRE_GRO_H

struct net_device;
struct qre_gro;
struct sk_buff;

struct qre_gro *qre_gro_new(struct net_device *dev); /* NULL: no memory */
/* The device has no packet under way. Process context */
void qre_gro_free(struct qre_gro *gro);
/* Consumes @skb, of the device. Bottom halves are off, under RCU. */
void qre_gro_receive(struct qre_gro *gro, struct sk_buff *skb);

#endif
