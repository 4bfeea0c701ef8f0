# make            builds build/clnet and build/clnet-verify (Debian packages are installed if missing)
# make demo       draws a synthetic data set, trains, evaluates, explains; leaves build/demo/report.html
# make test       all tests; the last line is "N passed, N failed, N skipped"
# make examples   builds examples/01_..., 02_...
# make deps       installs what is missing, and does nothing where all is there
# make clean      removes build/
# Variables: CC=clang, SAN=1 (address and undefined-behaviour sanitizers), OPENMP= (none)

CC = gcc
CXX = g++
B = build
OPENMP = -fopenmp
WARNINGS = -Wall -Wextra -Wshadow -Wconversion
OPTIMISE = $(if $(SAN),-O1 -g -fsanitize=address$(,)undefined -fno-sanitize-recover=all,-O3)
, := ,
CFLAGS = -std=c99 $(OPTIMISE) $(OPENMP) $(WARNINGS) -I. -Iexamples/clnet -Itests -MMD
LIBS = -lm

PROGRAM = $(patsubst examples/clnet/%.c,%,$(wildcard examples/clnet/*.c))
ROOMS = $(filter-out main,$(PROGRAM)) # everything but main, for the tests of single rooms
EXAMPLES = $(patsubst examples/%.c,$(B)/%,$(wildcard examples/0*.c))
TESTS = $(patsubst tests/%.c,$(B)/%,$(wildcard tests/test_*.c))

all: deps $(B)/clnet $(B)/clnet-verify

# Debian packages: what each is for, and how its absence is noticed.
#   libstb-dev   stb_image and stb_image_write: JPEG and PNG files (examples/clnet only)
deps:
	@if [ ! -e /usr/include/stb/stb_image.h ]; then \
	    sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	    line="$$sudo apt-get install -y --no-install-recommends libstb-dev"; \
	    echo "$$line"; $$sudo apt-get update -q && $$line; \
	fi

# All objects depend on the compiler and its flags, so that changing them rebuilds everything.
$(B)/flags: force
	@mkdir -p $(B)/rooms
	@echo '$(CC) $(CFLAGS)' | cmp -s - $@ || echo '$(CC) $(CFLAGS)' > $@

$(B)/clnet_implementation.o: clnet.h $(B)/flags
	printf '#define CLNET_IMPLEMENTATION\n#include "clnet.h"\n' | $(CC) $(CFLAGS) -x c -c - -o $@

$(B)/rooms/%.o: examples/clnet/%.c $(B)/flags | deps
	$(CC) $(CFLAGS) -c $< -o $@

$(B)/clnet: $(PROGRAM:%=$(B)/rooms/%.o) $(B)/clnet_implementation.o
	$(CC) $(CFLAGS) $^ -o $@ $(LIBS)

# Examples and tests each have their own copy of the library, as a user's program would.
$(B)/0%: examples/0%.c clnet.h $(B)/flags | deps
	$(CC) $(CFLAGS) $< -o $@ $(LIBS)

examples: $(EXAMPLES)

clean:
	rm -rf $(B)

force:
.PHONY: all deps examples clean force
.SECONDARY:

-include $(wildcard $(B)/*.d $(B)/rooms/*.d)
