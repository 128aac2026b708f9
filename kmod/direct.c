// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whether this processor does AES-GCM by gcm.c, and when. It was compared with the crypto layer
 * before the first packet. On x86 alone.
 */
#include <crypto/aead.h>
#include <linux/random.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <asm/cpufeature.h>
#include <asm/fpu/api.h>
#include "direct.h"
#include "gcm.h"
#include "qre.h"

#define QRE_CHECKED 1500 /* bytes of the longest packet that is compared */

static bool qre_direct __read_mostly;

bool qre_direct_begin(void)
{
	if (unlikely(!qre_direct || !irq_fpu_usable()))
		return false;
	kernel_fpu_begin();
	return true;
}

void qre_direct_end(void)
{
	kernel_fpu_end();
}

static bool qre_processor_can(void)
{
	return boot_cpu_has(X86_FEATURE_AES) && boot_cpu_has(X86_FEATURE_PCLMULQDQ) &&
	       boot_cpu_has(X86_FEATURE_AVX) &&
	       cpu_has_xfeatures(XFEATURE_MASK_SSE | XFEATURE_MASK_YMM, NULL);
}

/* Whether both seal a packet of any bytes alike, and only that one opens: -EBADMSG when not. */
static int qre_compare(struct crypto_aead *aead, struct aead_request *request,
		       const struct qre_gcm *gcm, u8 *expected, u8 *sealed, unsigned int header,
		       unsigned int plain)
{
	unsigned int size = header + plain + QRE_TAG_SIZE;
	u8 iv[QRE_IV_SIZE], given[QRE_IV_SIZE];
	struct scatterlist sg;
	DECLARE_CRYPTO_WAIT(wait);
	bool same;
	int error;

	get_random_bytes(iv, sizeof(iv));
	memcpy(given, iv, sizeof(iv));
	get_random_bytes(expected, header + plain);
	memcpy(sealed, expected, header + plain);
	sg_init_one(&sg, expected, size);
	aead_request_set_callback(request, CRYPTO_TFM_REQ_MAY_SLEEP, crypto_req_done, &wait);
	aead_request_set_ad(request, header);
	aead_request_set_crypt(request, &sg, &sg, plain, given);
	error = crypto_wait_req(crypto_aead_encrypt(request), &wait);
	if (error)
		return error;
	kernel_fpu_begin();
	qre_gcm_seal(gcm, iv, sealed, header, plain);
	same = !memcmp(sealed, expected, size) &&
	       qre_gcm_open(gcm, iv, sealed, header, sealed + header, plain, expected);
	sealed[size - 1] ^= 1;
	same = same && !qre_gcm_open(gcm, iv, sealed, header, sealed + header, plain, expected);
	kernel_fpu_end();
	return same ? 0 : -EBADMSG;
}

/* The same of packets of many sizes, with a key of no other use. */
static int qre_direct_check(struct crypto_aead *aead)
{
	struct aead_request *request = aead_request_alloc(aead, GFP_KERNEL);
	u8 *buffer = kmalloc(2 * QRE_CHECKED, GFP_KERNEL), key[QRE_KEY_SIZE];
	struct qre_gcm gcm;
	unsigned int plain;
	int error = -ENOMEM;

	if (!request || !buffer)
		goto free;
	get_random_bytes(key, sizeof(key));
	kernel_fpu_begin();
	qre_gcm_init(&gcm, key);
	kernel_fpu_end();
	error = crypto_aead_setkey(aead, key, sizeof(key))
			?: crypto_aead_setauthsize(aead, QRE_TAG_SIZE);
	for (plain = 0; !error && plain < 1450; plain += plain < 300 ? 1 : 37)
		error = qre_compare(aead, request, &gcm, buffer, buffer + QRE_CHECKED,
				    2 + plain % 24, plain);
free:
	kfree(buffer);
	aead_request_free(request);
	return error;
}

int qre_direct_init(void)
{
	struct crypto_aead *aead;
	int error;

	if (!qre_processor_can())
		return 0;
	aead = crypto_alloc_aead("gcm(aes)", 0, 0);
	if (IS_ERR(aead))
		return PTR_ERR(aead);
	error = qre_direct_check(aead);
	crypto_free_aead(aead);
	qre_direct = !error;
	return WARN_ON(error == -EBADMSG) ? 0 : error;
}
