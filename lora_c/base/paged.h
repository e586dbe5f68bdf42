/* Memory whose pages lie in a file without a name. */
#ifndef LORA_BASE_PAGED_H
#define LORA_BASE_PAGED_H

#include "lora_c/memory.h"

/** A shared mapping of a new file in folder with all its blocks taken, zeroed. Errors: EINVAL, ENOMEM, as lora_paged_alloc. */
lora_status lora_map_file(const char *folder, size_t bytes, void **out, lora_error *err) LORA_MUST_CHECK;
void lora_unmap_file(void *p, size_t bytes);
/** Of the pages that lie whole in the range where it is done with; of those that it touches where it is used soon. */
void lora_advise_pages(void *p, size_t bytes, lora_page_use use);

#endif
