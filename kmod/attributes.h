/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef QRE_ATTRIBUTES_H
#define QRE_ATTRIBUTES_H

#include <net/netlink.h>
#include <linux/types.h>

#include "uapi/qre.h"

/* What commands take, of QRE_A_MAX + 1 entries each. */
extern const struct nla_policy qre_policy_device[], qre_policy_device_set[],
	qre_policy_device_del[], qre_policy_session[], qre_policy_session_set[],
	qre_policy_session_del[], qre_policy_cid_adopt[], qre_policy_cid_release[],
	qre_policy_descriptor[], qre_policy_nothing[], qre_policy_loader[],
	qre_policy_dest_profile[], qre_policy_frame[], qre_policy_path_proven[],
	qre_policy_give_up[], qre_policy_try_port[], qre_policy_port[];

/* -EINVAL, with words that name the attribute. The first: of what the command needs. */
int qre_check_needed(u8 command, struct nlattr **attrs, struct netlink_ext_ack *extack);
int qre_miss(u8 attribute, struct netlink_ext_ack *extack);
int qre_out_of_range(u8 attribute, struct nlattr **attrs, struct netlink_ext_ack *extack);

#endif
