// BLAS's sbgemm_: C = alpha op(A) op(B) + beta C, where A and B are bfloat16 and C is float (stand-in.nix says why).
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static float widen(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

void sbgemm_(const char *trans_a, const char *trans_b, const int *m, const int *n, const int *k, const float *alpha,
             const uint16_t *a, const int *lda, const uint16_t *b, const int *ldb, const float *beta, float *c, const int *ldc) {
    // Lower case by this bit; "N" alone means as it stands.
    int turned_a = (*trans_a | 32) != 'n', turned_b = (*trans_b | 32) != 'n';
    for (ptrdiff_t j = 0; j < *n; j++)
        for (ptrdiff_t i = 0; i < *m; i++) {
            float sum = 0, *target = &c[i + j * *ldc];
            for (ptrdiff_t l = 0; l < *k; l++)
                sum += widen(turned_a ? a[l + i * *lda] : a[i + l * *lda]) * widen(turned_b ? b[j + l * *ldb] : b[l + j * *ldb]);
            *target = *alpha * sum + (*beta == 0 ? 0 : *beta * *target);
        }
}
