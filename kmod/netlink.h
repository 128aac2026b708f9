/* SPDX-License-Identifier: GPL-2.0-only */
/* The generic netlink family (netlink.c). */
#ifndef QRE_NETLINK_H
#define QRE_NETLINK_H

int qre_netlink_init(void);
void qre_netlink_exit(void);

#endif
