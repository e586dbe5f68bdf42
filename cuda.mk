# The CUDA plug-in: for GPUs with nvcc, and on the shim (tests/cuda/shim) with the C++ compiler.
NVCC ?= nvcc
CUDA_ARCHS ?= 90a
CUDA_SOURCES := $(wildcard lora_c/cuda/*.cu)
CUDA_HOST_SOURCES := $(wildcard lora_c/cuda/*.c)
SHIM_SOURCES := $(wildcard tests/cuda/shim/*.cpp)
CXX ?= c++
SHIM_FLAGS := -std=c++17 $(if $(SANITIZE),-O1,-O3 -march=native) -g -fvisibility=hidden -fPIC -ffp-contract=off -fno-math-errno -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-uninitialized -Wno-maybe-uninitialized -Itests/cuda/shim -I. -Ilora_c/include \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all)
SHIM_OBJECTS := $(CUDA_SOURCES:%.cu=$(BUILD)/shim/%.o) $(SHIM_SOURCES:%.cpp=$(BUILD)/shim/%.o) \
	$(patsubst %.c,$(BUILD)/%.o,$(filter-out lora_c/cuda/cudart.c,$(CUDA_HOST_SOURCES)))

# Families of the C checks that run on devices and end in minutes there.
CHECKS ?= backend backend_quantize devices device_memory device_mistakes device_steps device_rows device_narrow device_half device_linear device_adapters \
	device_head device_optim attention_devices values decoder_adapters mixed_adapters virtual_tokens cache_copy adapted_globals watch profile \
	alloc_fail cuda_faults cuda_graphs device_offsets
SHIM_READY := $(BUILD)/check $(TEST_BACKENDS) $(BUILD)/liblora_c_shim.so $(BUILD)/wrong_kernels $(BUILD)/wrappers
ON_SHIM := LORA_C_BACKENDS=$(BUILD)/liblora_c_fake.so:$(BUILD)/liblora_c_shim.so

list-checks:
	@echo $(CHECKS)

check-cuda-c: $(SHIM_READY) ## the CUDA plug-in without a GPU: the C checks (CHECKS) on its kernels, emulated
	@$(BUILD)/wrappers
	@$(ON_SHIM) $(BUILD)/check $(CHECKS)

check-cuda-asan: ## the kernels under ASan and UBSan on it
	@$(MAKE) SANITIZE=address,undefined check-cuda-c CHECKS="device_rows device_linear attention_devices device_head device_optim"

check-cuda-decoder: $(SHIM_READY) ## the whole model on it (minutes)
	@$(ON_SHIM) $(BUILD)/check decoder

check-cuda-launches: $(VENV)/installed $(SHIM_READY) ## every launch of the C checks against the limits of every architecture (minutes)
	@$(BIN)/python tests/cuda/check_launches.py

# The disassembler, and CuTe's headers alone: what nvidia-cutlass depends on is not used.
$(VENV)/kernels: $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps "nvidia-cuda-nvdisasm>=13,<14" nvidia-cutlass==4.2.0.0
	@touch $@

check-kernels: ## registers, spills and machine code of the kernels (CUDA_ARCHS), layouts of fragments, where nvcc is
	@if command -v $(NVCC) >/dev/null; then $(MAKE) check-kernels-compiled; else echo "no nvcc: the kernels are not compiled"; fi

check-kernels-compiled: $(VENV)/kernels
	@$(BIN)/python tests/cuda/check_fragments.py
	@$(BIN)/python tests/cuda/check_kernels.py --archs $(CUDA_ARCHS)

check-kernels-all: ## the same for every architecture (4 minutes)
	@$(MAKE) check-kernels CUDA_ARCHS=75,80,86,89,90a,100,120

check-cuda-python: $(VENV)/installed $(SHIM_READY) ## the tests of Python that concern devices most, on it (tests/python/device_subset.txt)
	@$(BIN)/python -m pytest $(PARALLEL) --device shim $$(grep -v '^#' tests/python/device_subset.txt) tests/python/test_shim.py

check-cuda-mutants: $(VENV)/installed $(SHIM_READY) ## kernels without one barrier or bounds check each: every one must be noticed
	@$(BIN)/python tests/cuda/mutate.py

# They begin first: files are whole, and one that begins last would run alone.
LONGEST := $(patsubst %,tests/python/test_%.py,notebooks compare_runs training examples quantized_bases precision terminals)
check-cuda: $(VENV)/installed $(SHIM_READY) ## every proof without a GPU: all of the above and every test of Python on it
	@LORA_C_SHIM_THREADS=1 $(MAKE) --output-sync=target check-cuda-c check-cuda-asan check-cuda-decoder
	@$(MAKE) check-cuda-launches check-kernels-all check-cuda-mutants
	@LORA_C_SHIM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --no-loadscope-reorder --timeout 3000 --device shim $(LONGEST) tests/python

cuda: ## the CUDA plug-in for GPUs (CUDA_ARCHS, nvcc 13)
	@$(PYTHON) tools/build_cuda.py $(BUILD)/liblora_c_cuda.so --archs $(CUDA_ARCHS)

$(BUILD)/liblora_c_shim.so: $(SHIM_OBJECTS) $(BUILD)/liblora_c.a
	@$(CXX) $(SHIM_FLAGS) -shared -Wl,-z,defs,-z,nodelete $^ -lm -ldl -pthread -o $@

# Its kernels must each be found wrong by the shim (tests/python/test_shim.py).
WRONG_KERNELS := $(BUILD)/shim/tests/cuda/wrong_kernels.o $(filter $(BUILD)/shim/tests/%,$(SHIM_OBJECTS)) $(BUILD)/lora_c/cuda/find_cublaslt.o
$(BUILD)/wrong_kernels: $(WRONG_KERNELS) $(BUILD)/liblora_c.a
	@$(CXX) $(SHIM_FLAGS) $^ -lm -ldl -pthread -o $@

# Every function of ptx.cuh alone; on a GPU tools/build_cuda.py compiles the same file (benchmarks/gpu/part_wrappers.py).
WRAPPERS := $(BUILD)/shim/tests/cuda/wrappers.o $(filter $(BUILD)/shim/tests/%,$(SHIM_OBJECTS)) $(BUILD)/lora_c/cuda/find_cublaslt.o
$(BUILD)/wrappers: $(WRAPPERS) $(BUILD)/liblora_c.a
	@$(CXX) $(SHIM_FLAGS) $^ -lm -ldl -pthread -o $@

$(BUILD)/shim/%.o: %.cu
	@mkdir -p $(dir $@)
	@echo "  SHIM $<"
	@$(CXX) $(SHIM_FLAGS) -MMD -MP -x c++ -c $< -o $@

$(BUILD)/shim/%.o: %.cpp
	@mkdir -p $(dir $@)
	@echo "  SHIM $<"
	@$(CXX) $(SHIM_FLAGS) -MMD -MP -c $< -o $@

-include $(SHIM_OBJECTS:.o=.d) $(BUILD)/shim/tests/cuda/wrong_kernels.d $(BUILD)/shim/tests/cuda/wrappers.d
