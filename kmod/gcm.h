/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * AES-128-GCM (NIST SP 800-38D) by the instructions of an x86 processor that has AES, PCLMULQDQ and
 * AVX: packets that lie in one piece, sealed where they lie and opened to where they are wanted.
 * Depends on nothing but fixed-width types (see ackwin.h). In the kernel, everything here is called
 * between kernel_fpu_begin() and kernel_fpu_end() alone.
 */
#ifndef QRE_GCM_H
#define QRE_GCM_H

#include "portable.h"

#define QRE_GCM_POWERS 9 /* of eight blocks, and of the one with the lengths */

struct qre_aes { /* a key, and what follows from it for each round */
	u8 rounds[11][16];
};

struct qre_gcm {
	struct qre_aes aes;
	u8 powers[QRE_GCM_POWERS][16]; /* of the hash's key, the first one first */
};

/* Everything in them is secret: who frees them wipes them. */
void qre_aes_init(struct qre_aes *aes, const u8 key[16]);
void qre_gcm_init(struct qre_gcm *gcm, const u8 key[16]);

/* One block; @to may be @from. */
void qre_aes_block(const struct qre_aes *aes, u8 to[16], const u8 from[16]);

/* @packet: so many bytes of header, which are authenticated, so many to be encrypted in place, and
 * room for a tag of 16. */
void qre_gcm_seal(const struct qre_gcm *gcm, const u8 iv[12], u8 *packet, size_t header,
		  size_t plain);

/*
 * Decrypt @plain bytes from @from, behind which is the tag, to @to, which may be @from. False: not
 * authentic, and what is at @to then is to be used by nobody.
 */
bool qre_gcm_open(const struct qre_gcm *gcm, const u8 iv[12], const u8 *header, size_t header_size,
		  const u8 *from, size_t plain, u8 *to);

#endif
