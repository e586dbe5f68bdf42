# make help lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS ?= .venv-peers
# Files of tests run side by side; they compute on two threads and more themselves.
PARALLEL ?= -n 2 --dist loadfile
FUZZ_CASES ?= 10000
KILLS ?= 30
SERVE_SECONDS ?= 180
MUTANTS_SEED ?= 1
C_MUTANTS ?= 60
PYTHON_MUTANTS ?= 100
DEBUG_PYTHON ?= python3-dbg
COMPILERS ?=
WHEELS ?=
PREFIX ?= /usr/local
DESTDIR ?=
SANITIZE ?=
WERROR ?= -Werror
PIC ?= -fPIC
SYSTEM_LIBS ?= -lm -ldl
MODE := $(if $(SANITIZE),sanitize,release)
BUILD := build/$(MODE)
CC ?= cc
AR ?= ar
CFLAGS := -std=c11 -O3 -g -fvisibility=hidden $(PIC) -falign-functions=64 -falign-loops=64 -ffp-contract=off -fno-math-errno -Wall -Wextra $(WERROR) -pthread -I. -Ilora_c/include \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all)
LIB_SOURCES := $(filter-out lora_c/bindings/% lora_c/cuda/%,$(wildcard lora_c/*/*.c lora_c/*/*/*.c))
CHECK_SOURCES := $(wildcard tests/c/*.c)
OBJECTS := $(LIB_SOURCES:%.c=$(BUILD)/%.o)
CHECK_OBJECTS := $(CHECK_SOURCES:%.c=$(BUILD)/%.o)
EMULATION_OBJECTS := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/emulate/*.c))
FAKE_OBJECTS := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/fake_device/fake_*.c))
TEST_BACKENDS := $(BUILD)/liblora_c_fake.so $(BUILD)/liblora_c_other_abi.so
BENCHES := $(patsubst benchmarks/%.c,$(BUILD)/%,$(wildcard benchmarks/*.c))
EXTENSION_TESTS := $(patsubst %,tests/python/test_%.py,array_arguments hostile_arguments arguments_that_change fork size_limits outputs_apart parameter_blocks layer_buffer ops nf4 ggml dora)
WITH_ASAN = LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so.6)" PYTHONMALLOC=malloc PYTHONPATH=$(CURDIR)/build/asan/lib \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
SOURCES := $(shell find lora_c -name '*.[ch]')
C_FILES = $(SOURCES) $(wildcard lora_c/cuda/*.cu lora_c/cuda/*.cuh tests/cuda/*.h tests/cuda/*.cpp tests/cuda/shim/*.h tests/cuda/shim/*.cpp tests/c/*.[ch] tests/emulate/*.[ch] tests/fake_device/*.[ch] benchmarks/*.[ch] examples/c/*.[ch])
PYTHON_FILES := python tests examples benchmarks tools setup.py
MAKEFLAGS += -j2 --no-print-directory

.PHONY: help demo api test check list-checks check-cuda check-cuda-asan check-cuda-decoder check-cuda-launches check-kernels check-kernels-compiled check-kernels-all check-cuda-c check-cuda-mutants check-cuda-python cuda tsan asan install-c uninstall-c headers layers lint format stubtest bits check-compilers check-arm check-avx-vnni check-kills check-ranks check-serve check-peers fuzz fuzz-asan test-asan test-debug wheels mutants mutants-c mutants-python bench bench-peers bench-plan clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/made pyproject.toml setup.py $(SOURCES)
	$(BIN)/pip install --quiet -e ".[test]"
	@touch $@

demo: $(VENV)/installed ## install into .venv and teach the model that ships a new task
	$(BIN)/lora-c demo --out demo-output

test: $(VENV)/installed check stubtest ## install into .venv, run the C checks and pytest
	$(BIN)/python -m pytest $(PARALLEL)

check: $(BUILD)/check $(TEST_BACKENDS) $(BENCHES) headers layers ## the C checks alone
	@$(BUILD)/check

TSAN_FAMILIES := base gemm gemm_small gemm_int8 linear attention optim gradient_tree devices watch decoder
tsan: ## the C checks whose threads meet under ThreadSanitizer
	@$(MAKE) SANITIZE=thread BUILD=build/tsan $(patsubst %,build/tsan/%,check $(notdir $(TEST_BACKENDS)))
	TSAN_OPTIONS=halt_on_error=1 build/tsan/check $(TSAN_FAMILIES)

asan: ## the C checks under ASan and UBSan
	@$(MAKE) SANITIZE=address,undefined check

install-c uninstall-c: export TO = $(DESTDIR)$(PREFIX)
install-c: $(BUILD)/liblora_c.a ## the C library, its headers and lora_c.pc below PREFIX (/usr/local), DESTDIR in front of it
	$(if $(SANITIZE),$(error SANITIZE: expected none with install-c, got $(SANITIZE): programs would need its flags))
	@sh tools/install_c.sh install $(BUILD)/liblora_c.a

uninstall-c: ## take them away again
	@sh tools/install_c.sh uninstall

headers: $(wildcard lora_c/include/lora_c/*.h) # every public header compiles alone, in C and in C++
	@for h in $^; do $(CC) -std=c11 -Wall -Wextra -Werror -Ilora_c/include -fsyntax-only -x c $$h && \
		$(CC) -std=c++17 -Wall -Wextra -Werror -Ilora_c/include -fsyntax-only -x c++ $$h || exit 1; done

layers: $(BUILD)/liblora_c.a # what compilers and type checkers do not check: directions, calls, names, sizes, writable data
	@$(PYTHON) tests/lint/lint_layers.py
	@$(PYTHON) tests/lint/lint_python.py
	@$(if $(SANITIZE),,sh tests/lint/lint_symbols.sh $(BUILD)/liblora_c.a)

lint: $(VENV)/installed layers ## layers, symbols, spills and format of the C tree, style and format of the Python tree
	sh tests/lint/lint_symbols.sh $(BUILD)/liblora_c.a python/lora_c/_core.*.so
	$(PYTHON) tests/lint/lint_spills.py $(BUILD)/liblora_c.a
	@$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)

format: $(VENV)/installed ## write every file as `make lint` wants it
	@$(BIN)/clang-format -i $(C_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)

api: $(VENV)/installed ## write docs/API.md from the docstrings
	$(BIN)/python tools/make_api.py

stubtest: $(VENV)/installed ## does _core.pyi say what the extension has
	$(BIN)/python -m mypy.stubtest lora_c._core

bits: $(VENV)/installed ## compare every recorded digest of results, on all rungs with 1 to 4 threads (20 minutes)
	$(BIN)/python tests/bits/record.py --threads 1,2,3,4

check-compilers: $(VENV)/installed ## the C checks with every compiler here, which must give the same bits (minutes each)
	@$(BIN)/python tests/compilers/check_compilers.py $(COMPILERS)

check-arm: $(VENV)/installed ## aarch64 under qemu: C checks as three CPUs, Python tests, digests; how many instructions loops have (an hour)
	@$(BIN)/python tests/compilers/check_compilers.py --arm $(COMPILERS)
	@$(BIN)/python tests/compilers/check_arm_python.py $(COMPILERS)
	@$(BIN)/python tests/lint/lint_arm_loops.py build/compilers/*-aarch64/liblora_c.a

AVX_VNNI_FAMILIES := gemm_int8 few_int8 head_int8 gemm linear linear_bound
check-avx-vnni: $(BUILD)/check_avx_vnni ## int8 kernels for AVX-VNNI on a CPU without it, its instruction emulated (5 minutes)
	@for family in $(AVX_VNNI_FAMILIES); do $(BUILD)/check_avx_vnni $$family || exit 1; done

check-kills: $(VENV)/installed ## train, sweep and compare killed at KILLS random moments each: the same bits (10 minutes)
	LORA_C_KILLS=$(KILLS) $(BIN)/python -m pytest --timeout 0 -rP tests/python/test_train_killed.py tests/python/test_sweep.py tests/python/test_compare_runs.py -k test_killed_at_any_moment

check-ranks: $(VENV)/installed ## 20 ranks of MPI that fail at random moments, and what is left of their runs (10 minutes)
	LORA_C_RANK_FAILURES=20 $(BIN)/python -m pytest --timeout 0 -rA tests/python/test_distributed.py -k at_any_moment

check-serve: $(VENV)/installed ## a server for SERVE_SECONDS of 64 clients and 16 adapters, 10,000 mutated requests, slow clients (8 minutes)
	LORA_C_SERVE_SECONDS=$(SERVE_SECONDS) LORA_C_SERVE_REQUESTS=10000 $(BIN)/python -m pytest --timeout 0 -rP tests/python/test_serve_load.py

fuzz: $(VENV)/installed ## read FUZZ_CASES damaged files per format
	$(BIN)/python tests/fuzz/run.py --cases $(FUZZ_CASES)

build/asan/lib/installed: $(VENV)/installed # the extension under ASan and UBSan
	rm -rf build/asan && mkdir -p build/asan/source
	cp -r lora_c python setup.py pyproject.toml README.md LICENSE build/asan/source/
	LORA_C_SANITIZE=address,undefined $(BIN)/pip install --quiet --no-deps --target build/asan/lib build/asan/source
	@touch $@

fuzz-asan: build/asan/lib/installed ## the same with the extension under ASan and UBSan
	$(WITH_ASAN) $(BIN)/python tests/fuzz/run.py --cases $(FUZZ_CASES) --memory 0

test-asan: build/asan/lib/installed ## pytest of what the extension is given, under ASan and UBSan
	$(WITH_ASAN) $(BIN)/python -m pytest --timeout 0 $(EXTENSION_TESTS)

test-debug: $(VENV)/installed ## pytest under a debug build of CPython (Debian: python3-dbg) with its checks of memory
	PYTHONPATH="$(CURDIR)/python:$$($(BIN)/python -c 'import numpy; print(numpy.__path__[0])')/.." PYTHONMALLOC=debug \
	$(DEBUG_PYTHON) -X dev -m pytest --timeout 0 -p no:cacheprovider

$(VENV)/wheels: $(VENV)/installed
	$(BIN)/pip install --quiet -e ".[wheels]"
	@touch $@

wheels: $(VENV)/wheels ## wheels for Linux and Windows by zig's compiler, for every Python here, into dist (20 minutes), and this Python's one tried, with those without a GIL
	$(BIN)/python tools/make_wheels.py $(WHEELS)
	sh tools/try_wheel.sh $(PYTHON) dist
	for python in python3.13t python3.14t; do ! command -v $$python || PIP="$(BIN)/python -m pip" sh tools/try_wheel.sh $$python dist || exit 1; done

$(VENV)/mutants: $(VENV)/installed
	$(BIN)/pip install --quiet -e ".[mutants]"
	@touch $@

mutants: ## wrong versions of the C and the Python tree, drawn by MUTANTS_SEED, that the tests must notice (an hour)
	@$(MAKE) mutants-c
	@$(MAKE) mutants-python

mutants-c: $(VENV)/mutants
	$(BIN)/python tests/mutants/mutate_c.py --seed $(MUTANTS_SEED) --count $(C_MUTANTS) $(MUTANTS_ARGS)

mutants-python: $(VENV)/mutants $(TEST_BACKENDS)
	$(BIN)/python tests/mutants/mutate_python.py --seed $(MUTANTS_SEED) --count $(PYTHON_MUTANTS) $(MUTANTS_ARGS)

$(PEERS)/ready: tests/peers/requirements.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet -r $<
	@touch $@

check-peers: $(VENV)/installed $(PEERS)/ready ## round trips with transformers, PEFT, bitsandbytes and gguf in a venv of their own
	PYTHONPATH=python $(PEERS)/bin/python -m pytest -W ignore -o pythonpath='tests/peers tests/python' -p no:cacheprovider tests/peers

bench: $(VENV)/installed $(BENCHES) ## speed: matrix product, attention, training step, decoding
	$(BUILD)/bench_gemm
	$(BUILD)/bench_attention
	$(BUILD)/bench_decode
	$(BUILD)/bench_few
	$(BUILD)/bench_mixed
	$(BUILD)/bench_quantize
	$(BIN)/python benchmarks/bench_step.py

bench-peers: $(VENV)/installed $(PEERS)/ready ## speed and memory beside transformers, PEFT and bitsandbytes
	$(BIN)/python benchmarks/bench_peers.py --peers $(PEERS)/bin/python

bench-plan: $(VENV)/installed ## what lora-c plan says of 16 runs against what they take (10 minutes)
	$(BIN)/python benchmarks/bench_plan.py

clean: ## remove everything that was built
	rm -rf build $(VENV) python/lora_c/*.so python/*.egg-info demo-output

include cuda.mk

$(BUILD)/check: $(CHECK_OBJECTS) $(BUILD)/liblora_c.a
	@$(CC) $(CFLAGS) $^ $(LDLIBS) $(SYSTEM_LIBS) -o $@

# The checks as they are, but for main and the detection, which tests/emulate has.
$(BUILD)/check_avx_vnni: $(EMULATION_OBJECTS) $(CHECK_OBJECTS) $(BUILD)/liblora_c.a
	@$(CC) $(CFLAGS) $^ $(LDLIBS) $(SYSTEM_LIBS) -Wl,--wrap=main,--wrap=lora_cpu_has_avx_vnni -o $@

# A device for tests: a backend with its own copy of the library, as that of another device would be.
$(BUILD)/liblora_c_fake.so: $(FAKE_OBJECTS) $(BUILD)/liblora_c.a
	@$(CC) $(CFLAGS) -shared -Wl,-z,defs $^ $(SYSTEM_LIBS) -o $@

$(BUILD)/liblora_c_other_abi.so: $(BUILD)/tests/fake_device/other_abi.o
	@$(CC) $(CFLAGS) -shared $^ -o $@

$(BENCHES): $(BUILD)/%: $(BUILD)/benchmarks/%.o $(BUILD)/liblora_c.a
	@$(CC) $(CFLAGS) $^ $(SYSTEM_LIBS) -o $@

$(BUILD)/liblora_c.a: $(OBJECTS)
	@rm -f $@
	@$(AR) rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(dir $@)
	@echo "  CC  $<"
	@$(CC) $(CFLAGS) -MMD -MP -c $< -o $@

-include $(OBJECTS:.o=.d) $(FAKE_OBJECTS:.o=.d) $(BUILD)/tests/fake_device/other_abi.d $(CHECK_OBJECTS:.o=.d) $(EMULATION_OBJECTS:.o=.d) $(patsubst benchmarks/%.c,$(BUILD)/benchmarks/%.d,$(wildcard benchmarks/*.c))
