# make            builds build/clnet, build/clnet-verify and build/clnet-bench
# make demo       draws a synthetic data set, trains, evaluates, explains; leaves build/demo/report.html
# make test       all tests; the last line is "N passed, N failed, N skipped"
# make test-cl    what needs an OpenCL device: PoCL on this CPU (installed), or any that is there
# make test-kill  kills trainings at random times for some minutes
# make bench      measures this machine: a network, its operations; leaves build/bench-*.json and a PNG
# make examples   builds examples/01_..., 02_..., ...
# make deps       installs the Debian packages that are missing; each of the above does it first
# make clean      removes build/
#
# CC=clang: another compiler. SAN=1: address and undefined-behaviour sanitizers. Changing either
# rebuilds everything.

CC = gcc
CXX = g++
B = build
MAKEFLAGS += --jobs=$(shell nproc 2>/dev/null || echo 2)
# Idle threads sleep: spinning ones slow down everything on a machine that is busy with other work.
export OMP_WAIT_POLICY = passive

WARNINGS = -Wall -Wextra -Wshadow -Wconversion
OPTIMISE = $(if $(SAN),$(SANITIZERS),-O3)
SANITIZERS = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
# Threads, where the compiler has OpenMP (clang: Debian's libomp-dev).
OPENMP := $(shell echo 'extern int omp_get_max_threads(void); int main(void) { return omp_get_max_threads() < 1; }' | \
            $(CC) -fopenmp -include omp.h -x c - -o /dev/null 2>/dev/null && echo -fopenmp)
CFLAGS = -std=c99 $(OPTIMISE) $(OPENMP) $(WARNINGS) -I. -Iexamples/clnet -Itests -MMD
LIBS = -lm -lpthread -ldl

PROGRAM = $(patsubst examples/clnet/%.c,$(B)/rooms/%.o,$(wildcard examples/clnet/*.c))
EXAMPLES = $(patsubst examples/%.c,$(B)/%,$(wildcard examples/0*.c))
UNITS = $(B)/test_api $(B)/test_networks $(B)/test_networks_double $(B)/test_pretrained \
        $(B)/test_files $(B)/test_files_double $(B)/test_pth $(B)/test_pth_double $(B)/test_metrics $(B)/test_scores $(B)/test_image \
        $(B)/test_dataset $(B)/test_picture $(B)/test_evaluation \
        $(B)/test_header_static $(B)/test_header_cxx

all: deps $(B)/clnet $(B)/clnet-verify $(B)/clnet-bench

# Debian packages and what each is for:
#   libstb-dev   stb_image and stb_image_write: JPEG and PNG files (examples/ and their tests only)
deps:
	@if [ ! -e /usr/include/stb/stb_image.h ]; then \
	    sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	    line="$$sudo apt-get install -y --no-install-recommends libstb-dev"; \
	    echo "$$line"; $$sudo apt-get update -q && $$line; \
	fi

# Everything depends on the compiler and its flags.
$(B)/flags: force
	@mkdir -p $(B)/rooms $(B)/bench
	@echo '$(CC) $(CFLAGS)' | cmp -s - $@ || echo '$(CC) $(CFLAGS)' > $@

# The library with its OpenCL backend, whose libraries are looked for at run time, and the kernels as
# bytes inside the programs.
OPENCL = -DCLNET_CL_DYNAMIC -DCLNET_CL_KERNELS_EMBEDDED=clnet_cl_kernels
$(B)/clnet_implementation.o: clnet.h clnet_cl.h $(B)/flags
	printf '#define CLNET_IMPLEMENTATION\n#define CLNET_CL_IMPLEMENTATION\n#include "clnet_cl.h"\n' | \
	    $(CC) $(CFLAGS) $(OPENCL) -x c -c - -o $@

$(B)/kernels.c: kernels.cl $(B)/flags
	{ echo 'extern const unsigned char clnet_cl_kernels[];'; \
	  echo 'const unsigned char clnet_cl_kernels[] = {'; \
	  od -An -v -tu1 $< | sed 's/\([0-9]\)\( \|$$\)/\1,\2/g'; echo '0};'; } > $@

$(B)/kernels.o: $(B)/kernels.c
	$(CC) $(CFLAGS) -c $< -o $@

$(B)/rooms/%.o: examples/clnet/%.c $(B)/flags | deps
	$(CC) $(CFLAGS) -c $< -o $@

# stb_image's arithmetic may overflow on hostile files; wrapping makes that harmless.
$(B)/rooms/image.o: CFLAGS += -fwrapv

$(B)/clnet: $(PROGRAM) $(B)/clnet_implementation.o $(B)/kernels.o
	$(CC) $(CFLAGS) $^ -o $@ $(LIBS)

# Tests take what they need of the rooms and of the library; some bring a library of their own.
$(B)/rooms.a: $(filter-out $(B)/rooms/main.o,$(PROGRAM)) $(B)/clnet_implementation.o $(B)/kernels.o
	rm -f $@ && $(AR) rcs $@ $^

# The verifier has the library twice: in float and, for the gradient checks, in double.
$(B)/verify.o: tests/verify.c $(wildcard tests/verify*.h) tests/network_case.h clnet.h clnet_cl.h $(B)/flags
	$(CC) $(CFLAGS) $(OPENCL) -c $< -o $@
$(B)/verify_gradient.o: tests/verify_gradient.c $(wildcard tests/verify*.h) clnet.h $(B)/flags
	$(CC) $(CFLAGS) -c $< -o $@
$(B)/commit.c: force
	@mkdir -p $(B)
	@commit=$$([ -e .git ] && git describe --always --dirty=" with changes" 2>/dev/null); \
	line="const char verify_commit[] = \"$$commit\";"; \
	echo "$$line" | cmp -s - $@ || echo "$$line" > $@
VERIFY = $(B)/verify.o $(B)/verify_gradient.o $(B)/commit.c $(B)/rooms/machine.o $(B)/kernels.o
$(B)/clnet-verify: $(VERIFY)
	$(CC) $(CFLAGS) $(VERIFY) -o $@ $(LIBS)

BENCH = $(patsubst bench/%.c,$(B)/bench/%.o,$(wildcard bench/*.c))
$(B)/bench/%.o: bench/%.c $(B)/flags
	$(CC) $(CFLAGS) -c $< -o $@

# The loops that find the peak of multiply-adds fuse them where the target can.
$(B)/bench/peak.o: CFLAGS += -ffp-contract=fast

$(B)/clnet-bench: $(BENCH) $(B)/rooms.a
	$(CC) $(CFLAGS) $(BENCH) $(B)/rooms.a -o $@ $(LIBS)

$(B)/clnet_double.o: clnet.h $(B)/flags
	printf '#define CLNET_IMPLEMENTATION\n#include "clnet.h"\n' | \
	    $(CC) $(CFLAGS) -DCLNET_REAL=double -x c -c - -o $@

$(B)/test_networks $(B)/test_networks_double: tests/network_case.h
$(B)/test_networks_double: tests/test_networks.c tests/test.h $(B)/clnet_double.o
	$(CC) $(CFLAGS) -DCLNET_REAL=double $< $(B)/clnet_double.o -o $@ $(LIBS)

# Two files with a library each in one program; the declarations as C++11, linked to C.
$(B)/test_header_static: tests/test_header_a.c tests/test_header_b.c clnet.h $(B)/flags
	$(CC) $(CFLAGS) tests/test_header_a.c tests/test_header_b.c -o $@ $(LIBS)

$(B)/test_header_cxx: tests/test_header_cxx.cpp $(B)/clnet_implementation.o $(B)/kernels.o
	$(CXX) -std=c++11 -Wall -Wextra -Wshadow $(if $(SAN),$(SANITIZERS)) $(OPENMP) -I. -Itests -c $< -o $@.o
	$(CC) $(CFLAGS) $@.o $(B)/clnet_implementation.o $(B)/kernels.o -o $@ $(LIBS)

# These have a library of their own; in double it also reads F64.
$(B)/test_files_double $(B)/test_pth_double: $(B)/%_double: tests/%.c tests/test.h tests/test_disk.h clnet.h $(B)/flags
	$(CC) $(CFLAGS) -DCLNET_REAL=double $< -o $@ $(LIBS)

$(B)/test_cl: clnet_cl.h
$(B)/test_files $(B)/test_pth: tests/test_disk.h
$(B)/test_%: tests/test_%.c tests/test.h $(B)/rooms.a
	$(CC) $(CFLAGS) $< $(B)/rooms.a -o $@ $(LIBS)

$(B)/0%: examples/0%.c clnet.h $(B)/flags | deps
	$(CC) $(CFLAGS) $< -o $@ $(LIBS)

examples: $(EXAMPLES)

test: all examples $(UNITS)
	@tests/run.sh "$(B)/clnet-verify" $(UNITS) "tests/cli_commands.sh $(B)/clnet" \
	    "tests/cli_train.sh $(B)/clnet" "tests/cli_paper.sh $(B)/clnet" \
	    "tests/cli_bench.sh $(B)/clnet-bench" "tests/examples.sh $(B)"

# 500 kills at random times: every checkpoint loads, every end is that of a training never killed.
test-kill: all
	tests/kill.sh $(B)/clnet 500

# An OpenCL device that is there on any machine, and one that watches every access to memory.
#   pocl-opencl-icd, ocl-icd-libopencl1   OpenCL on the CPU, and the loader of OpenCL devices
#   oclgrind                              simulates a device; tests/cl_oclgrind.sh is skipped without it
deps-cl:
	@packages=; \
	ls /etc/OpenCL/vendors/*.icd >/dev/null 2>&1 || packages="pocl-opencl-icd ocl-icd-libopencl1"; \
	command -v oclgrind >/dev/null || packages="$$packages oclgrind"; \
	if [ -n "$$packages" ]; then \
	    sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	    line="$$sudo apt-get install -y --no-install-recommends $$packages"; \
	    echo "$$line"; $$sudo apt-get update -q && $$line || ls /etc/OpenCL/vendors/*.icd; \
	fi

test-cl: deps-cl all $(B)/test_networks $(B)/test_cl
	@tests/run.sh "$(B)/clnet-verify --device opencl" "$(B)/test_networks tests/data opencl" \
	    "$(B)/test_cl" tests/cl_source.sh "tests/cl_failures.sh $(B)/test_cl 11" \
	    "tests/cl_limits.sh $(B)/test_cl $(B)/clnet-verify" "tests/cl_oclgrind.sh $(B)/test_cl" \
	    "tests/cl_commands.sh $(B)/clnet" \
	    "tests/cli_bench.sh $(B)/clnet-bench opencl"

# Every call of OpenCL fails once, and the kernels under Oclgrind with every tuning: takes minutes.
test-cl-long: deps-cl all $(B)/test_cl
	@tests/run.sh "tests/cl_failures.sh $(B)/test_cl" "tests/cl_oclgrind.sh $(B)/test_cl $(B)/clnet-verify"

demo: all
	@rm -rf $(B)/demo
	$(B)/clnet synth --out $(B)/demo/data --train 400 --validation 90 --size 128
	$(B)/clnet train $(B)/demo/data --out $(B)/demo --width 1/8 --size 64 --epochs 24 --lr 1e-3
	$(B)/clnet evaluate $(B)/demo/data --weights $(B)/demo/best.safetensors --out $(B)/demo
	$(B)/clnet explain $(B)/demo/data/ISIC-2017_Validation_Data/ISIC_000040[0-5].jpg \
	    --weights $(B)/demo/best.safetensors --out $(B)/demo/explain --panel $(B)/demo/cam.png
	@echo "the report: $(B)/demo/report.html"

# Two minutes or less on a laptop; `build/clnet-bench help` for more.
bench: all
	$(B)/clnet-bench model --save $(B)/bench-model.json
	$(B)/clnet-bench ops --quick --save $(B)/bench-ops.json --roofline $(B)/bench-roofline.png

clean:
	rm -rf $(B)

force:
.PHONY: all deps deps-cl examples test test-cl test-cl-long test-kill demo bench clean force
.SECONDARY:

-include $(wildcard $(B)/*.d $(B)/rooms/*.d $(B)/bench/*.d)
