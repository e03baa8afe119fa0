// In place of cuBLAS's header, of which vLLM's torch_utils.h only names the handle: the library itself is not used.
#pragma once

typedef struct cublasContext* cublasHandle_t;
