#ifndef CLNET_VERIFY_VIEWS_H
#define CLNET_VERIFY_VIEWS_H
#include "verify_operations.h"
static void verify_views(void) { }
#endif
