/* SPDX-License-Identifier: GPL-2.0-only */
/* A broken promise ends the fuzzer, which then keeps its input. */
#ifndef QRE_KMOD_CHECK_H
#define QRE_KMOD_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define check(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

#endif
