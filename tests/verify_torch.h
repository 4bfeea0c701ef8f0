#ifndef CLNET_VERIFY_TORCH_H
#define CLNET_VERIFY_TORCH_H
#include "verify_operations.h"
static bool verify_torch(const verify_path *path, const char *data, const char *only) { (void)path; (void)data; (void)only; return true; }
#endif
