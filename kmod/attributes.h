/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef QRE_ATTRIBUTES_H
#define QRE_ATTRIBUTES_H

#include <linux/netlink.h>
#include <linux/types.h>

/* -EINVAL, with words that name the attribute: one too many, one missing, a wrong size or value. */
int qre_check_attributes(u8 command, struct nlattr **attrs, struct netlink_ext_ack *extack);
int qre_miss(u8 attribute, struct netlink_ext_ack *extack);
int qre_out_of_range(u8 attribute, struct nlattr **attrs, struct netlink_ext_ack *extack);

#endif
