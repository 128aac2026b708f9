/* SPDX-License-Identifier: GPL-2.0-only */
/* AES-GCM without the crypto layer (direct.c): when the functions of gcm.h may be called. */
#ifndef QRE_DIRECT_H
#define QRE_DIRECT_H

#include <linux/types.h>

#ifdef CONFIG_X86_64

int qre_direct_init(void); /* a negative error: no memory */
/* True: until qre_direct_end, the functions of gcm.h may be called. Nothing sleeps there, nor asks
 * the crypto layer for anything. False: the crypto layer has to do it. Any context */
bool qre_direct_begin(void);
void qre_direct_end(void);

#else

static inline int qre_direct_init(void)
{
	return 0;
}

static inline bool qre_direct_begin(void)
{
	return false;
}

static inline void qre_direct_end(void)
{
}

#endif

#endif
