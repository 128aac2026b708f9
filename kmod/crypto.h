/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef QRE_CRYPTO_H
#define QRE_CRYPTO_H

int qre_crypto_init(void);
void qre_crypto_exit(void);

#endif
