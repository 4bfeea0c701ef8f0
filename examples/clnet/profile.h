// Where the time went: the table behind --profile.
#ifndef CLNET_PROGRAM_PROFILE_H
#define CLNET_PROGRAM_PROFILE_H

#include "clnet.h"

// Prints the context's profile, the longest row first, then node by node in their order; nothing where
// none was asked for.
void profile_print(const clnet_context *ctx);

#endif
