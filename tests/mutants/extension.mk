# The extension from the objects of the Makefile, so that a mutant costs the files that it changes. Warnings are no errors here,
# but for those where arguments of wrong types went unseen.
include Makefile
CFLAGS := $(filter-out -Wall -Wextra -Werror,$(CFLAGS)) -w -Werror=int-conversion -Werror=incompatible-pointer-types \
	-I$(shell $(MUTANTS_PYTHON) -c 'import sysconfig; print(sysconfig.get_paths()["include"])') \
	-I$(shell $(MUTANTS_PYTHON) -c 'import numpy; print(numpy.get_include())')
BINDING_OBJECTS := $(patsubst %.c,$(BUILD)/%.o,$(wildcard lora_c/bindings/*.c))
EXTENSION := python/lora_c/_core$(shell $(MUTANTS_PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')

.PHONY: mutant
mutant: $(BUILD)/check $(TEST_BACKENDS) $(EXTENSION)

$(EXTENSION): $(BINDING_OBJECTS) $(OBJECTS)
	@$(CC) $(CFLAGS) -shared $^ -lm -ldl -o $@

-include $(BINDING_OBJECTS:.o=.d)
