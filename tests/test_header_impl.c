// The library as an object of its own, for programs that include only its declarations.
#define CLNET_IMPLEMENTATION
#include "../clnet.h"
