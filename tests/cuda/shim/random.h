/* Random numbers and orders of the shim: the same ones for the same seed. */
#ifndef SHIM_RANDOM_H
#define SHIM_RANDOM_H

#include <array>
#include <cstdint>
#include <cstdlib>
#include <utility>

class shim_random {
  public:
    void seed(uint64_t s) {
        state = s * 0x9E3779B97F4A7C15u + 0xD1B54A32D192ED03u;
        (void)draw(1);
    }
    uint32_t draw(uint32_t below) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (uint32_t)((state >> 32) * below >> 32);
    }
    /* One of some orders of 0 to 31. */
    const unsigned char *order_of_32() {
        static const orders made;
        return made.of[draw((uint32_t)made.of.size())].data();
    }

  private:
    struct orders {
        std::array<std::array<unsigned char, 32>, 1024> of;
        orders() {
            shim_random random;
            random.seed(1);
            for (auto &order : of) {
                for (unsigned i = 0; i < 32; i++) order[i] = (unsigned char)i;
                for (uint32_t i = 31; i > 0; i--) std::swap(order[i], order[random.draw(i + 1)]);
            }
        }
    };
    uint64_t state = 0;
};

/* By LORA_C_SHIM_SEED: another number, other orders. */
static inline shim_random shim_seeded() {
    const char *said = getenv("LORA_C_SHIM_SEED");
    shim_random made;
    made.seed(said ? strtoull(said, nullptr, 10) : 0);
    return made;
}

#endif
